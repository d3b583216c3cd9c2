"""Finetuned with kept activations against computing them anew in every epoch, on a random checkpoint of real size.

    python benchmarks/tune.py [--photos 256] [--epochs 2]

Both train the same last block on the same pairs; the second may keep nothing, so whenever a batch asks for it, it reads
and decodes photos, tokenises, and runs the frozen part of ruCLIP ViT-B/32 (224 px), in float32. Each runs in a process
of its own, one after the other, so that peak memory can be told. Photos and texts are real ones where the data is at
hand.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import DATA, save

from product_classificator import load_encoder, make_marketplace, read_catalog
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.finetuning.activations import keep_activations
from product_classificator.finetuning.blocks import Tail
from product_classificator.finetuning.contrastive import FinetuneSettings, Pairs, make_optimizer, order_of, train_step
from product_classificator.finetuning.distributed import Distributed
from product_classificator.finetuning.shards import Frozen

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.encoders.tiny_ruclip import write_checkpoint

VIT_B_32 = {
    "embed_dim": 512,
    "image_resolution": 224,
    "vision_layers": 12,
    "vision_width": 768,
    "vision_patch_size": 32,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}


def open_catalog(photos: int, folder: Path):
    """Returns so many products with photo and text."""
    if (DATA / "fashion").exists():
        import pandas as pd

        table = pd.read_parquet(DATA / "fashion/products.parquet").head(photos)
        return read_catalog(table, DATA / "fashion/images.zip", text="description", characteristics=["category"])
    made = make_marketplace(folder / "shop", products=photos)
    return read_catalog(made.table, made.images, characteristics=["category"])


def measure(mode: str, model: Path, photos: int, epochs: int) -> dict[str, object]:
    """Trains in one of the two ways and returns seconds per epoch, losses, and peak memory."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        catalog, encoder = open_catalog(photos, Path(folder)), load_encoder(str(model))
        began = time.perf_counter()
        distributed = Distributed("cpu")
        n_kept = None if mode == "kept" else 0
        activations = keep_activations(
            catalog, Frozen(encoder, 1, distributed), Path(folder) / "activations", n_kept=n_kept
        )
        prepared_s = time.perf_counter() - began
        rows = np.flatnonzero(activations.has_image & activations.has_text)
        pairs = Pairs(activations, rows, rows[:2], np.arange(len(activations.has_image)))
        settings = FinetuneSettings(epochs=epochs, batch_size=64, micro_batch=64)
        tail = Tail(torch_network_of(encoder).model, 1)
        optimizer = make_optimizer(tail, settings)
        seconds, losses = [], []
        for epoch in range(1, epochs + 1):
            began = time.perf_counter()
            losses += [
                train_step(tail, pairs, batch, optimizer, 64, distributed) for batch in order_of(pairs, settings, epoch)
            ]
            seconds.append(time.perf_counter() - began)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"prepared_s": prepared_s, "epoch_s": seconds, "losses": losses, "peak_mib": peak_mib, "pairs": len(rows)}


def main() -> None:
    """Measures both ways and saves the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--mode", choices=["kept", "anew"], help="one way only, as JSON")
    parser.add_argument("--model", type=Path)
    asked = parser.parse_args()
    if asked.mode:
        print(json.dumps(measure(asked.mode, asked.model, asked.photos, asked.epochs)))
        return
    with TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder) / "vit-b-32", **VIT_B_32)
        load_encoder(str(model))  # converts
        found = {}
        for mode in ("kept", "anew"):
            arguments = ["--mode", mode, "--model", model, "--photos", asked.photos, "--epochs", asked.epochs]
            command = [sys.executable, __file__, *map(str, arguments)]
            found[mode] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603
    difference = float(np.abs(np.subtract(found["kept"]["losses"], found["anew"]["losses"])).max())
    ratio = float(np.median(found["kept"]["epoch_s"]) / np.median(found["anew"]["epoch_s"]))
    for mode, result in found.items():
        print(mode, {name: value for name, value in result.items() if name != "losses"})
    print(f"epoch with kept activations: {ratio:.3f} of one without; losses differ by at most {difference:.1e}")
    save("tune", {"model": "random ViT-B/32, 224 px", **found, "ratio": ratio, "largest_difference": difference})


if __name__ == "__main__":
    main()
