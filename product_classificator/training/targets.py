"""Turns the labels of products into the numbers that heads are fitted on, and holds what else a fitting looks at."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import vstack
from scipy.special import logsumexp

from product_classificator.errors import DataError
from product_classificator.heads.bag_of_words import BagOfWords, Vocabulary
from product_classificator.heads.zero_shot import LabelIds
from product_classificator.training.multilabel import Indicators
from product_classificator.types import Embeddings, Floats, Rows, Strings, Truth, is_multi_label, iter_labels

logger = logging.getLogger(__name__)

_MEASURED_ON = 50_000
_NAME_WEIGHT, _NAME_WEIGHT_IN_SETS, _MOST_LABELS_WEIGHED_FULLY = 30.0, 60.0, 100
_WEIGHED_ON = 5_000


@dataclass(frozen=True)
class TrainingData:
    """All products, row-aligned, and which of them are for training and which for validation.

    Attributes:
        names: (all labels, dim) vectors of the names of labels to start from, of width 0 if there are none.
        name_words: (all labels, words) words of the names of labels, by what they weigh to start with.
    """

    embeddings: Embeddings
    words: BagOfWords
    label_ids: LabelIds
    indicators: Mapping[int, Indicators]
    train: Rows
    valid: Rows
    characteristics: tuple[str, ...]
    names: Floats
    name_words: BagOfWords

    @property
    def sample(self) -> Rows:
        """Training products enough to know means and scales."""
        return self.train[:: -(-len(self.train) // _MEASURED_ON)]


def labels_to_learn(
    truth: Truth, part: Strings, minimum: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, int]]]:
    """Returns the labels to learn of each trainable characteristic, and the labels left out with their counts."""
    labels, left_out = {}, {}
    for name, column in truth.items():
        counts = Counter(iter_labels(column[part != ""]))
        trained = set(iter_labels(column[part == "train"]))
        kept = tuple(sorted(label for label, count in counts.items() if count >= minimum and label in trained))
        if len(kept) >= (1 if is_multi_label(column) else 2):
            labels[name] = kept
        else:
            logger.warning("%s is left out: it has %d label(s) with %d products or more", name, len(kept), minimum)
            kept = ()
        rest = {label: count for label, count in sorted(counts.items()) if label not in kept}
        if rest or not kept:
            left_out[name] = rest
    if not labels:
        raise DataError(
            f"a characteristic needs two labels with at least {minimum} products each, "
            f"found none among {list(truth)}: add products or lower min_products_per_label"
        )
    return labels, left_out


def words_of_names(
    labels: Mapping[str, Sequence[str]],
    indicators: Mapping[int, Indicators],
    vocabulary: Vocabulary,
    words: BagOfWords,
    label_ids: LabelIds,
) -> BagOfWords:
    """Returns the (all labels, words) rows of the names of labels, times what a cosine with them weighs to start with.

    Validation macro-F1 of fashion goods (2 to 58 labels), three splits, with weights of 0, 10, 20, 30 and 40: .817,
    .821, .828, .831, .830; with titles .922, .927, .930, .930 for the first four. Where labels are many, their words
    mislead: 60,000 titles with 565 labels .772 with 0, 5 and 10, .770 with 20, .762 with 30. So beyond 100 labels a
    name weighs less, and nowhere more than training products speak for: names of seasons tell nothing there. Of a
    multi-label characteristic it weighs more, as no other label weighs against it (39 marks of fashion goods, two
    splits, with 0, 30, 50, 80 and 120: .592, .639, .661, .661, .650).

    Args:
        labels: characteristic -> its labels.
        indicators: places of multi-label characteristics.
        vocabulary: knows the words.
        words: (n, words) rows of training products.
        label_ids: (n, characteristics) numbers of their labels.
    """
    rows = [vocabulary.rows(names) for names in labels.values()]
    for place, names in enumerate(rows):
        k = names.shape[0]
        most = (_NAME_WEIGHT_IN_SETS if place in indicators else _NAME_WEIGHT) * min(1, _MOST_LABELS_WEIGHED_FULLY / k)
        names.data *= np.float32(
            most if place in indicators else _likeliest_weight(words, names, label_ids[:, place], most)
        )
    return vstack(rows, format="csr")


def _likeliest_weight(words: BagOfWords, names: BagOfWords, label_ids: Rows, most: float) -> float:
    """Returns the weight of cosines with names, from 0 to `most`, under which the labels are the likeliest."""
    known = np.flatnonzero(label_ids >= 0)
    known = known[:: -(-len(known) // _WEIGHED_ON) or 1]
    if not len(known) or not names.nnz:
        return most
    cosines, right = (words[known] @ names.T).toarray(), label_ids[known]
    cosines -= cosines.mean(0)
    log_odds = np.log(np.maximum(np.bincount(right, minlength=names.shape[0]), 0.5) / len(right))

    def surprise(weight: float) -> float:
        logits = weight * cosines + log_odds
        return float((logsumexp(logits, 1) - logits[np.arange(len(right)), right]).mean())

    return float(minimize_scalar(surprise, bounds=(0, most), method="bounded", options={"xatol": 0.5}).x)


def label_ids_of(truth: Truth, labels: Mapping[str, Sequence[str]]) -> LabelIds:
    """Returns the number of each product's label, of a multi-label characteristic 0 where its labels are known."""
    columns = []
    for name, names in labels.items():
        if is_multi_label(truth[name]):
            columns.append(np.array([-1 if item is None else 0 for item in truth[name]], dtype=np.int64))
            continue
        number = {label: i for i, label in enumerate(names)}
        columns.append(np.fromiter((number.get(label, -1) for label in truth[name]), np.int64, len(truth[name])))
    return np.stack(columns, 1)


def counts_of(
    label_ids: LabelIds, indicators: Mapping[int, Indicators], rows: Rows, labels: Mapping[str, Sequence[str]]
) -> list[Rows]:
    """Returns of each characteristic the (k,) products of each label among those of `rows`."""
    counts = []
    for place, names in enumerate(labels.values()):
        column = label_ids[rows, place]
        number = np.bincount(column[column >= 0], minlength=len(names))
        counts.append(
            np.asarray(indicators[place][rows].sum(0)).ravel().astype(np.int64) if place in indicators else number
        )
    return counts
