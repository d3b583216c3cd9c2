"""Turns the labels of products into the numbers that heads are fitted on, and holds what else a fitting looks at."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from product_classificator.errors import DataError
from product_classificator.heads.multilabel import Borne
from product_classificator.heads.words import WordRows
from product_classificator.heads.zero_shot import Codes
from product_classificator.types import Embeddings, Floats, Rows, Strings, Truth, borne_by, is_multi_label

logger = logging.getLogger(__name__)

_MEASURED_ON = 50_000


@dataclass(frozen=True)
class Material:
    """All products, row-aligned, and which of them are for training and which for validation."""

    embeddings: Embeddings
    words: WordRows
    codes: Codes
    borne: Mapping[int, Borne]
    train: Rows
    valid: Rows
    characteristics: tuple[str, ...]
    names: Floats

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
        counts = Counter(borne_by(column[part != ""]))
        trained = set(borne_by(column[part == "train"]))
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


def codes_of(truth: Truth, labels: Mapping[str, Sequence[str]]) -> Codes:
    """Returns the number of each product's label, of a multi-label characteristic 0 where its labels are known."""
    columns = []
    for name, names in labels.items():
        if is_multi_label(truth[name]):
            columns.append(np.array([-1 if item is None else 0 for item in truth[name]], dtype=np.int64))
            continue
        number = {label: i for i, label in enumerate(names)}
        columns.append(np.fromiter((number.get(label, -1) for label in truth[name]), np.int64, len(truth[name])))
    return np.stack(columns, 1)


def counts_of(codes: Codes, borne: Mapping[int, Borne], rows: Rows, labels: Mapping[str, Sequence[str]]) -> list[Rows]:
    """Returns of each characteristic the (k,) products of each label among those of `rows`."""
    counts = []
    for place, names in enumerate(labels.values()):
        column = codes[rows, place]
        number = np.bincount(column[column >= 0], minlength=len(names))
        counts.append(np.asarray(borne[place][rows].sum(0)).ravel().astype(np.int64) if place in borne else number)
    return counts
