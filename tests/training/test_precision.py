import json

import numpy as np
import pytest
import torch

from product_classificator.catalog import read_catalog
from product_classificator.embeddings.embed import embed, embed_rows
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import load_encoder
from product_classificator.encoders.combined import clip_of
from product_classificator.encoders.precision import Trial, is_chosen, precision_of, settle
from product_classificator.runs import Run
from product_classificator.training import Callbacks, train_heads
from product_classificator.training.precision import PrecisionCheck, check_precision
from tests.cli.test_cli import call
from tests.conftest import QUICK
from tests.encoders.test_precision import PHOTOS, TEXTS
from tests.encoders.tiny_ruclip import write_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """Towers that have chosen int8 by their trial."""
    monkeypatch.setattr(
        "product_classificator.encoders.precision.try_precisions",
        lambda *_: {"float32": Trial(2.0, 1.0), "int8": Trial(1.0, 0.995)},
    )
    loaded = load_encoder(f"{write_checkpoint(tmp_path / 'tiny')}+clean", threads=1)
    settle(loaded, PHOTOS, TEXTS)
    return loaded


def spoil(encoder):
    """Rounds the weights of the towers so coarsely that vectors tell something else."""
    with torch.no_grad():
        for weight in clip_of(encoder).towers.model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))


def checked(precision="int8", macro_f1=0.8, exact=0.8, became_right=0, became_wrong=0):
    return PrecisionCheck(precision, 100, macro_f1, exact, became_right, became_wrong)


def test_a_difference_is_refused_if_it_is_large_and_no_chance():
    assert not checked(macro_f1=0.796, became_wrong=30).is_refused
    assert checked(macro_f1=0.794, became_wrong=5).is_refused
    assert not checked(macro_f1=0.794, became_wrong=4).is_refused
    assert not checked(macro_f1=0.7, became_right=20, became_wrong=26).is_refused
    assert checked(macro_f1=0.7, became_right=20, became_wrong=40).is_refused


def test_heads_that_do_better_by_a_precision_than_by_float32_are_refused_too():
    assert checked(macro_f1=0.9, became_right=30).is_refused


def test_a_precision_that_agrees_stays_and_the_run_says_so(catalog, encoder, tmp_path):
    stages = []
    train_heads(catalog, tmp_path / "run", QUICK, encoder=encoder, callbacks=Callbacks(stages.append))
    (comparison,) = (stage for stage in stages if stage.startswith("Comparing precisions"))
    assert "validation products the heads have macro-F1" in comparison
    assert precision_of(encoder) == "int8"
    facts = Run.load(tmp_path / "run").facts
    assert facts["precision"] == "int8"
    assert facts["precision_check"] in comparison
    assert " in int8" in (tmp_path / "run/report/report.md").read_text()
    assert f"{encoder.name} in int8" in call("info", str(tmp_path / "run")).replace("\n", "")


def test_a_precision_by_which_heads_answer_otherwise_is_given_up_for_float32(catalog, encoder, tmp_path, cache, caplog):
    exact = load_encoder(encoder.name, threads=1, dtype="float32")
    spoil(encoder)
    stages = []
    training = train_heads(catalog, tmp_path / "run", QUICK, encoder=encoder, callbacks=Callbacks(stages.append))
    assert any(stage.startswith("Embedding and fitting again") for stage in stages)
    assert "computes in float32 on this machine from now on: on " in caplog.text
    assert precision_of(encoder) == "float32"
    known = embed(catalog, exact).embeddings
    assert np.array_equal(training.embeddings.image, known.image)
    stored = embed(catalog, encoder, EmbeddingStore(tmp_path / "run/embeddings", encoder)).embeddings
    assert np.array_equal(stored.text, known.text)
    assert Run.load(tmp_path / "run").facts["precision"] == "float32"
    (memory,) = (cache / "precision").iterdir()
    assert json.loads(memory.read_text())["why"] in caplog.text
    again = load_encoder(encoder.name, threads=1)
    settle(again, PHOTOS, TEXTS)
    assert precision_of(again) == "float32"


def test_a_precision_that_was_named_is_not_questioned(catalog, tiny_training, tmp_path):
    named = load_encoder(str(write_checkpoint(tmp_path / "tiny")), threads=1, dtype="int8")
    assert not is_chosen(named)
    arguments = (tiny_training.embeddings, {}, None, tiny_training.fitted.bundle)
    assert check_precision(catalog, *arguments, named) is None
    assert tiny_training.run.facts["precision"] is None


def test_some_rows_are_embedded_as_all_rows_are(shop_files, encoder):
    catalog = read_catalog(*shop_files, text="description", characteristics=[])
    rows = np.array([0, 7, 9, 11, 200])
    some, whole = embed_rows(catalog, encoder, rows), embed(catalog, encoder).embeddings.take(rows)
    assert some.ids.tolist() == whole.ids.tolist()
    assert np.array_equal(some.has_image, whole.has_image)
    assert np.array_equal(some.has_text, whole.has_text)
    assert np.allclose(some.image, whole.image, atol=0.02)
