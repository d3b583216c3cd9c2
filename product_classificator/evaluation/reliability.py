"""Measure calibration, coverage, and the precision of the values that are accepted without review.

The expected calibration error is the mean distance between confidence and accuracy over 15 bins with equal numbers of
products (Guo et al. 2017; equal-mass bins after Nguyen and O'Connor 2015). With few products every bin is off by
chance, so it is reported with the error that perfect probabilities would have on as many (consistency resampling,
Bröcker and Smith 2007). Calibration is that of the scored products; the precision of accepted values covers all
products with a true label: a label that was not trained cannot be predicted, so such a value is wrong.
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from product_classificator.types import Bools, Floats, Predictions, Truth, strings

_BINS = 15
_DRAWS = 200
_CURVE_POINTS = 100
_MIN_LABEL_SHARE, _MIN_PRODUCT_SHARE = 0.75, 0.9


@dataclass(frozen=True)
class Coverage:
    """What a score rests on: macro-F1 flatters where labels or products are left out.

    Attributes:
        labels: labels that count in macro-F1, of `all_labels` that exist: trained, true, or too rare to train.
        products: scored products, of `all_products` with a true label.
    """

    labels: int
    all_labels: int
    products: int
    all_products: int

    @property
    def is_low(self) -> bool:
        """Whether more than a quarter of the labels or a tenth of the products are left out."""
        lacks_labels = self.labels < _MIN_LABEL_SHARE * self.all_labels
        return lacks_labels or self.products < _MIN_PRODUCT_SHARE * self.all_products

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.labels:,} of {self.all_labels:,} labels and {self.products:,} of {self.all_products:,} labelled "
            "products"
        )


@dataclass(frozen=True)
class ReliabilityBin:
    """Mean confidence, accuracy and number of products of similar confidence."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """Expected calibration error (0..1), its mean if probabilities were perfect, and its bins by confidence."""

    error: float
    error_by_chance: float
    bins: tuple[ReliabilityBin, ...]

    def chance(self) -> npt.NDArray[np.float64]:
        """Return (2, bins) accuracies between which 9 in 10 bins lie if probabilities are perfect."""
        n, confidence = np.array([(one.n, one.confidence) for one in self.bins]).T
        bounds: npt.NDArray[np.float64] = binom.ppf([[0.05], [0.95]], n, confidence) / n
        return bounds


@dataclass(frozen=True)
class AcceptedScore:
    """Accepted share of all products; share of the `n` accepted values with a true label that are right, if any."""

    share: float
    precision: float | None
    n: int


@dataclass(frozen=True)
class SelectiveScore:
    """What is accepted without review at a target precision; all numbers are from 0 to 1.

    Attributes:
        share: share of the products all of whose characteristics are accepted.
        out_of_distribution: share of the products that are unlike the training products.
    """

    min_precision: float
    share: float
    out_of_distribution: float
    characteristics: Mapping[str, AcceptedScore]


def measure_reliability(confidence: Floats, is_right: Bools, seed: int = 0) -> Reliability:
    """Return the calibration of one prediction or more by their (n,) confidence and whether they are right.

    >>> measure_reliability(np.array([0.25, 0.5, 1], np.float32), np.array([False, True, True])).error
    0.25
    """
    n = len(confidence)
    order = np.argsort(confidence, kind="stable")
    confidence64 = confidence[order].astype(np.float64)
    shares = _shares_of_ties(confidence64)
    right = shares(is_right[order])
    starts = np.arange(min(_BINS, n)) * n // min(_BINS, n)
    counts = np.diff(starts, append=n)
    means = (np.add.reduceat(values, starts) / counts for values in (confidence64, right))
    bins = tuple(ReliabilityBin(*values) for values in zip(*(c.tolist() for c in (*means, counts)), strict=True))

    def error(is_right: Bools) -> float:
        return float(np.abs(np.add.reduceat(confidence64 - shares(is_right), starts)).sum() / n)

    random = np.random.default_rng(seed)
    by_chance = float(np.mean([error(random.random(n) < confidence64) for _ in range(_DRAWS)]))
    return Reliability(error(is_right[order]), by_chance, bins)


def _shares_of_ties(confidence: npt.NDArray[np.floating]) -> Callable[[Bools], npt.NDArray[np.float64]]:
    """Return what computes how often products of the same confidence are right: no score depends on their order."""
    _, tie, n = np.unique(confidence, return_inverse=True, return_counts=True)
    return lambda is_right: (np.bincount(tie, is_right) / n)[tie]


def precision_by_coverage(confidence: Floats, is_right: Bools) -> tuple[tuple[float, float], ...]:
    """Return at most 100 pairs (share of the products, precision of the most confident such share)."""
    order = np.argsort(-confidence, kind="stable")
    n = np.arange(1, len(order) + 1)
    precision = np.cumsum(_shares_of_ties(confidence)(is_right)[order]) / n
    points = np.unique(np.linspace(0, len(order) - 1, min(len(order), _CURVE_POINTS)).round().astype(int))
    return tuple(zip((n[points] / len(order)).tolist(), precision[points].tolist(), strict=True))


def score_selective(predictions: Predictions, truth: Truth) -> SelectiveScore | None:
    """Return the scores of the accepted values; `None` if there are no decisions or no products."""
    decisions = predictions.decisions
    if decisions is None or not len(predictions):
        return None
    scores, unlabelled = {}, strings([None] * len(predictions))
    for name in predictions.characteristics:
        accepted, true = decisions.accepted[name], truth.get(name, unlabelled)
        judged = accepted & np.array([label is not None for label in true], dtype=bool)
        right, n = int((predictions.best(name) == true)[judged].sum()), int(judged.sum())
        scores[name] = AcceptedScore(float(accepted.mean()), right / n if n else None, n)
    all_accepted = np.stack([decisions.accepted[name] for name in scores]).all(0)
    out_of_distribution = float(decisions.is_out_of_distribution.mean())
    return SelectiveScore(decisions.min_precision, float(all_accepted.mean()), out_of_distribution, scores)
