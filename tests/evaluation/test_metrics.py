from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support

from product_classificator.errors import DataError
from product_classificator.evaluation import Confusion, evaluate
from product_classificator.types import Predictions, strings
from tests.evaluation.conftest import MATERIALS, materials, predict_sets, sets

LABELS = ("a", "b", "c", "d", "e", "f")


def drawn(n, k, right, seed=0):
    """Return labels, true and predicted of n products, skewed to the first labels."""
    random = np.random.default_rng(seed)
    labels = [f"label {i}" for i in range(k)]
    true = np.minimum((random.pareto(1, n) * 3).astype(int), k - 1)
    predicted = np.where(random.random(n) < right, true, random.integers(k, size=n))
    return labels, [labels[i] for i in true], [labels[i] for i in predicted]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=30))
def test_macro_f1_is_that_of_scikit_learn(judged, pairs):
    true, predicted = zip(*pairs, strict=True)
    score = evaluate(*judged({"x": (LABELS, true, predicted)}), resamples=0).characteristics["x"]
    assert score.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    assert score.accuracy == pytest.approx(np.mean([t == p for t, p in pairs]))
    assert sum(label.support for label in score.labels) == score.n == len(pairs)
    wrong = sum(pair.count for pair in score.confusions)
    assert wrong + sum(label.correct for label in score.labels) == score.n


def test_the_label_table_is_that_of_scikit_learn(judged):
    _, true, predicted = columns = drawn(400, 12, 0.7)
    labels = evaluate(*judged({"x": columns}), resamples=0).characteristics["x"].labels
    names = [label.label for label in labels]
    expected = precision_recall_fscore_support(true, predicted, labels=names, zero_division=0)
    scores = [(label.precision, label.recall, label.f1, label.support) for label in labels]
    np.testing.assert_allclose(np.array(scores), np.array(expected).T)
    assert [label.predicted for label in labels] == [predicted.count(name) for name in names]
    assert [label.support for label in labels] == sorted((label.support for label in labels), reverse=True)


def test_the_interval_is_that_of_resampling_products_one_by_one(judged):
    _, true, predicted = columns = drawn(150, 6, 0.6)
    low, high = evaluate(*judged({"x": columns})).characteristics["x"].interval
    random = np.random.default_rng(1)
    rows = random.integers(150, size=(250, 150))
    true, predicted = np.array(true), np.array(predicted)
    scores = [f1_score(true[row], predicted[row], average="macro", zero_division=0) for row in rows]
    score = f1_score(true, predicted, average="macro", zero_division=0)
    assert (low, high) == pytest.approx(2 * score - np.percentile(scores, (97.5, 2.5)), abs=0.03)


def test_the_interval_depends_on_nothing_but_products_and_seed(judged):
    columns, other = drawn(100, 4, 0.6), drawn(100, 3, 0.9, seed=5)
    alone = evaluate(*judged({"x": columns}), resamples=50).characteristics["x"]
    with_another = evaluate(*judged({"y": other, "x": columns}), resamples=50).characteristics["x"]
    assert alone == with_another
    assert evaluate(*judged({"x": columns}), resamples=50, seed=1).characteristics["x"].interval != alone.interval


def test_a_perfect_prediction_has_an_interval_of_no_width(judged):
    score = evaluate(*judged({"x": (("a", "b"), "aab", "aab")}), resamples=20).characteristics["x"]
    assert (score.macro_f1, score.interval, score.confusions) == (1.0, (1.0, 1.0), ())


def test_each_product_that_is_not_scored_is_counted_under_one_reason(judged):
    true = ["a", None, "new", "a", "new", None, "b"]
    columns = {"x": (("a", "b"), true, "aaaaaab")}
    score = evaluate(*judged(columns, [True, True, True, False, False, False, True])).characteristics["x"]
    assert (score.n, score.unlabelled, score.unknown_labels, score.not_predicted) == (2, 2, 2, 1)
    assert score.macro_f1 == 1.0


def test_without_a_scored_product_there_is_no_score(judged):
    evaluation = evaluate(*judged({"x": (("a",), [None, "new"], "aa")}))
    score = evaluation.characteristics["x"]
    assert (evaluation.mean_macro_f1, score.macro_f1, score.interval, score.accuracy) == (None,) * 4
    assert (score.labels, score.confusions) == ((), ())


def test_no_products_at_all_are_no_error(judged):
    assert evaluate(*judged({"x": (("a",), [], [])})).mean_macro_f1 is None


def test_the_mean_skips_a_characteristic_without_score(judged):
    evaluation = evaluate(*judged({"x": (("a",), [None, None], "aa"), "y": (("a", "b"), "ab", "ab")}), resamples=0)
    assert evaluation.mean_macro_f1 == 1.0
    assert evaluation.characteristics["y"].interval is None


def test_a_characteristic_absent_from_the_truth_is_unlabelled(judged):
    predictions, truth = judged({"x": (("a", "b"), "ab", "ab"), "y": (("a",), "aa", "aa")})
    evaluation = evaluate(predictions, {"x": truth["x"], "not predicted": truth["y"]}, resamples=0)
    assert list(evaluation.characteristics) == ["x", "y"]
    assert evaluation.characteristics["y"].unlabelled == 2


def test_confusions_come_most_frequent_first(judged):
    score = evaluate(*judged({"x": (LABELS, "aaabbc", "bbaaca")}), resamples=0).characteristics["x"]
    assert score.confusions[0] == Confusion("a", "b", 2)
    assert {(pair.true, pair.predicted) for pair in score.confusions} == {
        ("a", "b"),
        ("b", "a"),
        ("b", "c"),
        ("c", "a"),
    }


def test_one_mistake_costs_its_label_only_where_it_was_made(judged):
    score = evaluate(*judged({"x": (LABELS, "aab", "aaa")}), resamples=0).characteristics["x"]
    assert [(label.label, label.f1) for label in score.labels] == [("a", pytest.approx(0.8)), ("b", 0.0)]
    assert score.macro_f1 == pytest.approx(0.4)


def test_thousands_of_products_and_hundreds_of_labels_are_judged(judged):
    score = evaluate(*judged({"x": drawn(3000, 700, 0.8)}), resamples=50).characteristics["x"]
    low, high = score.interval
    assert 0 < low < high < 1


def test_truth_of_other_characteristics_only_is_refused(judged):
    predictions, truth = judged({"category": (("a",), "a", "a")})
    with pytest.raises(DataError, match=r"must hold a predicted characteristic, found only catgory .*'category'"):
        evaluate(predictions, {"catgory": truth["category"]})


def test_no_truth_is_refused(judged):
    predictions, _ = judged({"category": (("a",), "a", "a")})
    with pytest.raises(DataError, match="must hold a predicted characteristic"):
        evaluate(predictions, {})


def test_truth_of_another_length_is_refused(judged):
    predictions, _ = judged({"x": (("a",), "aa", "aa")})
    with pytest.raises(DataError, match=r"'x' has 1 labels for 2 products; give the labels in the order of"):
        evaluate(predictions, {"x": strings(["a"])})


def test_a_true_label_that_is_not_text_is_refused(judged):
    predictions, _ = judged({"x": (("a",), "aa", "aa")})
    with pytest.raises(DataError, match=r"'x' holds nan, 3 \(2 in all\); convert them to text, and NaN to None"):
        evaluate(predictions, {"x": np.array([float("nan"), 3], dtype=object)})


def test_a_negative_number_of_resamples_is_refused(judged):
    with pytest.raises(DataError, match=r"resamples must be 0 \(no intervals\) or more, got -1"):
        evaluate(*judged({"x": (("a",), "a", "a")}), resamples=-1)


def test_anyones_probabilities_are_judged():
    probabilities = {"x": np.array([[0.4, 0.6], [0.9, 0.1]], np.float32)}
    rival = Predictions(strings(["1", "2"]), {"x": ("a", "b")}, probabilities, np.ones(2, bool))
    assert evaluate(rival, {"x": strings(["b", "a"])}, resamples=0).mean_macro_f1 == 1.0


def test_multi_label_macro_f1_is_that_of_scikit_learn_and_accuracy_the_share_of_exact_sets():
    predictions, truth, true, predicted = materials()
    score = evaluate(predictions, truth).characteristics["materials"]
    assert score.is_multi_label
    assert score.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro"))
    assert score.accuracy == pytest.approx((true == predicted).all(1).mean())
    assert score.interval[0] < score.macro_f1 < score.interval[1]
    assert score.confusions == ()
    assert [label.support for label in score.labels] == sorted(true.sum(0), reverse=True)
    by_name = {label.label: label for label in score.labels}
    assert by_name["silk"].recall == pytest.approx((true & predicted)[:, 1].sum() / true[:, 1].sum())


def test_the_interval_of_label_sets_is_that_of_resampling_products_one_by_one():
    predictions, truth, true, predicted = materials()
    low, high = evaluate(predictions, truth).characteristics["materials"].interval
    random = np.random.default_rng(1)
    drawn = [random.integers(0, len(true), len(true)) for _ in range(200)]
    scores = [f1_score(true[rows], predicted[rows], average="macro") for rows in drawn]
    score = f1_score(true, predicted, average="macro")
    assert (low, high) == pytest.approx(2 * score - np.percentile(scores, (97.5, 2.5)), abs=0.05)


def test_multi_label_reliability_is_that_of_the_predicted_labels():
    predictions, truth, true, predicted = materials()
    reliability = evaluate(predictions, truth).characteristics["materials"].reliability
    assert sum(b.n for b in reliability.bins) == predicted.sum()
    right = sum(b.n * b.accuracy for b in reliability.bins)
    assert right == pytest.approx((true & predicted).sum())


def test_every_product_with_label_sets_is_counted_once():
    probabilities = np.full((6, 3), 0.9, np.float32)
    known = np.array([True, True, True, True, True, False])
    probabilities[5] = np.nan
    predictions = predict_sets(probabilities, known)
    truth = {"materials": sets(None, {"linen"}, {"linen", "wool"}, set(), MATERIALS, {"wool"})}
    score = evaluate(predictions, truth).characteristics["materials"]
    assert (score.n, score.unlabelled, score.unknown_labels, score.not_predicted) == (3, 1, 1, 1)
    assert score.accuracy == pytest.approx(1 / 3)
    assert score.precision_by_coverage[-1] == (1.0, pytest.approx(1 / 4))  # a label that was not trained is missed


def test_products_without_labels_and_without_predicted_labels_are_right():
    probabilities = np.full((2, 3), 0.1, np.float32)
    predictions = predict_sets(probabilities)
    score = evaluate(predictions, {"materials": sets(set(), set())}).characteristics["materials"]
    assert (score.macro_f1, score.accuracy, score.labels, score.reliability) == (1.0, 1.0, (), None)


@pytest.mark.parametrize(("is_multi", "labels"), [(True, ["wool"]), (False, [frozenset(["wool"])])])
def test_labels_and_sets_are_not_mixed(is_multi, labels):
    probabilities = np.full((1, 3), 0.3, np.float32)
    predictions = predict_sets(probabilities)
    if not is_multi:
        predictions = replace(predictions, decision_thresholds={})
    with pytest.raises(
        DataError, match=f"true labels must be {'frozensets of ' * is_multi}text, or None where unknown"
    ):
        evaluate(predictions, {"materials": strings(labels)})


@pytest.mark.parametrize("size", [3, 5])
def test_intervals_of_near_identical_products_cover_what_they_promise(judged, size):
    covered = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        true = draw.integers(0, 3, 600 // size)
        is_wrong = draw.random(len(true)) > 0.8
        predicted = np.where(is_wrong, (true + draw.integers(1, 3, len(true))) % 3, true)
        columns = tuple("".join("abc"[i] for i in np.repeat(column, size)) for column in (true, predicted))
        groups = np.repeat(np.arange(len(true)), size)
        low, high = (
            evaluate(*judged({"x": ("abc", *columns)}), groups=groups, resamples=100).characteristics["x"].interval
        )
        covered.append(low <= 0.8 <= high)
    assert np.mean(covered) >= 0.87  # 0.77 and 0.58 if every product counts


def test_groups_of_one_change_no_interval(judged):
    columns = {"x": drawn(200, 3, 0.7)}
    alone = evaluate(*judged(columns), groups=np.arange(200)[::-1], resamples=30)
    assert alone.characteristics["x"].interval == evaluate(*judged(columns), resamples=30).characteristics["x"].interval


def test_macro_f1_ignores_products_of_rare_labels_but_not_a_rare_label_that_is_predicted(judged):
    columns = {"x": ("abr", "aabbrr", "aarbra")}
    score = evaluate(*judged(columns), rare_labels={"x": ["r"]}, resamples=0).characteristics["x"]
    assert [(label.label, label.support, label.predicted) for label in score.labels] == [("a", 2, 2), ("b", 2, 1)]
    assert score.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert (score.n, score.accuracy, score.rare.n) == (4, 0.75, 2)
    assert [(label.label, label.support, label.predicted) for label in score.rare.labels] == [("r", 2, 2)]
    assert score.rare.macro_f1 == 0.5
    assert [(pair.true, pair.predicted) for pair in score.confusions] == [("b", "r")]


def test_a_product_with_a_common_and_a_rare_label_counts_for_both(judged):
    predictions, truth, _, _ = materials()
    alone, apart = (
        evaluate(predictions, truth, rare_labels=rare, resamples=0).characteristics["materials"]
        for rare in ({}, {"materials": [predictions.labels["materials"][0]]})
    )
    by_label = {label.label: label for label in alone.labels}
    assert apart.rare.labels == (by_label[predictions.labels["materials"][0]],)
    assert apart.n + apart.rare.n == alone.n
