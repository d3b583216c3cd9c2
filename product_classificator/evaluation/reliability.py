"""Turns probabilities, truth and decisions into figures of how far a machine may be left alone.

Decisions:
- The expected calibration error is the mean distance between how sure and how often right, over 15 bins of equally
  many products (Guo et al. 2017; bins of equal mass after Nguyen and O'Connor 2015). It is never 0: with few products
  each bin is off by chance. What chance alone leaves stands beside it: the error of probabilities that are right, on
  as many products (consistency resampling, Bröcker and Smith 2007).
- It is of the scored products. Precision of what is decided is of all products with a known label: a label that was not
  trained cannot be told, so such a value is wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from product_classificator.types import Bools, Floats, Predictions, Rows, Truth, strings

_BINS = 15
_DRAWS = 200
_CURVE_POINTS = 100


@dataclass(frozen=True)
class ReliabilityBin:
    """Products of neighbouring probabilities: the mean of these, the share that is right, and their number."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """How far the probabilities of a characteristic mean what they say.

    Attributes:
        error: expected calibration error, 0..1.
        error_by_chance: what it would be on average if the probabilities were right.
        bins: at most 15, ascending.
    """

    error: float
    error_by_chance: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Decided:
    """What of a characteristic is decided without a person.

    Attributes:
        share: of all products, 0..1.
        precision: right among those with a known label, 0..1; `None` if there are none.
        n: products that `precision` is of.
    """

    share: float
    precision: float | None
    n: int


@dataclass(frozen=True)
class ReviewScore:
    """What is left to a person.

    Attributes:
        min_precision: the share of decided values that was promised to be right.
        share: of products all characteristics of which are decided, 0..1.
        strange: share of products that are unlike anything in training, 0..1.
        characteristics: name -> what is decided of it.
    """

    min_precision: float
    share: float
    strange: float
    characteristics: Mapping[str, Decided]


def expected_calibration_error(confidence: Floats, is_right: Bools, bins: int = _BINS) -> float:
    """Returns the mean distance between confidence and accuracy over bins of equally many products, 0..1.

    Args:
        confidence: (n,) probability of the most probable label; n is 1 or more.
        is_right: (n,) whether that label is the true one.
        bins: their number; one product each if there are fewer.

    >>> expected_calibration_error(np.array([0.5, 0.5, 1, 1], np.float32), np.array([True, True, True, True]), bins=2)
    0.25
    """
    order, starts = _bins(confidence, bins)
    return _error(confidence[order], is_right[order], starts)


def reliability_of(confidence: Floats, is_right: Bools, seed: int = 0) -> Reliability:
    """Returns how far probabilities mean what they say; arguments as above, `seed` is of the chance."""
    order, starts = _bins(confidence, _BINS)
    sure, right = confidence[order].astype(np.float64), is_right[order]
    counts = np.diff(starts, append=len(sure))
    means = (np.add.reduceat(values, starts) / counts for values in (sure, right.astype(np.float64)))
    random = np.random.default_rng(seed)
    drawn = [_error(sure, random.random(len(sure)) < sure, starts) for _ in range(_DRAWS)]
    rows = zip(*(column.tolist() for column in (*means, counts)), strict=True)
    return Reliability(_error(sure, right, starts), float(np.mean(drawn)), tuple(ReliabilityBin(*row) for row in rows))


def precision_by_coverage(confidence: Floats, is_right: Bools) -> tuple[tuple[float, float], ...]:
    """Returns at most 100 (share of products, precision of the surest such share); arguments as above."""
    order = np.argsort(-confidence, kind="stable")
    n = np.arange(1, len(order) + 1)
    precision = np.cumsum(is_right[order]) / n
    kept = np.unique(np.linspace(0, len(order) - 1, min(len(order), _CURVE_POINTS)).round().astype(int))
    return tuple(zip((n[kept] / len(order)).tolist(), precision[kept].tolist(), strict=True))


def score_review(predictions: Predictions, truth: Truth) -> ReviewScore | None:
    """Returns what the decisions of predictions leave to a person; `None` without decisions or products."""
    decisions = predictions.decisions
    if decisions is None or not len(predictions):
        return None
    found = {}
    for name in predictions.characteristics:
        accepted, true = decisions.accepted[name], truth.get(name, strings([None] * len(predictions)))
        known = accepted & np.array([label is not None for label in true], dtype=bool)
        right, n = int((predictions.best(name) == true)[known].sum()), int(known.sum())
        found[name] = Decided(float(accepted.mean()), right / n if n else None, n)
    whole = np.stack([decisions.accepted[name] for name in found]).all(0)
    return ReviewScore(
        decisions.min_precision, float(whole.mean()), float(decisions.is_out_of_distribution.mean()), found
    )


def _bins(confidence: Floats, bins: int) -> tuple[Rows, Rows]:
    """Returns the order of ascending confidence, and where in it each bin starts."""
    n = len(confidence)
    bins = min(bins, n)
    return np.argsort(confidence, kind="stable"), np.arange(bins) * n // bins


def _error(sure: npt.NDArray[np.floating[Any]], right: Bools, starts: Rows) -> float:
    gaps = np.add.reduceat(sure.astype(np.float64) - right, starts)
    return float(np.abs(gaps).sum() / len(sure))
