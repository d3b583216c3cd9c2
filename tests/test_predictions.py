import numpy as np
import pytest

from product_classificator.errors import DataError
from product_classificator.types import Predictions, strings

SHARES = np.array([[0.9, 0.3, 0.6], [0.1, 0.1, 0.2], [np.nan] * 3], np.float32)


def make(decision_thresholds):
    is_known = np.array([True, True, False])
    ids, labels = strings(["1", "2", "3"]), {"materials": ("cotton", "silk", "wool")}
    return Predictions(
        ids, labels, {"materials": SHARES}, is_known, decision_thresholds={"materials": decision_thresholds}
    )


def test_labels_that_reach_their_decision_threshold_are_assigned_the_most_probable_first():
    predictions = make([0.5, 0.25, 0.7])
    assert predictions.labels_of("materials") == [["cotton", "silk"], [], None]
    assert predictions.best("materials").tolist() == [{"cotton", "silk"}, set(), None]
    assert predictions.top("materials", 2)[0] == [("cotton", pytest.approx(0.9)), ("wool", pytest.approx(0.6))]


def test_the_confidence_of_a_set_is_that_of_every_label_being_right():
    confidence = make([0.5, 0.25, 0.7]).confidence("materials")
    assert confidence == pytest.approx([0.9 * 0.3 * 0.4, 0.9 * 0.9 * 0.8, 0])
    assert confidence.dtype == np.float32


def test_every_label_needs_a_decision_threshold():
    with pytest.raises(DataError, match="materials has 3 labels but 2 decision thresholds"):
        make([0.5, 0.5])


def test_of_a_single_label_the_list_holds_the_one():
    shares = np.array([[0.7, 0.3], [np.nan, np.nan]], np.float32)
    predictions = Predictions(strings(["1", "2"]), {"sex": ("men", "women")}, {"sex": shares}, np.array([True, False]))
    assert predictions.labels_of("sex") == [["men"], None]


def of_sizes(shares, **options):
    ids = strings([str(number) for number in range(len(shares))])
    probabilities = {"size": np.array(shares, np.float32)}
    return Predictions(ids, {"size": ("s", "m", "l")}, probabilities, np.ones(len(shares), bool), **options)


def test_a_favoured_label_is_predicted_though_it_is_not_the_most_probable():
    shares = [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]]
    favoured = of_sizes(shares, decision_weights={"size": np.array([1, 1, 3], np.float32)})
    assert favoured.best("size").tolist() == ["l", "s"]
    assert favoured.confidence("size") == pytest.approx([0.2, 0.8])  # how probable it is stays as it is
    assert [label for label, _ in favoured.top("size")[0]] == ["l", "s", "m"]
    assert [share for _, share in favoured.top("size", 2)[0]] == pytest.approx([0.2, 0.5])
    assert favoured.predicted("size") == ["l", "s"]
    assert of_sizes(shares).best("size").tolist() == ["s", "s"]


def test_where_nothing_is_predicted_decision_weights_change_nothing():
    nothing = of_sizes([[np.nan] * 3], decision_weights={"size": np.array([1, 1, 3], np.float32)})
    assert (nothing.best("size").tolist(), nothing.confidence("size").tolist()) == ([None], [0])
    assert nothing.top("size") == [[]]
