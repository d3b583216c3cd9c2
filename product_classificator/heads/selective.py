"""Turn confidences into decisions: which predictions are accepted and which a person should review.

The thresholds come from validation products (`training.thresholds.confidence_thresholds`). They are tested from the top
down on one product of each group of near-identical ones, so each promise is kept with 90 % probability.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from product_classificator.errors import DataError
from product_classificator.heads.calibration import Characteristic, Thresholds
from product_classificator.types import Bools, Decisions, Predictions

MIN_PRECISION = 0.95
"""The default promise."""


def threshold_for(thresholds: Thresholds, min_precision: float) -> float:
    """Return the lowest confidence that keeps a precision; infinity where it cannot be promised."""
    return next((confidence for precision, confidence in thresholds if precision >= min_precision), np.inf)


def with_decisions(
    predictions: Predictions,
    characteristics: Iterable[Characteristic],
    is_out_of_distribution: Bools,
    min_precision: float,
) -> Predictions:
    """Return predictions with decisions: accepted are confident predictions of products like those of the training."""
    accepted = {}
    for characteristic in characteristics:
        name, threshold = characteristic.name, threshold_for(characteristic.confidence_thresholds, min_precision)
        is_confident = predictions.confidence(name) >= threshold
        accepted[name] = is_confident & predictions.is_predicted(name) & ~is_out_of_distribution
    return replace(predictions, decisions=Decisions(min_precision, accepted, is_out_of_distribution))


def check_min_precision(min_precision: float) -> None:
    """Raise `DataError` if no predictions can have such a precision."""
    if not 0 < min_precision < 1:
        raise DataError(f"min_precision must be between 0 and 1 (exclusive), got {min_precision}")
