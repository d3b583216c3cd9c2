"""report.html: what it shows, and that it loads nothing; looked at in Debian's chromium, where that is installed."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from product_classificator.evaluation import RunFacts, evaluate
from product_classificator.evaluation.page import ProductError, draw_report, worst_errors
from product_classificator.types import Decisions
from tests.browser import opened_chromium
from tests.evaluation.conftest import materials

EVIL = "</script><script>alert(1)</script>"
PHOTO = "data:image/jpeg;base64,AAAA"


@pytest.fixture(scope="module")
def evaluation(judged):
    labels = [f"label {i}" for i in range(25)]
    columns = {
        "category": (labels, labels * 4, labels[::-1] + labels * 3),
        EVIL: ((EVIL, "b", "c"), [EVIL, "b", "b", None] * 25, ["b", EVIL, "b", "b"] * 25),
        "empty": (("a",), [None] * 100, ["a"] * 100),
    }
    predictions, truth = judged(columns)
    accepted = {name: np.arange(100) < 60 for name in columns}
    predictions = replace(predictions, decisions=Decisions(0.95, accepted, np.zeros(100, bool)))
    return evaluate(predictions, truth, rare_labels={"category": {"rare": 3}}, resamples=20)


@pytest.fixture(scope="module")
def page(evaluation):
    facts = RunFacts(
        EVIL,
        encoder="lite",
        settings={EVIL: EVIL},
        judged="Judged out of fold.",
        by_fold={"category": {"0": 0.7, "1": None}},
        by_distance={"category": {"nearest": 0.9, "farthest": 0.6}},
        products={"train": 1000},
        set_aside={EVIL: 4},
        row_warnings={"image_truncated": 1200},
        left_out_labels={"category": {"rare": 3, EVIL: 1}},
        refines={"category": EVIL},
        history=[{"epoch": i, "train_loss": 1 / (i + 1), "valid_macro_f1": 0.5, "characteristics": {}} for i in (1, 2)],
        best_epoch=1,
        duration_s=75.0,
    )
    errors = {"category": [ProductError(3, EVIL, "label 1", EVIL, 0.98, (EVIL, PHOTO))]}
    return draw_report(evaluation, facts, errors)


def text_of(page):
    """Return the text that a page shows."""
    return re.sub(r"\s+", " ", re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL))


def test_values_of_the_catalog_are_shown_and_not_executed(page):
    assert page.count("<script>") == 1
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)") > 10


def test_the_page_loads_and_sends_nothing(page):
    assert "http://" not in page and "https://" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,|#)', page) == []
    assert "default-src 'none'" in page


def test_scores_intervals_folds_and_warnings_are_shown(page, evaluation):
    score, text = evaluation.characteristics["category"], text_of(page)
    assert f"{score.macro_f1:.3f}" in text
    assert "{:.3f}–{:.3f}".format(*score.interval) in text
    assert page.count('class="fold"') == 1
    for shown in ("Judged out of fold.", "farthest", "No product could be scored.", "The run took 1 min", "1,200"):
        assert shown in text
    assert "60.0 % of the values need no review at a target precision of 0.95" in text


def test_curves_are_drawn_and_their_points_are_there_for_the_slider(page, evaluation):
    curves = json.loads(re.search(r"const curves = (.*);\n", page)[1])
    assert len(curves) == 2
    assert [tuple(point) for point in curves[0]] == list(evaluation.characteristics["category"].precision_by_coverage)
    assert page.count('aria-label="Reliability of ') == 2
    assert page.count('by epoch"') == 2  # recall was not measured


def test_pairs_labels_and_rare_labels_can_be_sorted_and_searched(page):
    text = text_of(page)
    assert "label 0 label 24 1 25.0 %" in text
    assert "the 20 largest of 25 labels" in text
    assert "rare category 3 no —" in text
    assert page.count('type="search"') == 2


def test_the_most_confident_errors_come_first_and_unlearned_labels_are_none(judged):
    columns = {"kind": (("a", "b"), ["a", "b", None, "new", "b", "a"], ["b", "b", "a", "a", "a", "b"])}
    predictions, truth = judged(columns)
    probabilities = predictions.probabilities["kind"]
    probabilities[0], probabilities[4], probabilities[5] = (0.4, 0.6), (0.9, 0.1), (0.2, 0.8)
    errors = worst_errors(predictions, truth, np.arange(10, 16))["kind"]
    shown = [(error.row, error.true, error.predicted) for error in errors]
    assert shown == [(14, "b", "a"), (15, "a", "b"), (10, "a", "b")]
    assert errors[0].confidence == pytest.approx(0.9)


def test_errors_of_label_sets_are_texts():
    predictions, truth, _, _ = materials()
    errors = worst_errors(predictions, truth, np.arange(len(predictions)))["materials"]
    assert 0 < len(errors) <= 12
    assert all(error.true != error.predicted for error in errors)
    assert {error.true for error in errors} <= {", ".join(sorted(labels)) or "(none)" for labels in truth["materials"]}


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 360)])
def test_the_report_works_in_a_browser(page, tmp_path, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    (tmp_path / "report.html").write_text(page.replace(PHOTO, ""), encoding="utf-8")
    with opened_chromium() as browser:
        shown, problems = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900}), []
        shown.on("console", lambda message: problems.append(message.text))
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.goto((tmp_path / "report.html").as_uri())
        shown.fill("#target", "0.9")
        assert "0.900" in shown.inner_text("#shown")
        shown.click("#scores thead th:nth-child(2) button")
        assert shown.inner_text("#scores tbody td") == "category"
        shown.fill("#errors input[type=search]", "label 24")
        assert shown.locator("#panel1 .tall tbody tr:visible").count() == 3
        shown.select_option("#panel", "2")
        assert shown.locator("#panel1").is_hidden()
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert problems == []
        findings = axe.Axe().run(shown).response["violations"]
        serious = [finding for finding in findings if finding["impact"] in ("serious", "critical")]
        assert [node["html"] + node["failureSummary"] for finding in serious for node in finding["nodes"]] == []
