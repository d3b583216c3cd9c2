import numpy as np
import pytest
from matplotlib import pyplot

from product_classificator.evaluation import evaluate, plots

pytestmark = pytest.mark.usefixtures("drawn_figures")
LONG = [f"Кроссовки для бега по пересечённой местности {i}" for i in range(30)]


@pytest.fixture(scope="module")
def score(judged):
    true = [LONG[i % 30] for i in range(300)]
    predicted = [LONG[(i + (i % 7 == 0)) % 30] for i in range(300)]
    return evaluate(*judged({"x": (LONG, true, predicted)}), resamples=10).characteristics["x"]


def texts(axes):
    return [text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())]


def test_a_long_name_keeps_both_its_ends():
    assert plots.shorten(LONG[7]) == "Кроссовки для…стности 7"
    assert len(plots.shorten("a" * 99)) == 24
    assert plots.shorten("b" * 24) == "b" * 24


def test_a_name_without_drawable_characters_is_replaced():
    assert plots.shorten("旅 a") == "? a"
    assert plots.shorten(" \x00") == "?"


def test_at_most_twenty_labels_are_drawn(score):
    assert len(plots.shown_labels(score)["largest"]) == 20
    assert len(plots.shown_labels(score)["most confused"]) == 20


def test_confused_labels_are_neighbours(score):
    first = score.confusions[0]
    assert plots.shown_labels(score)["most confused"][:2] == [first.true, first.predicted]


def test_each_row_of_a_confusion_holds_all_products_of_its_label(score):
    labels = plots.shown_labels(score)["largest"]
    axes = plots.draw_confusion(score, labels, "x").axes[0]
    assert texts(axes)[20] == "(all others)"
    shares = np.asarray(axes.collections[0].get_array())
    np.testing.assert_allclose(shares.sum(1), 1)


def test_a_row_shows_right_and_wrong_predictions(judged):
    score = evaluate(*judged({"x": ("abc", "aaaab", "aaabb")}), resamples=0).characteristics["x"]
    axes = plots.draw_confusion(score, ["a", "b"], "x").axes[0]
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_array()), [[0.75, 0.25], [0, 1]])
    assert [text.get_text() for text in axes.texts] == ["3", "1", "1"]


def test_a_label_that_is_only_predicted_has_an_empty_row(judged):
    score = evaluate(*judged({"x": ("ab", "aa", "ab")}), resamples=0).characteristics["x"]
    axes = plots.draw_confusion(score, ["a", "b"], "x").axes[0]
    assert np.asarray(axes.collections[0].get_array())[1].tolist() == [0, 0]


def test_a_rare_label_that_is_predicted_instead_is_drawn_among_the_others(judged):
    predictions, truth = judged({"x": ("abr", "aaaab", "aaarb")})
    score = evaluate(predictions, truth, rare_labels={"x": ["r"]}, resamples=0).characteristics["x"]
    axes = plots.draw_confusion(score, ["a", "r", "b"], "x").axes[0]
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_array()), [[0.75, 0, 0.25], [0, 1, 0]])


def test_the_overview_names_each_characteristic_and_says_what_has_no_score(judged):
    columns = {"пол": ("ab", "ab", "ab"), "$x_$": ("ab", [None, None], "ab")}
    figure = plots.draw_overview(evaluate(*judged(columns), resamples=5))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert texts(axes)[-2:] == ["пол", "$x_$"]
    assert {"1.000", "no scored product"} <= {text.get_text() for text in axes.texts}


def test_learning_curves_allow_gaps_and_odd_names():
    history = [
        {"epoch": 1, "train_loss": 2.0, "valid_macro_f1": None, "characteristics": {"_x$": 0.1}},
        {"epoch": 2, "train_loss": float("nan"), "valid_macro_f1": 0.5, "characteristics": {}},
    ]
    figure = plots.draw_learning_curves(history, best_epoch=2)
    figure.draw_without_rendering()
    axes = figure.axes[2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean", "_x$"]
    assert "2" in axes.get_xlabel()


def test_drawing_leaves_the_global_state_of_matplotlib_alone(score):
    plots.draw_confusion(score, plots.shown_labels(score)["largest"][:2], "x")
    assert pyplot.get_fignums() == []


def test_a_fine_tuning_has_a_panel_for_each_kind_of_value():
    epoch = {
        "train_loss": 1.0,
        "valid_loss": 2.0,
        "recall_at_1": 0.5,
        "valid_macro_f1": 0.6,
        "characteristics": {"x": 0.6},
    }
    panels = plots.draw_learning_curves([{**epoch, "epoch": 0, "train_loss": None}, {**epoch, "epoch": 1}], 1).axes
    assert [axes.get_title() for axes in panels] == ["Loss", "Recall@1 in batches, valid", "Macro-F1, valid"]
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["train", "valid"]
