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


def test_on_its_own_table_a_run_is_scored_on_its_test_split(tiny_training, classificator, catalog):
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator)
    assert heldout.evaluation == tiny_training.evaluation
    assert heldout.scored == tiny_training.evaluation.products
    assert heldout.set_aside == 6
    assert heldout.scored + heldout.seen + heldout.set_aside == len(catalog)


def test_a_target_precision_is_reported_with_the_precision_reached(tiny_training, classificator, catalog):
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator, min_precision=0.8)
    selective = heldout.evaluation.selective
    assert selective.min_precision == 0.8
    assert selective.characteristics["kind"].precision > 0.8
    assert 0 < selective.share <= min(accepted.share for accepted in selective.characteristics.values())


def test_heads_without_thresholds_are_scored_without_decisions(tiny_training, catalog):
    bundle = replace(tiny_training.fitted.bundle, novelty=None)
    undecided = Classificator.from_parts(TinyEncoder(), bundle)
    assert evaluate_run(tiny_training.run, catalog, classificator=undecided).evaluation.selective is None
    with pytest.raises(ArtifactError, match="decisions need thresholds"):
        evaluate_run(tiny_training.run, catalog, classificator=undecided, min_precision=0.9)


def test_new_products_are_scored_and_near_duplicates_of_learned_ones_are_not(tiny_training, classificator, tmp_path):
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


def test_the_same_products_with_other_texts_are_still_seen(tiny_training, classificator, catalog, tmp_path):
    frame = pd.read_parquet(catalog.table.name).assign(description=lambda table: "Other words " + table.colour.str[:])
    other = read_catalog(frame, text="description", characteristics=["kind"])
    heldout = evaluate_run(tiny_training.run, other, classificator=classificator, store=tmp_path / "store")
    empty_in_training = 6  # products that had neither photo nor text were in no split
    assert heldout.scored <= tiny_training.evaluation.products + empty_in_training


def test_products_with_the_ids_of_training_products_are_counted(tiny_training, classificator, catalog, tmp_path):
    learned = next(iter(tiny_training.run.load_training_products()[0]["kind"]))
    new = pd.DataFrame({"nm": [learned, "new"], "description": ["Quite another hat of felt", "A sock knitted"]})
    new["kind"] = ["hat", "sock"]
    other = read_catalog(new, text="description", characteristics="kind")
    heldout = evaluate_run(tiny_training.run, other, classificator=classificator, store=tmp_path / "store")
    assert (heldout.scored, heldout.seen, heldout.seen_by_id_alone) == (1, 1, 1)
    on_its_own_table = evaluate_run(tiny_training.run, catalog, classificator=classificator)
    assert on_its_own_table.seen > on_its_own_table.seen_by_id_alone == 0


def test_blank_ids_are_not_taken_for_seen_ones(tiny_training, classificator, tmp_path):
    new = pd.DataFrame({"nm": [None, None, None], "description": ["red hat", "old cup", "odd sock"]})
    new["kind"] = ["hat", "cup", "sock"]
    catalog = read_catalog(new, text="description", characteristics="kind")
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator, store=tmp_path / "store")
    assert (heldout.scored, heldout.seen) == (3, 0)


def test_a_table_of_training_products_only_is_refused(tiny_training, classificator, catalog, tmp_path):
    from product_classificator.catalog.split import load_split

    split, _ = load_split(tiny_training.run.split)
    frame = pd.read_parquet(catalog.table.name)
    learned = frame[frame.nm.astype(str).isin(split.ids[split.names == "train"])]
    learned = learned[learned.description != ""]
    with pytest.raises(DataError, match="the run was trained on every product of the table"):
        evaluate_run(
            tiny_training.run,
            read_catalog(learned, text="description", characteristics=["kind"]),
            classificator=classificator,
            store=tmp_path / "store",
        )


def test_a_table_without_a_characteristic_of_the_run_is_refused(tiny_training, classificator, tmp_path):
    table, photos = shop(tmp_path / "shop", products=60)
    with pytest.raises(DataError, match="must hold a characteristic of the run, which predicts kind, colour"):
        evaluate_run(
            tiny_training.run,
            read_catalog(table, photos, text="description", characteristics=[]),
            classificator=classificator,
        )
