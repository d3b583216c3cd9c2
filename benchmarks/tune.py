"""Compares an epoch of fine-tuning with cached activations to one that recomputes them, on a random checkpoint.

    python benchmarks/tune.py [--photos 256] [--epochs 2]

Both train the same last block of ruCLIP ViT-B/32 (224 px) on the same pairs, in float32; the second has no cache, so
every batch decodes images, tokenises and runs the frozen part. Each runs in its own process, for its peak memory.
Images and texts are real ones if the data is at hand.
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
from common import DATA, SIZES, VIT_B, save

from product_classificator import load_encoder, make_marketplace, read_catalog
from product_classificator.catalog.catalog import Products
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.finetuning.activations import Activations, Tail
from product_classificator.finetuning.contrastive import Pairs
from product_classificator.finetuning.distributed import Distributed

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.encoders.tiny_ruclip import write_checkpoint


def open_catalog(photos: int, folder: Path):
    """Return products with image and text."""
    if (DATA / "fashion").exists():
        import pandas as pd

        table = pd.read_parquet(DATA / "fashion/products.parquet").head(photos)
        return read_catalog(table, DATA / "fashion/images.zip", text="description", characteristics=["category"])
    made = make_marketplace(folder / "shop", products=photos)
    return read_catalog(made.table, made.images, characteristics=["category"])


class Recomputed(Activations):
    """Decodes, tokenises and runs the frozen part whenever a batch needs it."""

    def cache(self, folder, *args):
        """Learns which products have images, and forgets the states."""
        super().cache(folder, *args)
        rows = [
            (products.first_row + i, products, i)
            for products in self._catalog.batches(256)
            for i in range(len(products))
        ]
        self._names = {row: products.images[i] for row, products, i in rows}

    def images(self, rows):
        """Returns the states of the images of `rows`."""
        ids, names = self._catalog.ids[rows].tolist(), [self._names[row] for row in rows]
        loaded = self._load(Products(0, ids, [""] * len(ids), names))
        return torch.from_numpy(
            np.stack([*self._states("image", [item.images[0] for item in loaded])]).astype(np.float32)
        )

    def texts(self, rows):
        """Returns the states of the texts of `rows`."""
        _, inputs, owners = super().texts(rows)
        windows, lengths, _, _ = self._windows_of(rows)
        states = np.zeros((*inputs["input_ids"].shape, self._text.shape[1]), np.float32)
        for i, computed in enumerate(self._states("text", windows)):
            states[i, : lengths[i]] = computed[: lengths[i]]
        return torch.from_numpy(states), inputs, owners


def measure(mode: str, model: Path, photos: int, epochs: int) -> dict[str, object]:
    """Train in one of the two ways and return seconds per epoch, losses, and peak memory."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        catalog, encoder = open_catalog(photos, Path(folder)), load_encoder(str(model), dtype="float32")
        began = time.perf_counter()
        distributed = Distributed("cpu")
        activations = (Activations if mode == "cached" else Recomputed)(catalog, encoder, 1, distributed)
        activations.cache(Path(folder) / "activations")
        prepared_s = time.perf_counter() - began
        rows = np.flatnonzero(activations.has_image & activations.has_text)
        tail = Tail(torch_network_of(encoder).model, 1)
        pairs = Pairs(tail, activations, rows, rows[:2], np.arange(len(activations.has_image)), distributed)
        trained = [weight for weight in tail.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
        seconds, losses = [], []
        for epoch in range(1, epochs + 1):
            began = time.perf_counter()
            batches = pairs.batches(64, 0, epoch)
            losses += [pairs.train_step(batch, optimizer, 64) for batch in batches]
            seconds.append(time.perf_counter() - began)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"prepared_s": prepared_s, "epoch_s": seconds, "losses": losses, "peak_mib": peak_mib, "pairs": len(rows)}


def main() -> None:
    """Measure both ways and save the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--mode", choices=["cached", "recomputed"], help="one way only, as JSON")
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(measure(arguments.mode, arguments.model, arguments.photos, arguments.epochs)))
        return
    with TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder) / "vit-b-32", **VIT_B, **SIZES["patch32-224"])
        load_encoder(str(model))  # converts
        results = {}
        for mode in ("cached", "recomputed"):
            options = ["--mode", mode, "--model", model, "--photos", arguments.photos, "--epochs", arguments.epochs]
            command = [sys.executable, __file__, *map(str, options)]
            results[mode] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603
    difference = float(np.abs(np.subtract(results["cached"]["losses"], results["recomputed"]["losses"])).max())
    ratio = float(np.median(results["cached"]["epoch_s"]) / np.median(results["recomputed"]["epoch_s"]))
    for mode, result in results.items():
        print(mode, {name: value for name, value in result.items() if name != "losses"})
    print(f"epoch with cached activations: {ratio:.3f} of one without; losses differ by at most {difference:.1e}")
    save("tune", {"model": "random ViT-B/32, 224 px", **results, "ratio": ratio, "largest_difference": difference})


if __name__ == "__main__":
    main()
