from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from product_classificator.types import Predictions, Truth, strings

Columns = Mapping[str, tuple[Sequence[str], Sequence[str | None], Sequence[str]]]


@pytest.fixture(scope="session")
def judged() -> Callable[..., tuple[Predictions, Truth]]:
    """Makes predictions and truth of characteristic -> (labels, true, predicted)."""

    def make(columns: Columns, is_known: Sequence[bool] | None = None) -> tuple[Predictions, Truth]:
        n = len(next(iter(columns.values()))[2])
        known = np.ones(n, dtype=bool) if is_known is None else np.array(is_known, dtype=bool)
        probabilities = {}
        for name, (labels, _, predicted) in columns.items():
            matrix = np.zeros((n, len(labels)), dtype=np.float32)
            matrix[np.arange(n), [list(labels).index(label) for label in predicted]] = 1
            matrix[~known] = np.nan
            probabilities[name] = matrix
        ids = strings([str(i) for i in range(n)])
        predictions = Predictions(
            ids, {name: tuple(labels) for name, (labels, _, _) in columns.items()}, probabilities, known
        )
        return predictions, {name: strings(list(true)) for name, (_, true, _) in columns.items()}

    return make
