"""Settings of fitting heads, checked when they are set.

The defaults were chosen on validation products of real catalogs (fashion with images, marketplace titles without).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from product_classificator.errors import DataError

_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("min_products_per_label max_epochs patience batch_size hidden", lambda x: x >= 1, "must be at least 1"),
    ("learning_rate words_learning_rate", lambda x: 0 < x < math.inf, "must be positive and finite"),
    ("dropout modality_dropout word_dropout", lambda x: 0 <= x < 1, "must be at least 0 and below 1"),
    ("weight_decay prior_strength max_words", lambda x: 0 <= x < math.inf, "must be 0 or more, finite"),
)


@dataclass(frozen=True)
class HeadSettings:
    """How heads are fitted.

    Attributes:
        min_products_per_label: labels of fewer products are treated as unknown.
        max_epochs: passes over the training products.
        patience: fitting stops after so many epochs without a better validation macro-F1.
        batch_size: products per step; fewer where an epoch would have less than 50 steps.
        learning_rate: of everything but the words branch.
        words_learning_rate: of the words branch, which learns by plain gradient descent; per product of a batch.
        weight_decay: of everything but the words branch.
        hidden: width of the hidden layer.
        dropout: share of hidden units that are dropped in training; of the text embedding's half as many are.
        modality_dropout: share of training products whose image is dropped, and share whose text is.
        word_dropout: share of the words of a training text that are dropped.
        prior_strength: 0 favours common labels as the data do, 1 treats all labels alike.
        max_words: largest vocabulary; with 0 a linear layer over the embeddings replaces the words branch.
        leading_words: whether the first word and the first pair of a text count once more; `None`: where the first
            words of training texts predict labels clearly better than the last ones do.
        seed: of weights, order and dropout.
    """

    min_products_per_label: int = 10
    max_epochs: int = 10
    patience: int = 10
    batch_size: int = 256
    learning_rate: float = 1e-3
    words_learning_rate: float = 2.0
    weight_decay: float = 0.01
    hidden: int = 512
    dropout: float = 0.5
    modality_dropout: float = 0.1
    word_dropout: float = 0.1
    prior_strength: float = 0.5
    max_words: int = 100_000
    leading_words: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for names, is_valid, rule in _RULES:
            for name in names.split():
                if not is_valid(getattr(self, name)):
                    raise DataError(f"{name} {rule}, got {getattr(self, name)}")
