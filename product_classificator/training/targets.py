"""Turn the labels of products into what heads are fitted to: label ids and indicators per characteristic."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix

from product_classificator.encoders import Encoder, embed_labels
from product_classificator.errors import DataError
from product_classificator.heads.network import NetworkShape
from product_classificator.training.inputs import FEW_PRODUCTS, BagOfWords, Inputs
from product_classificator.types import Bools, Embeddings, Floats, Rows, Split, Strings, Truth, is_multi_label

_MIN_PRODUCTS, _MIN_GROUPS, _MIN_SHARE, _MAX_LABELS = 3, 2, 0.05, 1000


@dataclass(frozen=True)
class LabelledProducts:
    """Products to learn from, row-aligned.

    Attributes:
        texts: (n,) raw texts.
        truth: characteristic -> (n,) labels, sets of labels for a multi-label characteristic.
        has_title: whether the first line of each text is a title: it weighs as much as everything after it.
        groups: (n,) group of near-identical products that each belongs to; `None`: no two are near-identical.
        weights: (n,) how often each is learned from; `None`: once.
    """

    embeddings: Embeddings
    texts: Sequence[str]
    truth: Truth
    split: Split
    has_title: bool = False
    groups: Rows | None = None
    weights: Rows | None = None

    def weighted(self, rows: Rows) -> Rows:
        """Return rows to learn from, each as often as it counts."""
        return rows if self.weights is None else np.repeat(rows, self.weights[rows])

    @property
    def group_ids(self) -> Rows:
        """(n,) groups, each product its own where no two are near-identical."""
        return np.arange(len(self.embeddings)) if self.groups is None else self.groups

    def __post_init__(self) -> None:
        n = len(self.embeddings)
        columns: dict[str, Sized] = {"texts": self.texts, "split": self.split.ids, **self.truth}
        if self.groups is not None:
            columns["groups"] = self.groups
        wrong = {name: len(column) for name, column in columns.items() if len(column) != n}
        if wrong:
            raise DataError(f"every input must have one row per product: there are {n} embeddings, but {wrong}")
        if not np.array_equal(self.embeddings.ids, self.split.ids):
            raise DataError("embeddings and split must hold the same products in the same order: split again")


@dataclass(frozen=True)
class Target:
    """What is known about one characteristic of n products.

    Attributes:
        labels: (k,) labels to learn.
        indicators: (n, k) float32 sparse, 1 where a product has a label.
        is_known: (n,) whether the label of a product is known; a set of labels may be empty.
        has_other: (n,) whether its label is one that is not learned.
    """

    name: str
    labels: tuple[str, ...]
    indicators: csr_matrix
    is_known: Bools
    has_other: Bools
    is_multi_label: bool

    @classmethod
    def of(cls, name: str, labels: tuple[str, ...], column: Strings) -> "Target":
        """Return the target of an (n,) column; labels that are not to be learned are ignored."""
        label_index, is_multi = {label: index for index, label in enumerate(labels)}, is_multi_label(column)
        sets = column if is_multi else [(label,) for label in column]
        rows = [[label_index[label] for label in sorted(item or ()) if label in label_index] for item in sets]
        starts = np.cumsum([0, *map(len, rows)])
        columns = np.array([index for row in rows for index in row], dtype=np.int64)
        indicators = csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=(len(column), len(labels)))
        has_label = np.array([item is not None for item in column], dtype=bool)
        is_known = has_label if is_multi else np.diff(starts) > 0
        return cls(name, labels, indicators, is_known, has_label & ~is_known, is_multi)

    @cached_property
    def label_ids(self) -> Rows:
        """(n,) label id of each product, -1 where unknown; not for a multi-label characteristic."""
        label_ids = np.full(len(self.is_known), -1, dtype=np.int64)
        label_ids[self.is_known] = self.indicators.indices
        return label_ids

    def take(self, rows: Rows) -> "Target":
        """Return what is known of the products of `rows`."""
        return replace(
            self, indicators=self.indicators[rows], is_known=self.is_known[rows], has_other=self.has_other[rows]
        )

    def counts(self, rows: Rows) -> Rows:
        """Return the (k,) number of products of each label among `rows`."""
        return np.asarray(self.indicators[rows].sum(0)).ravel().astype(np.int64)


def with_rare_labels(
    labels: Mapping[str, Sequence[str]],
    rare: Mapping[str, Mapping[str, int]],
    products: LabelledProducts,
    is_learned: Bools,
    is_judged: Bools,
) -> dict[str, tuple[str, ...]]:
    """Return labels together with rare ones that may be learned: of 3 products, and of 2 groups among the judged ones.

    Where such labels have less than a twentieth of the products, they stay unknown: they would cost the common labels
    more than they are worth. Those of most products come first, up to 1,000 labels in all: words x labels are limited.
    """
    groups, found = products.group_ids[is_judged], []
    for name in labels:
        counts = rare.get(name, {})
        by_label = Target.of(name, tuple(counts), products.truth[name]).indicators[is_judged].tocsc()
        of_name = [
            (-n, name, label)
            for (label, n), (start, stop) in zip(counts.items(), pairwise(by_label.indptr), strict=True)
            if n >= _MIN_PRODUCTS and len(np.unique(groups[by_label.indices[start:stop]])) >= _MIN_GROUPS
        ]
        n_labelled = sum(label is not None for label in products.truth[name][is_learned])
        if -sum(n for n, *_ in of_name) >= _MIN_SHARE * n_labelled:
            found += of_name
    chosen = sorted(found)[: max(_MAX_LABELS - sum(map(len, labels.values())), 0)]
    return {name: tuple(sorted([*labels[name], *(label for _, n, label in chosen if n == name)])) for name in labels}


@dataclass(frozen=True)
class TrainingData:
    """What a network is fitted to.

    Fitting starts from `label_embeddings` (all labels, dim or 0) and from `label_words` (all labels, words); `inputs`
    have no pieces of words.
    """

    embeddings: Embeddings
    inputs: Inputs
    targets: tuple[Target, ...]
    label_embeddings: Floats
    label_words: BagOfWords
    shape: NetworkShape


def label_embeddings(targets: Sequence[Target], train: Rows, encoder: Encoder | None) -> Floats:
    """Return (all labels, text_dim) float32 label embeddings, unit rows x 10 / (10 + training products).

    The more products a label has, the less its name counts. Rows are zeros for characteristics without a label of fewer
    than 10 products; the width is 0 if there are only those.
    """
    vectors: dict[str, Floats] = {}
    for target in targets:
        counts = target.counts(train)
        if encoder is not None and counts.min() < FEW_PRODUCTS:
            weights = (FEW_PRODUCTS / (FEW_PRODUCTS + counts)).astype(np.float32)
            vectors[target.name] = embed_labels(encoder, target.labels) * weights[:, None]
    width = next((rows.shape[1] for rows in vectors.values()), 0)
    zeros = {target.name: np.zeros((len(target.labels), width), dtype=np.float32) for target in targets}
    return np.concatenate([*{**zeros, **vectors}.values()])
