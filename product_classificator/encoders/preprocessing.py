"""Turn images into pixel arrays and texts into token ids.

Images as published ("crop"): the central square (floor-divided offsets), Pillow's bilinear resize, CLIP's mean and std.
It loses a quarter of a 3:4 shop photo; "letterbox" pads to a white square instead. Texts as published: one window of at
most 77 tokens; with "windows" a long text has up to `MAX_WINDOWS`, whose vectors the encoder averages.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from product_classificator.files import write_text
from product_classificator.types import Floats

Ids: TypeAlias = list[int]
Inputs: TypeAlias = Mapping[str, npt.NDArray[np.generic]]
"""Named arrays with one row per image or window, as a network of transformers takes them."""

Windows: TypeAlias = tuple[list[Ids], npt.NDArray[np.int64]]
"""Token ids of windows, and the number of the text that each belongs to, ascending."""

Fit = Literal["crop", "letterbox"]
Saved: TypeAlias = tuple[Literal["ruclip", "hf"], dict[str, Any]]
"""A family of encoders, and the arguments of its `load` except for the folder."""

MAX_WINDOWS = 8
TOKENIZER = "tokenizer.json"


class ImagePreparation(Protocol):
    """How images become the inputs of a network; its string is part of the fingerprint."""

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the smallest size an image of `size` may be decoded at: twice what the network needs."""

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the image in the size the network takes; preparing twice changes nothing."""

    def inputs(self, images: Sequence[Image.Image]) -> Inputs:
        """Return the arrays of n images, prepared or not."""

    def save(self, folder: Path) -> Saved:
        """Write the files that `load` reads."""


class TextPreparation(Protocol):
    """How texts become the inputs of a network; its string is part of the fingerprint.

    Attributes:
        padded_to: length that all windows are padded to; 0: each to the longest of its batch.
    """

    padded_to: int

    def windows(self, texts: Sequence[str]) -> Windows:
        """Return the token ids of all windows, with their special tokens, and the texts they belong to."""

    def inputs(self, windows: Sequence[Ids]) -> Inputs:
        """Return the arrays of n windows."""

    def save(self, folder: Path) -> Saved:
        """Write the files that `load` reads."""


@dataclass(frozen=True)
class SquarePreparation:
    """Images as squares of `size_px`; `mean` and `std` of red, green and blue are shares of 255."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "crop"

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size at which the visible part has twice the side of the square."""
        return shrunk(size, 2 * self.size_px / (min(size) if self.fit == "crop" else max(size)))

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return an RGB square."""
        image = as_rgb(image)
        if image.size == (self.size_px, self.size_px):
            return image
        if self.fit == "letterbox":
            return letterboxed(image, self.size_px)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square.resize((self.size_px, self.size_px), Image.Resampling.BILINEAR)

    def inputs(self, images: Sequence[Image.Image]) -> Inputs:
        """Return `pixel_values`, (n, 3, size_px, size_px) float32."""
        mean, std = (np.array(channels, dtype=np.float32)[:, None, None] for channels in (self.mean, self.std))
        values: Floats = np.empty((len(images), 3, self.size_px, self.size_px), dtype=np.float32)
        for pixels, image in zip(values, images, strict=True):  # one fits the cache: 4 times as fast as all at once
            pixels[...] = np.divide(np.asarray(self.prepare(image)).transpose(2, 0, 1), 255, dtype=np.float32)
            pixels -= mean
            pixels /= std
        return {"pixel_values": values}

    def save(self, _: Path) -> Saved:
        """Return the fields; there are no files."""
        return "ruclip", asdict(self)

    @classmethod
    def load(cls, _: Path, *, mean: Iterable[float], std: Iterable[float], **fields: Any) -> "SquarePreparation":
        """Restore what `save` returned, lists in the place of tuples."""
        (red, green, blue), (red_std, green_std, blue_std) = mean, std
        return cls(mean=(red, green, blue), std=(red_std, green_std, blue_std), **fields)


def shrunk(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return a size times `scale`, or the size itself if that is smaller."""
    width, height = (min(side, max(1, math.ceil(side * scale))) for side in size)
    return width, height


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB, without a copy if it is RGB."""
    return image if image.mode == "RGB" else image.convert("RGB")


def letterboxed(image: Image.Image, size_px: int) -> Image.Image:
    """Return an image of any mode, whole, centred on a white RGB square."""
    image = as_rgb(image)
    scale = size_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (size_px, size_px), "white")
    corner = ((size_px - size[0]) // 2, (size_px - size[1]) // 2)
    square.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
    return square


class TokenPreparation:
    """Texts by a tokenizer of the library `tokenizers`, padded to the longest window of a batch.

    Padding changes nothing in a causal network that pools at the end token. Texts are lower-cased as a
    whole, since letter by letter, as the tokenizer does it, misses the final sigma.

    Args:
        tokenizer: adds the special tokens; their names in a text are plain letters. It is changed.
        pad_id: token that fills up shorter windows.
        max_tokens: of a window, special tokens included.
        max_windows: how many windows of a text are read.
    """

    padded_to = 0

    def __init__(self, tokenizer: Any, *, pad_id: int, max_tokens: int, max_windows: int = 1) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.max_windows = max_windows

    def __str__(self) -> str:
        return f"{self.max_tokens} tokens, {self.max_windows} window(s), padding {self.pad_id}"

    def windows(self, texts: Sequence[str]) -> Windows:
        """Return token ids and texts of all windows."""
        windows: list[Ids] = []
        owners: list[int] = []
        for number, encoding in enumerate(self.tokenizer.encode_batch([text.lower() for text in texts])):
            parts = [encoding, *encoding.overflowing][: self.max_windows]
            windows += [part.ids for part in parts]
            owners += [number] * len(parts)
        return windows, np.array(owners, dtype=np.int64)

    def inputs(self, windows: Sequence[Ids]) -> Inputs:
        """Return `input_ids`, (n, longest) int64."""
        ids = np.full((len(windows), max(len(window) for window in windows)), self.pad_id, dtype=np.int64)
        for row, window in zip(ids, windows, strict=True):
            row[: len(window)] = window
        return {"input_ids": ids}

    def save(self, folder: Path) -> Saved:
        """Write `tokenizer.json`."""
        write_text(folder / TOKENIZER, self.tokenizer.to_str())
        return "ruclip", {"pad_id": self.pad_id, "max_tokens": self.max_tokens, "max_windows": self.max_windows}

    @classmethod
    def load(cls, folder: Path, **limits: int) -> "TokenPreparation":
        """Read `tokenizer.json`; `limits` are the other arguments."""
        from tokenizers import Tokenizer  # `lite` does without

        return cls(Tokenizer.from_file(str(folder / TOKENIZER)), **limits)
