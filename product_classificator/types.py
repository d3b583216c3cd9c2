"""The values that flow through the package: frozen, and checked once, when they are made.

Arrays are row-aligned: row i of every array belongs to `ids[i]`. Nothing here knows where the values come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from product_classificator.errors import DataError, nearest

Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.int64]
Strings: TypeAlias = npt.NDArray[np.object_]
"""An object array of `str`; `None` stands for an unknown label."""

Truth: TypeAlias = Mapping[str, Strings]
"""characteristic -> (n,) labels, `None` where the label is unknown."""

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")


def strings(values: Sequence[str | None] | Strings) -> Strings:
    """Returns `values` as an object array of shape (n,), whatever their lengths."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


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


@dataclass(frozen=True)
class Split:
    """Which part of a training each product belongs to; the test part is used once, for the report.

    Attributes:
        ids: (n,) product ids.
        part: (n,) of "train", "valid", "test"; "" for a product that was set aside.
    """

    ids: Strings
    part: Strings

    def __post_init__(self) -> None:
        _check_rows(len(self.ids), part=self.part)
        unknown = set(self.part) - {*PARTS, ""}
        if unknown:
            raise DataError(f"a part must be one of {PARTS} or '' (set aside), found {sorted(unknown)}")

    def rows(self, part: Part) -> Rows:
        """Returns the row numbers of a part, ascending."""
        return np.flatnonzero(self.part == part).astype(np.int64)


@dataclass(frozen=True)
class Predictions:
    """What the heads think of products.

    Attributes:
        ids: (n,) product ids.
        labels: characteristic -> its k labels, in the order of the probability columns.
        probabilities: characteristic -> (n, k) float32, rows sum to 1; rows of NaN where nothing is said: where
            `is_known` is false, and of a characteristic that refines another where the heads know no refinement.
        is_known: (n,) false for a product with neither photo nor text: nothing is said about it.
    """

    ids: Strings
    labels: Mapping[str, Sequence[str]]
    probabilities: Mapping[str, Floats]
    is_known: Bools

    def __post_init__(self) -> None:
        _check_rows(len(self.ids), is_known=self.is_known, **dict(self.probabilities))
        for name, matrix in self.probabilities.items():
            if matrix.shape[1] != len(self.labels[name]):
                raise DataError(f"{name} has {len(self.labels[name])} labels but {matrix.shape[1]} probability columns")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def characteristics(self) -> tuple[str, ...]:
        """Names of the characteristics, in the order they were trained."""
        return tuple(self.labels)

    def best(self, characteristic: str) -> Strings:
        """Returns the (n,) most probable labels, `None` where nothing is said."""
        columns = self._filled(characteristic).argmax(1)
        best: Strings = strings(self.labels[characteristic])[columns]
        best[~self._is_told(characteristic)] = None
        return best

    def top(self, characteristic: str, k: int = 3) -> list[list[tuple[str, float]]]:
        """Returns for each product its `k` most probable labels with their probabilities, best first."""
        matrix = self._filled(characteristic)
        names, is_told = self.labels[characteristic], self._is_told(characteristic)
        order = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
        return [
            [(names[column], float(matrix[row, column])) for column in columns] if is_told[row] else []
            for row, columns in enumerate(order)
        ]

    def _is_told(self, characteristic: str) -> Bools:
        return self.is_known & ~np.isnan(self.probabilities[characteristic]).any(1)

    def _filled(self, characteristic: str) -> Floats:
        if characteristic not in self.probabilities:
            raise DataError(f"no characteristic {characteristic!r}: {nearest(characteristic, self.probabilities)}")
        return np.nan_to_num(self.probabilities[characteristic])
