"""Turns the probabilities of validation products into thresholds: from which on a value needs no person to look at it.

A precision is promised where the lower end of its Clopper-Pearson interval is at least as high, at 90 % confidence, on
the validation products above the threshold (selection with guaranteed risk, Geifman and El-Yaniv 2017, with one test
instead of a search that pays for each). A product whose label is known but was too rare to be trained counts as wrong.
So a characteristic needs 45 validation products, all right, before a precision of 0.95 is promised for any.

The thresholds of all precisions are kept, in steps of half a percent: any one can be asked for later.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from product_classificator.errors import DataError
from product_classificator.types import Bools, Decisions, Floats, Predictions, Truth

Thresholds: TypeAlias = tuple[tuple[float, float], ...]
"""(precision, probability from which on it is promised), both ascending; empty where nothing is known."""

MIN_PRECISION = 0.95
"""What is promised where nothing else is asked for."""

_DOUBT = 0.1
_STEPS = 200


def fit_thresholds(predictions: Predictions, truth: Truth) -> dict[str, Thresholds]:
    """Returns characteristic -> thresholds.

    Args:
        predictions: of products that the heads have not learned from.
        truth: characteristic -> (n,) true labels, `None` where unknown.
    """
    found = {}
    for name in predictions.characteristics:
        known = predictions.is_predicted(name) & np.array([label is not None for label in truth[name]], dtype=bool)
        is_right = predictions.best(name) == truth[name]
        found[name] = thresholds_of(predictions.confidence(name)[known], is_right[known].astype(bool))
    return found


def thresholds_of(confidence: Floats, is_right: Bools) -> Thresholds:
    """Returns for each step of precision the lowest probability that promises it.

    Args:
        confidence: (n,) probability of the most probable label.
        is_right: (n,) whether that label is the true one.
    """
    if not len(confidence):
        return ()
    from scipy.stats import beta  # a second to import, and use does without it

    order = np.argsort(-confidence, kind="stable")
    levels = confidence[order].astype(np.float64)
    # Products of one probability stand on one side of a threshold.
    ends = np.flatnonzero(np.append(levels[1:] < levels[:-1], True))
    right, n = np.cumsum(is_right[order])[ends], ends + 1
    bounds = np.where(right > 0, beta.ppf(_DOUBT, np.maximum(right, 1), n - right + 1), 0.0)
    levels = levels[ends]
    levels[-1] = 0.0  # what is promised for all products seen is promised for any other
    best = np.maximum.accumulate(np.floor(bounds[::-1] * _STEPS).astype(int))
    is_higher = np.diff(best, prepend=0) > 0
    return tuple(
        (step / _STEPS, level)
        for step, level in zip(best[is_higher].tolist(), levels[::-1][is_higher].tolist(), strict=True)
    )


def threshold_for(thresholds: Thresholds, min_precision: float) -> float:
    """Returns the probability from which on a precision is promised; above 1 where it cannot be."""
    return next((level for precision, level in thresholds if precision >= min_precision), np.inf)


def with_decisions(
    predictions: Predictions, thresholds: Mapping[str, Thresholds], strange: Bools, min_precision: float
) -> Predictions:
    """Returns predictions with which values stand: those told from their threshold on, of products not strange."""
    accepted = {
        name: (predictions.confidence(name) >= threshold_for(thresholds[name], min_precision))
        & predictions.is_predicted(name)
        & ~strange
        for name in predictions.characteristics
    }
    return replace(predictions, decisions=Decisions(min_precision, accepted, strange))


def check_precision(min_precision: float) -> None:
    """Raises `DataError` if a precision cannot be promised by anyone."""
    if not 0 < min_precision < 1:
        raise DataError(f"min_precision must be a share above 0 and below 1, got {min_precision}")
