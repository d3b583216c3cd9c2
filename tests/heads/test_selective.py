import numpy as np
import pytest
from scipy.stats import binomtest

from product_classificator.errors import DataError
from product_classificator.heads.selective import (
    check_precision,
    fit_thresholds,
    threshold_for,
    thresholds_of,
    with_decisions,
)
from product_classificator.types import Bools, Floats, Predictions, strings


def drawn(n: int, seed: int) -> tuple[Floats, Bools]:
    """Returns probabilities and whether they came true."""
    random = np.random.default_rng(seed)
    confidence = random.beta(4, 1, n).astype(np.float32)
    return confidence, random.random(n) < confidence


def test_what_is_promised_is_the_lower_end_of_the_exact_interval() -> None:
    confidence, is_right = drawn(1000, 0)
    thresholds = thresholds_of(confidence, is_right)
    for precision, level in thresholds:
        chosen = is_right[confidence >= level]
        low = binomtest(int(chosen.sum()), len(chosen)).proportion_ci(0.8, "exact").low
        assert precision <= low < precision + 0.005 or precision == thresholds[-1][0]


@pytest.mark.parametrize("min_precision", [0.85, 0.9, 0.95])
def test_on_new_products_the_promise_is_kept_nine_times_in_ten(min_precision: float) -> None:
    new, came_true = drawn(100_000, 99)
    kept = []
    for seed in range(100):
        level = threshold_for(thresholds_of(*drawn(800, seed)), min_precision)
        if level <= 1:
            kept.append(came_true[new >= level].mean() >= min_precision)
    assert np.mean(kept) > 0.85


def test_a_higher_promise_decides_less() -> None:
    thresholds = thresholds_of(*drawn(1000, 1))
    assert thresholds == tuple(sorted(thresholds))
    levels = [level for _, level in thresholds]
    assert levels == sorted(levels)
    assert threshold_for(thresholds, 0.5) == 0


def test_a_promise_needs_enough_products() -> None:
    sure = np.ones(45, dtype=np.float32)
    assert threshold_for(thresholds_of(sure, sure > 0), 0.95) == 0
    assert threshold_for(thresholds_of(sure[1:], sure[1:] > 0), 0.95) > 1


def test_products_of_one_probability_are_not_taken_apart() -> None:
    confidence = np.repeat(np.array([0.9, 0.6], np.float32), 100)
    is_right = np.arange(200) < 150  # all of the first, half of the second
    thresholds = thresholds_of(confidence, is_right)
    assert {round(level, 3) for _, level in thresholds} == {0, 0.9}


def test_without_products_or_without_a_right_one_nothing_is_promised() -> None:
    none = np.empty(0, np.float32)
    assert thresholds_of(none, none > 0) == ()
    assert thresholds_of(np.full(50, 0.9, np.float32), np.zeros(50, bool)) == ()
    assert threshold_for((), 0.01) > 1


def test_a_label_that_was_not_trained_counts_as_wrong_and_an_unknown_one_not_at_all() -> None:
    shares = np.tile(np.array([[0.9, 0.1]], np.float32), (300, 1))
    ids = strings([str(i) for i in range(300)])
    predictions = Predictions(ids, {"x": ("a", "b")}, {"x": shares}, np.ones(300, bool))
    true = ["a"] * 100 + [None] * 200
    assert threshold_for(fit_thresholds(predictions, {"x": strings(true)})["x"], 0.95) == 0
    true = ["a"] * 100 + ["rare"] * 200
    assert threshold_for(fit_thresholds(predictions, {"x": strings(true)})["x"], 0.5) > 1


@pytest.mark.parametrize("wrong", [0, 1, 95, -0.1, float("nan")])
def test_a_precision_is_a_share(wrong: float) -> None:
    with pytest.raises(DataError, match="min_precision must be a share above 0 and below 1, got"):
        check_precision(wrong)


def test_of_what_nothing_is_said_no_value_stands() -> None:
    told = np.array([[0.9, 0.1], [np.nan, np.nan]], np.float32)
    predictions = Predictions(strings(["1", "2"]), {"sub": ("a", "b")}, {"sub": told}, np.array([True, True]))
    every = {"sub": ((0.95, 0.0),)}
    decided = with_decisions(predictions, every, np.array([False, False]), 0.95)
    assert decided.decisions is not None
    assert list(decided.decisions["sub"]) == ["auto", "review"]
