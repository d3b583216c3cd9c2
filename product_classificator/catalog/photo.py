"""Turns the bytes of one photo, however odd or hostile, into an upright RGB image, or says in one word why not.

Decisions and their cost:
- Only an allow-list of Pillow's formats ever sees the bytes (its EPS reader starts Ghostscript): rare formats are lost.
- The size is read from the header and checked before a pixel is decoded. Pillow's own limit stays in force, so a
  `max_pixels` above 2 * `PIL.Image.MAX_IMAGE_PIXELS` (179 million) has no effect unless the program raises that too.
- A JPEG far larger than its reader needs is decoded at a fraction of its size (a scaled inverse transform, as every
  libjpeg has): 900 x 1200 for a tower of 224 px 2.9 times as fast as Pillow decodes and shrinks all of it. A JPEG that
  libjpeg-turbo complains about takes Pillow's way, which knows what is wrong with it.
- Colours are those of the pixels: ICC profiles are ignored, CMYK is converted by formula.
- Pillow's warnings (a bomb suspected, odd metadata) change nothing about the answer and must neither be printed nor
  become exceptions, whatever filters the program has. `warnings.catch_warnings` swaps the filters of the whole process
  and is not safe among threads; a plain "ignore" filter would switch off the bomb warnings of others. So one filter
  is put in front whose category matches only in a thread that is decoding here. The cost: one odd entry in the filters.
"""

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from PIL import ExifTags, Image

from product_classificator.errors import ProductClassificatorError

logger = logging.getLogger(__name__)

ImageReason = Literal["missing", "empty", "truncated", "unreadable", "too_large", "unsafe_name"]
Channels = Literal["rgb", "bgr"]
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

MAX_PIXELS = 50_000_000
"""Photos of more pixels are not decoded, unless the caller says otherwise."""

_ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""MPO (a JPEG with more pictures behind it) is opened by the reader of JPEG."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation of EXIF (tag 274) -> what makes the picture upright."""


class ImageError(ProductClassificatorError):
    """A product has no photo that can be used; `reason` says why in one word, the message in a sentence."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        super().__init__(reason, message)
        self.reason: ImageReason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def decode_image(
    data: bytes, *, channels: Channels, max_pixels: int, min_decode_size: Callable[[Size], Size] | None = None
) -> Image.Image:
    """Decodes a photo; safe to call from many threads at once.

    Args:
        data: the file's bytes.
        channels: "bgr" if the red and blue of the photos are swapped; they are swapped back.
        max_pixels: the largest width times height that is decoded.
        min_decode_size: answers for the size of a photo the size that it must have at least; `None`: its own.

    Returns:
        An RGB image, upright, transparency laid on white, of an animation the first frame.

    Raises:
        ImageError: empty, truncated, unreadable or too_large.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    with _without_warnings():
        image = _decoded(data, max_pixels, min_decode_size)
    if channels == "bgr":
        red, green, blue = image.split()
        image = Image.merge("RGB", (blue, green, red))
    return image


def _decoded(data: bytes, max_pixels: int, min_decode_size: Callable[[Size], Size] | None) -> Image.Image:
    is_open = False
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            is_open = True
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("too_large", f"{width} x {height} pixels, at most {max_pixels} are decoded")
            rgb = _scaled(data, image, min_decode_size(image.size)) if min_decode_size else None
            if rgb is None:
                image.load()
            orientation = _orientation(image)
            rgb = rgb or to_rgb(image)
            return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError("too_large", str(error) or "the photo does not fit into memory") from error
    except Exception as error:  # Pillow lets almost any exception out on hostile bytes
        is_cut = _is_cut_webp(data) or (is_open and _tells_of_an_early_end(error))
        raise ImageError("truncated" if is_cut else "unreadable", f"{type(error).__name__}: {error}") from error


def _scaled(data: bytes, image: Image.Image, least: Size) -> Image.Image | None:
    """Decodes a sound JPEG at the smallest fraction of its size that is not under `least`; `None`: it is another."""
    can_shrink = all(8 * needed <= 7 * side for needed, side in zip(least, image.size, strict=True))
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or not can_shrink:
        return None
    try:
        import simplejpeg
    except ImportError:  # an exported folder is used without it, too
        return None
    width, height = least
    try:
        if simplejpeg.decode_jpeg_header(data)[1::-1] != image.size:
            return None
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width))
    except ValueError:
        return None


def _tells_of_an_early_end(error: Exception) -> bool:
    return isinstance(error, EOFError) or "truncated" in str(error).lower()


def _is_cut_webp(data: bytes) -> bool:
    # Pillow refuses a cut WebP as a whole; its container says how long it should be.
    is_webp = data[:4] == b"RIFF" and data[8:15] == b"WEBPVP8"
    return is_webp and len(data) < int.from_bytes(data[4:8], "little") + 8


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _ALLOWED_FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # damaged metadata is no reason to refuse good pixels
        logger.debug("EXIF is ignored: %s", error)
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture of any mode as RGB: transparency laid on white, 16 bits scaled to 8."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scales 0..65535 to 0..255; numbers of 32 bits by the smallest range that holds them all.

    Such a range is, for whole numbers, 65535 or the largest value; for fractions 1, 255, 65535 or the largest value.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    full = next((limit for limit in ranges if largest <= limit), largest)
    return Image.fromarray(np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8))


class _Thread(threading.local):
    is_decoding = False


_thread = _Thread()
_filter_lock = threading.Lock()


class _OnlyWhileDecoding(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _thread.is_decoding


class _AnyWarningWhileDecoding(Warning, metaclass=_OnlyWhileDecoding):
    """Category of a warning filter: every warning is of it in a thread that decodes, none elsewhere."""


@contextmanager
def _without_warnings() -> Iterator[None]:
    with _filter_lock:
        # Others (pytest, `catch_warnings`) restore or cover the filters at any time.
        if not warnings.filters or warnings.filters[0][2] is not _AnyWarningWhileDecoding:
            warnings.simplefilter("ignore", _AnyWarningWhileDecoding)
    _thread.is_decoding = True
    try:
        yield
    finally:
        _thread.is_decoding = False
