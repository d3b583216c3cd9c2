"""Small real stand-ins that tests share."""

import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile
from zlib import crc32

import numpy as np
import pandas as pd
from PIL import Image

from product_classificator.encoders import Encoder
from product_classificator.encoders.base import ImageTower, TextTower
from product_classificator.types import Floats

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (30, 60, 210)}


class TinyImages:
    """An image tower that works in microseconds: the mean colour of an image."""

    dim = 4

    def __init__(self, fingerprint: str = "tiny-1") -> None:
        self.fingerprint = fingerprint
        self.encoded = 0

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def prepare(self, image: Image.Image) -> Image.Image:
        return image if image.size == (8, 8) else image.resize((8, 8))

    def encode(self, images: Sequence[Image.Image]) -> Floats:
        self.encoded += len(images)
        means = [np.asarray(self.prepare(image), dtype=np.float32).mean((0, 1)) for image in images]
        return _unit(np.array([[*mean, 64.0] for mean in means], dtype=np.float32))


class TinyTexts:
    """A text tower that works in microseconds: hashed words."""

    dim = 16

    def __init__(self, fingerprint: str = "tiny-1") -> None:
        self.fingerprint = fingerprint
        self.encoded = 0

    def encode(self, texts: Sequence[str]) -> Floats:
        self.encoded += len(texts)
        vectors = np.full((len(texts), self.dim), 0.1, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, crc32(word.encode()) % self.dim] += 1
        return _unit(vectors)


class SlowTexts(TinyTexts):
    """Takes 0.15 s a call."""

    def encode(self, texts: Sequence[str]) -> Floats:
        time.sleep(0.15)
        return super().encode(texts)


class TinyEncoder(Encoder):
    """Both tiny towers, or others in their place; they count what they encode (`.image.encoded`, `.text.encoded`)."""

    def __init__(self, image: ImageTower | None = None, text: TextTower | None = None) -> None:
        super().__init__("tiny", image or TinyImages(), text or TinyTexts())


class BlankCanvas:
    """A canvas of matplotlib whose picture is one pixel, whatever the figure."""

    def __init__(self, figure: object) -> None:
        self.figure = figure

    def print_png(self, buffer: BytesIO) -> None:
        Image.new("1", (1, 1)).save(buffer, "PNG")


def _unit(vectors: Floats) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def jpeg(colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (24, 32)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, COLOURS.get(colour, colour) if isinstance(colour, str) else colour).save(buffer, "JPEG")
    return buffer.getvalue()


def truncated_jpeg() -> bytes:
    buffer = BytesIO()
    Image.effect_noise((48, 48), 60).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()[:-300]


def shop(folder: Path, products: int = 240, seed: int = 0) -> tuple[Path, Path]:
    """Writes a table and a zip: the photo tells the colour, the text tells the kind; both have dirty rows."""
    rng = np.random.default_rng(seed)
    kinds = ["cup", "hat", "sock"]
    colours = list(COLOURS)
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    with ZipFile(folder / "photos.zip", "w") as photos:
        for number in range(products):
            kind, colour = rng.choice(kinds, p=[0.5, 0.3, 0.2]), rng.choice(colours, p=[0.5, 0.3, 0.2])
            noise = tuple(int(c) for c in np.clip(np.array(COLOURS[colour]) + rng.integers(-20, 20, 3), 0, 255))
            text = f"A nice {kind} number {number} for you"
            if number % 40 != 7:
                photos.writestr(f"{number}.jpg", truncated_jpeg() if number % 40 == 9 else jpeg(noise))
            rows.append(
                {
                    "nm": number,
                    "description": "" if number % 40 in (7, 11) else text,
                    "kind": kind,
                    "colour": None if number % 17 == 3 else colour,
                }
            )
    pd.DataFrame(rows).to_parquet(folder / "products.parquet")
    return folder / "products.parquet", folder / "photos.zip"
