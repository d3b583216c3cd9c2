"""The values that flow through the package: frozen, and checked once, when they are made.

Arrays are row-aligned: row i of every array belongs to `ids[i]`. Nothing here knows where the values come from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from product_classificator.errors import DataError, nearest

Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.int64]
Strings: TypeAlias = npt.NDArray[np.object_]
"""An object array of `str`; `None` stands for an unknown label.

Of a multi-label characteristic an item is the `frozenset` of the labels that a product bears, empty if it is known to
bear none of them.
"""

Truth: TypeAlias = Mapping[str, Strings]
"""characteristic -> (n,) labels, `None` where the label is unknown."""

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


def strings(values: Sequence[str | frozenset[str] | None] | Strings) -> Strings:
    """Returns `values` as an object array of shape (n,), whatever their lengths."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def is_multi_label(labels: Strings) -> bool:
    """Whether (n,) labels are those of a multi-label characteristic: the first known one is a `frozenset`."""
    return isinstance(next((item for item in labels if item is not None), None), frozenset)


def iter_labels(labels: Strings) -> Iterator[str]:
    """Yields every known label of products, of a multi-label characteristic all that a product bears, sorted."""
    for item in labels:
        if isinstance(item, frozenset):
            yield from sorted(item)
        elif item is not None:
            yield item


def as_text(labels: Strings, unknown: str | None = None) -> Strings:
    """Returns labels as (n,) strings, a set of them as one: "cotton, wool", or "(none)"; `unknown` where they are."""
    return strings(
        [
            unknown if item is None else (", ".join(sorted(item)) or "(none)") if isinstance(item, frozenset) else item
            for item in labels
        ]
    )


def row_status(image_status: Strings, text_status: Strings) -> Strings:
    """Returns for each product "ok" or its reasons joined by commas, such as "image_missing,text_empty"."""
    sides = (("image", image_status), ("text", text_status))
    reasons = [
        ",".join(f"{side}_{status[row]}" for side, status in sides if status[row] not in ("ok", "unused"))
        for row in range(len(image_status))
    ]
    return strings([reason or "ok" for reason in reasons])


def _check_rows(rows: int, **arrays: npt.NDArray[Any]) -> None:
    wrong = {name: array.shape for name, array in arrays.items() if len(array) != rows}
    if wrong:
        raise DataError(f"every array must have one row per id: there are {rows} ids, but {wrong}")


@dataclass(frozen=True)
class Embeddings:
    """Image part and text part of products, as one encoder made them.

    Attributes:
        ids: (n,) product ids.
        image: (n, image_dim) float32, unit rows; zeros where `has_image` is false.
        text: (n, text_dim) float32, unit rows; zeros where `has_text` is false.
        has_image: (n,) whether the product has a readable photo.
        has_text: (n,) whether the product has a text.
        fingerprint: the encoder's; vectors of different fingerprints must not be mixed.
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
        """Returns the products of `rows`, in that order (a copy)."""
        return Embeddings(
            self.ids[rows],
            self.image[rows],
            self.text[rows],
            self.has_image[rows],
            self.has_text[rows],
            self.fingerprint,
        )

    def joined(self) -> Floats:
        """Returns both parts side by side: (n, image_dim + text_dim), unit rows; zeros where both are missing."""
        both = np.concatenate([self.image, self.text], 1)
        length = np.linalg.norm(both, axis=1, keepdims=True)
        unit: Floats = np.divide(both, length, out=both, where=length > 0)
        return unit


@dataclass(frozen=True)
class Split:
    """Which part of a training each product belongs to; the test part is used once, for the report.

    Attributes:
        ids: (n,) product ids.
        names: (n,) of "train", "valid", "test"; "" for a product that was set aside.
    """

    ids: Strings
    names: Strings

    def __post_init__(self) -> None:
        _check_rows(len(self.ids), names=self.names)
        unknown = set(self.names) - {*SPLITS, ""}
        if unknown:
            raise DataError(f"a part must be one of {SPLITS} or '' (set aside), found {sorted(unknown)}")

    def rows(self, name: SplitName) -> Rows:
        """Return the row numbers of a split, ascending."""
        return np.flatnonzero(self.names == name).astype(np.int64)


@dataclass(frozen=True)
class Decisions:
    """Which predictions stand as they are, and which a person should review.

    Attributes:
        min_precision: share of the values that stand which is promised to be right, 0..1.
        accepted: characteristic -> (n,) whether its value stands.
        is_out_of_distribution: (n,) whether a product is unlike anything in training; none of its values stands then.
    """

    min_precision: float
    accepted: Mapping[str, Bools]
    is_out_of_distribution: Bools

    def __getitem__(self, characteristic: str) -> Strings:
        """Returns (n,) "auto" or "review"."""
        if characteristic not in self.accepted:
            raise DataError(f"no characteristic {characteristic!r}: {nearest(characteristic, self.accepted)}")
        return np.where(self.accepted[characteristic], "auto", "review").astype(object)


@dataclass(frozen=True)
class Neighbour:
    """A training product that is like the product at hand.

    Attributes:
        id: its id.
        similarity: mean cosine over the photo and the text that the product at hand has, -1 to 1.
        label: its label of the characteristic, `None` if it is unknown; of a multi-label one all that it bears, sorted.
    """

    id: str
    similarity: float
    label: str | tuple[str, ...] | None


@dataclass(frozen=True)
class Explanation:
    """What moved the prediction of one characteristic of one product.

    Weights are log-odds of `label` against `runner_up`: 0.7 doubles the odds, a negative one speaks for the runner-up.
    `base`, `photo` and `text` add up to log(probability of `label` / probability of `runner_up`), unless another
    characteristic, which refines this one or is refined by it, has decided the label. Of a multi-label characteristic
    the most probable label is explained, against its absence.

    Attributes:
        label: the most probable label.
        probability: its probability.
        runner_up: the second most probable label; `None`: the absence of `label`.
        base: what is left if neither photo nor text is seen.
        photo: what the photo adds, 0 without one.
        text: what the text adds, its words included, 0 without one.
        words: word, or pair of neighbouring words -> what it adds, the strongest first; empty if the heads have no
            branch for words.
        nearest: the training products that are most like it; empty if the heads are not those of a run.
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
    """What the heads think of products.

    Attributes:
        ids: (n,) product ids.
        labels: characteristic -> its k labels, in the order of the probability columns.
        probabilities: characteristic -> (n, k) float32, rows sum to 1, but of a multi-label one each is a probability
            of its own; rows of NaN where nothing is said: where `is_known` is false, and of a characteristic that
            refines another where the heads know no refinement.
        is_known: (n,) false for a product with neither photo nor text: nothing is said about it.
        decisions: which values stand without a person; `None` where nobody asked (`HeadBundle.decide`).
        explainer: gives characteristic -> explanation of the product of a row; `None` if nobody can tell.
        decision_thresholds: multi-label characteristic -> for each of its k labels the probability from which on a product bears it.
    """

    ids: Strings
    labels: Mapping[str, Sequence[str]]
    probabilities: Mapping[str, Floats]
    is_known: Bools
    decisions: Decisions | None = None
    explainer: Callable[[int], Mapping[str, Explanation]] | None = field(default=None, repr=False, compare=False)
    decision_thresholds: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_rows(len(self.ids), is_known=self.is_known, **dict(self.probabilities))
        if self.decisions:
            _check_rows(
                len(self.ids),
                is_out_of_distribution=self.decisions.is_out_of_distribution,
                **dict(self.decisions.accepted),
            )
        for name, matrix in self.probabilities.items():
            if matrix.shape[1] != len(self.labels[name]):
                raise DataError(f"{name} has {len(self.labels[name])} labels but {matrix.shape[1]} probability columns")
            if name in self.decision_thresholds and len(self.decision_thresholds[name]) != len(self.labels[name]):
                raise DataError(
                    f"{name} has {len(self.labels[name])} labels but {len(self.decision_thresholds[name])} decision_thresholds"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def characteristics(self) -> tuple[str, ...]:
        """Names of the characteristics, in the order they were trained."""
        return tuple(self.labels)

    def best(self, characteristic: str) -> Strings:
        """Returns the (n,) most probable labels, `None` where nothing is said.

        Of a multi-label characteristic: the (n,) sets of labels that products bear, those of their cut or above.
        """
        if characteristic in self.decision_thresholds:
            best = strings([None if labels is None else frozenset(labels) for labels in self.labels_of(characteristic)])
        else:
            columns = self._filled(characteristic).argmax(1)
            best = strings(self.labels[characteristic])[columns]
            best[~self.is_predicted(characteristic)] = None
        return best

    def confidence(self, characteristic: str) -> Floats:
        """Returns the (n,) float32 probabilities of what `best` says, 0 where nothing is known.

        That of a set of labels is the product over all labels, of those in it and of the absence of the others.
        """
        matrix = self._filled(characteristic)
        if characteristic not in self.decision_thresholds:
            confidence: Floats = matrix.max(1)
            return confidence
        sure = np.where(self._has_label(characteristic), matrix, 1 - matrix)
        return np.where(self.is_predicted(characteristic), sure.prod(1), 0).astype(np.float32)

    def is_predicted(self, characteristic: str) -> Bools:
        """Returns (n,) whether anything is said of a product's characteristic."""
        return self.is_known & ~np.isnan(self._probabilities_of(characteristic)).any(1)

    def labels_of(self, characteristic: str) -> list[list[str] | None]:
        """Returns for each product the labels that it bears, the most probable first; `None` where nothing is said.

        Of a characteristic with one label a product that is the one.
        """
        if characteristic not in self.decision_thresholds:
            return [None if label is None else [label] for label in self.best(characteristic)]
        matrix, has_label = self._filled(characteristic), self._has_label(characteristic)
        found: list[list[str] | None] = []
        for shares, borne, is_predicted in zip(matrix, has_label, self.is_predicted(characteristic), strict=True):
            columns = np.flatnonzero(borne)
            order = columns[np.argsort(-shares[columns], kind="stable")]
            found.append([self.labels[characteristic][column] for column in order] if is_predicted else None)
        return found

    def predicted(self, characteristic: str) -> list[str | list[str] | None]:
        """Returns for each product its label, of a multi-label characteristic the list of its labels, as for JSON."""
        if characteristic in self.decision_thresholds:
            return [*self.labels_of(characteristic)]
        label: list[str | list[str] | None] = self.best(characteristic).tolist()
        return label

    def top(self, characteristic: str, k: int = 3) -> list[list[tuple[str, float]]]:
        """Returns for each product its `k` most probable labels with their probabilities, best first."""
        matrix = self._filled(characteristic)
        names, is_predicted = self.labels[characteristic], self.is_predicted(characteristic)
        order = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
        return [
            [(names[column], float(matrix[row, column])) for column in columns] if is_predicted[row] else []
            for row, columns in enumerate(order)
        ]

    def explain(self, row: int) -> Mapping[str, Explanation]:
        """Returns characteristic -> what moved the prediction of the product of a row.

        Raises:
            DataError: there is no such row, nothing is known of the product, or the predictions were not made by heads.
        """
        if self.explainer is None:
            raise DataError("only predictions that heads have just made can be explained: predict again")
        if not 0 <= row < len(self):
            raise DataError(f"a row to explain must be one of {len(self)}, counted from 0, got {row}")
        if not self.is_known[row]:
            raise DataError(f"row {row} has neither photo nor text that the heads use: there is nothing to explain")
        return self.explainer(row)

    def _has_label(self, characteristic: str) -> Bools:
        """Returns (n, k) whether a product bears each label of a multi-label characteristic; false where unknown."""
        decision_thresholds = np.asarray(self.decision_thresholds[characteristic], dtype=np.float32)
        has_label: Bools = (self._filled(characteristic) >= decision_thresholds) & self.is_predicted(characteristic)[
            :, None
        ]
        return has_label

    def _filled(self, characteristic: str) -> Floats:
        return np.nan_to_num(self._probabilities_of(characteristic))

    def _probabilities_of(self, characteristic: str) -> Floats:
        if characteristic not in self.probabilities:
            raise DataError(f"no characteristic {characteristic!r}: {nearest(characteristic, self.probabilities)}")
        return self.probabilities[characteristic]
