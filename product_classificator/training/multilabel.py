"""Turns multi-label characteristics into targets, loss and decision_thresholds: a product bears any number of labels.

Each label is a yes or no of its own, the sigmoid of its logit. The loss of a product is the sum of the binary
cross-entropies of all labels, which is on the scale of the cross-entropy of a single-label characteristic: the
negative log-likelihood of what is known of the product. Biases start at the log-odds of the labels.

From which probability on a label is told, its cut, is chosen on the validation products for its F1. Of rare labels they
hold a handful, and the best cut for these is mostly chance. So the F1 that is maximised is that of the true labels
and of what the probabilities themselves expect, mixed: the latter weighs as much as `_PRIOR_PRODUCTS` products with
the label. Where probabilities are right, the best cut is half of the best F1 (Lipton et al. 2014, "Optimal thresholding
of classifiers to maximize F1 measure"), which bounds it at 0.5.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional

from product_classificator.heads.sharpness import sigmoid
from product_classificator.types import Bools, Floats, Strings, Truth, is_multi_label

Indicators: TypeAlias = csr_matrix
"""(n, k) float32 sparse, 1 where a product bears a label."""

Counts: TypeAlias = npt.NDArray[np.integer | np.floating]
"""(k,) products of each label."""

_PRIOR_PRODUCTS = 100.0
_LARGEST_CUT = 0.5


def indicators_of(truth: Truth, labels: Mapping[str, Sequence[str]]) -> dict[int, Indicators]:
    """Returns place of each multi-label characteristic among `labels` -> which of its labels products bear.

    Args:
        truth: characteristic -> (n,) labels.
        labels: characteristic -> its labels; others that a product bears are passed over.
    """
    places = enumerate(labels.items())
    return {place: _borne(truth[name], names) for place, (name, names) in places if is_multi_label(truth[name])}


def _borne(column: Strings, names: Sequence[str]) -> Indicators:
    numbers = {label: number for number, label in enumerate(names)}
    rows = [[numbers[label] for label in sorted(item or ()) if label in numbers] for item in column]
    starts = np.cumsum([0, *map(len, rows)])
    columns = np.array([number for row in rows for number in row], dtype=np.int64)
    return csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=(len(column), len(names)))


def loss_of(logits: Tensor, indicators: Indicators, is_known: Tensor) -> Tensor:
    """Returns the sum over known products and labels of the binary cross-entropies.

    Args:
        logits: (n, k).
        indicators: (n, k) of the same products.
        is_known: (n,) whether the labels of a product are known.
    """
    targets = torch.from_numpy(indicators.toarray())
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses.sum(1) * is_known).sum()


def log_odds(indicators: Indicators, n_known: int) -> Floats:
    """Returns (k,) log-odds of the labels among `n_known` products, as if one more bore each half."""
    counts = np.asarray(indicators.sum(0)).ravel() + 0.5
    odds: Floats = np.log(counts / (n_known + 1 - counts)).astype(np.float32)
    return odds


def decision_thresholds_of(
    logits: Floats, is_known: Bools, indicators: Indicators, temperature: float
) -> tuple[float, ...]:
    """Returns from which probability on each of k labels is told.

    Args:
        logits: (n, k) of products that the network has not learned from.
        is_known: (n,) whether the labels of a product are known.
        indicators: (n, k) of the same products.
        temperature: that of `calibration`.
    """
    probabilities = sigmoid(logits[is_known] / np.float32(temperature))
    return tuple(fit_decision_thresholds(probabilities, indicators[is_known]).tolist())


def fit_decision_thresholds(probabilities: Floats, indicators: Indicators) -> Floats:
    """Returns (k,) float32, from which probability on each label is told.

    Args:
        probabilities: (n, k) of products with known labels that the network has not learned from.
        indicators: (n, k) of the same products.
    """
    columns = indicators.tocsc()
    decision_thresholds = [_cut(own, columns[:, place].toarray()[:, 0]) for place, own in enumerate(probabilities.T)]
    return np.array(decision_thresholds, dtype=np.float32)


def _cut(probabilities: Floats, has_label: Floats) -> float:
    if not len(probabilities):
        return _LARGEST_CUT
    n_borne = has_label.sum()
    trust = n_borne / (n_borne + _PRIOR_PRODUCTS)
    order = np.argsort(-probabilities, kind="stable")
    told = probabilities[order].astype(np.float64)
    mixed = trust * has_label[order] + (1 - trust) * told
    f1 = 2 * np.cumsum(mixed) / (mixed.sum() + np.arange(1, len(told) + 1))
    best = int(f1.argmax())
    # Half way to the next lower probability, so that neither side of the cut hangs on a rounding.
    return min(float(np.append(told, 0.0)[[best, best + 1]].mean()), _LARGEST_CUT)


def macro_f1_of(told: Bools, indicators: Indicators) -> float:
    """Returns the mean F1 of the labels that are told or indicators, both (n, k); 0 if there are none."""
    hits = np.asarray(indicators.multiply(told).sum(0)).ravel()
    return mean_f1(hits, np.asarray(indicators.sum(0)).ravel() + told.sum(0))


def mean_f1(hits: Counts, seen: Counts) -> float:
    """Returns the mean F1 of the labels that are seen; 0 if there are none.

    Args:
        hits: (k,) products of which each label is told rightly.
        seen: (k,) products of which it is true, plus those of which it is told.
    """
    return float((2 * hits[seen > 0] / seen[seen > 0]).mean()) if seen.any() else 0.0
