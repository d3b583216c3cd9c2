"""Turns photos into pixel arrays and texts into token ids, in the ways an encoder may be asked for by name.

Photos, in the published way ("crop"): the largest square in the middle (offsets rounded down), resized by Pillow's
bilinear filter, freed from the mean and spread of CLIP. It loses what lies outside the square: of a 3:4 shop photo a
quarter. "letterbox" pads to a white square instead and loses nothing.

Texts, in the published way: one window of at most 77 tokens, the rest is not read. With "windows" a long text is read
in up to `MAX_WINDOWS` windows, whose vectors are averaged by the encoder. Texts are padded to the longest of their
batch: in a causal network that pools at the end token, padding changes nothing. They are lower-cased as wholes: the
tokenizer does it letter by letter, and would miss that a Greek sigma at the end of a word becomes another letter.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from product_classificator.files import write_text
from product_classificator.types import Floats

TOKENIZER = "tokenizer.json"

Ids: TypeAlias = list[int]
Inputs: TypeAlias = Mapping[str, npt.NDArray[np.generic]]
"""Named arrays with one row per photo or window, as a network of transformers takes them."""

Windows: TypeAlias = tuple[list[Ids], npt.NDArray[np.int64]]
"""Token ids of windows, and the number of the text that each belongs to, ascending."""

Fit = Literal["crop", "letterbox"]

Family = Literal["ruclip", "hf"]
Saved: TypeAlias = tuple[Family, dict[str, Any]]

MAX_WINDOWS = 8
_LONGEST_RATIO = 16  # of a photo's sides, before its middle is cropped


class ImagePreparation(Protocol):
    """How photos become the inputs of an image tower; its string is part of the fingerprint."""

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size under which a photo of `size` should not be decoded."""

    def prepare(self, image: Image.Image) -> Image.Image:
        """Returns the photo in the size the tower takes; preparing twice changes nothing."""

    def inputs(self, images: Sequence[Image.Image]) -> Inputs:
        """Returns the arrays for n photos, prepared or not."""

    def save(self, folder: Path) -> Saved:
        """Write files into a folder, and return the family and the arguments of `load` beside the folder."""


class TextPreparation(Protocol):
    """How texts become the inputs of a text tower; its string is part of the fingerprint.

    Attributes:
        padded_to: the length that all windows are filled up to; 0: each to the longest of its batch.
    """

    padded_to: int

    def windows(self, texts: Sequence[str]) -> Windows:
        """Returns the token ids of all windows, and for each the number of the text it belongs to, ascending."""

    def inputs(self, windows: Sequence[Ids]) -> Inputs:
        """Returns the arrays for n windows."""

    def save(self, folder: Path) -> Saved:
        """Write files into a folder, and return the family and the arguments of `load` beside the folder."""


@dataclass(frozen=True)
class SquarePreparation:
    """Photos as a square.

    Attributes:
        size_px: side of the square.
        mean: of red, green and blue, as shares of 255.
        std: spread of red, green and blue, as shares of 255.
        fit: "crop" or "letterbox".
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "crop"

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size at which the part that is seen has twice the side of the square."""
        return shrunk(size, 2 * self.size_px / (min(size) if self.fit == "crop" else max(size)))

    def prepare(self, image: Image.Image) -> Image.Image:
        """Returns an RGB square of `size_px`."""
        image = as_rgb(image)
        if image.size == (self.size_px, self.size_px):
            return image
        return self._cropped(image) if self.fit == "crop" else letterboxed(image, self.size_px)

    def _cropped(self, image: Image.Image) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square.resize((self.size_px, self.size_px), Image.Resampling.BILINEAR)

    def inputs(self, images: Sequence[Image.Image]) -> Inputs:
        """Returns `pixel_values`, (n, 3, size_px, size_px) float32."""
        prepared = [self.prepare(image) for image in images]
        values = normalised(prepared, lambda pixels: np.divide(pixels, 255, dtype=np.float32), self.mean, self.std)
        return {"pixel_values": values}

    def save(self, _: Path) -> Saved:
        """Return the fields."""
        return "ruclip", asdict(self)

    @classmethod
    def load(cls, size_px: int, mean: Sequence[float], std: Sequence[float], fit: Fit) -> "SquarePreparation":
        """Return what `save` described."""
        (red, green, blue), (red_std, green_std, blue_std) = mean, std
        return cls(size_px, (red, green, blue), (red_std, green_std, blue_std), fit)


def shrunk(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Returns a size times `scale`, at most as it was."""
    width, height = (min(side, max(1, math.ceil(side * scale))) for side in size)
    return width, height


def normalised(
    images: Sequence[Image.Image],
    scaled: Callable[[npt.NDArray[np.uint8]], Floats],
    mean: Sequence[float],
    std: Sequence[float],
) -> Floats:
    """Returns the (n, 3, height, width) float32 values of RGB images of one size.

    Photo by photo, as each fits the cache: four times as fast as all at once (384 px).

    Args:
        images: one or more.
        scaled: answers the values of (3, height, width) pixels.
        mean: of red, green and blue, which is taken off the values.
        std: spread of red, green and blue, by which the rest is divided.
    """
    means, stds = (np.array(each, dtype=np.float32)[:, None, None] for each in (mean, std))
    values: Floats = np.empty((len(images), 3, images[0].height, images[0].width), dtype=np.float32)
    for own, image in zip(values, images, strict=True):
        own[...] = scaled(np.asarray(image).transpose(2, 0, 1))
        own -= means
        own /= stds
    return values


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns an image as RGB, itself if it is that already: Pillow would copy it."""
    return image if image.mode == "RGB" else image.convert("RGB")


def letterboxed(image: Image.Image, size_px: int) -> Image.Image:
    """Returns a photo of any mode, whole, in the middle of a white RGB square of `size_px`."""
    image = as_rgb(image)
    scale = size_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (size_px, size_px), "white")
    corner = ((size_px - size[0]) // 2, (size_px - size[1]) // 2)
    square.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
    return square


def middle_of(image: Image.Image) -> Image.Image:
    """Cuts the ends off a photo that is a line: enlarged, as it is before it is cropped, it could fill the memory."""
    longest = _LONGEST_RATIO * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


class TokenPreparation:
    """Texts as token ids.

    Args:
        tokenizer: knows the special tokens around a window; written into a text, their names are plain letters.
        pad_id: what fills up shorter windows.
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
        """Returns the ids of all windows with their special tokens, and the number of each one's text."""
        found: list[Ids] = []
        owners: list[int] = []
        for number, encoding in enumerate(self.tokenizer.encode_batch([text.lower() for text in texts])):
            parts = [encoding, *encoding.overflowing][: self.max_windows]
            found += [part.ids for part in parts]
            owners += [number] * len(parts)
        return found, np.array(owners, dtype=np.int64)

    def inputs(self, windows: Sequence[Ids]) -> Inputs:
        """Returns `input_ids`, (n, longest) int64."""
        ids = np.full((len(windows), max(len(window) for window in windows)), self.pad_id, dtype=np.int64)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = window
        return {"input_ids": ids}

    def save(self, folder: Path) -> Saved:
        """Write `tokenizer.json`, and return the other arguments."""
        write_text(folder / TOKENIZER, self.tokenizer.to_str())
        return "ruclip", {"pad_id": self.pad_id, "max_tokens": self.max_tokens, "max_windows": self.max_windows}

    @classmethod
    def load(cls, folder: Path, **limits: int) -> "TokenPreparation":
        """Read `tokenizer.json`; `limits` as `save` returned them."""
        from tokenizers import Tokenizer  # `lite` does without

        return cls(Tokenizer.from_file(str(folder / TOKENIZER)), **limits)


def cut_into_windows(texts: Iterable[Ids], before: Ids, after: Ids, max_tokens: int, max_windows: int) -> Windows:
    """Returns the ids of all windows between their special tokens, and the number of each one's text.

    Args:
        texts: ids of each text, without special tokens.
        before: special tokens that a window begins with.
        after: special tokens that it ends with.
        max_tokens: of a window, special tokens included.
        max_windows: how many windows of a text are read.
    """
    room = max_tokens - len(before) - len(after)
    found: list[Ids] = []
    owners: list[int] = []
    for number, ids in enumerate(texts):
        starts = range(0, max(1, len(ids)), room)[:max_windows]
        found += [[*before, *ids[start : start + room], *after] for start in starts]
        owners += [number] * len(starts)
    return found, np.array(owners, dtype=np.int64)
