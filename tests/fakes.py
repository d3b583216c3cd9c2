"""Small real stand-ins that tests share."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile
from zlib import crc32

import numpy as np
import pandas as pd
from PIL import Image

from product_classificator.types import Floats

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (30, 60, 210)}


class TinyEncoder:
    """An encoder that works in microseconds: the mean colour of a photo, hashed words of a text."""

    name = "tiny"
    fingerprint = "tiny-1"
    image_dim = 4
    text_dim = 16
    shares_space = False

    def __init__(self) -> None:
        self.images = 0
        self.texts = 0

    def min_decode_size(self, size):
        return size

    def prepare_image(self, image: Image.Image) -> Image.Image:
        return image if image.size == (8, 8) else image.resize((8, 8))

    def encode_images(self, images: Sequence[Image.Image]) -> Floats:
        self.images += len(images)
        means = [np.asarray(self.prepare_image(image), dtype=np.float32).mean((0, 1)) for image in images]
        return _unit(np.array([[*mean, 64.0] for mean in means], dtype=np.float32))

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        self.texts += len(texts)
        vectors = np.full((len(texts), self.text_dim), 0.1, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, crc32(word.encode()) % self.text_dim] += 1
        return _unit(vectors)


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
