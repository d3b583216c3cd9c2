"""Cards of 900 x 1200 pixels, and what it costs to decode and shrink them.

python benchmarks/cards.py
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import pandas as pd
from common import DATA, save
from PIL import Image

from product_classificator import make_marketplace
from product_classificator.catalog.photo import decode_image
from product_classificator.encoders.lite import load_lite
from product_classificator.encoders.preprocessing import SquarePreparation

_PHOTOS, _ROUNDS = 12, 5


def draw(folder: Path, products: int) -> tuple[Path, Path]:
    """Write a table and a zip of cards of 900 x 1200 pixels."""
    made = make_marketplace(folder / "shop", products=max(products * 2, 60))
    rng = np.random.default_rng(0)
    grain = rng.integers(-6, 7, (1200, 900, 1))
    table = pd.read_parquet(made.table)
    if (DATA / "ozon_ru").exists():
        table["title"] = pd.read_parquet(DATA / "ozon_ru/products.parquet")["title"].head(len(table)).to_numpy()
    rows = []
    with ZipFile(made.images) as small, ZipFile(folder / "cards.zip", "w") as cards:
        for row, nm in enumerate(table["nm"]):
            try:
                photo = Image.open(BytesIO(small.read(f"{nm}.jpg"))).convert("RGB").resize((900, 1200))
            except (KeyError, OSError):
                continue
            file = BytesIO()
            Image.fromarray((np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            cards.writestr(f"{nm}.jpg", file.getvalue())
            rows.append(row)
            if len(rows) == products:
                break
    table.iloc[rows].to_parquet(folder / "cards.parquet")
    return folder / "cards.parquet", folder / "cards.zip"


def paired(
    ways: dict[str, Callable[[], object]], rounds: int, count: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return products per second of each way, the median over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = clock()
            way()
            seconds[name].append(clock() - began)
    return {name: round(count / statistics.median(found), 2) for name, found in seconds.items()}


def ratios(found: dict[str, float]) -> dict[str, float]:
    """Return how many times as fast as the first way each is."""
    first = next(iter(found.values()))
    return {name: round(rate / first, 2) for name, rate in found.items()}


def decode(data: bytes, min_decode_size=None) -> Image.Image:
    """Decode a photo."""
    return decode_image(data, channels="rgb", max_pixels=50_000_000, min_decode_size=min_decode_size)


def decoded(encoder, files: list[bytes]) -> list[Image.Image]:
    """Return photos as the encoder's towers take them."""
    return [encoder.image.prepare(decode(data, encoder.image.min_decode_size)) for data in files]


def measure_decoding(zipped: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure decoding and shrinking in one thread, photos per CPU second: whole, and at the size that suffices.

    Rounds are short and many: others on the machine disturb both ways alike.
    """
    with ZipFile(zipped) as opened:
        files = [opened.read(name) for name in opened.namelist()[:_PHOTOS]]
    squares = {f"crop of {px} px": SquarePreparation(px, (0.5,) * 3, (0.5,) * 3) for px in (384, 224)}
    found = {}
    for name, tower in {**squares, "lite": load_lite()[0]}.items():

        def shrunk(tower=tower, least=None) -> list[Image.Image]:
            return [tower.prepare(decode(data, least)) for data in files]

        scaled = partial(shrunk, least=tower.min_decode_size)
        rates = paired({"published": shrunk, "scaled": scaled}, _ROUNDS * rounds, len(files), clock=time.process_time)
        pairs = zip(shrunk(), scaled(), strict=True)
        gaps = [np.abs(np.asarray(whole, float) - np.asarray(near, float)).mean() for whole, near in pairs]
        found[name] = {
            **rates,
            "times": ratios(rates)["scaled"],
            "mean_difference_of_255": round(float(np.mean(gaps)), 3),
        }
    return found


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        found = measure_decoding(draw(Path(name), _PHOTOS)[1], rounds=5)
    print(found, save("decode", found))
