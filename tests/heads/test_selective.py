import numpy as np
import pytest

from product_classificator.errors import DataError
from product_classificator.heads import Characteristic
from product_classificator.heads.selective import check_min_precision, with_decisions
from product_classificator.types import Predictions, strings


@pytest.mark.parametrize("wrong", [0, 1, 95, -0.1, float("nan")])
def test_a_precision_is_a_share(wrong: float) -> None:
    with pytest.raises(DataError, match=r"min_precision must be between 0 and 1 \(exclusive\), got"):
        check_min_precision(wrong)


def test_nothing_is_accepted_where_nothing_is_predicted() -> None:
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan]], np.float32)
    predictions = Predictions(strings(["1", "2"]), {"sub": ("a", "b")}, {"sub": probabilities}, np.array([True, True]))
    sub = Characteristic("sub", ("a", "b"), confidence_thresholds=((0.95, 0.0),))
    decided = with_decisions(predictions, [sub], np.array([False, False]), 0.95)
    assert decided.decisions is not None
    assert list(decided.decisions["sub"]) == ["auto", "review"]
