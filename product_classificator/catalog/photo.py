"""Turns the bytes of one image file, however odd or hostile, into an upright RGB image, or into a `PhotoError`.

- Only an allow-list of Pillow's formats ever sees the bytes: its EPS reader starts Ghostscript.
- The size is checked in the header, before a pixel is decoded; Pillow's own limit (179 million pixels) applies too.
- What is damaged beside the pixels is no reason to refuse them: metadata of a PNG, the end mark of a JPEG.
- A JPEG larger than its reader needs is decoded at a half, a quarter or an eighth of its size.
- Colours are those of the pixels: ICC profiles are ignored, CMYK is converted by formula.
"""

import io
import logging
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Literal, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from product_classificator.errors import PhotoError as PhotoError

logger = logging.getLogger(__name__)

PhotoReason = Literal["missing", "empty", "truncated", "unreadable", "too_large", "unsafe_name", "encrypted"]
Channels = Literal["rgb", "bgr"]
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

MAX_PIXELS = 50_000_000
_ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")  # JPEG includes MPO
_BLANKS = b"\xef\xbb\xbf\r\n\t "  # PHP scripts write some before a photo; no format begins with one of them
_MAX_SCANS = 100  # of a JPEG; encoders write about ten, and every further one costs a pass over all pixels
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # of a TIFF
_PNG, _JPEG, _JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd9"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_MAX_LOST_SHARE = 0.05
_NOT_READ = {  # what people take for photos
    "HEIC": rb"(?s)....ftyp(hei|hev|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "PDF": rb"%PDF",
    "PSD": rb"8BPS",
    "SVG": rb"(?s)(<\?xml.*)?<svg",
    "a web page": rb"(?i)<(!doctype )?html",
}
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(
    data: bytes,
    *,
    channels: Channels,
    max_pixels: int,
    min_decode_size: Callable[[Size], Size] | None = None,
    allow_truncated: bool = False,
) -> Image.Image:
    """Return a file as an upright RGB image: transparency on white, the first frame, 16 bits scaled to 8.

    Args:
        data: the file.
        channels: "bgr" if red and blue are swapped in the file; they are swapped back.
        max_pixels: the largest width times height that is decoded.
        min_decode_size: maps the size in the file to the smallest sufficient size; `None`: the size in the file.
        allow_truncated: whether a JPEG of which more than a twentieth is lost is read, too: the rest of it is grey.

    Raises:
        PhotoError: empty, truncated, unreadable or too_large.
    """
    data = data.lstrip(_BLANKS)
    if not data:
        raise PhotoError("empty", "the file has no bytes")
    with _without_warnings():
        try:
            image = _decode(data, max_pixels, min_decode_size)
        except PhotoError as error:
            image = _decode_damaged(data, max_pixels, error, allow_truncated=allow_truncated)
    return Image.merge("RGB", image.split()[::-1]) if channels == "bgr" else image


def _decode(data: bytes, max_pixels: int, min_decode_size: Callable[[Size], Size] | None) -> Image.Image:
    is_open = False
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            is_open = True
            _check_size(data, image, max_pixels)
            if min_decode_size:
                image.draft(None, _decode_size(image.size, min_decode_size(image.size)))
            image.load()
            orientation = _orientation(image)
            rgb = to_rgb(image)
            return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    except PhotoError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise PhotoError("too_large", str(error) or "the photo does not fit into memory") from error
    except Exception as error:  # Pillow raises almost any exception on hostile bytes
        is_early_end = is_open and (isinstance(error, EOFError) or "truncated" in str(error).lower())
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):
            name = next((name for name, start in _NOT_READ.items() if re.match(start, data)), "this")
            message = f"{name} is not read, only {', '.join(_formats())} are: convert it"
            message += ", or install the extra heif" if name == "HEIC" else ""
        is_early_end |= data[8:15] == b"WEBPVP8" and len(data) < int.from_bytes(data[4:8], "little") + 8  # a cut WebP
        raise PhotoError("truncated" if is_early_end else "unreadable", message) from error


def is_plain_jpeg(data: bytes, max_pixels: int) -> bool:
    """Return whether any decoder makes of a file what `decode_image` does: a whole, upright JPEG within the limits."""
    if not data.startswith(_JPEG) or not data.endswith(_JPEG_END):
        return False
    try:
        with _without_warnings(), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            _check_size(data, image, max_pixels)
            is_ycc = image.mode == "L" or (image.mode == "RGB" and image.info.get("adobe_transform", 1) == 1)
            return is_ycc and _orientation(image) not in _UPRIGHT
    except Exception:  # `decode_image` says what is wrong
        return False


def _check_size(data: bytes, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        way_out = f"--max-pixels {width * height} decodes it"
        raise PhotoError("too_large", f"{width} x {height} pixels, at most {max_pixels} are decoded: {way_out}")
    tags = getattr(image, "tag_v2", {})  # a TIFF is decoded tile by tile, whatever its size
    if tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0) > max_pixels:
        raise PhotoError("too_large", f"a tile has more than {max_pixels} pixels")
    if data.startswith(_JPEG) and data.count(b"\xff\xda") > _MAX_SCANS and _count_scans(data) > _MAX_SCANS:
        raise PhotoError("too_large", f"the JPEG has more than {_MAX_SCANS} scans")


def _count_scans(jpeg: bytes) -> int:
    """Count the scans up to the end of the image; marks in metadata and after the end count for nothing."""
    position, scans = len(_JPEG), 0
    while (marker := _MARKER.search(jpeg, position)) and marker[1] != _JPEG_END[1:]:
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    return scans


def _decode_damaged(data: bytes, max_pixels: int, error: PhotoError, *, allow_truncated: bool) -> Image.Image:
    """Decode an image whose pixels are there, all, nearly all, or (`allow_truncated`) some; else raise `error`."""
    if data.startswith(_PNG) and (pixels := _without_metadata(data)) != data:
        return _decode(pixels, max_pixels, None)
    if data.startswith(_JPEG) and error.reason == "truncated":
        image = _decode(data + _JPEG_END, max_pixels, None)
        if allow_truncated:
            return image
        # What changes with the bytes that follow is lost; so many of them fill more than the share that may be lost.
        noise = bytes(range(251)) * (image.width * image.height // 3000 + 1)
        other = _decode(data + noise + _JPEG_END, max_pixels, None)
        if np.any(np.asarray(image) != np.asarray(other), axis=2).mean() <= _MAX_LOST_SHARE:
            return image
    raise error


def _without_metadata(png: bytes) -> bytes:
    """Return a PNG with nothing but its pixels and its orientation."""
    kept, position = [_PNG], len(_PNG)
    while position < len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        body, checksum = png[position + 4 : end - 4], png[end - 4 : end]
        is_sound = body[:4] != b"eXIf" or zlib.crc32(body).to_bytes(4, "big") == checksum
        kept += [png[position:end]] * (body[:4] in _PNG_PIXELS and is_sound)
        position = end
    return b"".join(kept)


def _decode_size(size: Size, least: Size) -> Size:
    """Return the size to decode a JPEG at: whole, or the smallest half, quarter or eighth that is at least `least`.

    libjpeg-turbo computes these in SIMD and the other eighths in plain C, slower than the whole. Photos of 900 x 1200
    pixels (185 kB) that one core of a Zen 3 decodes in a second, by eighths of the size:

        8/8    7/8    6/8    5/8    4/8    3/8    2/8    1/8
        163     82    103    124    210    194    240    272
    """
    divisors = (n for n in (8, 4, 2) if all(n * needed <= side for needed, side in zip(least, size, strict=True)))
    divisor = next(divisors, 1)
    return size[0] // divisor, size[1] // divisor


@cache
def _formats() -> tuple[str, ...]:
    Image.preinit()
    for name in ("WebP", "Tiff", "Avif"):  # `Image.init` would import 40 more of these
        with suppress(ImportError):
            import_module(f"PIL.{name}ImagePlugin")
    with suppress(ImportError):  # an extra
        import_module("pi_heif").register_heif_opener()
    return tuple(name for name in _ALLOWED_FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # damaged metadata is no reason to refuse good pixels
        logger.debug("EXIF is ignored: %s", error)
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB: transparency on white, 16 bits scaled to 8."""
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale to 0..255 the smallest range that holds all values: 0 to 1 or 255 (fractions), 65535, or the maximum."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    full = next((limit for limit in ranges if largest <= limit), largest)
    return Image.fromarray(np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8))


# Pillow's warnings (possible bombs, odd metadata) must neither be printed nor become exceptions. `catch_warnings` is
# not safe among threads, and a plain "ignore" filter would hide the warnings of other code. So the first filter has a
# category that matches only in a thread that is decoding.
_is_decoding = ContextVar("is_decoding", default=False)
_filter_lock = threading.Lock()


class _OnlyWhileDecoding(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _is_decoding.get()


class _AnyWarningWhileDecoding(Warning, metaclass=_OnlyWhileDecoding): ...


@contextmanager
def _without_warnings() -> Iterator[None]:
    with _filter_lock:
        # Other code (pytest, `catch_warnings`) may restore or cover the filters at any time.
        if not warnings.filters or warnings.filters[0][2] is not _AnyWarningWhileDecoding:
            warnings.simplefilter("ignore", _AnyWarningWhileDecoding)
    token = _is_decoding.set(True)
    try:
        yield
    finally:
        _is_decoding.reset(token)
