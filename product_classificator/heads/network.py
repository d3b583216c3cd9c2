"""Turn embeddings and bags of words into logits, in NumPy: the one network of all heads.

One hidden layer over image part and text part, shared by all characteristics, plus a linear model of the words, or of
the parts themselves, plus the cosines of the product with the embeddings of the labels. Published heads are a
block-diagonal network of this kind (`published.heads`), zero-shot heads one without a hidden layer (`zero_shot`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from product_classificator.heads.bag_of_words import WeightedWords
from product_classificator.types import Embeddings, Floats

ROWS_PER_STEP = 8192
"""Products per forward pass, which bounds the memory."""


@dataclass(frozen=True)
class NetworkShape:
    """What determines the shapes of a network's weights.

    Attributes:
        image_dim: width of the image part, 0 if images are not used.
        text_dim: width of the text part, 0 if texts are not used.
        n_labels: number of labels of each characteristic.
        hidden: width of the hidden layer, 0 for none.
        n_words: size of the vocabulary, 0 if words are not used.
        has_linear: whether a linear layer leads from the parts to the logits.
        label_dim: width of the label embeddings, 0 if there are none.
        shares_space: whether label embeddings are compared with the image part too, not only with the text part.
    """

    image_dim: int
    text_dim: int
    n_labels: tuple[int, ...]
    hidden: int
    n_words: int = 0
    has_linear: bool = False
    label_dim: int = 0
    shares_space: bool = False

    def __post_init__(self) -> None:
        widths = {width for width in (self.text_dim, self.image_dim if self.shares_space else 0) if width}
        if self.label_dim and widths != {self.label_dim}:
            raise ValueError(
                f"label embeddings {self.label_dim} wide cannot be compared with parts {sorted(widths)} wide"
            )

    @property
    def columns(self) -> list[slice]:
        """Columns of the logits of each characteristic."""
        return columns_of(self.n_labels)

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of all weights."""
        n_labels, width = sum(self.n_labels), self.image_dim + self.text_dim
        weights: dict[str, tuple[int, ...]] = {
            "mean": (width,),
            "scale": (width,),
            "hidden.weight": (self.hidden, width),
            "hidden.bias": (self.hidden,),
            "missing": (2, self.hidden),
            "labels.weight": (n_labels, self.hidden),
            "labels.bias": (n_labels,),
            "word_weights": (self.n_words, n_labels),
        }
        if self.has_linear:
            weights["linear.weight"] = (n_labels, width)
        if self.label_dim:
            weights["label_embeddings"] = (n_labels, self.label_dim)
        return weights


def columns_of(n_labels: Iterable[int]) -> list[slice]:
    """Return the columns of each characteristic in a row of the logits of all.

    >>> columns_of([2, 3])
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(start, stop) for start, stop in pairwise(accumulate(n_labels, initial=0))]


@dataclass(frozen=True, eq=False)  # arrays cannot be compared with one ==
class Network:
    """A network with fixed weights: name -> float32 array, of the shapes of `NetworkShape.weights`.

    "missing" is what the hidden layer gets in place of an image and in place of a text.
    """

    shape: NetworkShape
    weights: Mapping[str, Floats]

    def __post_init__(self) -> None:
        expected = {name: (shape, "float32") for name, shape in self.shape.weights().items()}
        actual = {name: (weight.shape, weight.dtype.name) for name, weight in self.weights.items()}
        wrong = sorted(name for name in expected.keys() | actual if expected.get(name) != actual.get(name))
        if wrong:
            raise ValueError(
                f"weights must fit the network, {len(wrong)} do not: {wrong[0]} must be {expected.get(wrong[0])}, "
                f"found {actual.get(wrong[0])}"
            )

    def logits(self, embeddings: Embeddings, words: WeightedWords) -> Floats:
        """Return the (n, all labels) float32 logits of n products, including products with neither image nor text."""
        logits = np.empty((len(embeddings), sum(self.shape.n_labels)), dtype=np.float32)
        for start in range(0, len(logits), ROWS_PER_STEP):
            rows = np.arange(start, min(start + ROWS_PER_STEP, len(logits)))
            logits[rows] = self._dense_logits(embeddings.take(rows))
        if self.shape.n_words:
            words.add_to(logits, self.weights["word_weights"], embeddings.has_text)
        return logits

    def inputs(self, embeddings: Embeddings) -> Floats:
        """Return the (n, image_dim + text_dim) standardised parts of products, 0 where one is missing."""
        image_dim = self.shape.image_dim
        parts = np.concatenate([embeddings.image[:, :image_dim], embeddings.text[:, : self.shape.text_dim]], 1)
        inputs: Floats = (parts - self.weights["mean"]) / self.weights["scale"]
        inputs[~embeddings.has_image, :image_dim] = 0
        inputs[~embeddings.has_text, image_dim:] = 0
        return inputs

    def _dense_logits(self, embeddings: Embeddings) -> Floats:
        shape, weights, inputs = self.shape, self.weights, self.inputs(embeddings)
        is_missing = [~embeddings.has_image & (shape.image_dim > 0), ~embeddings.has_text & (shape.text_dim > 0)]
        hidden = inputs @ weights["hidden.weight"].T + weights["hidden.bias"]
        hidden += np.stack(is_missing, 1).astype(np.float32) @ weights["missing"]
        logits: Floats = np.maximum(hidden, 0) @ weights["labels.weight"].T + weights["labels.bias"]
        if shape.has_linear:
            logits += inputs @ weights["linear.weight"].T
        if shape.label_dim:
            logits += self._label_scores(embeddings)
        return logits

    def _label_scores(self, embeddings: Embeddings) -> Floats:
        """Return (n, all labels) products of label embeddings and the mean of the parts that a product has."""
        shape = self.shape
        parts = [(embeddings.text, embeddings.has_text)] if shape.text_dim else []
        if shape.shares_space and shape.image_dim:
            parts.append((embeddings.image, embeddings.has_image))
        present = [part[:, : shape.label_dim] * has[:, None] for part, has in parts]
        mean: Floats = np.sum(present, axis=0, dtype=np.float32)
        mean /= np.maximum(np.sum([has for _, has in parts], axis=0, dtype=np.float32), 1)[:, None]
        scores: Floats = mean @ self.weights["label_embeddings"].T
        return scores
