"""Turns sets of labels, true and predicted, into counts per label: how multi-label characteristics are scored.

A product is scored for every trained label, whether or not it bears it; labels that were not trained are passed over. A
product all labels of which were not trained is not scored, one that is known to bear none of any is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack

from product_classificator.types import Bools, Floats, Predictions, Rows, Strings


@dataclass(frozen=True)
class SetPairs:
    """The distinct (true, predicted) pairs of label sets, m kinds among n products and k labels.

    Attributes:
        triple: (m, 3k) float64 sparse, 1 where a label is correct, then where it is true, then where it is predicted.
        count: (m,) products of this pair.
        n_right: products whose predicted set is the true one.
    """

    triple: csr_matrix
    count: Rows
    n_right: int

    def sums(self, count: Rows) -> npt.NDArray[np.float64]:
        """Returns (3, k): per label the correct, true and predicted products when pair i occurs `count[i]` times."""
        sums: npt.NDArray[np.float64] = (self.triple.T @ count.astype(np.float64)).reshape(3, -1)
        return sums


def set_pairs(true: Strings, predicted: Strings, names: Sequence[str]) -> SetPairs:
    """Returns the pairs of products.

    Args:
        true: (n,) sets of labels.
        predicted: (n,) likewise.
        names: the labels that count.
    """
    numbers = {label: number for number, label in enumerate(names)}
    kinds: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for pair in zip(true, predicted, strict=True):
        borne, told = (tuple(sorted(numbers[label] for label in item or () if label in numbers)) for item in pair)
        kinds[borne, told] = kinds.get((borne, told), 0) + 1
    borne, told = (_matrix([pair[side] for pair in kinds], len(names)) for side in (0, 1))
    n_right = sum(count for (left, right), count in kinds.items() if left == right)
    triple = hstack([borne.multiply(told), borne, told], format="csr")
    return SetPairs(triple, np.array(list(kinds.values()), dtype=np.int64), n_right)


def _matrix(sets: Sequence[tuple[int, ...]], k: int) -> csr_matrix:
    columns = np.array([number for item in sets for number in item], dtype=np.int64)
    starts = np.cumsum([0, *map(len, sets)])
    return csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(sets), k))


def is_scorable(true: Strings, names: Sequence[str]) -> Bools:
    """Returns (n,) whether a product bears a label among `names`, or is known to bear none of any."""
    trained = set(names)
    return np.array([item is not None and (not item or not trained.isdisjoint(item)) for item in true], dtype=bool)


def told_labels(predictions: Predictions, characteristic: str, true: Strings, rows: Rows) -> tuple[Floats, Bools]:
    """Returns of all labels that products of `rows` are told to bear the probability, and whether they bear them."""
    places = {label: column for column, label in enumerate(predictions.labels[characteristic])}
    shares, told = predictions.probabilities[characteristic], predictions.best(characteristic)
    found = [
        (shares[row, places[label]], label in true[row]) for row in rows.tolist() for label in sorted(told[row] or ())
    ]
    sure, right = zip(*found, strict=True) if found else ((), ())
    return np.array(sure, dtype=np.float32), np.array(right, dtype=bool)
