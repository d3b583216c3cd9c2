"""Memory of `embed`: is it as large at the end of a catalog as at its beginning?

    python benchmarks/memory.py [--products 50000] [--photo-share 1.0]

Draws plain photos (300 x 400 px JPEG in a zip) and titles, embeds them with `lite` through the command line, and polls
the resident memory of that process (Linux); the shards of the store show its progress. The peaks over the first and the
last thousand products are compared; the last may be at most 5 % higher. Photos are nearly all of the work: with
`--photo-share 0.1` every tenth product has one. Pages of mapped files,
which the system may take back at any time, are counted separately.
"""

import argparse
import os
import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import pandas as pd
from common import save
from PIL import Image

from product_classificator.embeddings.embed import CHUNK_PRODUCTS

COMMAND = "from product_classificator.cli import main; main()"
WINDOW = 1000
MOST_GROWTH = 0.05
POLL_S = 0.05


def draw(folder: Path, products: int, photo_share: float) -> None:
    """Write products.parquet and photos.zip."""
    rng = np.random.default_rng(0)
    with ZipFile(folder / "photos.zip", "w") as photos:
        for number in range(0, products, round(1 / photo_share)):
            buffer = BytesIO()
            small = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8))
            small.resize((300, 400), Image.Resampling.BICUBIC).save(buffer, "JPEG")
            photos.writestr(f"{number}.jpg", buffer.getvalue())
    titles = [f"product number {number} of colour {rng.integers(9)}" for number in range(products)]
    pd.DataFrame({"nm": range(products), "title": titles}).to_parquet(folder / "products.parquet")


def resident_mib(pid: int) -> dict[str, float]:
    """Return the resident memory of a process: all of it, and without mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "RssAnon:"))}
    return {"all": kib.get("VmRSS", 0) / 1024, "without_files": kib.get("RssAnon", 0) / 1024}


def peak_memory(pid: int, store: Path, products: int) -> tuple[dict[str, dict[str, float]], int]:
    """Wait for a process; return its peak memory in the first and the last thousand products, and its exit status."""
    highest: dict[str, dict[str, float]] = {"first": {}, "last": {}}
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return highest, status
        done = len(list((store / "parts").glob("*.parquet"))) * CHUNK_PRODUCTS
        window = "first" if 0 < done <= WINDOW else "last" if done >= products - WINDOW else None
        if window:
            for kind, mib in resident_mib(pid).items():
                highest[window][kind] = round(max(mib, highest[window].get(kind, 0.0)), 1)
        time.sleep(POLL_S)


def embed(products: int, photo_share: float) -> dict[str, object]:
    """Embed products in a process of its own and return its memory and rate."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, products, photo_share)
        arguments = ["embed", "products.parquet", "--images", "photos.zip", "--text", "title", "--out", "store"]
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            os.execv(sys.executable, [sys.executable, "-c", COMMAND, *arguments])  # noqa: S606
        highest, status = peak_memory(pid, folder / "store", products)
        seconds = time.perf_counter() - began
        if status:
            raise SystemExit(f"embed failed with status {status}")
    growth = {kind: round(highest["last"][kind] / mib - 1, 4) for kind, mib in highest["first"].items()}
    return {
        "products": products,
        "photo_share": photo_share,
        "first_thousand_mib": highest["first"],
        "last_thousand_mib": highest["last"],
        "growth": growth,
        "is_flat": max(growth.values()) <= MOST_GROWTH,
        "seconds": round(seconds, 1),
        "products_per_s": round(products / seconds, 1),
    }


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--products", type=int, default=50_000)
    parser.add_argument("--photo-share", type=float, default=1.0)
    options = parser.parse_args()
    results = embed(options.products, options.photo_share)
    print(results)
    print(save("memory", results))


if __name__ == "__main__":
    main()
