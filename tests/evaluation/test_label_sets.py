from itertools import product as combinations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from product_classificator.errors import DataError
from product_classificator.evaluation import RunFacts, evaluate, evaluation_json, write_report
from product_classificator.types import Predictions, strings

LABELS = ("cotton", "silk", "wool")


def sets(*items):
    return strings([None if item is None else frozenset(item) for item in items])


def judged(n=60, seed=0):
    """Returns predictions of probabilities that are right three times in four, and the truth."""
    random = np.random.default_rng(seed)
    true = random.random((n, 3)) < (0.6, 0.3, 0.1)
    shares = np.where(random.random((n, 3)) < 0.75, true, ~true) * 0.8 + 0.1
    ids = strings([str(i) for i in range(n)])
    predictions = Predictions(
        ids,
        {"materials": LABELS},
        {"materials": shares.astype(np.float32)},
        np.ones(n, bool),
        decision_thresholds={"materials": [0.5] * 3},
    )
    return (
        predictions,
        {"materials": sets(*([LABELS[j] for j in np.flatnonzero(row)] for row in true))},
        true,
        shares > 0.5,
    )


def test_macro_f1_is_that_of_scikit_learn_and_accuracy_the_share_of_exact_sets():
    predictions, truth, true, told = judged()
    score = evaluate(predictions, truth).characteristics["materials"]
    assert score.is_multi_label
    assert score.macro_f1 == pytest.approx(f1_score(true, told, average="macro"))
    assert score.accuracy == pytest.approx((true == told).all(1).mean())
    assert score.interval[0] < score.macro_f1 < score.interval[1]
    assert score.confusions == ()
    assert [label.support for label in score.labels] == sorted(true.sum(0), reverse=True)
    by_name = {label.label: label for label in score.labels}
    assert by_name["silk"].recall == pytest.approx((true & told)[:, 1].sum() / true[:, 1].sum())


def test_the_interval_is_that_of_resampling_products_one_by_one():
    predictions, truth, true, told = judged()
    low, high = evaluate(predictions, truth).characteristics["materials"].interval
    random = np.random.default_rng(1)
    drawn = [random.integers(0, len(true), len(true)) for _ in range(200)]
    scores = [f1_score(true[rows], told[rows], average="macro") for rows in drawn]
    assert (low, high) == pytest.approx(np.percentile(scores, (2.5, 97.5)), abs=0.05)


def test_reliability_is_that_of_the_labels_that_are_told():
    predictions, truth, true, told = judged()
    reliability = evaluate(predictions, truth).characteristics["materials"].reliability
    assert sum(each.n for each in reliability.bins) == told.sum()
    right = sum(each.n * each.accuracy for each in reliability.bins)
    assert right == pytest.approx((true & told).sum())


def test_every_product_is_counted_once():
    shares = np.full((6, 3), 0.9, np.float32)
    known = np.array([True, True, True, True, True, False])
    shares[5] = np.nan
    predictions = Predictions(
        strings(list("abcdef")),
        {"materials": LABELS},
        {"materials": shares},
        known,
        decision_thresholds={"materials": [0.5] * 3},
    )
    truth = {"materials": sets(None, {"linen"}, {"linen", "wool"}, set(), LABELS, {"wool"})}
    score = evaluate(predictions, truth).characteristics["materials"]
    assert (score.n, score.unlabelled, score.unknown_labels, score.not_predicted) == (3, 1, 1, 1)
    assert score.accuracy == pytest.approx(1 / 3)
    assert score.precision_by_coverage[-1] == (1.0, pytest.approx(1 / 4))  # a label that was not trained is missed


def test_products_that_bear_nothing_and_are_told_nothing_are_right():
    shares = np.full((2, 3), 0.1, np.float32)
    predictions = Predictions(
        strings(["a", "b"]),
        {"materials": LABELS},
        {"materials": shares},
        np.ones(2, bool),
        decision_thresholds={"materials": [0.5] * 3},
    )
    score = evaluate(predictions, {"materials": sets(set(), set())}).characteristics["materials"]
    assert (score.macro_f1, score.accuracy, score.labels, score.reliability) == (1.0, 1.0, (), None)


@pytest.mark.parametrize(
    ("is_multi", "labels"), list(combinations([True, False], [["wool"], [frozenset(["wool"])]]))[::3]
)
def test_labels_and_sets_are_not_mixed(is_multi, labels):
    shares = np.full((1, 3), 0.3, np.float32)
    decision_thresholds = {"materials": [0.5] * 3} if is_multi else {}
    predictions = Predictions(
        strings(["a"]),
        {"materials": LABELS},
        {"materials": shares},
        np.ones(1, bool),
        decision_thresholds=decision_thresholds,
    )
    rule = {True: "true labels must be frozensets of text", False: "'materials' was learned with one label a product"}
    with pytest.raises(DataError, match=rule[is_multi]):
        evaluate(predictions, {"materials": strings(labels)})


def test_the_report_tells_of_it_and_draws_labels_instead_of_confusions(tmp_path):
    predictions, truth, _, _ = judged()
    evaluation = evaluate(predictions, truth)
    write_report(tmp_path, evaluation, RunFacts("A run"))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "materials is multi-label, a product bears any number of its labels" in text
    assert "most confused pairs" not in text
    assert (tmp_path / "plots/01-materials-largest.png").is_file()
    assert evaluation_json(evaluation)["characteristics"]["materials"]["is_multi_label"]
