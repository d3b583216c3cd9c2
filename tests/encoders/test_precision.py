import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from product_classificator.catalog import read_catalog
from product_classificator.embeddings.embed import embed
from product_classificator.encoders import load_encoder
from product_classificator.encoders.combined import clip_of
from product_classificator.encoders.precision import MIN_COSINE, Trial, choose, settle, try_precisions
from product_classificator.encoders.towers import computing, torch_towers_of
from product_classificator.errors import DataError
from tests.encoders.tiny_ruclip import write_checkpoint

PHOTOS = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "navy", "white")]
TEXTS = ["красное платье", "vase", "кружка 300 мл", "шапка"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def precision_of(encoder):
    return clip_of(encoder).towers.precision


def test_the_fastest_precision_that_agrees_is_chosen():
    slow, fast = Trial(2.0, 1.0), Trial(1.0, MIN_COSINE)
    assert choose({"float32": slow, "int8": fast}) == "int8"
    assert choose({"float32": slow, "int8": Trial(1.0, MIN_COSINE - 0.001), "bfloat16": Trial(1.5, 1.0)}) == "bfloat16"
    assert choose({"float32": fast, "int8": slow}) == "float32"


def test_every_precision_is_tried_on_the_given_products_and_nothing_is_changed(model, monkeypatch):
    monkeypatch.setattr("product_classificator.encoders.precision._HOPELESS", math.inf)  # this machine may be busy
    encoder = load_encoder(model, threads=1)
    before = encoder.encode_images(PHOTOS)
    trials = try_precisions(clip_of(encoder), PHOTOS, TEXTS)
    assert trials["float32"].cosine == pytest.approx(1, abs=1e-5)
    assert set(trials) == {"float32", "bfloat16", "int8"}
    assert all(0.9 < trial.cosine <= 1.00001 and trial.seconds > 0 for trial in trials.values())
    assert np.array_equal(encoder.encode_images(PHOTOS), before)


def test_what_was_settled_is_remembered_on_this_machine(model, cache, monkeypatch):
    monkeypatch.setattr(
        "product_classificator.encoders.precision.try_precisions",
        lambda *_: {"float32": Trial(2.0, 1.0), "int8": Trial(1.0, 0.995)},
    )
    encoder = load_encoder(f"{model}+clean", threads=1)
    assert precision_of(encoder) == "float32"
    settle(encoder, PHOTOS, TEXTS)
    assert precision_of(encoder) == "int8"
    (memory,) = cache.rglob("*.json")
    assert json.loads(memory.read_text())["trials"]["int8"]["cosine"] == 0.995
    assert precision_of(load_encoder(model, threads=1)) == "int8"
    assert precision_of(load_encoder(model, threads=1, dtype="float32")) == "float32"
    memory.write_text("{")
    assert precision_of(load_encoder(model, threads=1)) == "float32"


def test_where_the_cache_cannot_be_written_every_process_settles_anew(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(
        "product_classificator.encoders.precision.try_precisions",
        lambda *_: {"float32": Trial(2.0, 1.0), "int8": Trial(1.0, 0.995)},
    )
    encoder = load_encoder(model, threads=1)
    settle(encoder, PHOTOS, TEXTS)
    assert precision_of(encoder) == "int8"
    assert precision_of(load_encoder(model, threads=1)) == "float32"


def test_calls_that_overlap_leave_the_threads_as_they_were(model):
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    first, second = computing(1), computing(1)
    with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as new:
        first.__enter__()
        other.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        other.submit(second.__exit__, None, None, None).result()
        assert torch.get_num_threads() == new.submit(torch.get_num_threads).result() == 2
    torch.set_num_threads(usual)


def test_a_precision_that_was_named_stays(model, cache):
    named = load_encoder(model, threads=1, dtype="int8")
    settle(named, PHOTOS, TEXTS)
    settle(load_encoder("lite"), PHOTOS, TEXTS)
    assert precision_of(named) == "int8"
    assert not (cache / "precision").exists()
    exact = load_encoder(model, threads=1, dtype="float32")
    assert (exact.encode_texts(TEXTS) * named.encode_texts(TEXTS)).sum(1).min() > 0.98
    with pytest.raises(DataError, match="towers in int8 can be neither exported nor tuned"):
        torch_towers_of(clip_of(named))
    with pytest.raises(DataError, match="int8 is for the CPU, got device 'meta'"):
        load_encoder(model, dtype="int8", device="meta")


def test_a_large_catalog_settles_the_precision_before_it_is_embedded(model, cache, monkeypatch):
    monkeypatch.setattr("product_classificator.embeddings.embed.WORTH_A_TRIAL", 10)
    frame = pd.DataFrame({"nm": range(12), "title": [f"ваза {i}" for i in range(12)]})
    embed(read_catalog(frame, text="title"), load_encoder(model, threads=1))
    assert not cache.exists()  # there are no photos to try
