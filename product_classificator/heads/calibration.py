"""Turn the logits of a characteristic into calibrated probabilities.

T = temperature x spread ^ exponent, where the spread of a product is the entropy of its softmax before calibration,
divided by the entropy of equal probabilities (entropy-based temperature scaling, Balanya et al. 2022).

Logits favour rare labels, as macro-F1 does: they decide which label is predicted. How probable a label is, is another
question, so probabilities get back what the frequency of labels says (`log_priors`).
"""

import math
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from product_classificator.types import Floats

Float = TypeVar("Float", bound=np.floating)

Thresholds: TypeAlias = tuple[tuple[float, float], ...]
"""(promised precision, lowest confidence that keeps it), both ascending; empty where nothing can be promised."""

_MIN_SPREAD = 1e-3


@dataclass(frozen=True)
class Characteristic:
    """A characteristic as fitted heads know it: its labels and their calibration.

    Attributes:
        labels: in the order of the columns of logits and probabilities.
        temperature: what logits are divided by, where the exponent is 0.
        temperature_exponent: how the temperature depends on the product, see the module docstring.
        log_priors: what is added to the scaled logits of each label to get probabilities; empty: nothing.
        decision_thresholds: lowest probability at which each label is assigned; multi-label characteristics only.
    """

    name: str
    labels: tuple[str, ...]
    temperature: float = 1.0
    temperature_exponent: float = 0.0
    log_priors: tuple[float, ...] = ()
    confidence_thresholds: Thresholds = ()
    decision_thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.name or not all(self.labels):
            raise ValueError(f"a characteristic and its labels need names: one of {self.name!r} is empty")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < (1 if self.is_multi_label else 2):
            raise ValueError(f"{self.name} needs two labels or more, each once")
        if not 0 < self.temperature < math.inf or not math.isfinite(self.temperature_exponent):
            raise ValueError(f"{self.name} needs a positive temperature and a finite exponent")
        if self.log_priors and (len(self.log_priors) != len(self.labels) or not np.isfinite(self.log_priors).all()):
            raise ValueError(f"{self.name} needs a finite prior for each of its labels")
        precisions = [precision for precision, _ in self.confidence_thresholds]
        shares = [share for pair in self.confidence_thresholds for share in pair]
        if not all(0 <= share <= 1 for share in shares) or precisions != sorted(set(precisions)):
            raise ValueError(f"{self.name} needs confidence thresholds from 0 to 1, their precisions ascending")
        thresholds = self.decision_thresholds
        if thresholds is not None and (len(thresholds) != len(self.labels) or not all(0 <= t <= 1 for t in thresholds)):
            raise ValueError(f"{self.name} needs a decision threshold from 0 to 1 for each of its labels")

    @property
    def is_multi_label(self) -> bool:
        """Whether a product may have any number of the labels."""
        return self.decision_thresholds is not None

    def temperatures(self, logits: Floats) -> Floats:
        """Return the (n,) temperatures of products by their (n, k) logits."""
        if not self.temperature_exponent:
            return np.full(len(logits), self.temperature, dtype=logits.dtype)
        return spreads(logits) ** self.temperature_exponent * logits.dtype.type(self.temperature)

    @property
    def decision_weights(self) -> Floats:
        """(k,) what probabilities are multiplied by to decide which label is predicted."""
        return np.exp(-np.array(self.log_priors or [0.0] * len(self.labels), dtype=np.float32))

    def promises(self, confidence: Floats) -> Floats:
        """Return the (n,) highest precisions that are promised for predictions of such confidence, 0 where none is."""
        precisions, lowest = np.array(self.confidence_thresholds or [(0.0, math.inf)], dtype=np.float32).T
        return np.append(np.float32(0), precisions)[np.searchsorted(lowest, confidence, side="right")]

    def scores(self, logits: Floats) -> Floats:
        """Return (n, k) probabilities as if all labels were equally frequent: the highest is predicted."""
        if self.is_multi_label:
            return sigmoid(logits / np.float32(self.temperature))
        return softmax(logits / self.temperatures(logits)[:, None])

    def with_priors(self, scores: Floats) -> Floats:
        """Return the (n, k) probabilities that go with scores; rows sum to 1 unless they are NaN or multi-label."""
        if not self.log_priors:
            return scores
        probabilities: Floats = scores / self.decision_weights
        probabilities /= probabilities.sum(1, keepdims=True)
        return probabilities


def spreads(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Return the (n,) entropy of the softmax as a share of the largest possible one, at least 0.001."""
    shares = softmax(logits)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    entropies = -(shares * logs).sum(1) / math.log(logits.shape[1])
    result: npt.NDArray[Float] = np.maximum(entropies, _MIN_SPREAD)
    return result


def softmax(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Return the softmax of each row of (n, k) logits."""
    powers: npt.NDArray[Float] = np.exp(logits - logits.max(1, keepdims=True))
    powers /= powers.sum(1, keepdims=True)
    return powers


def sigmoid(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Return the logistic function of logits, without overflow."""
    odds = np.exp(-np.abs(logits))
    shares: npt.NDArray[Float] = np.where(logits >= 0, 1, odds) / (1 + odds)
    return shares
