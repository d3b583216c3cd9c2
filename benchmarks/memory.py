"""Peak memory of `embed`: does it grow with the number of products?

    python benchmarks/memory.py [--products 5000 50000]

Draws plain photos (300 x 400 px JPEG in a zip) and titles, embeds them with `lite` through the command line, and reads
the peak resident memory of that process from the operating system.
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

COMMAND = "from product_classificator.cli import main; main()"


def draw(folder: Path, products: int) -> None:
    """Writes products.parquet and photos.zip."""
    rng = np.random.default_rng(0)
    with ZipFile(folder / "photos.zip", "w") as photos:
        for number in range(products):
            buffer = BytesIO()
            small = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8))
            small.resize((300, 400), Image.Resampling.BICUBIC).save(buffer, "JPEG")
            photos.writestr(f"{number}.jpg", buffer.getvalue())
    titles = [f"product number {number} of colour {rng.integers(9)}" for number in range(products)]
    pd.DataFrame({"nm": range(products), "title": titles}).to_parquet(folder / "products.parquet")


def embed(products: int) -> dict[str, float]:
    """Embeds so many products in a process of its own and returns its peak memory and rate."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, products)
        arguments = ["embed", "products.parquet", "--images", "photos.zip", "--text", "title", "--out", "store"]
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            os.execv(sys.executable, [sys.executable, "-c", COMMAND, *arguments])  # noqa: S606
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise SystemExit(f"embed failed with status {status}")
    return {
        "products": products,
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
        "seconds": round(seconds, 1),
        "products_per_s": round(products / seconds, 1),
    }


def main() -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--products", nargs="+", type=int, default=[5_000, 50_000])
    runs = [embed(products) for products in parser.parse_args().products]
    ratio = round(runs[-1]["peak_mib"] / runs[0]["peak_mib"], 3)
    for row in runs:
        print(row)
    print("peak memory, last against first:", ratio, save("memory", {"runs": runs, "ratio": ratio}))


if __name__ == "__main__":
    main()
