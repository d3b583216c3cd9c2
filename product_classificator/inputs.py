"""Turns what a caller may give for texts and photos into lists of both, one entry per product."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from product_classificator.catalog.photo import MAX_PIXELS, Channels, Size, decode_image, to_rgb
from product_classificator.errors import DataError

Photo: TypeAlias = Image.Image | np.ndarray | bytes | str | Path
"""A Pillow image, an (h, w, 3) uint8 RGB array, the bytes of an image file, or the path of one."""

Texts: TypeAlias = str | Sequence[str | None] | None
Photos: TypeAlias = Photo | Sequence[Photo | None] | None


def as_list(value: object) -> list[object] | None:
    """Returns one text or photo, a sequence of them, or a pandas column, as a list; `None` stays `None`.

    Raises:
        DataError: it is something else.
    """
    if value is None:
        return None
    is_picture = isinstance(value, np.ndarray) and value.ndim in (2, 3)
    if is_picture or isinstance(value, str | Path | bytes | Image.Image):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise DataError(f"texts and images must be one, a sequence, or None, got {type(value).__name__}")
    return [None if _is_gap(item) else item for item in value]


def _is_gap(item: object) -> bool:
    """Tells whether an item is NaN or `pd.NA`, as pandas writes gaps; pandas itself is not imported."""
    return (isinstance(item, float) and item != item) or type(item).__name__ == "NAType"


def aligned(texts: list[object] | None, images: list[object] | None) -> tuple[list[str], list[Photo | None]]:
    """Returns the texts, "" where there is none, and the photos of n products.

    Raises:
        DataError: there are neither, they differ in number, or a text is no string.
    """
    if texts is None and images is None:
        raise DataError("a product needs a photo or a text: give texts, images, or both")
    n = len(texts if texts is not None else images or [])
    if texts is not None and images is not None and len(texts) != len(images):
        raise DataError(f"texts and images must be of the same products, got {len(texts)} and {len(images)}")
    wrong = [type(text).__name__ for text in texts or [] if text is not None and not isinstance(text, str)]
    if wrong:
        raise DataError(f"a text must be a string or None, found {sorted(set(wrong))}")
    return [str(text or "") for text in texts or [""] * n], list(images or [None] * n)  # type: ignore[arg-type]


def opened(
    photo: Photo, channels: Channels = "rgb", min_decode_size: Callable[[Size], Size] | None = None
) -> Image.Image:
    """Returns a photo as an upright RGB image; `channels` tells the colours of files, pictures and arrays are RGB.

    Args:
        photo: what a caller has given.
        channels: order of colours in files.
        min_decode_size: answers for the size of a file's photo the size that it must have at least; `None`: its own.

    Raises:
        DataError: it is nothing that a photo can be.
        ImageError: its file cannot be decoded.
        OSError: its file cannot be read.
    """
    if isinstance(photo, str | Path):
        photo = Path(photo).read_bytes()
    if isinstance(photo, bytes):
        return decode_image(photo, channels=channels, max_pixels=MAX_PIXELS, min_decode_size=min_decode_size)
    if isinstance(photo, Image.Image) and min(photo.size) > 0:
        return to_rgb(ImageOps.exif_transpose(photo))
    if (
        isinstance(photo, np.ndarray)
        and photo.dtype == np.uint8
        and photo.ndim == 3
        and photo.shape[2] == 3
        and photo.size
    ):
        return Image.fromarray(photo)
    found = type(photo).__name__
    if isinstance(photo, np.ndarray):
        found = f"{photo.dtype} {photo.shape}"
    elif isinstance(photo, Image.Image):
        found = f"an image of {photo.width} x {photo.height} pixels"
    raise DataError(f"a photo must be an image, its file's path or bytes, or an (h, w, 3) uint8 array, got {found}")
