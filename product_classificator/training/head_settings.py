"""How heads are fitted: the knobs of the two recipes, checked when they are set.

The defaults were chosen on the validation part of real products (fashion with photos, marketplace titles without).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from product_classificator.errors import DataError
from product_classificator.heads.shape import RECIPES, Recipe

_RULES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        ("min_products_per_label", "max_epochs", "patience", "batch_size", "hidden"),
        lambda value: value >= 1,
        "must be at least 1",
    ),
    (("learning_rate", "words_learning_rate"), lambda value: 0 < value < math.inf, "must be positive and finite"),
    (
        ("dropout", "modality_dropout", "word_dropout"),
        lambda value: 0 <= value < 1,
        "must be a share from 0 to below 1",
    ),
    (("weight_decay", "prior_strength", "max_words"), lambda value: 0 <= value < math.inf, "must be 0 or more, finite"),
)


@dataclass(frozen=True)
class HeadSettings:
    """How heads are fitted.

    Attributes:
        recipe: "joint" (one network over photo, text and words) or "published" (the heads of the 2024 system).
        min_products_per_label: labels of fewer products are treated as unknown.
        max_epochs: passes over the training part; the published recipe has 15.
        patience: epochs without a better validation macro-F1 after which fitting stops.
        batch_size: products per step; fewer where an epoch would have less than 50 steps.
        learning_rate: of all but the words branch.
        words_learning_rate: of the words branch, which learns by plain gradient descent; per product of a batch.
        weight_decay: of all but the words branch.
        hidden: width of the hidden layer.
        dropout: share of hidden units silenced in training; of the units of texts half as many are.
        modality_dropout: share of training products whose photo is hidden, and share whose text is.
        word_dropout: share of the words of a training text that are hidden.
        prior_strength: 0 favours the common labels as the data do, 1 treats all labels alike.
        max_words: limit of the vocabulary; with 0 a linear model of photos and texts stands for that of words.
        seed: of weights, order and dropout.
    """

    recipe: Recipe = "joint"
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
    seed: int = 0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise DataError(f"recipe must be one of {RECIPES}, got {self.recipe!r}")
        for names, is_right, rule in _RULES:
            for name in names:
                if not is_right(getattr(self, name)):
                    raise DataError(f"{name} {rule}, got {getattr(self, name)}")

    @classmethod
    def published(cls, seed: int = 0) -> "HeadSettings":
        """Returns the architecture and schedule of the 2024 system."""
        return cls(
            recipe="published",
            max_epochs=15,
            patience=15,
            batch_size=64,
            hidden=1024,
            dropout=0.2,
            weight_decay=0,
            modality_dropout=0,
            word_dropout=0,
            prior_strength=0,
            max_words=0,
            seed=seed,
        )
