"""Predict each labelled product with heads that were fitted without it: heads memorise labels, also wrong ones.

Heads are fitted on four fifths of the products and predict the last fifth, five times over.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from product_classificator.training import FittedHeads, LabelledProducts
from product_classificator.types import Floats, Rows, Split, Strings, as_text, strings

logger = logging.getLogger(__name__)

FOLDS = 5
DEALS = 2 * FOLDS
_ROWS_PER_STEP = 8192
_COLUMNS = ("probability", "other", "other_probability")
_TINY = np.finfo(np.float32).tiny


def predict_out_of_fold(
    products: LabelledProducts,
    deals: Rows,
    fit: Callable[[LabelledProducts], FittedHeads],
    on_stage: Callable[[str], None] = logger.info,
) -> Mapping[str, pd.DataFrame]:
    """Predict n products out of fold, and compare the predictions with the labels.

    Args:
        products: their split is ignored.
        deals: (n,) the tenth of the products that each belongs to, 0..9, -1 for unused products. Two tenths are a fold,
            and the tenth after it chooses the epoch and the temperatures.
        fit: fits heads to products, of which a fold is the test split.
        on_stage: called with a sentence before each fold.

    Returns:
        characteristic -> frame, by row, of the products that can be judged: `probability` of their label, the most
        probable `other` label, `other_probability`. A product cannot be judged if its label was not learned from the
        other folds. For a multi-label characteristic the most doubtful label, present or not, is compared:
        `probability` is that of it being right, `other` the label set, as text, with it added or removed.
    """
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in products.truth}
    for fold in range(FOLDS):
        is_test, is_valid = deals // 2 == fold, deals == (2 * fold + 2) % DEALS
        names = np.select([deals < 0, is_test, is_valid], ["", "test", "valid"], "train")
        on_stage(f"Fitting heads without fold {fold + 1} of {FOLDS}, and predicting it")
        bundle = fit(replace(products, split=Split(products.embeddings.ids, strings(names.tolist())))).bundle
        fold_rows = np.flatnonzero(is_test)
        for start in range(0, len(fold_rows), _ROWS_PER_STEP):
            rows = fold_rows[start : start + _ROWS_PER_STEP]
            predictions = bundle.predict(products.embeddings.take(rows), [products.texts[row] for row in rows.tolist()])
            for name in predictions.characteristics:  # without those that had nothing to learn outside this fold
                true, labels = products.truth[name][rows], predictions.labels[name]
                is_multi = name in predictions.decision_thresholds
                is_learned = pd.notna(true) if is_multi else np.isin(true, np.array(labels, dtype=object))
                judged = np.flatnonzero(predictions.is_predicted(name) & is_learned)
                compare = _compare_label_sets if is_multi else _compare_labels
                columns = compare(labels, predictions.probabilities[name][judged], true[judged])
                frames[name].append(pd.DataFrame(dict(zip(_COLUMNS, columns, strict=True)), index=rows[judged]))
    none = pd.DataFrame({name: [] for name in _COLUMNS})
    return {name: pd.concat(parts).sort_index() if parts else none for name, parts in frames.items()}


def _compare_labels(labels: Sequence[str], probabilities: Floats, true: Strings) -> tuple[Floats, Strings, Floats]:
    cells = np.arange(len(true)), pd.Index(labels).get_indexer(true)
    probability, others = np.maximum(probabilities[cells], _TINY), probabilities.copy()
    others[cells] = -1
    return probability, strings(labels)[others.argmax(1)], others.max(1)


def _compare_label_sets(labels: Sequence[str], probabilities: Floats, true: Strings) -> tuple[Floats, Strings, Floats]:
    has_label = np.array([[label in label_set for label in labels] for label_set in true], bool)
    is_right = np.where(has_label.reshape(probabilities.shape), probabilities, 1 - probabilities)
    other = as_text(strings([old ^ {labels[worst]} for old, worst in zip(true, is_right.argmin(1), strict=True)]))
    lowest = is_right.min(1)
    return np.maximum(lowest, _TINY), other, 1 - lowest
