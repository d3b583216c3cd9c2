from dataclasses import replace

import numpy as np
import pytest

from product_classificator.evaluation import evaluate, plots
from product_classificator.evaluation.reliability import measure_reliability, precision_by_coverage
from product_classificator.types import Decisions, Predictions, strings


def drawn(n, shift=0.0, seed=0):
    """Return probabilities and outcomes that are true as often as they say, or less often by `shift`."""
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.5, 1, n).astype(np.float32)
    return confidence, random.random(n) < confidence - shift


def test_the_error_is_the_mean_gap_of_bins_of_equally_many_products():
    confidence, is_right = drawn(300, 0.1)
    order = np.argsort(confidence)
    gaps = [abs(confidence[rows].mean() - is_right[rows].mean()) for rows in np.array_split(order, 15)]
    assert measure_reliability(confidence, is_right).error == pytest.approx(np.mean(gaps))


def test_with_few_products_each_is_a_bin():
    assert measure_reliability(np.array([0.8, 0.6], np.float32), np.array([True, False])).error == pytest.approx(0.4)
    assert len(measure_reliability(*drawn(4)).bins) == 4


def test_probabilities_that_are_right_have_the_error_of_chance():
    reliability = measure_reliability(*drawn(1500))
    assert reliability.error == pytest.approx(reliability.error_by_chance, abs=0.012)
    assert reliability.error_by_chance > 0.02
    assert measure_reliability(*drawn(100_000)).error_by_chance < 0.005


def test_probabilities_that_are_too_high_have_more():
    reliability = measure_reliability(*drawn(1500, 0.1))
    assert reliability.error == pytest.approx(0.1, abs=0.03)
    assert sum(b.n for b in reliability.bins) == 1500
    assert np.mean([b.confidence - b.accuracy for b in reliability.bins]) == pytest.approx(0.1, abs=0.03)


def test_the_most_confident_products_come_first_on_the_curve():
    curve = precision_by_coverage(np.array([0.5, 0.9, 0.7, 0.6], np.float32), np.array([False, True, True, False]))
    assert curve == ((0.25, 1.0), (0.5, 1.0), (0.75, 2 / 3), (1.0, 0.5))
    assert len(precision_by_coverage(*drawn(1000))) == 100


def with_decisions(judged, true, predicted, accepted, is_out_of_distribution=None):
    predictions, truth = judged({"x": ("ab", true, predicted), "y": ("ab", true, predicted)})
    accepted = {"x": np.array(accepted, bool), "y": np.ones(len(accepted), bool)}
    is_out_of_distribution = np.array(is_out_of_distribution or [False] * len(predictions))
    return replace(predictions, decisions=Decisions(0.9, accepted, is_out_of_distribution)), truth


def test_accepted_values_with_an_untrained_label_are_wrong_and_those_without_a_label_are_skipped(judged):
    true, predicted = ["a", "b", "rare", None, "b", "a"], "abaaba"
    decided = with_decisions(judged, true, predicted, [1, 1, 1, 1, 0, 0], [False] * 5 + [True])
    selective = evaluate(*decided, resamples=0).selective
    assert selective.characteristics["x"].share == pytest.approx(4 / 6)
    assert (selective.characteristics["x"].precision, selective.characteristics["x"].n) == (2 / 3, 3)
    assert selective.share == pytest.approx(4 / 6)
    assert selective.out_of_distribution == pytest.approx(1 / 6)


def test_where_nothing_is_accepted_there_is_no_precision(judged):
    selective = evaluate(*with_decisions(judged, "ab", "ab", [0, 0]), resamples=0).selective
    assert (selective.share, selective.characteristics["x"].precision) == (0, None)
    assert selective.characteristics["y"].precision == 1


def test_a_characteristic_without_truth_has_a_share_and_no_precision(judged):
    predictions, truth = with_decisions(judged, "ab", "ab", [1, 0])
    selective = evaluate(predictions, {"y": truth["y"]}, resamples=0).selective
    assert (selective.characteristics["x"].share, selective.characteristics["x"].precision) == (0.5, None)


def test_predictions_without_decisions_have_no_selective_score(judged):
    assert evaluate(*judged({"x": ("ab", "ab", "ab")}), resamples=0).selective is None


def test_the_plots_name_every_characteristic_and_mark_the_accepted_share(judged, drawn_figures):
    evaluation = evaluate(*with_decisions(judged, "ab" * 20, "aa" * 20, [1] * 10 + [0] * 30), resamples=0)
    panels = plots.draw_reliability(evaluation).axes
    assert [axes.get_title() for axes in panels] == ["x: ECE 0.500", "y: ECE 0.500"]
    axes = plots.draw_precision_by_coverage(evaluation).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_xdata() for dot in dots] == [[0.25], [1.0]]


def test_decisions_belong_to_their_products():
    probabilities = np.array([[0.9, 0.1]], np.float32)
    wrong = Decisions(0.9, {"x": np.ones(2, bool)}, np.zeros(1, bool))
    with pytest.raises(ValueError, match=r"one row per id: there are 1 ids, but \{'x': \(2,\)\}"):
        Predictions(strings(["1"]), {"x": ("a", "b")}, {"x": probabilities}, np.ones(1, bool), wrong)


def test_the_order_of_products_of_one_confidence_changes_nothing():
    confidence, is_right = np.full(300, 0.8, np.float32), np.arange(300) < 240
    assert measure_reliability(confidence, is_right).error == pytest.approx(0, abs=1e-6)
    assert measure_reliability(confidence, is_right[::-1]).error == pytest.approx(0, abs=1e-6)
    assert precision_by_coverage(confidence, is_right)[0][1] == pytest.approx(0.8)
