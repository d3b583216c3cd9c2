import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from product_classificator.evaluation import RunFacts, evaluate, evaluation_json, write_report
from product_classificator.types import Decisions
from tests.evaluation.conftest import materials
from tests.fixtures import drawing

HOSTILE = "a|b *c* $x_1$ `d` <i> [e](f) _g_ &amp; \n# h"
SHOWN = "a|b *c* $x_1$ `d` <i> [e](f) _g_ &amp; # h"


def tokens(markdown):
    return [
        child for token in MarkdownIt("commonmark").enable("table").parse(markdown) for child in token.children or []
    ]


def plain_texts(markdown):
    """Return each table cell, heading and paragraph of a Markdown text as a reader sees it."""
    parsed = MarkdownIt("commonmark").enable("table").parse(markdown)
    return ["".join(child.content for child in token.children) for token in parsed if token.type == "inline"]


@pytest.fixture(scope="module")
def evaluation(judged):
    labels = [f"label {i}" for i in range(25)]
    true, predicted = labels * 3, labels[::-1] + labels * 2
    columns = {
        "пол/возраст": (("a", "b"), ["a", "b", None] * 25, ["a"] * 75),
        HOSTILE: ((HOSTILE, "b"), [HOSTILE, "b", "b"] * 25, ["b", HOSTILE, "b"] * 25),
        "category": (labels, true, predicted),
        "empty": (("a",), [None] * 75, ["a"] * 75),
    }
    return evaluate(*judged(columns), resamples=20)


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory):
    facts = RunFacts(
        title=HOSTILE,
        encoder="lite",
        settings={HOSTILE: HOSTILE, "rate": np.float32("nan"), "path": Path("x"), "sizes": (1, 2)},
        products={"train": 1000, "test": 75},
        set_aside={"no | text": 4},
        row_warnings={"photo truncated": 1200},
        left_out_labels={"category": {f"rare {i}": i for i in range(30)}, "sex": {}},
        duration_s=75.0,
        history=[{"epoch": 1, "train_loss": 1.0, "valid_macro_f1": 0.5, "characteristics": {"category": 0.5}}],
        best_epoch=1,
        versions={"torch": "2"},
        created="2026-01-01",
    )
    folder = tmp_path_factory.mktemp("run") / "report"
    with drawing():
        write_report(folder, evaluation, facts)
    return folder


def test_the_report_is_a_page_json_markdown_and_pictures(folder):
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "plots/01-largest.png",
        "plots/02-a-b-c-x-1-d-i-e-f-g-amp-h-largest.png",
        "plots/03-category-confused.png",
        "plots/03-category-largest.png",
        "plots/learning-curves.png",
        "plots/overview.png",
        "plots/precision-by-coverage.png",
        "plots/reliability.png",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_the_pictures_are_those_that_the_report_shows(folder):
    shown = [token.attrs["src"] for token in tokens((folder / "report.md").read_text("utf-8")) if token.type == "image"]
    assert sorted(shown) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    for path in shown:
        with Image.open(folder / path) as picture:
            assert min(picture.size) > 250


def test_the_json_is_numbered_and_holds_everything_but_nan(folder, evaluation):
    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads((folder / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert document["format"] == 1
    assert document["evaluation"] == json.loads(json.dumps(evaluation_json(evaluation)))
    assert document["facts"]["settings"] == {HOSTILE: HOSTILE, "rate": None, "path": "x", "sizes": [1, 2]}
    assert len(document["facts"]["left_out_labels"]["category"]) == 30
    assert document["facts"]["history"][0]["characteristics"] == {"category": 0.5}


def test_evaluation_json_holds_scores_intervals_and_counts(evaluation):
    scores = evaluation_json(evaluation)["characteristics"]
    assert set(scores["category"]) == {
        *("macro_f1", "macro_f1_low", "macro_f1_high", "is_multi_label", "accuracy", "n"),
        *("unknown_labels", "unlabelled", "not_predicted", "labels", "confusions"),
        *("reliability", "precision_by_coverage", "coverage", "rare"),
    }
    assert scores["category"]["macro_f1_low"] <= scores["category"]["macro_f1"] <= scores["category"]["macro_f1_high"]
    assert [scores["empty"][key] for key in ("macro_f1", "macro_f1_low", "accuracy", "n")] == [None, None, None, 0]
    assert scores["пол/возраст"]["labels"][0] == {
        "label": "a",
        "precision": 0.5,
        "recall": 1.0,
        "f1": 2 / 3,
        "support": 25,
        "predicted": 50,
        "correct": 25,
    }


def test_the_table_has_a_row_per_characteristic_and_the_mean(folder, evaluation):
    text = (folder / "report.md").read_text("utf-8")
    lines = text[text.index("| characteristic | macro-F1") :].partition("\n\n")[0].splitlines()
    assert lines[0] == "| characteristic | macro-F1 | 95 % interval | accuracy | products | labels |"
    assert lines[2].startswith("| пол/возраст | 0.333 | ") and lines[2].endswith("| 0.500 | 50 | 2 |")
    assert lines[5] == "| empty | — | — | — | 0 | 0 of 1 |"
    assert lines[6] == f"| **mean** | **{evaluation.mean_macro_f1:.3f}** | | | | |"
    assert len(lines) == 7


def test_names_and_labels_are_shown_as_they_are_and_stay_in_their_cells(folder):
    cells = plain_texts((folder / "report.md").read_text("utf-8"))
    # title, scores, calibration, products not scored, heading, label, confusions (two cells), setting, value
    assert cells.count(SHOWN) == 10


def test_the_report_lists_set_aside_rows_left_out_labels_and_the_method(folder):
    cells = plain_texts((folder / "report.md").read_text("utf-8"))
    assert {"Rows set aside", "no | text", "4", "photo truncated", "1,200"} <= set(cells)
    assert {"rare 29 (29)", "... and 10 more, in report.json"} <= set(cells)
    assert any(cell.startswith("Products by split: train: 1,000, test: 75. Near-identical products") for cell in cells)
    assert "The run took 1 min." in cells


def test_a_report_needs_no_more_than_a_title(judged, tmp_path):
    evaluation = evaluate(*judged({"x": (("a",), ["a", "a", None], "aaa")}), resamples=5)
    write_report(tmp_path, evaluation, RunFacts(title="rival"))
    text = (tmp_path / "report.md").read_text("utf-8")
    assert text.startswith("# rival\n\nMean macro-F1: **1.000**.\n")
    assert "\n\n\n" not in text
    assert not [word for word in ("set aside", "too rare", "Rare labels have", "None", "Learning") if word in text]


def test_a_report_without_a_scored_product_says_so(judged, tmp_path):
    evaluation = evaluate(*judged({"x": (("a", "b"), [None, "new"], "aa")}))
    write_report(tmp_path, evaluation, RunFacts(title="nothing"))
    assert "No product could be scored." in (tmp_path / "report.md").read_text("utf-8")
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["evaluation"]["mean_macro_f1"] is None


def test_a_label_that_is_no_utf8_is_kept_in_json(judged, tmp_path):
    evaluation = evaluate(*judged({"x": (("\udc80",), ["\udc80"], ["\udc80"])}), resamples=0)
    write_report(tmp_path, evaluation, RunFacts(title="odd"))
    scores = json.loads((tmp_path / "report.json").read_text("utf-8"))["evaluation"]["characteristics"]
    assert scores["x"]["labels"][0]["label"] == "\udc80"


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_half_written(judged, tmp_path):
    (tmp_path / "report.json").mkdir()
    evaluation = evaluate(*judged({"x": (("a",), ["a"], ["a"])}), resamples=0)
    with pytest.raises(OSError, match=r"report\.json"):
        write_report(tmp_path, evaluation, RunFacts(title="t"))
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "report.md").exists()


def test_a_report_replaces_the_one_before(judged, tmp_path):
    evaluation = evaluate(*judged({"x": (("a",), ["a"], ["a"])}), resamples=0)
    for title in ("first", "second"):
        write_report(tmp_path, evaluation, RunFacts(title=title))
    assert (tmp_path / "report.md").read_text("utf-8").startswith("# second\n")


def test_accepted_values_are_listed_next_to_the_calibration_error(judged, tmp_path):
    predictions, truth = judged({"kind": ("ab", "abab", "abaa"), "sex": ("ab", "abab", "abab")})
    accepted = {"kind": np.array([True, True, False, False]), "sex": np.ones(4, bool)}
    decisions = Decisions(0.9, accepted, np.array([False, False, False, True]))
    write_report(tmp_path, evaluate(replace(predictions, decisions=decisions), truth, resamples=0), RunFacts("x"))
    text = (tmp_path / "report.md").read_text("utf-8")
    assert (
        "| characteristic | ECE | by chance | accepted | precision | accuracy of scored products |\n|---|---:|---:|---:"
        in text
    )
    assert "| kind | 0.250 | 0.000 | 50.0 % | 1.000 | 0.750 |\n| sex |" in text
    assert "accepted for 50.0 % of the products; 25.0 % are unlike the training products" in text
    selective = json.loads((tmp_path / "report.json").read_text("utf-8"))["evaluation"]["selective"]
    assert selective["characteristics"]["kind"] == {"share": 0.5, "precision": 1.0, "n": 2}


def test_a_multi_label_characteristic_has_plots_of_labels_instead_of_confusions(tmp_path):
    predictions, truth, _, _ = materials()
    evaluation = evaluate(predictions, truth)
    write_report(tmp_path, evaluation, RunFacts("A run"))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "materials is multi-label, a product can have any number of its labels" in text
    assert "confused pairs" not in text
    assert (tmp_path / "plots/01-materials-largest.png").is_file()
    assert evaluation_json(evaluation)["characteristics"]["materials"]["is_multi_label"]


def test_a_score_that_covers_little_says_so_in_headline_table_and_json(judged, tmp_path):
    true = [*("ab" * 6), *(f"rare {i}" for i in range(38))]
    predictions, truth = judged({"path": (("a", "b"), true, "ab" * 6 + "a" * 38)})
    left_out = {"path": {f"rare {i}": 1 for i in range(60)}, "brand": {f"brand {i}": 1 for i in range(300)}}
    evaluation = evaluate(predictions, truth, rare_labels=left_out, resamples=5)
    covered = evaluation.characteristics["path"].coverage
    assert (covered.labels, covered.all_labels, covered.products, covered.all_products) == (2, 62, 12, 50)
    write_report(tmp_path, evaluation, RunFacts("x"))
    text = (tmp_path / "report.md").read_text("utf-8")
    assert text.startswith("# x\n\nMean macro-F1: **1.000** on 2 of 362 labels and 12 of 50 labelled products.\n")
    assert "the macro-F1 of path, 1.000, covers only 2 of 62 labels and 12 of 50 labelled products" in text
    assert "brand is part of no score: fewer than 2 of its 300 labels" in text
    assert "| 12 of 50 | 2 of 62 |" in text
    document = json.loads((tmp_path / "report.json").read_text("utf-8"))["evaluation"]
    assert document["coverage"] == {"labels": 2, "all_labels": 362, "products": 12, "all_products": 50}
    assert len(document["warnings"]) == 2


def test_rare_labels_that_are_learned_have_a_table_of_their_own(judged, tmp_path):
    predictions, truth = judged({"path": ("abr", "ababrrrx", "ababrrar"), "sex": ("ab", "abababab", "abababab")})
    evaluation = evaluate(predictions, truth, rare_labels={"path": {"r": 3, "x": 1}}, resamples=0)
    write_report(tmp_path, evaluation, RunFacts("x"))
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "| path | 1.000 | — | 1.000 | 4 of 8 | 2 of 4 |" in text
    assert (
        "| rare labels learned | macro-F1 | products |\n|---|---:|---:|---:|\n| path | 1 of 2 | 0.800 | 3 of 4 |\n"
        in text
    )
    assert "| path | 7 | 0 | 1 | 0 |" in text  # scored, no label, not trained, neither photo nor text
    document = json.loads((tmp_path / "report.json").read_text("utf-8"))["evaluation"]["characteristics"]
    assert (document["path"]["rare"]["macro_f1"], document["path"]["rare"]["n"]) == (0.8, 3)
    assert document["sex"]["rare"] == {"macro_f1": None, "n": 0, "labels": []}


def test_nothing_is_said_of_coverage_where_little_is_left_out(judged):
    predictions, truth = judged({"x": (("a", "b"), [*("ab" * 20), "new"], "ab" * 20 + "a")})
    evaluation = evaluate(predictions, truth, resamples=0)
    assert evaluation.coverage.products == 40
    assert "labels and 40 of 41 labelled products" in str(evaluation.coverage)
