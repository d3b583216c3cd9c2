"""What a GPU makes of photos: products per second from a zip to vectors, and what holds it up.

    python benchmarks/gpu.py [--model patch16-384] [--products 4096] [--device cpu]

A ruCLIP of random weights in bfloat16, cards of 900 x 1200 pixels as in `speed.py` (256 of them, under many names),
short titles. The parts are measured as well: the image tower on pixels that lie on the GPU, plain and compiled, the
tower fed from memory, and photos decoded by 1 to all cores as threads, by processes, and by nvJPEG (the extra `gpu`);
then zip to vectors by each of these. The peak is what a large product of bfloat16 matrices reaches. With
`--device cpu` the script itself is tried out: its figures say nothing.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from product_classificator.catalog import Catalog
from product_classificator.embeddings import feeding
from product_classificator.encoders import Encoder, cores
from product_classificator.encoders.clip import ClipImages
from product_classificator.encoders.gpu import DeviceImages
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.encoders.torch_clip import TorchNetwork

DRAWN = 256
ROUNDS = 5


def best_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the best time of a piece of work that the GPU has finished."""
    seconds, finish = [], torch.cuda.synchronize if torch.cuda.is_available() else int
    for _ in range(rounds + 1):
        finish()
        began = time.perf_counter()
        work()
        finish()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def peak_tflops(device: str) -> float:
    """Return the rate of a large product of bfloat16 matrices."""
    n = 8192 if device == "cuda" else 256
    matrix = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    return 2 * n**3 / best_seconds(lambda: [matrix @ matrix for _ in range(10)]) * 10 / 1e12


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


def ways_to_decode(encoder: Encoder) -> dict[str, Encoder]:
    """Return the encoder as it decodes by itself ("nvjpeg" if that is there), by processes, and by threads."""
    tower = encoder.image
    network, preparation = tower.network, tower.preparation
    by_processes = DeviceImages(tower.fingerprint, network, preparation)
    by_threads = ClipImages(tower.fingerprint, network, preparation)
    ways = {"processes": replace(encoder, image=by_processes), "threads": replace(encoder, image=by_threads)}
    return {"nvjpeg": encoder, **ways} if getattr(tower, "batches", None) else ways


def decode_rates(encoder: Encoder, catalog: Catalog, files: list[bytes]) -> dict[str, float]:
    """Return photos per second that each way decodes and prepares."""
    rates: dict[str, float] = {}
    for name, way in ways_to_decode(encoder).items():
        with feeding.feeding(way, catalog) as feed:
            counts = [feed.threads] if name != "threads" else sorted({1, 2, 4, 8, cores()} & {*range(1, cores() + 1)})
            for threads in counts:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(lambda data, feed=feed: feed.decode(data, catalog.images), files[:64]))
                    some = files * (4 if threads > 4 else 1)
                    began = time.perf_counter()
                    list(pool.map(lambda data, feed=feed: feed.decode(data, catalog.images), some))
                    rates[f"{threads} {name}"] = round(len(some) / (time.perf_counter() - began))
    return rates


def compiled_rate(network: TorchNetwork, inputs: Inputs, size: int) -> dict[str, float]:
    """Return photos per second of the compiled image tower, and the seconds until its first batch."""
    there, compiled = (
        network.tensors(inputs),
        torch.compile(network.model.get_image_features),
    )
    with torch.inference_mode():
        began = time.perf_counter()
        compiled(**there)
        first_s = time.perf_counter() - began
        return {"compiled": round(size / best_seconds(lambda: compiled(**there))), "compile_s": round(first_s, 1)}


def main() -> None:
    """Measure what the command line names, prints and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="patch16-384", choices=SIZES)
    parser.add_argument("--products", type=int, default=4096)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    is_cuda = arguments.device == "cuda"
    gflop, peak = vit_gflop(**SIZES[arguments.model]), peak_tflops(arguments.device)
    found: dict[str, object] = {
        "gpu": torch.cuda.get_device_name() if is_cuda else "none",
        "cores": cores(),
        "model": arguments.model,
    }
    found |= {"gflop_per_photo": round(gflop, 2), "peak_tflops": round(peak, 1), "products": arguments.products}
    with TemporaryDirectory() as name:
        folder = Path(name)
        table, zipped = draw(folder, DRAWN if is_cuda else 16)
        checkpoint = write_checkpoint(folder / "model", **VIT_B, **SIZES[arguments.model])
        encoder = load_encoder(str(checkpoint), device=arguments.device)
        with ZipFile(zipped) as opened:
            files = [opened.read(each) for each in opened.namelist()]
        catalog = read_catalog(table, zipped, text="title", characteristics=["category"])
        feeding._MIN_PRODUCTS = 1  # however few there are here
        found["decoded_per_s_by"] = decode_rates(encoder, catalog, files)
        print(found, flush=True)  # what is there if the time runs out
        found["decoded_per_s"] = max(found["decoded_per_s_by"].values())
        prepared = [decoded(encoder, [data])[0] for data in files] * 4
        network, batches = encoder.image.network, {}
        for size in sorted({8, 32, 64, 128, 256, network.images_per_batch}) if is_cuda else [8]:
            inputs = encoder.image.preparation.inputs(prepared[:size])
            there = network.tensors(inputs)
            with torch.inference_mode():
                on_gpu = size / best_seconds(lambda there=there: network.model.get_image_features(**there))
            batches[size] = {
                "on_gpu": round(on_gpu),
                "from_memory": round(size / best_seconds(lambda i=inputs: network.features("image", i))),
            }
            if is_cuda and size in (network.images_per_batch, 256):
                batches[size] |= compiled_rate(network, inputs, size)
            batches[size]["share_of_peak"] = round(on_gpu * gflop / peak / 1000, 3)
        found["photos_per_s_in_batches"] = batches
        print(batches, flush=True)
        found["photos_per_batch"] = network.images_per_batch
        found["encode_images_per_s"] = round(len(prepared) / best_seconds(lambda: encoder.image.encode(prepared), 2))
        titles = pd.read_parquet(table)["title"].tolist()
        found["encode_texts_per_s"] = round(len(titles) / best_seconds(lambda: encoder.text.encode(titles), 2))
        table, zipped = multiply(table, zipped, folder, arguments.products)
        catalog = read_catalog(table, zipped, text="title", characteristics=["category"])
        for name, way in ways_to_decode(encoder).items():
            began = time.perf_counter()
            embedded = embed(catalog, way)
            rate = round(arguments.products / (time.perf_counter() - began))
            found[f"zip_to_vectors_{name}"] = {"per_s": rate, "idle_share": round(float(embedded.idle_share), 3)}
            print(name, found[f"zip_to_vectors_{name}"], flush=True)
            found["products_per_s"] = max(rate, found.get("products_per_s", 0))
        found["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20) if is_cuda else 0
    print(json.dumps(found, indent=1))
    if not is_cuda:
        return
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
