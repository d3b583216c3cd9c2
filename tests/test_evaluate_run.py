from dataclasses import replace
from zipfile import ZipFile

import pandas as pd
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.catalog.split import load_split
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import embed
from product_classificator.errors import DataError
from product_classificator.evaluate_run import evaluate_run
from product_classificator.training import SplitSettings, train_heads
from tests.fakes import TinyEncoder, shop
from tests.fixtures import QUICK


@pytest.fixture
def classificator(tiny_training):
    return Classificator.from_parts(TinyEncoder(), tiny_training.fitted.bundle)


@pytest.fixture
def other_shop(tmp_path):
    """A catalog of 30 products that the run does not know, and their ids and photos."""
    table, photos = shop(tmp_path / "other", products=30, seed=5)
    frame = pd.read_parquet(table).assign(nm=lambda old: "new" + old.nm.astype(str))
    frame["description"] = frame.description.str.replace("nice", "fine")
    (tmp_path / "renamed").mkdir()
    with ZipFile(photos) as old, ZipFile(tmp_path / "renamed/photos.zip", "w") as new:
        for name in old.namelist():
            new.writestr(f"new{name}", old.read(name))
    return frame, tmp_path / "renamed/photos.zip"


def read(frame, photos=None):
    return read_catalog(frame, photos, text="description", characteristics=["kind", "colour"])


def test_on_its_own_table_a_run_has_exactly_the_figures_of_its_report(tiny_training, classificator, catalog):
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator)
    assert heldout.evaluation == tiny_training.evaluation
    assert len(heldout.rows) == heldout.out_of_fold == tiny_training.evaluation.products
    assert (heldout.seen, heldout.set_aside) == (0, 6)
    assert len(heldout.rows) + heldout.set_aside == len(catalog)


def test_other_products_are_predicted_by_the_delivered_heads_alone(tiny_training, classificator, other_shop, tmp_path):
    catalog = read(*other_shop)
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator, store=tmp_path / "store")
    assert (heldout.out_of_fold, heldout.seen) == (0, 0)
    assert len(heldout.rows) + heldout.set_aside == len(catalog)
    predictions = classificator.bundle.predict(embed(catalog, classificator.encoder).embeddings, catalog.texts())
    is_right = (predictions.best("kind") == catalog.truth()["kind"])[predictions.is_known]
    assert heldout.evaluation.characteristics["kind"].accuracy == pytest.approx(is_right.sum() / len(heldout.rows))


def test_of_a_mixture_each_product_is_predicted_by_heads_that_never_saw_it(
    tiny_training, classificator, shop_files, other_shop, tmp_path
):
    (new, new_photos), old = other_shop, pd.read_parquet(shop_files[0]).head(50)
    with ZipFile(shop_files[1]) as photos, ZipFile(new_photos, "a") as both:
        for name in sorted({f"{id_}.jpg" for id_ in old.nm} & set(photos.namelist())):
            both.writestr(name, photos.read(name))
    mixed = read(pd.concat([new.head(7), old.astype({"nm": str}), new.tail(23)]), new_photos)
    parts = [
        evaluate_run(tiny_training.run, catalog, classificator=classificator, store=tmp_path / "store")
        for catalog in (read(old, shop_files[1]), read(new, new_photos), mixed)
    ]
    own, other, both = parts
    assert (len(both.rows), both.out_of_fold, both.seen) == (len(own.rows) + len(other.rows), len(own.rows), 0)
    n_right = [part.evaluation.characteristics["kind"].accuracy * len(part.rows) for part in parts]
    assert n_right[2] == pytest.approx(n_right[0] + n_right[1])


def test_near_duplicates_of_the_products_of_a_run_are_left_out_and_counted(
    tiny_training, classificator, shop_files, other_shop, tmp_path
):
    new, photos = other_shop
    copies = pd.read_parquet(shop_files[0]).head(6).assign(nm=lambda old: "copy" + old.nm.astype(str))  # without photos
    catalog = read(pd.concat([new, copies]), photos)
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator, store=tmp_path / "store")
    alone = evaluate_run(tiny_training.run, read(new, photos), classificator=classificator, store=tmp_path / "store")
    assert (heldout.seen, heldout.seen_by_id_alone) == (6, 0)
    assert heldout.evaluation == alone.evaluation


def test_a_run_that_kept_its_holdout_from_the_heads_knows_no_near_duplicates_of_it(tmp_path, catalog, shop_files):
    settings = replace(QUICK, seed=3, split=SplitSettings(holdout=0.3, groups="colour", refit=False))
    training = train_heads(catalog, tmp_path / "run", settings, encoder=TinyEncoder())
    classificator = Classificator.from_parts(TinyEncoder(), training.fitted.bundle)
    own = evaluate_run(training.run, catalog, classificator=classificator)
    assert own.evaluation == training.evaluation
    assert len(own.rows) + own.seen + own.set_aside == len(catalog)
    split = load_split(training.run.split)[0]
    frame = pd.read_parquet(shop_files[0])
    held_out = frame[frame.nm.astype(str).isin(split.ids[split.names == "test"]) & (frame.description != "")]
    copies = read(held_out.assign(nm=lambda old: "copy" + old.nm.astype(str)))
    copied = evaluate_run(training.run, copies, classificator=classificator, store=tmp_path / "store")
    assert (len(copied.rows), copied.seen) == (len(held_out), 0)


def test_a_target_precision_is_reported_with_the_precision_reached(tiny_training, classificator, catalog):
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator, min_precision=0.8)
    selective = heldout.evaluation.selective
    assert selective.min_precision == 0.8
    assert selective.characteristics["kind"].precision > 0.8
    assert 0 < selective.share <= min(accepted.share for accepted in selective.characteristics.values())
    with pytest.raises(DataError, match=r"min_precision must be between 0 and 1 \(exclusive\), got 0"):
        evaluate_run(tiny_training.run, catalog, classificator=classificator, min_precision=0)


def test_products_of_the_run_with_other_texts_are_seen(tiny_training, classificator, catalog, tmp_path):
    frame = pd.read_parquet(catalog.table.name).assign(description=lambda table: "Other words " + table.colour.str[:])
    other = read_catalog(frame, text="description", characteristics=["kind"])
    heldout = evaluate_run(tiny_training.run, other, classificator=classificator, store=tmp_path / "store")
    empty_in_training = 6  # products that had neither photo nor text were in no fold
    assert len(heldout.rows) + heldout.seen + heldout.set_aside == len(frame)
    assert (heldout.out_of_fold, heldout.seen) == (0, heldout.seen_by_id_alone)
    assert len(heldout.rows) <= empty_in_training


def test_products_with_the_ids_of_training_products_are_counted(tiny_training, classificator, catalog, tmp_path):
    learned = next(iter(tiny_training.run.load_training_products()[0]["kind"]))
    new = pd.DataFrame({"nm": [learned, "new"], "description": ["Quite another hat of felt", "A sock knitted"]})
    new["kind"] = ["hat", "sock"]
    other = read_catalog(new, text="description", characteristics="kind")
    heldout = evaluate_run(tiny_training.run, other, classificator=classificator, store=tmp_path / "store")
    assert (len(heldout.rows), heldout.seen, heldout.seen_by_id_alone) == (1, 1, 1)


def test_blank_ids_are_not_taken_for_seen_ones(tiny_training, classificator, tmp_path):
    new = pd.DataFrame({"nm": [None, None, None], "description": ["red hat", "old cup", "odd sock"]})
    new["kind"] = ["hat", "cup", "sock"]
    catalog = read_catalog(new, text="description", characteristics="kind")
    heldout = evaluate_run(tiny_training.run, catalog, classificator=classificator, store=tmp_path / "store")
    assert (len(heldout.rows), heldout.seen) == (3, 0)


def test_a_table_without_an_unseen_product_is_refused(tiny_training, classificator, catalog, tmp_path):
    frame = pd.read_parquet(catalog.table.name)
    copies = frame[frame.description != ""].assign(nm=lambda old: "copy" + old.nm.astype(str))
    with pytest.raises(DataError, match="the run was trained on every product of the table or on near-identical ones"):
        evaluate_run(tiny_training.run, read(copies), classificator=classificator, store=tmp_path / "store")


def test_a_table_without_a_characteristic_of_the_run_is_refused(tiny_training, classificator, tmp_path):
    table, photos = shop(tmp_path / "shop", products=60)
    with pytest.raises(DataError, match="must hold a characteristic of the run, which predicts kind, colour"):
        evaluate_run(
            tiny_training.run,
            read_catalog(table, photos, text="description", characteristics=[]),
            classificator=classificator,
        )
