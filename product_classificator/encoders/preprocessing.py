"""Turn images into pixel arrays and texts into token ids.

Images as published ("crop"): the central square (floor-divided offsets), Pillow's bilinear resize, CLIP's mean and std.
It loses a quarter of a 3:4 shop photo; "letterbox" pads to a white square instead. Texts as published: one window of at
most 77 tokens; with "windows" a long text has up to `MAX_WINDOWS`, whose vectors the encoder averages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from product_classificator.errors import DataError
from product_classificator.files import write_text
from product_classificator.types import Floats, Rows

Ids: TypeAlias = list[int]
Inputs: TypeAlias = Mapping[str, npt.NDArray[np.generic]]
"""Named arrays with one row per image or window, as a network of transformers takes them."""

MAX_WINDOWS = 8
SPARE = 1.15
"""How many times the size that a network sees an image is decoded at, at least (docs/design/decisions.md)."""
_MAX_RATIO = 16  # of the sides of an image that is enlarged before it is cropped: a line would fill the memory
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class SquarePreparation:
    """Images as squares of `size_px`; `mean` and `std` of red, green and blue are shares of 255.

    Its string is part of the fingerprint, its `kind` names the class in an export.
    """

    kind: ClassVar[Literal["square"]] = "square"
    size_px: int
    mean: Sequence[float]
    std: Sequence[float]
    fit: Literal["crop", "letterbox"] = "crop"

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return shrunk(size, SPARE * self.size_px / (min(size) if self.fit == "crop" else max(size)))

    def prepare(self, image: Image.Image) -> Image.Image:
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

    def save(self, _: Path) -> dict[str, Any]:
        return asdict(self)


class ProcessedImages:
    """Images by an image processor of transformers, with the same methods as `SquarePreparation`.

    With `letterbox`, images are padded to a white square first, so that the processor crops and squeezes nothing;
    raises `DataError` if it makes no squares.
    """

    kind: ClassVar[Literal["processor"]] = "processor"

    def __init__(self, processor: Any, letterbox: bool = False) -> None:
        self.processor, self.letterbox = processor, letterbox
        sizes = {self._processed(Image.new("RGB", size)).size for size in ((96, 32), (32, 96))}
        # None: the size depends on the image, as in SigLIP 2 of the "naflex" kind, which keeps the aspect ratio.
        self._size = sizes.pop() if len(sizes) == 1 else None
        if letterbox and not (self._size and self._size[0] == self._size[1]):
            raise DataError(
                "+letterbox pads photos to the square that a model reads, "
                f"this one reads {self._size or 'photos in a shape near their own'}: leave it out"
            )

    def __str__(self) -> str:
        return f"photos {'letterboxed' if self.letterbox else 'as processed'}"

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return shrunk(size, SPARE * max(self._size) / min(size)) if self._size else size

    def prepare(self, image: Image.Image) -> Image.Image:
        image = as_rgb(image)
        if image.size == self._size:
            return image
        if self.letterbox and self._size:
            return letterboxed(image, self._size[0])
        prepared = self._processed(image)
        # Where the size depends on the image, the smallest (1 or 2 pixels) settle in two steps.
        return prepared if self._size or prepared.size == image.size else self.prepare(prepared)

    def inputs(self, images: Sequence[Image.Image]) -> Inputs:
        """Return the processor's arrays: `pixel_values`, and for some models masks and shapes of the patches."""
        prepared = [self.prepare(image) for image in images]
        arrays = self.processor(prepared, do_resize=False, do_center_crop=False, return_tensors="np")
        return {name: np.asarray(values) for name, values in arrays.items()}

    def _processed(self, image: Image.Image) -> Image.Image:
        """Resize and crop, leaving the scaling of pixels to `inputs`."""
        longest = _MAX_RATIO * min(image.size)
        if getattr(self.processor, "do_center_crop", None) and max(image.size) > longest:
            width, height = min(image.width, longest), min(image.height, longest)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        arrays = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        pixels = np.asarray(arrays["pixel_values"])[0]
        if pixels.ndim == 2:  # (patches, side * side * 3), the patches row by row; (x, y) of padding is (-1, -1)
            is_shape = "spatial_shapes" in arrays
            shape = arrays["spatial_shapes"][0] if is_shape else np.max(arrays["image_position_ids"][0], 0)[::-1] + 1
            rows, columns = np.asarray(shape)
            side = math.isqrt(pixels.shape[1] // 3)
            patches = pixels[: rows * columns].reshape(rows, columns, side, side, 3)
            pixels = patches.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
        else:
            pixels = np.moveaxis(pixels, 0, -1)
        return Image.fromarray(pixels.astype(np.uint8))

    def save(self, folder: Path) -> dict[str, Any]:
        self.processor.save_pretrained(folder)
        return {"letterbox": self.letterbox}

    @classmethod
    def load(cls, folder: Path, letterbox: bool) -> "ProcessedImages":
        from transformers import AutoImageProcessor  # seconds, which other encoders do without

        options = {"backend": "pil", "local_files_only": True, "trust_remote_code": False}
        return cls(AutoImageProcessor.from_pretrained(folder, **options), letterbox)


ImagePreparation: TypeAlias = SquarePreparation | ProcessedImages


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


@dataclass(frozen=True)
class TextPreparation:
    """Texts by a tokenizer of the library `tokenizers`; its string is part of the fingerprint.

    Attributes:
        tokenizer: adds the special tokens; their names in a text are plain letters. It is changed.
        pad_id: token that fills up shorter windows.
        max_tokens: of a window, special tokens included.
        max_windows: how many windows of a text are read.
        padded_to: length that all windows are padded to; 0: each to the longest of its batch.
        reserved: ids of special tokens that the vocabulary also finds in texts: they are left out.
        lowers: whether a text is lower-cased as a whole; a tokenizer does it letter by letter and misses a final sigma.
        has_mask: whether the network takes a mask of the padding.
    """

    kind: ClassVar[Literal["tokens"]] = "tokens"
    tokenizer: Any = field(repr=False)
    pad_id: int
    max_tokens: int
    max_windows: int = 1
    padded_to: int = 0
    reserved: Sequence[int] = ()
    lowers: bool = False
    has_mask: bool = False

    def __post_init__(self) -> None:
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True

    def windows(self, texts: Sequence[str]) -> tuple[list[Ids], Rows]:
        """Return the token ids of all windows, with special tokens, and the number of the text of each, ascending."""
        probe = self.tokenizer.encode("a")
        plain = [place for place, is_special in enumerate(probe.special_tokens_mask) if not is_special]
        before, after = probe.ids[: plain[0]], probe.ids[plain[-1] + 1 :]
        room = self.max_tokens - len(before) - len(after)
        # Lone surrogates cannot be encoded as UTF-8, which every tokenizer needs.
        texts = [text.encode("utf-8", "ignore").decode() for text in texts]
        texts = [text.lower() for text in texts] if self.lowers else texts
        reserved, windows, owners = set(self.reserved), list[Ids](), list[int]()
        for number, encoding in enumerate(self.tokenizer.encode_batch(texts, add_special_tokens=False)):
            ids = [token for token in encoding.ids if token not in reserved]
            starts = range(0, max(1, len(ids)), room)[: self.max_windows]
            windows += [[*before, *ids[start : start + room], *after] for start in starts]
            owners += [number] * len(starts)
        return windows, np.array(owners, dtype=np.int64)

    def inputs(self, windows: Sequence[Ids]) -> Inputs:
        """Return `input_ids` (n, longest) int64, and `attention_mask` of the same shape if the network takes one.

        In a causal network that pools at the end token, padding changes nothing.
        """
        lengths = np.array([len(window) for window in windows])
        mask = np.arange(self.padded_to or lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(windows)
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64)} if self.has_mask else {"input_ids": ids}

    def save(self, folder: Path) -> dict[str, Any]:
        """Write `tokenizer.json` and return the other attributes."""
        write_text(folder / TOKENIZER, self.tokenizer.to_str())
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    @classmethod
    def load(cls, folder: Path, **attributes: Any) -> "TextPreparation":
        """Read `tokenizer.json`; the other attributes are those that `save` returned."""
        from tokenizers import Tokenizer  # `lite` does without

        return cls(Tokenizer.from_file(str(folder / TOKENIZER)), **attributes)
