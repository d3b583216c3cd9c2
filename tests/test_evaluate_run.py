from dataclasses import replace

import pandas as pd
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.classificator import Classificator
from product_classificator.errors import ArtifactError, DataError
from product_classificator.evaluate_run import evaluate_run
from tests.fakes import TinyEncoder, shop


@pytest.fixture
def classificator(tiny_training):
    return Classificator.from_parts(TinyEncoder(), tiny_training.fitted.bundle)


def test_on_its_own_table_a_run_is_judged_on_its_test_part(tiny_training, classificator, catalog):
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator)
    assert heldout.evaluation == tiny_training.evaluation
    assert heldout.scored == tiny_training.evaluation.products
    assert heldout.set_aside == 6
    assert heldout.scored + heldout.seen + heldout.set_aside == len(catalog)


def test_a_promise_is_reported_with_what_came_of_it(tiny_training, classificator, catalog):
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator, min_precision=0.8)
    review = heldout.evaluation.selective
    assert review.min_precision == 0.8
    assert review.characteristics["kind"].precision > 0.8
    assert 0 < review.share <= min(decided.share for decided in review.characteristics.values())


def test_heads_that_can_promise_nothing_are_judged_without_decisions(tiny_training, catalog):
    bundle = replace(tiny_training.fitted.bundle, thresholds={}, novelty=None)
    old = Classificator.from_parts(TinyEncoder(), bundle)
    assert evaluate_run(tiny_training.run, catalog, classificator=old).evaluation.selective is None
    with pytest.raises(ArtifactError, match="decisions need thresholds"):
        evaluate_run(tiny_training.run, catalog, classificator=old, min_precision=0.9)


def test_new_products_are_all_judged_and_copies_of_learned_ones_are_not(tiny_training, classificator, tmp_path):
    new = pd.DataFrame({"nm": ["n1", "n2"], "description": ["Quite a new hat", "A nice CUP, number 0 for you"]})
    new["kind"] = ["hat", "cup"]
    seen = Classificator.from_parts(TinyEncoder(), tiny_training.fitted.bundle)
    heldout = evaluate_run(
        tiny_training.run,
        read_catalog(new, text="description", characteristics=["kind"]),
        classificator=seen,
        store=tmp_path / "store",
    )
    assert heldout.scored + heldout.seen == 2
    assert heldout.evaluation.characteristics["kind"].n == heldout.scored


def test_the_same_products_under_other_texts_are_still_seen(tiny_training, classificator, catalog, tmp_path):
    frame = pd.read_parquet(catalog.table.name).assign(description=lambda table: "Other words " + table.colour.str[:])
    other = read_catalog(frame, text="description", characteristics=["kind"])
    heldout = evaluate_run(tiny_training.run, other, classificator=classificator, store=tmp_path / "store")
    nothing_before = 6  # products that had neither photo nor text then were in no part
    assert heldout.scored <= tiny_training.evaluation.products + nothing_before


def test_blank_ids_are_not_taken_for_seen_ones(tiny_training, classificator, tmp_path):
    new = pd.DataFrame({"nm": [None, None, None], "description": ["red hat", "old cup", "odd sock"]})
    new["kind"] = ["hat", "cup", "sock"]
    catalog = read_catalog(new, text="description", characteristics="kind")
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator, store=tmp_path / "store")
    assert (heldout.scored, heldout.seen) == (3, 0)


def test_a_table_the_run_has_learned_by_heart_is_refused(tiny_training, classificator, catalog, tmp_path):
    from product_classificator.catalog.split import load_split

    split, _ = load_split(tiny_training.run.split)
    frame = pd.read_parquet(catalog.table.name)
    learned = frame[frame.nm.astype(str).isin(split.ids[split.names == "train"])]
    learned = learned[learned.description != ""]
    with pytest.raises(DataError, match="the run has learned from every product of the table"):
        evaluate_run(
            tiny_training.run,
            read_catalog(learned, text="description", characteristics=["kind"]),
            classificator=classificator,
            store=tmp_path / "store",
        )


def test_a_table_without_a_characteristic_of_the_run_is_refused(tiny_training, classificator, tmp_path):
    table, photos = shop(tmp_path / "shop", products=60)
    with pytest.raises(DataError, match="must hold a characteristic of the run: it tells kind, colour"):
        evaluate_run(
            tiny_training.run,
            read_catalog(table, photos, text="description", characteristics=[]),
            classificator=classificator,
        )
