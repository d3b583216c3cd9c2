"""What a GPU makes of photos: products per second from a zip to vectors, and what holds it up.

    python benchmarks/gpu.py [--model patch16-384] [--products 2048]

A ruCLIP of random weights in bfloat16, cards of 900 x 1200 pixels as in `speed.py` (256 of them, under many names),
short titles. The parts are measured as well: the image tower on pixels that lie on the GPU, the tower fed from
memory, and photos decoded and prepared by all cores. The peak is what a large product of bfloat16 matrices reaches.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import pandas as pd
import torch
from cards import decoded, draw
from common import RESULTS, SIZES, VIT_B, fill_table, save
from speed import vit_gflop, write_checkpoint

from product_classificator import embed, load_encoder, read_catalog
from product_classificator.encoders import cores

DRAWN = 256
ROUNDS = 5


def best_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the best time of a piece of work that the GPU has finished."""
    seconds = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def peak_tflops() -> float:
    """Return the rate of a large product of bfloat16 matrices."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / best_seconds(lambda: [matrix @ matrix for _ in range(10)]) * 10 / 1e12


def multiply(table: Path, zipped: Path, folder: Path, products: int) -> tuple[Path, Path]:
    """Write a table and a zip with the same cards under as many names as products are asked for."""
    frame = pd.read_parquet(table)
    rows = np.arange(products) % len(frame)
    many = frame.iloc[rows].assign(nm=[f"{row}" for row in range(products)])
    many.to_parquet(folder / "many.parquet")
    with ZipFile(zipped) as few, ZipFile(folder / "many.zip", "w") as cards:
        files = [few.read(f"{nm}.jpg") for nm in frame["nm"]]
        for name, row in zip(many["nm"], rows, strict=True):
            cards.writestr(f"{name}.jpg", files[row])
    return folder / "many.parquet", folder / "many.zip"


def main() -> None:
    """Measure what the command line names, prints and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="patch16-384", choices=SIZES)
    parser.add_argument("--products", type=int, default=2048)
    arguments = parser.parse_args()
    gflop, peak = vit_gflop(**SIZES[arguments.model]), peak_tflops()
    found: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "cores": cores(), "model": arguments.model}
    found |= {"gflop_per_photo": round(gflop, 2), "peak_tflops": round(peak, 1), "products": arguments.products}
    with TemporaryDirectory() as name:
        folder = Path(name)
        table, zipped = draw(folder, DRAWN)
        checkpoint = write_checkpoint(folder / "model", **VIT_B, **SIZES[arguments.model])
        encoder = load_encoder(str(checkpoint), device="cuda")
        with ZipFile(zipped) as opened:
            files = [opened.read(each) for each in opened.namelist()]
        with ThreadPoolExecutor(cores()) as pool:
            began = time.perf_counter()
            prepared = list(pool.map(lambda data: decoded(encoder, [data])[0], files * 4))
            found["decoded_per_s"] = round(len(prepared) / (time.perf_counter() - began))
        network, batches = encoder.image.network, {}
        for size in sorted({8, 32, 64, 128, network.images_per_batch}):
            inputs = encoder.image.preparation.inputs(prepared[:size])
            there = network.tensors(inputs)
            with torch.inference_mode():
                on_gpu = size / best_seconds(lambda there=there: network.model.get_image_features(**there))
            batches[size] = {
                "on_gpu": round(on_gpu),
                "from_memory": round(size / best_seconds(lambda i=inputs: network.features("image", i))),
            }
            batches[size]["share_of_peak"] = round(on_gpu * gflop / peak / 1000, 3)
        found["photos_per_s_in_batches"] = batches
        found["photos_per_batch"] = network.images_per_batch
        found["encode_images_per_s"] = round(len(prepared) / best_seconds(lambda: encoder.image.encode(prepared), 2))
        titles = pd.read_parquet(table)["title"].tolist()
        found["encode_texts_per_s"] = round(len(titles) / best_seconds(lambda: encoder.text.encode(titles), 2))
        table, zipped = multiply(table, zipped, folder, arguments.products)
        catalog = read_catalog(table, zipped, text="title", characteristics=["category"])
        embed(catalog, encoder)
        began = time.perf_counter()
        embedded = embed(catalog, encoder)
        found["products_per_s"] = round(arguments.products / (time.perf_counter() - began))
        found["encoder_idle_share"] = round(float(embedded.idle_share), 3)
        found["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    print(json.dumps(found, indent=1))
    print(save(f"gpu_{arguments.model}", found))
    fill_table("gpu", table_lines())


def table_lines() -> list[str]:
    """Return a Markdown table of all models that were measured."""
    lines = [
        "| per second | decoded by all cores | image tower | of the peak | photos to vectors | zip to vectors |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for path in sorted(RESULTS.glob("gpu_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        tower = found["photos_per_s_in_batches"][str(found["photos_per_batch"])]
        rates = [found["decoded_per_s"], tower["on_gpu"], f"{tower['share_of_peak']:.0%}"]
        rates += [found["encode_images_per_s"], found["products_per_s"]]
        lines.append(f"| {found['model']} | {' | '.join(map(str, rates))} |")
    return lines


if __name__ == "__main__":
    main()
