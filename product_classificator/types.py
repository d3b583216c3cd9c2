"""The values that flow through the package: frozen, and checked once, when they are made.

Arrays are row-aligned: row i of every array belongs to `ids[i]`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from product_classificator.errors import DataError, nearest

Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.int64]
Strings: TypeAlias = npt.NDArray[np.object_]
"""An object array of `str`, `None` for an unknown label.

For a multi-label characteristic an item is the `frozenset` of a product's labels, empty if it is known to have none.
"""

Truth: TypeAlias = Mapping[str, Strings]
"""characteristic -> (n,) labels, `None` where the label is unknown."""

LEARNED = ("train", "valid")
"""The splits that no heads judge; every other one is a fold, judged by heads fitted without it."""


def strings(values: Sequence[str | frozenset[str] | None] | Strings) -> Strings:
    """Return `values` as an object array of shape (n,), even if they are sets."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def is_multi_label(labels: Strings) -> bool:
    """Return whether (n,) labels are those of a multi-label characteristic: the first known one is a `frozenset`."""
    return isinstance(next((item for item in labels if item is not None), None), frozenset)


def iter_labels(labels: Strings) -> Iterator[str]:
    """Yield every known label; the labels of one product in alphabetical order."""
    for item in labels:
        if isinstance(item, frozenset):
            yield from sorted(item)
        elif item is not None:
            yield item


def as_text(labels: Strings) -> Strings:
    """Return labels as (n,) strings: a set as "cotton, wool" or "(none)"; an unknown label stays `None`."""
    return strings([(", ".join(sorted(x)) or "(none)") if isinstance(x, frozenset) else x for x in labels])


def _check_rows(rows: int, **arrays: npt.NDArray[Any]) -> None:
    wrong = {name: array.shape for name, array in arrays.items() if len(array) != rows}
    if wrong:
        raise DataError(f"every array must have one row per id: there are {rows} ids, but {wrong}")


@dataclass(frozen=True)
class Embeddings:
    """Image part and text part of products, made by one encoder.

    Attributes:
        ids, has_image, has_text: (n,); an image that cannot be read does not count.
        image: (n, image_dim) unit rows, float32, or float16 as a store keeps them; zeros where `has_image` is false.
        text: (n, text_dim) unit rows of the same kind; zeros where `has_text` is false.
        fingerprint: the encoder's; embeddings of different fingerprints must not be mixed.
    """

    ids: Strings
    image: Floats
    text: Floats
    has_image: Bools
    has_text: Bools
    fingerprint: str

    def __post_init__(self) -> None:
        _check_rows(len(self.ids), image=self.image, text=self.text, has_image=self.has_image, has_text=self.has_text)
        if self.image.ndim != 2 or self.text.ndim != 2:
            raise DataError(f"image and text parts must be matrices, got {self.image.shape} and {self.text.shape}")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> "Embeddings":
        """Return the products of `rows`, in that order (a copy), in float32."""
        image, text = (part[rows].astype(np.float32, copy=False) for part in (self.image, self.text))
        return Embeddings(self.ids[rows], image, text, self.has_image[rows], self.has_text[rows], self.fingerprint)


@dataclass(frozen=True)
class Split:
    """Which split each product belongs to: (n,) ids and names, "" for a product that was set aside.

    "train" and "valid" are learned from and never judged; "test", or "1", "2" and so on, are folds.
    """

    ids: Strings
    names: Strings

    def __post_init__(self) -> None:
        _check_rows(len(self.ids), names=self.names)

    def rows(self, name: str) -> Rows:
        """Return the row numbers of a split, ascending."""
        return np.flatnonzero(self.names == name).astype(np.int64)

    @property
    def folds(self) -> list[str]:
        """The names of the folds, sorted."""
        return sorted({*self.names} - {*LEARNED, ""})


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of products by heads that never saw them.

    Attributes:
        rows: (m,) ascending numbers of the products among all.
        probabilities: characteristic -> (m, k) float32, as in `Predictions`.
        promises: characteristic -> (m,) float32, the highest precision that is promised for the prediction; 0: none.
        distance: (m,) float32, 1 - cosine, to the nearest product that was learned from, see `nearest_distance`.
        is_out_of_distribution: (m,) mask of products unlike those that were learned from.
    """

    rows: Rows
    probabilities: Mapping[str, Floats]
    promises: Mapping[str, Floats]
    distance: Floats
    is_out_of_distribution: Bools

    def __post_init__(self) -> None:
        arrays = {**self.probabilities, **{f"promises of {name}": column for name, column in self.promises.items()}}
        flat = {"distance": self.distance, "is_out_of_distribution": self.is_out_of_distribution}
        _check_rows(len(self.rows), **flat, **arrays)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Rows) -> "OutOfFold":
        """Return some of the predictions, by their positions."""
        probabilities, promises = (
            {name: array[positions] for name, array in arrays.items()} for arrays in (self.probabilities, self.promises)
        )
        rows, is_novel = self.rows[positions], self.is_out_of_distribution[positions]
        return OutOfFold(rows, probabilities, promises, self.distance[positions], is_novel)


@dataclass(frozen=True)
class Decisions:
    """Which predictions are accepted, and which a person should review.

    Attributes:
        min_precision: target precision of the accepted predictions, 0..1.
        accepted: characteristic -> (n,) mask.
        is_out_of_distribution: (n,) mask of products unlike anything in training, whose predictions are never accepted.
    """

    min_precision: float
    accepted: Mapping[str, Bools]
    is_out_of_distribution: Bools

    def __getitem__(self, characteristic: str) -> Strings:
        """Return (n,) "auto" or "review"."""
        if characteristic not in self.accepted:
            raise DataError(f"no characteristic {characteristic!r}: {nearest(characteristic, self.accepted)}")
        return np.where(self.accepted[characteristic], "auto", "review").astype(object)


@dataclass(frozen=True)
class Neighbour:
    """A training product like the one at hand; `similarity` is the mean cosine over the parts of that one, -1 to 1.

    `label` is that of the characteristic, `None` if unknown; all labels, sorted, if multi-label.
    """

    id: str
    similarity: float
    label: str | tuple[str, ...] | None


@dataclass(frozen=True)
class Explanation:
    """What moved the prediction of one characteristic of one product.

    Weights are log-odds of `label` against `runner_up`: 0.7 doubles the odds, a negative weight favours the runner-up.
    `base`, `photo` and `text` add up to log(probability of `label` / probability of `runner_up`), unless the hierarchy
    has decided the label. For a multi-label characteristic the most probable label is explained, against its absence.

    Attributes:
        label: most probable label, of `probability`.
        runner_up: second most probable label; `None`: the absence of `label`.
        base: log-odds without image and text.
        photo, text: what the image, and the text including its words, add; 0 without one.
        words: word, or pair of neighbouring words -> what it adds, the strongest first; empty without a words branch.
        nearest: most similar training products; empty if the heads are not those of a run.
    """

    label: str
    probability: float
    runner_up: str | None
    base: float
    photo: float
    text: float
    words: Mapping[str, float]
    nearest: tuple[Neighbour, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """Calibrated probabilities of all labels of n products.

    Attributes:
        ids: (n,) of products.
        labels: characteristic -> its k labels, in the order of the probability columns.
        probabilities: characteristic -> (n, k) float32; rows sum to 1 unless it is multi-label; rows of NaN where
            nothing is predicted: where `is_known` is false, and for a child whose parent has no known child label.
        is_known: (n,) false for a product without usable input: nothing is predicted for it.
        decisions: which predictions are accepted; `None` before `HeadBundle.with_decisions`.
        explainer: row -> characteristic -> explanation; `None` if the predictions cannot be explained.
        decision_thresholds: multi-label characteristic -> lowest probability at which each of its k labels is assigned.
        decision_weights: characteristic -> (k,) what probabilities are multiplied by to decide which label is
            predicted: rare labels a little more often than they are the most probable, as macro-F1 asks for.
        status: (n,) "ok" or what is wrong, such as "image_truncated"; `None` if the caller did not ask for it.
    """

    ids: Strings
    labels: Mapping[str, Sequence[str]]
    probabilities: Mapping[str, Floats]
    is_known: Bools
    decisions: Decisions | None = None
    explainer: Callable[[int], Mapping[str, Explanation]] | None = field(default=None, repr=False, compare=False)
    decision_thresholds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    decision_weights: Mapping[str, Floats] = field(default_factory=dict)
    status: Strings | None = None

    def __post_init__(self) -> None:
        _check_rows(len(self.ids), is_known=self.is_known, **dict(self.probabilities))
        if self.decisions:
            novel = self.decisions.is_out_of_distribution
            _check_rows(len(self.ids), is_out_of_distribution=novel, **dict(self.decisions.accepted))
        for name, matrix in self.probabilities.items():
            k, thresholds = len(self.labels[name]), self.decision_thresholds.get(name)
            if matrix.shape[1] != k:
                raise DataError(f"{name} has {k} labels but {matrix.shape[1]} probability columns")
            if thresholds is not None and len(thresholds) != k:
                raise DataError(f"{name} has {k} labels but {len(thresholds)} decision thresholds")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def characteristics(self) -> tuple[str, ...]:
        """Names of the characteristics, in the order of training."""
        return tuple(self.labels)

    def best(self, characteristic: str) -> Strings:
        """Return the (n,) predicted labels, `None` where nothing is predicted.

        For a multi-label characteristic: the (n,) sets of labels that reach their decision thresholds.
        """
        if characteristic in self.decision_thresholds:
            return strings([None if labels is None else frozenset(labels) for labels in self.labels_of(characteristic)])
        best: Strings = strings(self.labels[characteristic])[self._weighted(characteristic).argmax(1)]
        best[~self.is_predicted(characteristic)] = None
        return best

    def confidence(self, characteristic: str) -> Floats:
        """Return the (n,) float32 probabilities of `best`, 0 where nothing is predicted.

        For a set of labels: the product of the probabilities of its labels and of the absence of the others.
        """
        matrix = self._filled(characteristic)
        if characteristic not in self.decision_thresholds:
            best = self._weighted(characteristic).argmax(1)
            confidence: Floats = matrix[np.arange(len(matrix)), best]
            return confidence
        per_label = np.where(self._is_assigned(characteristic), matrix, 1 - matrix)
        return np.where(self.is_predicted(characteristic), per_label.prod(1), 0).astype(np.float32)

    def is_predicted(self, characteristic: str) -> Bools:
        """Return a mask of the products that have a prediction for this characteristic."""
        return self.is_known & ~np.isnan(self._probabilities_of(characteristic)).any(1)

    def labels_of(self, characteristic: str) -> list[list[str] | None]:
        """Return the labels of each product, the most probable first (one unless multi-label); `None` as in `best`."""
        if characteristic not in self.decision_thresholds:
            return [None if label is None else [label] for label in self.best(characteristic)]
        names, order = self.labels[characteristic], np.argsort(-self._filled(characteristic), axis=1, kind="stable")
        masks = zip(order, self._is_assigned(characteristic), self.is_predicted(characteristic), strict=True)
        return [
            [names[column] for column in columns if is_assigned[column]] if is_predicted else None
            for columns, is_assigned, is_predicted in masks
        ]

    def predicted(self, characteristic: str) -> list[str | list[str] | None]:
        """Return the label of each product, or the list of its labels if multi-label, as for JSON."""
        is_multi_label = characteristic in self.decision_thresholds
        return [labels[0] if labels and not is_multi_label else labels for labels in self.labels_of(characteristic)]

    def top(self, characteristic: str, k: int = 3) -> list[list[tuple[str, float]]]:
        """Return the `k` best labels of each product with their probabilities, the predicted one first."""
        matrix = self._filled(characteristic)
        names, is_predicted = self.labels[characteristic], self.is_predicted(characteristic)
        order = np.argsort(-self._weighted(characteristic), axis=1, kind="stable")[:, :k]
        return [
            [(names[column], float(matrix[row, column])) for column in columns] if is_predicted[row] else []
            for row, columns in enumerate(order)
        ]

    def explain(self, row: int) -> Mapping[str, Explanation]:
        """Return characteristic -> what moved its prediction; `DataError` unless heads have just predicted this row."""
        if self.explainer is None:
            raise DataError("only predictions that heads have just made can be explained: predict again")
        if not 0 <= row < len(self):
            raise DataError(f"a row to explain must be one of {len(self)}, counted from 0, got {row}")
        if not self.is_known[row]:
            raise DataError(f"row {row} has neither photo nor text that the heads use: there is nothing to explain")
        return self.explainer(row)

    def _is_assigned(self, characteristic: str) -> Bools:
        """Return (n, k) whether each label of a multi-label characteristic is assigned; false where unknown."""
        thresholds = np.array(self.decision_thresholds[characteristic], np.float32)
        return (self._filled(characteristic) >= thresholds) & self.is_predicted(characteristic)[:, None]

    def _filled(self, characteristic: str) -> Floats:
        return np.nan_to_num(self._probabilities_of(characteristic))

    def _weighted(self, characteristic: str) -> Floats:
        return self._filled(characteristic) * self.decision_weights.get(characteristic, np.float32(1))

    def _probabilities_of(self, characteristic: str) -> Floats:
        if characteristic not in self.probabilities:
            raise DataError(f"no characteristic {characteristic!r}: {nearest(characteristic, self.probabilities)}")
        return self.probabilities[characteristic]
