import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from product_classificator.encoders import load_encoder
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import DataError
from product_classificator.finetuning import Distributed, FinetuneSettings, finetune
from product_classificator.finetuning.activations import keep_activations
from product_classificator.finetuning.blocks import Tail
from product_classificator.finetuning.contrastive import vectors_of
from product_classificator.finetuning.shards import Frozen
from product_classificator.training import read_settings
from tests.encoders.tiny_ruclip import write_checkpoint


def test_two_processes_take_the_steps_of_one_on_the_same_batches(shop_files, catalog, tmp_path):
    model = write_checkpoint(tmp_path / "model")
    (tmp_path / "settings.toml").write_text("[heads]\nmax_epochs = 3\nhidden = 16\nmax_words = 0\n")
    table, photos = map(str, shop_files)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "product_classificator", "tune", table, "--images", photos, "--text", "description"]
    command += ["--characteristics", "kind,colour", "--encoder", str(model), "--epochs", "2"]
    command += ["--batch-size", "51", "--learning-rate", "0.003", "--config", str(tmp_path / "settings.toml")]
    command += ["--out", str(tmp_path / "run")]
    no_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=no_gpu, capture_output=True, text=True)  # noqa: S603
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("macro-F1") == 1  # the second process is silent
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["distributed"]["processes"] == 2
    settings = read_settings(tmp_path / "settings.toml", {"encoder": str(model)})
    tuning = FinetuneSettings(epochs=2, batch_size=51, learning_rate=0.003)
    alone = pd.DataFrame(
        finetune(catalog, tmp_path / "alone", settings, tuning, distributed=Distributed("cpu")).history
    )
    together = pd.read_csv(tmp_path / "run/curves.csv")
    assert np.allclose(alone["train_loss"][1:].astype(float), together["train_loss"][1:], atol=1e-4)
    assert np.allclose(alone["valid_loss"], together["valid_loss"], atol=1e-3)


def test_bfloat16_gives_nearly_the_same_vectors(catalog, tmp_path):
    encoder = load_encoder(str(write_checkpoint(tmp_path / "model")), threads=1)
    tail = Tail(torch_network_of(encoder).model, 1)
    found = []
    for precision in ("float32", "bfloat16"):
        distributed = Distributed("cpu", precision)
        activations = keep_activations(catalog, Frozen(encoder, 1, distributed), tmp_path / "activations")
        rows = np.flatnonzero(activations.has_image & activations.has_text)[:20]
        found.append(vectors_of(tail, activations, rows, distributed))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert 1e-5 < float((exact - rounded).detach().abs().max()) < 0.05
    assert len({path.parent.name for path in (tmp_path / "activations").rglob("image.npy")}) == 2


def test_a_precision_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="precision must be one of auto, float32, bfloat16, got 'int8'"):
        Distributed("cpu", "int8")
