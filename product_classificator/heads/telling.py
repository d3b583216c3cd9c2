"""Turns logits into predictions: calibrated, free of contradictions, and only of products that can be judged.

Heads of a bundle and those of an exported folder do it alike; they differ in where their logits come from.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from product_classificator.errors import DataError, nearest
from product_classificator.heads.hierarchy import Hierarchy, check_hierarchy, known_to, reconcile, with_relatives
from product_classificator.heads.selective import Thresholds
from product_classificator.heads.shape import ROWS_PER_STEP, spans_of
from product_classificator.heads.sharpness import probabilities_of, sigmoid
from product_classificator.types import Embeddings, Floats, Predictions, Rows


class Calibrated(Protocol):
    """What is known of heads beside their weights; the attributes are those of `HeadBundle`."""

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]: ...  # noqa: D102 - said above
    @property
    def temperatures(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def exponents(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def thresholds(self) -> Mapping[str, Thresholds]: ...  # noqa: D102
    @property
    def hierarchy(self) -> Hierarchy: ...  # noqa: D102
    @property
    def decision_thresholds(self) -> Mapping[str, tuple[float, ...]]: ...  # noqa: D102
    @property
    def image_dim(self) -> int: ...  # noqa: D102
    @property
    def text_dim(self) -> int: ...  # noqa: D102


def tell(
    heads: Calibrated,
    embeddings: Embeddings,
    characteristics: Sequence[str] | None,
    logits_of: Callable[[Rows], Floats],
) -> Predictions:
    """Tells the characteristics of n products.

    Args:
        heads: labels and calibration.
        embeddings: of the products.
        characteristics: which to tell; `None`: all.
        logits_of: answers the (m, all labels) logits of m of the products by their numbers.

    Raises:
        DataError: a characteristic is unknown.
    """
    wanted = tuple(heads.labels) if characteristics is None else tuple(characteristics)
    check_known(heads, wanted)
    has_image, has_text = embeddings.has_image & (heads.image_dim > 0), embeddings.has_text & (heads.text_dim > 0)
    is_known = has_image | has_text
    probabilities = {name: np.full((len(embeddings), len(heads.labels[name])), np.nan, np.float32) for name in wanted}
    known = np.flatnonzero(is_known)
    for start in range(0, len(known), ROWS_PER_STEP):
        rows = known[start : start + ROWS_PER_STEP]
        told = _probabilities(heads, logits_of(rows), with_relatives(wanted, heads.hierarchy))
        for name in wanted:
            probabilities[name][rows] = told[name]
    labels = {name: heads.labels[name] for name in wanted}
    decision_thresholds = {
        name: heads.decision_thresholds[name] for name in wanted if name in heads.decision_thresholds
    }
    return Predictions(embeddings.ids, labels, probabilities, is_known, decision_thresholds=decision_thresholds)


def check_calibration(heads: Calibrated, *, decides: bool) -> None:
    """Raises `ValueError` if what was read of heads contradicts itself.

    Args:
        heads: what was read.
        decides: whether they can promise a precision.
    """
    labels = heads.labels
    _check_labels(heads)
    check_hierarchy(heads.hierarchy)
    if known_to(heads.hierarchy, labels) != heads.hierarchy:
        raise ValueError("the hierarchy names labels that the heads do not know")
    if any(
        each.child in heads.decision_thresholds or each.parent in heads.decision_thresholds for each in heads.hierarchy
    ):
        raise ValueError("a multi-label characteristic refines none and is refined by none")
    if len(heads.temperatures) != len(labels) or not all(0 < t < math.inf for t in heads.temperatures):
        raise ValueError("every characteristic needs a positive temperature")
    if len(heads.exponents) not in (0, len(labels)) or not all(map(math.isfinite, heads.exponents)):
        raise ValueError("exponents are for every characteristic or for none, and finite")
    if decides and heads.thresholds.keys() != labels.keys():
        raise ValueError("every characteristic needs thresholds")
    if any(len(step) != 2 for steps in heads.thresholds.values() for step in steps):
        raise ValueError("a threshold is a precision and a probability")


def _check_labels(heads: Calibrated) -> None:
    if not heads.labels:
        raise ValueError("heads need a characteristic")
    for name, own in heads.labels.items():
        if len(set(own)) != len(own) or len(own) < (1 if name in heads.decision_thresholds else 2):
            raise ValueError(f"{name} needs two labels or more, each once")
    for name, decision_thresholds in heads.decision_thresholds.items():
        if len(decision_thresholds) != len(heads.labels.get(name, ())) or not all(
            0 <= cut <= 1 for cut in decision_thresholds
        ):
            raise ValueError(f"{name} needs a cut from 0 to 1 for each of its labels")


def check_known(heads: Calibrated, characteristics: Sequence[str]) -> None:
    """Raises `DataError` if a characteristic is unknown to the heads."""
    for name in characteristics:
        if name not in heads.labels:
            raise DataError(f"the heads know no characteristic {name!r}: {nearest(name, heads.labels)}")


def calibration_of(heads: Calibrated, characteristic: str) -> tuple[float, float]:
    """Returns temperature and exponent of a characteristic."""
    place = list(heads.labels).index(characteristic)
    return heads.temperatures[place], heads.exponents[place] if heads.exponents else 0.0


def _probabilities(heads: Calibrated, logits: Floats, needed: Sequence[str]) -> dict[str, Floats]:
    """Returns characteristic -> (n, labels) probabilities of those needed, which do not contradict each other."""
    spans = dict(zip(heads.labels, spans_of(map(len, heads.labels.values())), strict=True))
    told = {}
    for name in needed:
        temperature, exponent = calibration_of(heads, name)
        own = logits[:, spans[name]]
        if name in heads.decision_thresholds:
            told[name] = sigmoid(own / np.float32(temperature))
        else:
            told[name] = probabilities_of(own, temperature, exponent)
    return reconcile(told, heads.labels, heads.hierarchy)
