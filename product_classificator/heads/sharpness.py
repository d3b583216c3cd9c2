"""Turns logits into probabilities, given temperatures: what use needs of `calibration`, in NumPy alone.

T = temperature x spread ^ exponent, where the spread is the entropy of the undivided softmax as a share of its largest.
"""

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Float = TypeVar("Float", bound=np.floating)

_LEAST_SPREAD = 1e-3


def softmax(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Returns the (n, k) softmax of (n, k) logits, row by row."""
    powers: npt.NDArray[Float] = np.exp(logits - logits.max(1, keepdims=True))
    powers /= powers.sum(1, keepdims=True)
    return powers


def sigmoid(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Returns the logistic function of logits, of which none is too large for it."""
    odds = np.exp(-np.abs(logits))
    shares: npt.NDArray[Float] = np.where(logits >= 0, 1, odds) / (1 + odds)
    return shares


def probabilities_of(logits: npt.NDArray[Float], temperature: float, exponent: float = 0.0) -> npt.NDArray[Float]:
    """Returns (n, k) calibrated probabilities of the (n, k) logits of one characteristic."""
    return softmax(logits / temperatures_of(logits, temperature, exponent)[:, None])


def temperatures_of(logits: npt.NDArray[Float], temperature: float, exponent: float = 0.0) -> npt.NDArray[Float]:
    """Returns the (n,) temperatures that the (n, k) logits of one characteristic are divided by."""
    if not exponent:
        return np.full(len(logits), temperature, dtype=logits.dtype)
    return spreads_of(logits) ** exponent * logits.dtype.type(temperature)


def spreads_of(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Returns (n,) entropy of the softmax as a share of that of equal probabilities, not below a thousandth."""
    shares = softmax(logits)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    spreads: npt.NDArray[Float] = np.maximum(-(shares * logs).sum(1) / math.log(logits.shape[1]), _LEAST_SPREAD)
    return spreads
