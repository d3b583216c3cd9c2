import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import CLIPModel

from product_classificator import Classificator, make_marketplace
from product_classificator.audit import audit_run
from product_classificator.catalog import open_images, read_catalog
from product_classificator.catalog.split import load_split
from product_classificator.embeddings.embed import embed
from product_classificator.encoders import load_encoder
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import ArtifactError, DataError
from product_classificator.evaluate_run import evaluate_run
from product_classificator.finetuning import FinetuneSettings, finetune
from product_classificator.finetuning.activations import Activations, Tail
from product_classificator.finetuning.contrastive import (
    Pairs,
    contrastive_loss,
    learning_rate,
)
from product_classificator.finetuning.distributed import Distributed
from product_classificator.finetuning.finetune import Checkpoint
from product_classificator.published.params import published_finetuning
from product_classificator.runs import Run
from product_classificator.trainer import Trainer
from product_classificator.training import Callbacks, train_heads
from product_classificator.training.settings import SplitSettings
from tests.encoders.tiny_ruclip import write_checkpoint
from tests.fakes import jpeg
from tests.fixtures import QUICKER
from tests.test_trainer import RecordingTask

CPU = Distributed("cpu")
# Without words and with few epochs the heads have something left to gain from the encoder.
QUICK = replace(QUICKER, heads=replace(QUICKER.heads, max_words=0, epochs=4, hidden=16))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def catalog(shop_files):
    return read_catalog(*shop_files, text="description", characteristics=["kind", "colour"])


@pytest.fixture(scope="module")
def encoder(model):
    return load_encoder(str(model))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("activations")


@pytest.fixture(scope="module")
def fast(cache):
    return FinetuneSettings(epochs=2, batch_size=64, learning_rate=3e-3, cache_dir=str(cache))


def cached(catalog, encoder, folder, last_blocks=1, **options):
    activations = Activations(catalog, encoder, last_blocks, CPU)
    activations.cache(folder, **options)
    return activations


@pytest.fixture(scope="module")
def activations(catalog, encoder, cache):
    return cached(catalog, encoder, cache)


@pytest.fixture(scope="module")
def tuned(catalog, encoder, cache, tmp_path_factory, fast):
    return finetune(catalog, tmp_path_factory.mktemp("runs") / "run", QUICK, fast, encoder=encoder)


def pairs_of(encoder, activations):
    both, tail = np.flatnonzero(activations.has_image & activations.has_text), Tail(torch_network_of(encoder).model, 1)
    return Pairs(tail, activations, both[:150], both[150:], np.arange(len(activations.has_image)), CPU)


@pytest.fixture
def pairs(encoder, activations):
    return pairs_of(encoder, activations)


def test_tuning_brings_photos_and_their_texts_together(tuned):
    first, *_, last = tuned.history
    assert [row.epoch for row in tuned.history] == [0, 1, 2]
    assert last.valid_loss < first.valid_loss
    assert set(last.characteristics) == {"kind", "colour"}


def test_the_best_epoch_is_kept_and_the_untuned_encoder_competes(tuned, catalog, encoder, cache, tmp_path, fast):
    scores = [row.valid_macro_f1 for row in tuned.history]
    assert tuned.best_epoch == int(np.argmax(scores))
    idle = replace(fast, learning_rate=1e-30, epochs=1, weight_decay=0, warmup_share=0)
    unchanged = finetune(catalog, tmp_path / "run", QUICK, idle, encoder=encoder)
    assert unchanged.history[1].valid_macro_f1 == unchanged.history[0].valid_macro_f1
    assert unchanged.best_epoch == 0  # of equals the untuned encoder
    assert unchanged.evaluation == unchanged.untuned
    assert Run.load(tmp_path / "run").encoder == encoder.name
    assert not (tmp_path / "run/encoder").exists()


def test_a_tuning_that_diverges_ends_and_keeps_what_was_better(catalog, encoder, cache, tmp_path, fast):
    sentences = []
    wild = replace(fast, learning_rate=1e30, warmup_share=0)
    callbacks = Callbacks(on_stage=sentences.append)
    found = finetune(catalog, tmp_path / "run", QUICK, wild, encoder=encoder, callbacks=callbacks)
    assert found.best_epoch == 0
    assert len(found.history) == 1
    assert any("The loss diverged in epoch 1" in line for line in sentences)


def test_a_run_holds_encoder_heads_report_curves_and_settings(tuned):
    folder = tuned.run.folder
    assert tuned.best_epoch > 0
    classificator = Classificator.from_run(folder)
    assert classificator.encoder.name == str(folder / "encoder")
    assert classificator.bundle.encoder_fingerprint == classificator.encoder.fingerprint
    assert classificator.classify_products("A nice cup number 1 for you")["kind"] == ["cup"]
    CLIPModel.from_pretrained(folder / "encoder")
    assert "untuned" in (folder / "report/tuning.md").read_text()
    assert len(pd.read_csv(folder / "curves.csv")) == 3
    assert (folder / "curves.png").is_file()
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["finetuning"]["epochs"] == 2
    assert json.loads((folder / "run.json").read_text())["encoder"] == "<run>/encoder"


def test_on_its_own_table_a_tuned_run_has_the_figures_of_its_test_split(tuned, catalog):
    heldout = evaluate_run(tuned.run, catalog)
    assert heldout.evaluation == tuned.evaluation
    names = load_split(tuned.run.split)[0].names
    assert len(heldout.rows) == heldout.out_of_fold == (names == "test").sum()
    assert heldout.seen == np.isin(names, ["train", "valid"]).sum()


@pytest.mark.slow
def test_an_audit_of_a_tuned_run_fits_heads_to_its_vectors(tuned, catalog, tmp_path):
    stages = []
    audit_run(tuned.run, catalog, tmp_path / "audit", callbacks=Callbacks(on_stage=stages.append))
    assert sum("Fitting heads without fold" in sentence for sentence in stages) == 5


def test_the_saved_encoder_answers_what_the_heads_were_fitted_on(tuned, catalog):
    again = embed(catalog, load_encoder(str(tuned.run.folder / "encoder"))).embeddings
    assert np.abs(again.image - tuned.embeddings.image).max() < 5e-3
    assert np.abs(again.text - tuned.embeddings.text).max() < 5e-3


def test_only_the_trained_parameters_change(tuned, encoder):
    before = torch_network_of(encoder).model.state_dict()
    after = CLIPModel.from_pretrained(tuned.run.folder / "encoder").state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed <= set(Tail(torch_network_of(encoder).model, 1).trained())
    # A bias of keys moves nothing: softmax does not see it.
    assert {name for name in Tail(torch_network_of(encoder).model, 1).trained() if "k_proj.bias" not in name} <= changed


def test_activations_are_found_again(catalog, encoder, cache, activations):
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    again = cached(catalog, encoder, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == files
    rows = np.flatnonzero(again.has_image)[:5]
    assert all(map(torch.equal, again.images(rows), activations.images(rows)))
    cached(catalog, encoder, cache, last_blocks=2)
    assert len(list(cache.rglob("image.npy"))) == 2 * len([path for path in files if path.name == "image.npy"])


def test_kept_activations_give_the_vectors_of_the_encoder(catalog, encoder, activations, pairs):
    image, text = pairs.embed_all(encoder.image.dim)
    known = embed(catalog, encoder).embeddings
    assert np.array_equal(activations.has_image, known.has_image)
    assert np.array_equal(activations.has_text, known.has_text)
    assert np.abs(image - known.image).max() < 2e-3
    assert np.abs(text - known.text).max() < 2e-3


def test_windows_of_a_text_are_averaged_like_in_the_encoder(model, shop_files, tmp_path):
    frame = pd.DataFrame({"nm": range(20), "text": [f"кружка {i} " * (1 + 9 * i) for i in range(20)]})
    catalog = read_catalog(frame, text="text", characteristics=[])
    encoder = load_encoder(f"{model}+windows+clean")
    found = cached(catalog, encoder, tmp_path)
    _, text = pairs_of(encoder, found).embed_all(encoder.text.dim)
    assert np.abs(text - embed(catalog, encoder).embeddings.text).max() < 2e-3


def test_cached_gradients_take_the_step_of_the_whole_batch(encoder, activations):
    after = []
    for micro_batch in (150, 40):
        pairs = pairs_of(encoder, activations)
        optimizer = torch.optim.SGD(pairs.tail.parameters(), lr=1.0)
        after.append((pairs.train_step(pairs.train, optimizer, micro_batch), pairs.tail.trained()))
    assert abs(after[0][0] - after[1][0]) < 1e-5
    for name, weight in after[0][1].items():
        assert torch.allclose(weight, after[1][1][name], atol=1e-5), name


def test_near_duplicates_are_not_each_others_negatives():
    vectors = torch.eye(3)
    vectors[1] = vectors[0]
    apart = contrastive_loss(vectors, vectors, np.array([0, 1, 2]), 100.0)
    together = contrastive_loss(vectors, vectors, np.array([0, 0, 2]), 100.0)
    assert apart > 0.4
    assert together < 1e-6


def test_the_learning_rate_rises_and_falls():
    settings = FinetuneSettings(learning_rate=1.0, warmup_share=0.2)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == 1 / 20
    assert max(rates) == rates[20] == 1.0
    assert rates[-1] < 0.01
    assert learning_rate(replace(settings, warmup_share=0.0), 0, 100) == 1.0
    for steps in (1, 5, 12, 15, 25, 55):  # of which a tenth is no whole number
        short = replace(settings, warmup_share=0.1)
        assert max(learning_rate(short, step, steps) for step in range(steps)) <= 1.0


def test_the_batches_of_an_epoch_are_reproducible(pairs):
    first, again, other = (pairs.batches(64, 0, epoch) for epoch in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert sorted(np.concatenate(first)) == sorted(pairs.train)


def test_recall_is_the_share_of_texts_nearest_to_their_image(pairs):
    loss, recall = pairs.evaluate()
    assert loss > 0
    assert 0 <= recall < 0.5


@pytest.fixture
def every_step_is_saved(monkeypatch):
    monkeypatch.setattr(sys.modules[Checkpoint.__module__], "_CHECKPOINT_S", 0.0)


def stop_after(steps):
    def on_step(epoch, step, of, loss):
        nonlocal steps
        steps -= 1
        if not steps:
            os.kill(os.getpid(), signal.SIGINT)

    return Callbacks(on_step=on_step)


@pytest.mark.slow
def test_an_interrupted_tuning_goes_on_and_ends_like_an_undisturbed_one(
    tuned, catalog, encoder, tmp_path, fast, every_step_is_saved
):
    with pytest.raises(KeyboardInterrupt):
        finetune(catalog, tmp_path / "run", QUICK, fast, encoder=encoder, callbacks=stop_after(5))
    assert not (tmp_path / "run/run.json").exists()
    state = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert state["step"] > 0
    found = finetune(catalog, tmp_path / "run", QUICK, fast, encoder=encoder)
    assert found.history == tuned.history
    assert found.evaluation == tuned.evaluation
    assert found.fitted.bundle.encoder_fingerprint == tuned.fitted.bundle.encoder_fingerprint


def test_an_interruption_while_the_last_heads_are_fitted_is_heard(catalog, encoder, cache, tmp_path, fast):
    def on_epoch(row):
        if row.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    once = replace(fast, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        finetune(
            catalog,
            tmp_path,
            QUICK,
            once,
            encoder=encoder,
            callbacks=Callbacks(on_epoch=on_epoch),
        )
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]) == 2


def test_leftovers_of_killed_calls_are_removed(catalog, encoder, tmp_path):
    cached(catalog, encoder, tmp_path)
    (folder,) = tmp_path.iterdir()
    old, new = (folder / f".image.npy.{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    cached(catalog, encoder, tmp_path)
    assert new.exists() and not old.exists()


def test_a_computation_continues_with_the_chunk_that_is_missing(catalog, encoder, activations, tmp_path):
    def stop(products):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(catalog, encoder, tmp_path, on_products=stop)
    assert list(tmp_path.rglob("image.npy")) and not list(tmp_path.rglob("*.json"))
    again = cached(catalog, encoder, tmp_path)
    rows = np.flatnonzero(again.has_image)
    assert all(map(torch.equal, again.images(rows), activations.images(rows)))


def test_a_product_has_the_mean_of_its_photos(encoder, tmp_path):
    photos = {"a_1": "red", "a_2": "blue", "b": "green", "c_1": "red", "c_2": None, "c_3": "green"}
    (tmp_path / "photos").mkdir()
    for name, colour in photos.items():
        (tmp_path / f"photos/{name}.jpg").write_bytes(jpeg(colour) if colour else b"broken")
    table = pd.DataFrame({"nm": ["a", "b", "c", "d"], "title": "a cup"})
    catalog = read_catalog(table, tmp_path / "photos")
    activations = cached(catalog, encoder, tmp_path / "cache")
    states, owners = activations.images(np.array([2, 0, 1]))
    assert (len(states), owners.tolist()) == (5, [0, 0, 1, 1, 2])
    image, _ = pairs_of(encoder, activations).embed_all(encoder.image.dim)
    assert (image * embed(catalog, encoder).embeddings.image).sum(1)[:3] == pytest.approx(1, abs=1e-3)
    assert not image[3].any()


def test_an_unfinished_tuning_of_other_settings_or_dtype_is_not_continued(catalog, encoder, cache, tmp_path, fast):
    with pytest.raises(KeyboardInterrupt):
        finetune(catalog, tmp_path / "run", QUICK, fast, encoder=encoder, callbacks=stop_after(1))
    other = replace(fast, learning_rate=1e-4)
    with pytest.raises(
        ArtifactError, match=r"another fine-tuning \(different: settings\): .*delete it, or use a new run"
    ):
        finetune(catalog, tmp_path / "run", QUICK, other, encoder=encoder)
    with pytest.raises(ArtifactError, match=r"\(different: dtype float32\): resume with the same"):
        finetune(catalog, tmp_path / "run", QUICK, replace(fast, dtype="bfloat16"), encoder=encoder)
    (tmp_path / "run/checkpoint.pt").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match=r"is damaged .*delete it to start again"):
        finetune(catalog, tmp_path / "run", QUICK, fast, encoder=encoder)


def test_activations_that_exceed_the_disk_are_refused(catalog, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1e5))
    with pytest.raises(
        DataError, match=r"activations need .* GB, .* has 0.0001 GB left: name another folder \(cache_dir"
    ):
        cached(catalog, encoder, tmp_path)


def test_another_limit_of_pixels_computes_activations_anew(shop_files, encoder, tmp_path):
    counts = []
    for max_pixels in (100, 10_000):
        images = open_images(shop_files[1], max_pixels=max_pixels)
        catalog = read_catalog(shop_files[0], images, text="description", characteristics=[])
        counts.append(cached(catalog, encoder, tmp_path).has_image.sum())
    assert counts[0] == 0 < counts[1]


def test_a_table_whose_files_end_within_a_shard_is_kept_whole(encoder, tmp_path):
    made = make_marketplace(tmp_path / "school", products=60, layout="wildberries")
    catalog = read_catalog(made.table, made.images)
    assert len(list(catalog.batches(256))) > 1
    found = cached(catalog, encoder, tmp_path / "activations")
    assert len(found.has_image) == len(catalog)


@pytest.mark.slow
def test_a_finished_run_can_be_replaced_and_leaves_nothing(tuned, catalog, encoder, tmp_path, fast):
    shutil.copytree(tuned.run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings*"))
    assert (tmp_path / "run/encoder").exists()
    idle = replace(fast, epochs=1, learning_rate=1e-30)
    assert finetune(catalog, tmp_path / "run", QUICK, idle, encoder=encoder).best_epoch == 0
    assert not (tmp_path / "run/encoder").exists()
    assert len(pd.read_csv(tmp_path / "run/curves.csv")) == 2
    train_heads(catalog, tmp_path / "run", QUICK, encoder=encoder)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    of_products = {"split.parquet", "labels.parquet", "out_of_fold.safetensors", "embeddings"}
    assert left == {"run.json", "bundle", "report", *of_products}
    assert not list((tmp_path / "run/report").glob("tuning*"))


def test_a_column_of_other_splits_is_refused_before_anything_is_computed(catalog, encoder, tmp_path, fast):
    settings = replace(QUICK, split=SplitSettings(column="kind"))
    with pytest.raises(DataError, match="names train, valid, test and no others: kind names"):
        finetune(catalog, tmp_path / "run", settings, fast, encoder=encoder)
    assert not (tmp_path / "run/activations").exists()


def test_what_cannot_be_tuned_is_refused(catalog, shop_files, encoder, tmp_path, fast):
    with pytest.raises(DataError, match="only CLIP-like encoders can be exported or fine-tuned, 'lite' is not one"):
        finetune(catalog, tmp_path / "a", QUICK, fast, encoder=load_encoder("lite"))
    texts = read_catalog(shop_files[0], text="description", characteristics=["kind"])
    with pytest.raises(DataError, match="fine-tuning needs products with an image and a text"):
        finetune(texts, tmp_path / "b", QUICK, fast, encoder=encoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": 0}, "learning_rate must be positive and finite, got 0"),
        ({"warmup_share": 1}, "warmup_share must be at least 0 and below 1, got 1"),
        ({"betas": (0.9, 1.5)}, r"betas must be at least 0 and below 1, got \(0.9, 1.5\)"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(DataError, match=message):
        FinetuneSettings(**change)


@pytest.mark.slow
def test_a_tuned_run_keeps_its_encoder_when_the_fetched_model_is_deleted(shop_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "models/ruclip-vit-base-patch32-224")
    trainer = Trainer(
        shop_files[1],
        shop_files[0],
        ["kind", "colour"],
        {"epochs": 1, "batch_size": 64, "optimizer_params": {"lr": 3e-3}},
        ruclip_model="ruclip-vit-base-patch32-224",
        cache_dir="models",
        save_dir="experiments",
        settings=QUICK,
    )
    trainer.end_of_train["del_loaded_ruclip_model"], trainer.clusterization_params = True, None
    found = trainer.train_ruclip(experiment_name="first")
    assert found.best_epoch > 0
    assert Run.load("experiments/first").encoder == str(tmp_path / "experiments/first/encoder")


def test_the_trainer_tunes_as_published(shop_files, model, tmp_path):
    params = {"epochs": 1, "batch_size": 64, "num_last_resblocks_to_train": 2, "optimizer_params": {"lr": 1e-3}}
    trainer = Trainer(
        shop_files[1],
        pd.read_parquet(shop_files[0]).head(120),
        ["kind"],
        params,
        ruclip_model=str(model),
        save_dir=tmp_path,
        settings=QUICK,
    )
    trainer.end_of_train["del_img_and_txt_tensors"] = True
    task = RecordingTask()
    found = trainer.train_ruclip(task, "first")
    assert trainer.experiment_dir == tmp_path / "first"
    assert not list((tmp_path / "cache/activations").iterdir())
    assert ("contrastive loss", "train", 1) in task.scalars
    assert ("valid macro-F1", "kind", 0) in task.scalars
    assert found.run.settings["finetuning"]["last_blocks"] == 2
    assert set(task.artifacts) == {"scores", "report"}
    clusters = pd.read_parquet(trainer.experiment_dir / "clusters/assignment.parquet")
    assert set(clusters["id"]) == set(found.embeddings.ids[found.embeddings.has_image | found.embeddings.has_text])
    with pytest.raises(DataError, match="every experiment needs its own folder"):
        trainer.train_ruclip(experiment_name="first")
    assert published_finetuning({}) == FinetuneSettings()
    with pytest.raises(DataError, match="ruclip_train_params has no 'epoch': did you mean 'epochs'"):
        published_finetuning({"epoch": 3})
    with pytest.raises(DataError, match="img_criterion of ruclip_train_params must be CrossEntropyLoss"):
        published_finetuning({"img_criterion": torch.nn.MSELoss})
