import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save

from product_classificator.catalog import read_catalog
from product_classificator.catalog.split import load_split
from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import ArtifactError, DataError
from product_classificator.heads import HeadBundle
from product_classificator.runs import Run
from product_classificator.training import Callbacks, train_heads
from product_classificator.training.settings import SplitSettings
from product_classificator.training.train import split_catalog
from tests.fakes import TinyEncoder, TinyImages, TinyTexts
from tests.fixtures import QUICK, QUICKER


def test_a_training_leaves_a_whole_run(tiny_training):
    run = Run.load(tiny_training.run.folder)
    assert run == tiny_training.run
    assert (run.report / "report.md").is_file()
    assert list((run.report / "plots").glob("*.png"))
    assert set(HeadBundle.load(run.bundle).labels) == {"kind", "colour"}
    split, table = load_split(run.split)
    assert table.column_names == ["id", "part", "split", "text_key", "n_words", "thumbnail", "group"]
    assert split.folds == list("12345")
    assert sum(len(split.rows(fold)) for fold in split.folds) == tiny_training.evaluation.products == 234
    assert len(run.load_out_of_fold()) == 234


def test_a_run_that_moved_keeps_its_store(tiny_training, tmp_path):
    shutil.copytree(tiny_training.run.folder, tmp_path / "moved")
    assert Run.load(tmp_path / "moved").store == (tmp_path / "moved/embeddings").resolve()


def test_heads_learn_what_photo_and_text_tell(tiny_training):
    scores = tiny_training.evaluation.characteristics
    assert scores["kind"].macro_f1 > 0.8
    assert scores["colour"].macro_f1 > 0.8


def test_the_report_counts_the_rows_with_warnings(tiny_training):
    facts = json.loads((tiny_training.run.report / "report.json").read_text())["facts"]
    assert facts["set_aside"] == {"image_missing,text_empty": 6}
    assert facts["row_warnings"] == {"image_truncated": 6, "text_empty": 6}


def test_the_same_seed_gives_the_same_run(catalog, tiny_training, tmp_path):
    again = train_heads(catalog, tmp_path / "run", QUICK, encoder=TinyEncoder())
    assert again.evaluation == tiny_training.evaluation
    assert again.fitted.bundle.digest == tiny_training.fitted.bundle.digest


def test_a_repeated_id_is_set_aside(tmp_path):
    frame = pd.DataFrame({"nm": [*range(60), 0, 1], "title": [f"{['cup', 'hat'][i % 2]} {i}" for i in range(62)]})
    frame["kind"] = frame.title.str.split().str[0]
    train_heads(read_catalog(frame, characteristics=["kind"]), tmp_path, QUICKER, encoder=TinyEncoder())
    facts = json.loads((tmp_path / "report/report.json").read_text())["facts"]
    assert facts["set_aside"] == {"duplicate_id": 2}


def test_whoever_watches_is_told_of_stages_products_and_epochs(catalog, tmp_path):
    stages, products, epochs = [], [], []
    callbacks = Callbacks(stages.append, lambda chunk: products.append(len(chunk.embeddings)), epochs.append)
    training = train_heads(catalog, tmp_path / "run", QUICKER, encoder=TinyEncoder(), callbacks=callbacks)
    assert stages[0] == "Embedding 240 products with tiny"
    assert sum(products) == 240
    assert tuple(epochs) == training.fitted.history
    page = (tmp_path / "run/report/report.html").read_text(encoding="utf-8")
    assert "by epoch, summed over characteristics, of the network that was fitted last" in page


def test_a_catalog_without_characteristics_is_refused(shop_files, tmp_path):
    catalog = read_catalog(shop_files[0], characteristics=[])
    with pytest.raises(DataError, match="training needs characteristics: name the columns that hold labels"):
        train_heads(catalog, tmp_path, QUICKER, encoder=TinyEncoder())


def test_a_training_that_fails_leaves_the_run_before_as_it_was(catalog, tiny_run, tmp_path):
    def stop(facts):
        raise KeyboardInterrupt

    split = tiny_run.split.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train_heads(
            catalog,
            tmp_path / "run",
            replace(QUICKER, seed=1),
            encoder=TinyEncoder(),
            callbacks=Callbacks(on_epoch=stop),
        )
    assert Run.load(tmp_path / "run") == tiny_run
    assert tiny_run.split.read_bytes() == split


def test_an_interrupted_training_leaves_the_old_run_whole(catalog, tiny_run, tmp_path):
    def stop(stage):
        if stage.startswith("Evaluating"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_heads(
            catalog, tmp_path / "run", replace(QUICKER, seed=1), encoder=TinyEncoder(), callbacks=Callbacks(stop)
        )
    assert Run.load(tmp_path / "run").settings["seed"] == 0


def test_a_run_whose_halves_could_be_mixed_counts_as_unfinished(catalog, tiny_run, tmp_path):
    shutil.rmtree(tmp_path / "run/report")
    (tmp_path / "run/report").write_text("in the way")
    with pytest.raises(OSError):
        train_heads(catalog, tmp_path / "run", replace(QUICKER, seed=1), encoder=TinyEncoder())
    with pytest.raises(ArtifactError, match="its training did not finish"):
        Run.load(tmp_path / "run")


def test_other_things_where_the_bundle_is_to_be_are_found_before_anything_is_computed(catalog, tiny_run, tmp_path):
    (tiny_run.bundle / "notes.txt").touch()
    encoder = TinyEncoder()
    with pytest.raises(ArtifactError, match=r"a folder of its own, but .* holds other things: notes.txt \(1 in all\)"):
        train_heads(catalog, tmp_path / "run", QUICKER, encoder=encoder)
    assert (encoder.image.encoded, encoder.text.encoded) == (0, 0)
    assert Run.load(tmp_path / "run") == tiny_run
    (tiny_run.bundle / "notes.txt").rename(tiny_run.bundle / ".git")
    with pytest.raises(ArtifactError, match=r"holds other things: .git \(1 in all\)"):
        train_heads(catalog, tmp_path / "run", QUICKER, encoder=encoder)
    (tiny_run.bundle / ".git").rename(tiny_run.bundle / ".DS_Store")
    assert train_heads(catalog, tmp_path / "run", QUICKER, encoder=encoder).run.bundle.is_dir()


def test_a_run_with_another_encoder_fills_a_store_of_its_own(catalog, tiny_run, tmp_path):
    other = TinyEncoder(TinyImages("tiny-2"), TinyTexts("tiny-2"))
    assert tiny_run.store == tmp_path / "run/embeddings"
    second = train_heads(catalog, tmp_path / "run", QUICKER, encoder=other)
    assert Run.load(tmp_path / "run").store == second.run.store == tmp_path / "run/embeddings-tiny-2"
    assert len(EmbeddingStore(tiny_run.store, TinyEncoder())) == len(EmbeddingStore(second.run.store, other))


def test_a_store_that_was_not_filled_yet_is_that_of_the_run(tiny_training, tmp_path):
    replace(tiny_training.run, folder=tmp_path, store=tmp_path / "embeddings-2").save()
    assert Run.load(tmp_path).store == tmp_path / "embeddings-2"


def test_an_encoder_beside_a_run_is_not_one_within(tiny_training, tmp_path):
    beside, within = f"{tmp_path / 'run-encoder'}", f"{tmp_path / 'run' / 'encoder+windows'}"
    for encoder, wanted in ((beside, beside), (within, f"{tmp_path / 'moved' / 'encoder+windows'}")):
        (tmp_path / "run").mkdir()
        replace(tiny_training.run, folder=tmp_path / "run", encoder=encoder).save()
        (tmp_path / "run").rename(tmp_path / "moved")
        assert Run.load(tmp_path / "moved").encoder == wanted
        shutil.rmtree(tmp_path / "moved")


def test_a_file_in_the_place_of_the_run_is_refused(catalog, tmp_path):
    (tmp_path / "run").touch()
    for folder in (tmp_path / "run", tmp_path / "run/below"):
        with pytest.raises(DataError, match=r"a run is a folder, but .*run.* is a file: name another folder"):
            train_heads(catalog, folder, QUICKER, encoder=TinyEncoder())


def test_a_loss_that_diverges_is_an_error_that_names_the_epoch(catalog, tmp_path):
    wild = replace(QUICKER, heads=replace(QUICKER.heads, learning_rate=1e30))
    with pytest.raises(DataError, match=r"that of the heads is (nan|inf) in epoch \d: lower learning_rate \(1e\+30\)"):
        train_heads(catalog, tmp_path / "run", wild, encoder=TinyEncoder())
    assert not (tmp_path / "run/run.json").exists()


def test_a_characteristic_that_predictions_could_not_name_is_refused(tmp_path):
    frame = pd.DataFrame({"nm": [1], "title": ["a"], "status": ["new"]})
    with pytest.raises(DataError, match=r"must not be named like the id or the status .* rename {'status'}"):
        train_heads(read_catalog(frame, characteristics="status"), tmp_path, QUICKER, encoder=TinyEncoder())


def test_a_catalog_without_any_photo_or_text_says_what_is_missing(tmp_path):
    (tmp_path / "photos").mkdir()
    frame = pd.DataFrame({"nm": range(9), "kind": list("abcabcabc")})
    catalog = read_catalog(frame, tmp_path / "photos", text=[], characteristics=["kind"])
    with pytest.raises(DataError, match=r"at least half of the photos must be found .* 9 of 9 photos"):
        train_heads(catalog, tmp_path / "run", QUICKER, encoder=TinyEncoder())
    settings = replace(QUICKER, allow_missing_photos=True)
    with pytest.raises(DataError, match=r"found 0 among 9; set aside: {'image_missing': 9}"):
        train_heads(catalog, tmp_path / "run", settings, encoder=TinyEncoder())


def test_the_seed_of_the_training_is_that_of_the_heads(catalog, tmp_path):
    training = train_heads(catalog, tmp_path, replace(QUICKER, seed=3), encoder=TinyEncoder())
    assert training.fitted.bundle.facts["settings"]["seed"] == 3


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(ArtifactError, match="its training did not finish: run it again"):
        Run.load(tmp_path)
    with pytest.raises(ArtifactError, match="there is no such folder"):
        Run.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "has format 9, this version reads 1: train again"),
        ({"columns": None}, r"(?s)run.json is damaged .*columns"),
        ({"encoder": None}, r"(?s)run.json is damaged .*encoder"),
        (None, "is damaged"),
    ],
)
def test_a_damaged_run_is_refused(tiny_training, tmp_path, change, message):
    facts = json.loads((tiny_training.run.folder / "run.json").read_text())
    (tmp_path / "run.json").write_text("{" if change is None else json.dumps({**facts, **change}))
    with pytest.raises(ArtifactError, match=message):
        Run.load(tmp_path)


def test_out_of_fold_predictions_survive_saving(tiny_training):
    saved, loaded = tiny_training.fitted.out_of_fold, Run.load(tiny_training.run.folder).load_out_of_fold()
    assert np.array_equal(saved.rows, loaded.rows)
    assert np.array_equal(saved.is_out_of_distribution, loaded.is_out_of_distribution)
    assert loaded.probabilities.keys() == loaded.promises.keys() == {"kind", "colour"}
    for name in ("kind", "colour"):
        assert np.array_equal(saved.probabilities[name], loaded.probabilities[name])
        assert np.array_equal(saved.promises[name], loaded.promises[name])


@pytest.mark.parametrize("content", [None, b"", b"{}", b"half"])
def test_damaged_out_of_fold_predictions_are_refused(tiny_run, content):
    whole = tiny_run.out_of_fold.read_bytes()
    tiny_run.out_of_fold.unlink()
    if content is not None:
        tiny_run.out_of_fold.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    with pytest.raises(ArtifactError, match=r"out_of_fold.safetensors is missing or damaged .*: train again"):
        tiny_run.load_out_of_fold()


def test_out_of_fold_predictions_without_a_row_each_are_refused(tiny_run):
    saved = tiny_run.load_out_of_fold()
    arrays = {name: getattr(saved, name) for name in ("distance", "is_out_of_distribution")} | {"rows": saved.rows[1:]}
    tiny_run.out_of_fold.write_bytes(save(arrays))
    with pytest.raises(ArtifactError, match=r"missing or damaged \(every array must have one row per id"):
        tiny_run.load_out_of_fold()


def with_series(shop_files, path):
    """Write the table of the shop with a column of series, of four products each, and one of splits."""
    frame = pd.read_parquet(shop_files[0])
    frame["series"] = [f"s{number // 4}" for number in range(len(frame))]
    frame["part"] = ["test" if number % 5 == 0 else "train" for number in range(len(frame))]
    frame.to_parquet(path)
    return read_catalog(path, text="description", characteristics=["kind"])


def test_of_more_products_than_the_limit_some_are_drawn_and_the_report_counts_the_others(catalog, tmp_path):
    settings = replace(QUICKER, max_train_products=60)
    embedded = embed(catalog, TinyEncoder(), EmbeddingStore(tmp_path, TinyEncoder()))
    split = split_catalog(catalog, embedded, settings)
    assert (split.products.split.names != "").sum() == 60
    assert split.set_aside["beyond max_train_products"] == (embedded.set_aside() == "ok").sum() - 60
    with pytest.raises(DataError, match="max_train_products must be at least 1, got 0"):
        replace(settings, max_train_products=0)


def test_products_of_a_series_are_in_one_fold(shop_files, tmp_path):
    catalog = with_series(shop_files, tmp_path / "t.parquet")
    settings = replace(QUICKER, split=SplitSettings(folds=3, groups="series"))
    training = train_heads(catalog, tmp_path / "run", settings, encoder=TinyEncoder())
    split, _ = load_split(training.run.split)
    folds = pd.Series(split.names)[split.names != ""]
    assert set(folds) == {"1", "2", "3"}
    assert (folds.groupby(catalog.column("series")[folds.index]).nunique() == 1).all()


def test_a_column_names_what_is_judged_and_without_a_refit_that_is_never_learned(shop_files, tmp_path):
    catalog = with_series(shop_files, tmp_path / "t.parquet")
    settings = replace(QUICKER, split=SplitSettings(column="part", refit=False))
    training = train_heads(catalog, tmp_path / "run", settings, encoder=TinyEncoder())
    rows = training.fitted.out_of_fold.rows
    assert set(catalog.column("part")[rows]) == {"test"}
    assert "the delivered heads learn from the others" in training.fitted.bundle.facts["judged"]


def test_a_column_of_splits_goes_before_the_shares_of_a_fine_tuning(shop_files, tmp_path):
    catalog = with_series(shop_files, tmp_path / "t.parquet")
    embedded = embed(catalog, TinyEncoder())
    settings = replace(QUICKER, split=SplitSettings(column="part"))
    split = split_catalog(catalog, embedded, settings, {"train": 0.7, "valid": 0.15, "test": 0.15}).products.split
    is_used = split.names != ""
    assert np.array_equal(split.names[is_used], catalog.column("part")[is_used])


def test_accuracy_is_shown_by_distance_though_many_are_equally_near(shop_files, tmp_path):
    frame = pd.read_parquet(shop_files[0]).head(120)
    frame["description"] = [f"a {kind} of type {row % 20}" for row, kind in enumerate(frame.kind)]
    frame.to_parquet(tmp_path / "t.parquet")
    catalog = read_catalog(tmp_path / "t.parquet", text="description", characteristics=["kind"])
    training = train_heads(catalog, tmp_path / "run", QUICKER, encoder=TinyEncoder())
    facts = json.loads((training.run.report / "report.json").read_text())["facts"]
    assert [name.split(",")[0] for name in facts["by_distance"]["kind"]] == ["nearest", "middle", "farthest"]
    assert "## Accuracy by distance" in (training.run.report / "report.md").read_text()


@pytest.mark.parametrize("split", [SplitSettings(column="prat"), SplitSettings(groups="prat")])
def test_a_column_of_splits_that_is_missing_is_found_before_anything_is_computed(shop_files, tmp_path, split):
    catalog, encoder = with_series(shop_files, tmp_path / "t.parquet"), TinyEncoder()
    with pytest.raises(DataError, match="has no column 'prat': did you mean 'part'"):
        train_heads(catalog, tmp_path / "run", replace(QUICKER, split=split), encoder=encoder)
    assert encoder.text.encoded == 0
