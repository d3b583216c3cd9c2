"""Turns embeddings and words into logits, in NumPy: what use needs of the networks that `network` fits with torch.

To import torch takes twice as long as everything else that the answer about one product costs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from product_classificator.heads.bag_of_words import WeightedWords
from product_classificator.heads.shape import ROWS_PER_STEP, NetworkShape
from product_classificator.types import Embeddings, Floats


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class FittedNetwork:
    """A network whose weights are fixed.

    Attributes:
        shape: of the network.
        weights: name -> float32 array, those of `NetworkShape.weights`.

    Raises:
        ValueError: weights are missing, of another shape, or too many.
    """

    shape: NetworkShape
    weights: Mapping[str, Floats]

    def __post_init__(self) -> None:
        expected = {name: (shape, "float32") for name, shape in self.shape.weights().items()}
        found = {name: (weight.shape, weight.dtype.name) for name, weight in self.weights.items()}
        wrong = sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))
        if wrong:
            first = wrong[0]
            raise ValueError(
                f"weights must be those of the network, {len(wrong)} are not: of {first} is expected "
                f"{expected.get(first)}, found {found.get(first)}"
            )

    @property
    def reads_words(self) -> bool:
        """Whether there is a words branch: the published recipe has none, even where its bundle knows words."""
        return self.shape.recipe == "joint" and self.shape.n_words > 0

    @property
    def word_weights(self) -> Floats:
        """(words, all labels) what each word says, times its weight in a text."""
        return self.weights["words.weight"]

    def logits(self, embeddings: Embeddings, words: WeightedWords) -> Floats:
        """Returns the (n, all labels) float32 logits of n products, of those with neither photo nor text as well.

        Args:
            embeddings: of n products.
            words: of their texts.
        """
        answer = _ANSWERS[self.shape.recipe]
        found = np.empty((len(embeddings), sum(self.shape.n_labels)), dtype=np.float32)
        for start in range(0, len(found), ROWS_PER_STEP):
            rows = np.arange(start, min(start + ROWS_PER_STEP, len(found)))
            found[rows] = answer(self, embeddings.take(rows))
        if self.reads_words:
            words.add_to(found, self.word_weights, embeddings.has_text)
        return found


def _joint(network: FittedNetwork, embeddings: Embeddings) -> Floats:
    shape, weights = network.shape, network.weights
    seen = (_both_parts(shape, embeddings) - weights["mean"]) / weights["scale"]
    seen[~embeddings.has_image, : shape.image_dim] = 0
    seen[~embeddings.has_text, shape.image_dim :] = 0
    trunk = weights["trunk.1.weight"]
    hidden = seen @ trunk.T + weights["trunk.1.bias"]
    hidden += ~embeddings.has_image[:, None] * (trunk[:, : shape.image_dim] @ weights["missing_image"])
    hidden += ~embeddings.has_text[:, None] * (trunk[:, shape.image_dim :] @ weights["missing_text"])
    logits: Floats = np.maximum(hidden, 0) @ weights["labels.weight"].T + weights["labels.bias"]
    if not shape.n_words:
        logits += seen @ weights["straight.weight"].T
    if shape.name_dim:
        logits += _names(network, embeddings)
    return logits


def _names(network: FittedNetwork, embeddings: Embeddings) -> Floats:
    """Returns (n, all labels) scale x the mean cosine of names with the parts that a product has."""
    shape = network.shape
    sides = {"text": (embeddings.text, embeddings.has_text), "image": (embeddings.image, embeddings.has_image)}
    parts = [sides[side] for side in shape.named_sides]
    seen: Floats = np.sum([part[:, : shape.name_dim] * has[:, None] for part, has in parts], axis=0, dtype=np.float32)
    seen /= np.maximum(np.sum([has for _, has in parts], axis=0, dtype=np.float32), 1)[:, None]
    seen *= network.weights["start.scale"]
    scores: Floats = seen @ network.weights["start.names"].T
    return scores


def _published(network: FittedNetwork, embeddings: Embeddings) -> Floats:
    weights = network.weights
    parts = _both_parts(network.shape, embeddings)
    if network.shape.projected:
        parts = np.dot(parts - weights["mean"], weights["components"].T)
    heads = []
    for number in range(len(network.shape.n_labels)):
        own = f"heads.{number}"
        hidden = np.maximum(parts @ weights[f"{own}.0.weight"].T + weights[f"{own}.0.bias"], 0)
        heads.append(hidden @ weights[f"{own}.3.weight"].T + weights[f"{own}.3.bias"])
    return np.concatenate(heads, 1)


def _both_parts(shape: NetworkShape, embeddings: Embeddings) -> Floats:
    return np.concatenate([embeddings.image[:, : shape.image_dim], embeddings.text[:, : shape.text_dim]], 1)


_ANSWERS: Mapping[str, Callable[[FittedNetwork, Embeddings], Floats]] = {
    "joint": _joint,
    "published": _published,
    "zero-shot": _names,
}
