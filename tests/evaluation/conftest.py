from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from product_classificator.types import Bools, Floats, Predictions, Strings, Truth, strings

MATERIALS = ("cotton", "silk", "wool")
Columns = Mapping[str, tuple[Sequence[str], Sequence[str | None], Sequence[str]]]


@pytest.fixture(scope="session")
def judged() -> Callable[..., tuple[Predictions, Truth]]:
    """Make predictions and truth from characteristic -> (labels, true, predicted)."""

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


def sets(*items) -> Strings:
    return strings([None if item is None else frozenset(item) for item in items])


def predict_sets(probabilities: Floats, is_known: Bools | None = None) -> Predictions:
    """Predictions of a multi-label characteristic with three labels."""
    n = len(probabilities)
    return Predictions(
        strings([str(i) for i in range(n)]),
        {"materials": MATERIALS},
        {"materials": probabilities},
        np.ones(n, bool) if is_known is None else is_known,
        decision_thresholds={"materials": [0.5] * 3},
    )


def materials(n: int = 60, seed: int = 0) -> tuple[Predictions, Truth, Bools, Bools]:
    """Return predictions that are right three times in four, the truth, and both as (n, 3) indicators."""
    random = np.random.default_rng(seed)
    true = random.random((n, 3)) < (0.6, 0.3, 0.1)
    probabilities = np.where(random.random((n, 3)) < 0.75, true, ~true) * 0.8 + 0.1
    truth = {"materials": sets(*([MATERIALS[j] for j in np.flatnonzero(row)] for row in true))}
    return predict_sets(probabilities.astype(np.float32)), truth, true, probabilities > 0.5
