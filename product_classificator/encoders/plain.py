"""What transformers prepares, without transformers: for encoders `hf:` in an exported folder.

An image processor that resizes, crops, scales and normalises, and a tokenizer of the library `tokenizers`, are told by
a few facts. Whether they tell all is not believed: both ways are compared on photos and texts of awkward kinds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from product_classificator.encoders.preprocessing import (
    Ids,
    ImagePreparation,
    Inputs,
    as_rgb,
    cut_into_windows,
    letterboxed,
    middle_of,
    normalised,
    shrunk,
)
from product_classificator.errors import DataError
from product_classificator.types import Rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from product_classificator.encoders.hub import ProcessedImages, TokenizedTexts

_SAMPLE_SIZES = ((97, 61), (61, 98), (640, 31), (7, 300), (3, 2))
_SAMPLE_TEXTS = (
    "Футболка женская, хлопок 100 %",
    "",
    "  RED\tmug\n商品 😀 é ё İ",
    "<s> </s> <pad> [CLS] [SEP] <|startoftext|> <|endoftext|> <eos>",
    "кружка стеклянная для дома 30x40 " * 90,
)


@dataclass(frozen=True)
class PlainImages:
    """Photos resized, cropped and normalised; see `ImagePreparation`.

    Attributes:
        size: width and height that the tower takes.
        shortest_px: what the shorter side is resized to before the middle is cropped; 0: photos are squeezed to `size`.
        resample: number of Pillow's filter.
        factor: what pixels are multiplied by.
        mean: of red, green and blue, after that.
        std: spread of red, green and blue, after that.
        letterbox: whether photos are padded to a square instead.
    """

    size: tuple[int, int]
    shortest_px: int
    resample: int
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    letterbox: bool

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size at which no side is under twice that of the tower."""
        return shrunk(size, 2 * max(self.size) / min(size))

    def prepare(self, image: Image.Image) -> Image.Image:
        """Returns the photo as an RGB image of `size`."""
        image = as_rgb(image)
        if image.size == self.size:
            return image
        if self.letterbox:
            return letterboxed(image, self.size[0])
        if not self.shortest_px:
            return image.resize(self.size, Image.Resampling(self.resample))
        image = middle_of(image)
        shortest = min(image.size)
        resized = [
            self.shortest_px if side == shortest else int(self.shortest_px * side / shortest) for side in image.size
        ]
        image = image.resize((resized[0], resized[1]), Image.Resampling(self.resample))
        left, top = ((side - kept) // 2 for side, kept in zip(image.size, self.size, strict=True))
        return image.crop((left, top, left + self.size[0], top + self.size[1]))

    def inputs(self, images: Sequence[Image.Image]) -> Inputs:
        """Returns `pixel_values`, (n, 3, height, width) float32."""
        prepared = [self.prepare(image) for image in images]
        values = normalised(prepared, lambda pixels: (pixels * self.factor).astype(np.float32), self.mean, self.std)
        return {"pixel_values": values}


class PlainTexts:
    """Texts by a tokenizer of `tokenizers`; see `TextPreparation`.

    Args:
        tokenizer: is changed, and must be nobody else's.
        before: ids that every window begins with.
        after: ids that every window ends with.
        reserved: ids that no text may hold.
        pad_id: what fills up shorter windows.
        max_tokens: of a window, special tokens included.
        max_windows: how many windows of a text are read.
        pads_to_max: whether every window is filled up to `max_tokens`, not only to the longest of its batch.
        has_mask: whether the tower is told which tokens are there.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        before: Sequence[int],
        after: Sequence[int],
        reserved: Sequence[int],
        pad_id: int,
        max_tokens: int,
        max_windows: int,
        pads_to_max: bool,
        has_mask: bool,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._before, self._after = list(before), list(after)
        self._reserved = frozenset(reserved)
        self._max_tokens = max_tokens
        self.padded_to = max_tokens if pads_to_max else 0
        self._pad_id = pad_id
        self._max_windows = max_windows
        self._has_mask = has_mask

    def windows(self, texts: Sequence[str]) -> tuple[list[Ids], npt.NDArray[np.int64]]:
        """Returns the ids of all windows with their special tokens, and the number of each one's text."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        known = ([token for token in encoding.ids if token not in self._reserved] for encoding in encoded)
        return cut_into_windows(known, self._before, self._after, self._max_tokens, self._max_windows)

    def inputs(self, windows: Sequence[Ids]) -> Inputs:
        """Returns `input_ids` (n, longest) int64, and `attention_mask` of the same shape where the tower wants one."""
        lengths = np.array([len(window) for window in windows])
        width = self.padded_to or int(lengths.max())
        ids: Rows = np.full((len(windows), width), self._pad_id, dtype=np.int64)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = window
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        return {"input_ids": ids, **({"attention_mask": mask} if self._has_mask else {})}


def plain_images(processed: "ProcessedImages") -> PlainImages:
    """Returns photos prepared as a processor of transformers does.

    Raises:
        DataError: the processor does something else.
    """
    known = processed.processor
    try:
        size, crop = known.size, known.crop_size if getattr(known, "do_center_crop", None) else None
        shortest = int((crop and size.shortest_edge) or 0)
        width, height = (crop.width, crop.height) if crop else (size.width, size.height)
        plain = PlainImages(
            (int(width), int(height)),
            shortest,
            int(known.resample),
            float(known.rescale_factor) if known.do_rescale else 1.0,
            tuple(known.image_mean if known.do_normalize else (0.0, 0.0, 0.0)),
            tuple(known.image_std if known.do_normalize else (1.0, 1.0, 1.0)),
            processed.letterbox,
        )
        draw = np.random.default_rng(0)
        photos = [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in _SAMPLE_SIZES]
        is_same = _same(processed, plain, photos)
    except (AttributeError, TypeError, ValueError):
        is_same = False
    if not is_same:
        raise DataError(f"photos are prepared by {type(known).__name__}, which only transformers can do")
    return plain


def _same(known: ImagePreparation, plain: ImagePreparation, photos: Sequence[Image.Image]) -> bool:
    found, expected = plain.inputs(photos), known.inputs(photos)
    return found.keys() == expected.keys() and all(
        found[name].shape == expected[name].shape and np.allclose(found[name], expected[name], atol=1e-6)
        for name in found
    )


def plain_texts(tokenized: "TokenizedTexts") -> tuple[str, dict[str, Any]]:
    """Returns texts prepared as a tokenizer of transformers does: its JSON, and the arguments of `PlainTexts`.

    Raises:
        DataError: the tokenizer does something else.
    """
    from tokenizers import Tokenizer

    known = tokenized.tokenizer
    try:
        written = known.backend_tokenizer.to_str()
        windows, _ = tokenized.windows(["a"])
        facts: dict[str, Any] = {
            "before": tokenized.before,
            "after": tokenized.after,
            "reserved": sorted(tokenized.reserved),
            "pad_id": int(known.pad_token_id),
            "max_tokens": tokenized.max_tokens,
            "max_windows": tokenized.max_windows,
            "pads_to_max": tokenized.padded_to > 0,
            "has_mask": "attention_mask" in tokenized.inputs(windows),
        }
        plain = PlainTexts(Tokenizer.from_str(written), **facts)
        (found, of_found), (expected, of_expected) = plain.windows(_SAMPLE_TEXTS), tokenized.windows(_SAMPLE_TEXTS)
        is_same = found == expected and of_found.tolist() == of_expected.tolist()
        arrays, known_arrays = plain.inputs(found), tokenized.inputs(expected)
        is_same = is_same and arrays.keys() == known_arrays.keys()
        is_same = is_same and all(np.array_equal(arrays[name], known_arrays[name]) for name in arrays)
    except (AttributeError, TypeError, ValueError):
        is_same = False
    if not is_same:
        raise DataError(f"texts are prepared by {type(known).__name__}, which only transformers can do")
    return written, facts
