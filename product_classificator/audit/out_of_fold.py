"""Predict each labelled product with heads that were fitted without it (out of fold).

The heads of a run have memorised its labels, including the wrong ones. So heads are fitted on four fifths of the
products and predict the last fifth, five times over, with near-duplicates always in the same fold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from product_classificator.heads import HeadBundle
from product_classificator.types import Embeddings, Floats, Rows, Split, Strings, Truth, as_text, strings

FOLDS = 5
DEALS = 2 * FOLDS
_ROWS_PER_STEP = 8192
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of one characteristic, compared with the labels of the table.

    For a multi-label characteristic the most doubtful label of a product is compared, present or not: `probability` is
    that of this label being right, `other` the label set, as text, with it added or removed.

    Attributes:
        probability: (n,) probability of the table's label, exactly 0 if it was too rare to learn; NaN where there is
            nothing to compare.
        other: (n,) the most probable label besides it, `None` where `probability` is NaN.
        other_probability: (n,) its probability, NaN where `probability` is.
    """

    probability: Floats
    other: Strings
    other_probability: Floats

    @classmethod
    def empty(cls, n: int) -> "OutOfFold":
        """Return n products without a prediction."""
        return cls(np.full(n, np.nan, np.float32), strings([None] * n), np.full(n, np.nan, np.float32))


def predict_out_of_fold(
    embeddings: Embeddings,
    texts: Sequence[str],
    truth: Truth,
    deals: Rows,
    fit: Callable[[int, Split], HeadBundle],
) -> Mapping[str, OutOfFold]:
    """Return characteristic -> out-of-fold predictions of all n products.

    Args:
        embeddings: of n products.
        texts: their raw texts.
        truth: characteristic -> (n,) labels.
        deals: (n,) the tenth of the products that each belongs to, 0..9, -1 for unused products. Two tenths are a fold,
            and the tenth after it chooses the epoch and the temperatures.
        fit: fits heads, given the number of the fold (0..4) and the split whose test products are the fold.
    """
    results = {name: OutOfFold.empty(len(deals)) for name in truth}
    for fold in range(FOLDS):
        is_test, is_valid = deals // 2 == fold, deals == (2 * fold + 2) % DEALS
        names = np.select([deals < 0, is_test, is_valid], ["", "test", "valid"], "train")
        bundle = fit(fold, Split(embeddings.ids, strings(names.tolist())))
        fold_rows = np.flatnonzero(is_test)
        for start in range(0, len(fold_rows), _ROWS_PER_STEP):
            rows = fold_rows[start : start + _ROWS_PER_STEP]
            predictions = bundle.predict(embeddings.take(rows), [texts[row] for row in rows.tolist()])
            for name in predictions.characteristics:  # without those that had nothing to learn outside this fold
                true = np.where(predictions.is_known, truth[name][rows], None)
                is_multi = name in predictions.decision_thresholds
                compare = _compare_label_sets if is_multi else _compare_labels
                compared = compare(predictions.labels[name], predictions.probabilities[name], true)
                results[name].probability[rows] = compared.probability
                results[name].other[rows] = compared.other
                results[name].other_probability[rows] = compared.other_probability
    return results


def _compare_labels(labels: Sequence[str], probabilities: Floats, true: Strings) -> OutOfFold:
    result, label_ids = OutOfFold.empty(len(true)), pd.Index(labels).get_indexer(true)
    labelled = np.flatnonzero(pd.notna(true))
    learned = np.flatnonzero(label_ids >= 0)
    others = probabilities.copy()
    others[learned, label_ids[learned]] = -1
    best = others.argmax(1)[labelled]
    result.probability[labelled] = 0
    result.probability[learned] = np.maximum(probabilities[learned, label_ids[learned]], _TINY)
    result.other[labelled], result.other_probability[labelled] = strings(labels)[best], others[labelled, best]
    return result


def _compare_label_sets(labels: Sequence[str], probabilities: Floats, true: Strings) -> OutOfFold:
    result = OutOfFold.empty(len(true))
    for row in np.flatnonzero(pd.notna(true)):
        is_right = np.where([label in true[row] for label in labels], probabilities[row], 1 - probabilities[row])
        worst = int(is_right.argmin())
        result.probability[row], result.other_probability[row] = max(is_right[worst], _TINY), 1 - is_right[worst]
        result.other[row] = as_text(strings([true[row] ^ {labels[worst]}]))[0]
    return result
