import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from product_classificator.catalog import read_catalog
from product_classificator.encoders import load_encoder
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import DataError
from product_classificator.finetuning import Distributed, FinetuneSettings, finetune
from product_classificator.finetuning.activations import Activations, Tail
from product_classificator.finetuning.contrastive import Pairs
from product_classificator.training import read_settings
from tests.encoders.tiny_ruclip import write_checkpoint
from tests.fakes import shop

pytestmark = pytest.mark.slow


def test_two_processes_take_the_steps_of_one_on_the_same_batches(tmp_path):
    model = write_checkpoint(tmp_path / "model")
    (tmp_path / "settings.toml").write_text("[heads]\nepochs = 1\nhidden = 8\nmax_words = 0\n")
    table, photos = shop(tmp_path / "shop", products=120)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "product_classificator", "tune", str(table), "--images", str(photos), "--text", "description"]
    command += ["--characteristics", "kind,colour", "--encoder", str(model), "--epochs", "1"]
    command += ["--batch-size", "31", "--learning-rate", "0.003", "--config", str(tmp_path / "settings.toml")]
    command += ["--out", str(tmp_path / "run")]
    no_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=no_gpu, capture_output=True, text=True)  # noqa: S603
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("macro-F1") == 1  # the second process is silent
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["distributed"]["processes"] == 2
    settings = read_settings(tmp_path / "settings.toml", {"encoder": str(model)})
    catalog = read_catalog(table, photos, text="description", characteristics=["kind", "colour"])
    alone = finetune(
        catalog,
        tmp_path / "alone",
        settings,
        FinetuneSettings(epochs=1, batch_size=31, learning_rate=0.003),
        encoder=load_encoder(str(model), dtype="float32"),
    )
    together = pd.read_csv(tmp_path / "run/curves.csv")
    assert np.allclose([row.valid_loss for row in alone.history], together["valid_loss"], atol=1e-3)
    assert np.isclose(alone.history[1].train_loss, together["train_loss"][1], atol=1e-4)


def test_bfloat16_gives_nearly_the_same_vectors(catalog, tmp_path):
    encoder = load_encoder(str(write_checkpoint(tmp_path / "model")))
    tail = Tail(torch_network_of(encoder).model, 1)
    vectors = []
    for dtype in ("float32", "bfloat16"):
        distributed = Distributed("cpu", dtype)
        activations = Activations(catalog, encoder, 1, distributed)
        activations.cache(tmp_path / "activations")
        rows = np.flatnonzero(activations.has_image & activations.has_text)[:20]
        pairs = Pairs(tail, activations, rows, rows, rows, distributed)
        vectors.append([pairs.encode(side, rows) for side in ("image", "text")])
    for exact, rounded in zip(*vectors, strict=True):
        assert rounded.dtype == torch.float32
        assert 1e-5 < float((exact - rounded).detach().abs().max()) < 0.05
    assert len(list((tmp_path / "activations").iterdir())) == 2


def test_an_unknown_dtype_is_refused():
    with pytest.raises(DataError, match="dtype must be one of auto, float32, bfloat16, got 'int8'"):
        Distributed("cpu", "int8")
