import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.cli.options import ProductOptions
from product_classificator.review.loop import compare, lower_bound, progress_of, settings_toml, train_options
from product_classificator.review.pages import duration
from product_classificator.review.queue import View
from product_classificator.review.review import Review, folder_of, newest_run
from product_classificator.review.settings import ReviewSettings
from product_classificator.runs import Run


def progress(review):
    return progress_of(review.products, review.queue, review.history, review.settings.min_precision)


def test_the_promise_is_kept_where_the_table_confirms_what_is_accepted(open_review):
    review = open_review(labelled=True, min_precision=0.5)
    before = progress(review)
    kinds = next(row for row in before["rows"] if row["name"] == "kind")
    is_known = review.products["kind"].auto & review.products["kind"].has_label
    assert kinds["known"] == is_known.sum()
    assert kinds["precision"] == pytest.approx(review.products["kind"].agrees[is_known].mean())
    assert kinds["is_kept"] == (kinds["lowest"] >= 0.5)
    assert before["seconds_left"] is None


def test_a_sample_of_what_is_accepted_estimates_its_precision(open_review):
    review = open_review(min_precision=0.5)
    assert next(row for row in progress(review)["rows"] if row["name"] == "kind")["known"] == 0
    view = View(characteristic="kind", state="accepted")
    rows = review.queue.take(view, "Anna", 20)
    for row in rows[:18]:
        review.queue.act(
            "check", str(row), "Anna", review.decisions([row], {"kind": review.products.predicted("kind", row)}), 2
        )
    review.queue.act("check", "wrong", "Anna", review.decisions(rows[18:], {"kind": None}), 4)
    kinds = next(row for row in progress(review)["rows"] if row["name"] == "kind")
    assert (kinds["known"], kinds["precision"]) == (20, 0.9)
    assert progress(review)["seconds_left"] == 2 * progress(review)["left"]


def test_agreement_counts_products_that_two_people_saw(review):
    values = {"kind": "cup"}
    review.queue.act("accept", "a", "Anna", review.decisions([0, 1], values))
    review.queue.act("accept", "b", "Boris", review.decisions([0], values) + review.decisions([1], {"kind": "hat"}))
    now = progress(review)
    assert (now["seen_twice"], now["agreement"], len(now["disagreements"])) == (2, 0.5, 1)


def test_runs_without_a_labelled_product_in_common_have_no_scores_to_compare(tiny_training, open_review):
    run = tiny_training.run
    assert compare(run, run, open_review().catalog) == {}
    assert compare(run, run, open_review(labelled=True, folder="other").catalog)["kind"][0] > 0


@pytest.mark.parametrize(("right", "n"), [(0, 10), (9, 10), (97, 100), (1000, 1000)])
def test_the_lower_bound_is_below_the_share(right, n):
    assert 0 <= lower_bound(right, n) < right / n or right == 0
    assert lower_bound(0, 0) == 0


def test_settings_of_a_run_are_those_of_the_next(tiny_training):
    written = tomllib.loads(settings_toml(tiny_training.run.settings))
    assert written["heads"]["epochs"] == tiny_training.run.settings["heads"]["epochs"]
    assert "seed" not in written["heads"]
    assert "taxonomy" not in written


def test_the_next_training_reads_the_table_as_the_run_did(tiny_training):
    options = train_options(
        tiny_training.run, Path("shop.csv"), ProductOptions(images=Path("photos.zip"), follow_links=True)
    )
    assert options[0] == "shop.csv"
    pairs = dict(zip(options[1::2], options[2::2], strict=False))
    assert pairs["--characteristics"] == "kind,colour"
    assert pairs["--text"] == "description"
    assert pairs["--images"] == "photos.zip"
    assert options[-1] == "--follow-links"


@pytest.mark.parametrize(("seconds", "shown"), [(None, "–"), (30, "0:01"), (4500, "1:15")])
def test_durations_are_hours_and_minutes(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.slow
def test_training_again_learns_from_the_decisions(lite_run, tmp_path, monkeypatch):
    folder = Path(lite_run[0]).parent
    run = Run.load(lite_run[0])
    catalog = read_catalog(
        folder / "products.parquet", folder / "photos.zip", text="description", characteristics=["kind", "colour"]
    )
    command = train_options(run, folder / "products.parquet", ProductOptions(images=folder / "photos.zip"))
    review = Review(run, catalog, folder_of(tmp_path / "run"), ReviewSettings(), command)
    review.queue.act("accept", "a", "Anna", review.decisions([0, 1, 2], {"kind": "sock"}))
    review.retraining.start(run)
    review.retraining.start(run)  # one at a time
    while review.retraining.state == "running":
        time.sleep(0.2)
    assert review.retraining.state == "done", review.retraining.stage
    assert set(review.retraining.scores) == {"kind", "colour"}
    assert review.run.folder == tmp_path / "run.review/run-1"
    labels = review.run.load_training_products()[0]["kind"]
    assert [labels[review.products.id(row)] for row in range(3)] == ["sock"] * 3
    assert not {0, 1, 2} & set(review.run.load_out_of_fold().rows.tolist())
    assert review.queue.take(View(), "Anna")
    assert np.isin([0, 1, 2], review.queue.take(View(characteristic="kind"), "Anna", 150)).sum() == 0
    review.close()
    assert newest_run(lite_run[0]).folder == run.folder
