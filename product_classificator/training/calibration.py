"""Turns logits into probabilities that mean what they say: of products told with .9, nine in ten are right.

Fitted logits are too sure. They are divided by a temperature (Guo et al. 2017, "On calibration of modern neural
networks"), which depends on the product: T = temperature x spread ^ exponent, where the spread is the entropy of the
undivided softmax as a share of its largest (entropy-based temperature scaling, Balanya et al. 2022). One temperature
for all is wrong where some products name their label and others do not: on the colours of 8,889 fashion goods, five
folds of the validation part, the calibration error was .030 with it and .017 with both; chance leaves .019. The order
of labels stays as it was, and with it macro-F1.

Where heads tell the few validation products all right, nothing would stop the temperature from falling (with 300
descriptions to an eighth, and one product in thirty was told wrong with .999). So it is held near 1: 210 fashion goods
to learn from and 45 for validation, three draws, calibration error .048 without and .045 with it; with 650 products for
validation and as many to judge, .020 both ways.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from product_classificator.heads.sharpness import spreads_of
from product_classificator.training.multilabel import Indicators
from product_classificator.types import Bools, Floats, Rows

_LARGEST_LOG_TEMPERATURE, _LARGEST_EXPONENT = math.log(8), 0.75
_MEASURED_ON = 20_000
_LOG_TEMPERATURE_DEVIATION, _EXPONENT_DEVIATION = 0.5, 0.3


def fit_temperatures(
    logits: Floats, label_ids: Rows, spans: Sequence[slice], borne: Mapping[int, Indicators] = MappingProxyType({})
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the temperatures and the exponents of all characteristics.

    Args:
        logits: (n, all labels), of products that the network has not learned from.
        label_ids: (n, characteristics) numbers of the true labels; -1: unknown.
        spans: columns of the logits of each characteristic.
        borne: place of each multi-label characteristic -> which labels products bear; they have one temperature.
    """
    pairs = [
        (fit_set_temperature(logits[:, span], column >= 0, borne[place]), 0.0)
        if place in borne
        else fit_temperature(logits[:, span], column)
        for place, (span, column) in enumerate(zip(spans, label_ids.T, strict=True))
    ]
    return tuple(temperature for temperature, _ in pairs), tuple(exponent for _, exponent in pairs)


def fit_temperature(logits: Floats, label_ids: Rows) -> tuple[float, float]:
    """Returns temperature and exponent under which the labels of products are the most likely.

    Args:
        logits: (n, k) of one characteristic, of products that the network has not learned from.
        label_ids: (n,) number of the true label; -1: unknown. Without a known one it is (1, 0): logits stay as they are.
    """
    from scipy.optimize import minimize  # slow to import, and use does without them
    from scipy.special import logsumexp, softmax

    known = label_ids >= 0
    own, right = logits[known].astype(np.float64), label_ids[known][:, None]
    log_spread = np.log(spreads_of(own))
    deviations = np.array([_LOG_TEMPERATURE_DEVIATION, _EXPONENT_DEVIATION])

    def loss(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        log_temperature, exponent = point.tolist()
        scaled = own / np.exp(log_temperature + exponent * log_spread)[:, None]
        scaled_right = np.take_along_axis(scaled, right, 1)[:, 0]
        surprise = logsumexp(scaled, axis=1) - scaled_right
        slopes = scaled_right - (softmax(scaled, axis=1) * scaled).sum(1)
        # Few products must not bend temperatures by much: both numbers are thought normal around 0.
        penalty = float(((point / deviations) ** 2).sum()) / 2
        slope = np.array([slopes.sum(), (slopes * log_spread).sum()]) + point / deviations**2
        return float(surprise.sum()) + penalty, slope

    bounds = [(-_LARGEST_LOG_TEMPERATURE, _LARGEST_LOG_TEMPERATURE), (-_LARGEST_EXPONENT, _LARGEST_EXPONENT)]
    log_temperature, exponent = minimize(loss, np.zeros(2), jac=True, bounds=bounds, method="L-BFGS-B").x.tolist()
    return math.exp(log_temperature), exponent


def fit_set_temperature(logits: Floats, is_known: Bools, borne: Indicators) -> float:
    """Returns the temperature under which what products bear is the most likely; 1 without known products.

    Args:
        logits: (n, k) of products that the network has not learned from.
        is_known: (n,) whether the labels of a product are known.
        borne: (n, k) of the same products.
    """
    rows = np.flatnonzero(is_known)
    if not len(rows):
        return 1.0
    rows = rows[:: -(-len(rows) // _MEASURED_ON)]  # enough to know one number
    own, targets = logits[rows].astype(np.float64), borne[rows].toarray()

    def surprise(log_temperature: float) -> float:
        scaled = own / math.exp(log_temperature)
        penalty = (log_temperature / _LOG_TEMPERATURE_DEVIATION) ** 2 / 2
        return float((np.logaddexp(0, scaled) - scaled * targets).sum()) + penalty

    from scipy.optimize import minimize_scalar  # slow to import, and use does without it

    bounds = (-_LARGEST_LOG_TEMPERATURE, _LARGEST_LOG_TEMPERATURE)
    return math.exp(float(minimize_scalar(surprise, bounds=bounds, method="bounded").x))
