"""Turn texts and images of products into embeddings; what cannot be used becomes a status, never an exception."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from product_classificator.catalog.photo import MAX_PIXELS, Channels, PhotoError, decode_image, to_rgb
from product_classificator.encoders import Encoder, PairTower
from product_classificator.encoders.base import DeviceImage, PreparedImage, unit_rows
from product_classificator.encoders.preprocessing import as_rgb
from product_classificator.errors import ArtifactError, DataError
from product_classificator.text import clean
from product_classificator.types import Embeddings, Rows, Strings, strings

ImageInput: TypeAlias = Image.Image | np.ndarray | bytes | bytearray | memoryview | IO[bytes] | str | Path
"""A Pillow image, an (h, w, 3) uint8 RGB array, or an image file: bytes, path, open, base64 data URI."""

TextsInput: TypeAlias = str | Sequence[str | None] | None
ImagesInput: TypeAlias = ImageInput | Sequence[ImageInput | Sequence[ImageInput] | None] | None

Vectors: TypeAlias = npt.NDArray[np.floating[Any]]
Thumbnails: TypeAlias = npt.NDArray[np.uint8]
"""(n, 192): RGB images of 8 x 8 pixels that make the same photo recognised; all 0 without an image."""

_IMAGES_AT_ONCE = 256  # prepared images wait in memory
_THUMBNAIL_PX = 8
THUMBNAIL_BYTES = _THUMBNAIL_PX**2 * 3


@dataclass(frozen=True, kw_only=True)
class EmbeddedProducts:
    """Embeddings of n products: of a catalog, of a chunk of it, or of what a caller gave.

    Attributes:
        embeddings: n products; vectors as a store keeps them, rounded to float16, if they are of a catalog.
        thumbnails: (n, 192) uint8.
        status: (n,) "ok", or what is wrong with the product, e.g. "image_missing,text_empty".
        digests: of the content of n products, as a store names it, if they are of a catalog.
        first_row, texts: of a chunk: where it begins in the catalog, and n raw texts.
        encoded: number of products encoded now; the others were in the store or are repeated.
        idle_share: share of its time that the encoder has waited for images so far, 0..1, chunks in which nothing was
            encoded not counted; `None` if nothing was encoded yet.
    """

    embeddings: Embeddings
    thumbnails: Thumbnails
    status: Strings
    digests: Sequence[bytes] = ()
    first_row: int = 0
    texts: Sequence[str] = ()
    encoded: int = 0
    idle_share: float | None = None

    def set_aside(self) -> Strings:
        """Return (n,) "ok", or why a product can be neither learned from nor evaluated.

        The reason is the status of a product with neither image nor text, or "duplicate_id" for a repeated id.
        """
        usable = self.embeddings.has_image | self.embeddings.has_text
        reasons = np.where(usable, "ok", self.status).astype(object)
        rows = np.flatnonzero(usable & (self.embeddings.ids != ""))
        first = rows[np.unique(self.embeddings.ids[rows], return_index=True)[1]]
        reasons[np.setdiff1d(rows, first)] = "duplicate_id"
        return strings(reasons)


def row_status(image_status: Strings, text_status: Strings) -> Strings:
    """Return for each product "ok" or its reasons joined by commas, such as "image_missing,text_empty"."""
    statuses = []
    for image, text in zip(image_status, text_status, strict=True):
        reasons = [f"{k}_{v}" for k, v in (("image", image), ("text", text)) if v not in ("ok", "unused")]
        statuses.append(",".join(reasons) or "ok")
    return strings(statuses)


def encode_products(
    encoder: Encoder,
    ids: Sequence[str],
    texts: Sequence[str] | None,
    images: Iterable[Sequence[PreparedImage] | str] | None,
) -> EmbeddedProducts:
    """Encode n products; images are consumed a few hundred at a time.

    Args:
        encoder: the towers.
        ids: of the n products.
        texts: raw texts, blank where there is none; `None`: texts are unused.
        images: the prepared images of each product, whose vectors are averaged, or the reason why there is none;
            `None`: images are unused. A `PairTower` reads the text with each of them instead of alone.

    Raises:
        ArtifactError: the encoder computes NaN, infinity, or what float16 cannot hold.
    """
    n = len(ids)
    image, text = np.zeros((n, encoder.image.dim), np.float32), np.zeros((n, encoder.text.dim), np.float32)
    image_status, text_status = strings(["unused"] * n), strings(["unused"] * n)
    thumbnails = np.zeros((n, THUMBNAIL_BYTES), np.uint8)
    if texts is not None:
        text_status = strings(["ok" if clean(value) else "empty" for value in texts])
        rows = np.flatnonzero(text_status == "ok")
        if len(rows):
            text[rows] = _finite(encoder, encoder.text.encode([texts[row] for row in rows.tolist()]), ids, rows)
    remaining: Iterator[Any] = iter(images or ())
    start = 0
    while batch := list(islice(remaining, _IMAGES_AT_ONCE)):
        statuses = strings([item if isinstance(item, str) else "ok" for item in batch])
        image_status[start : start + len(batch)] = statuses
        rows, start = start + np.flatnonzero(statuses == "ok"), start + len(batch)
        if usable := [item for item in batch if not isinstance(item, str)]:
            vectors = encoder.image.encode([item for items in usable for item in items])
            image[rows] = _finite(encoder, _means(vectors, [len(items) for items in usable]), ids, rows)
            thumbnails[rows] = [thumbnail(items[0]) for items in usable]
            is_pair = text_status[rows] == "ok"
            if texts is not None and is_pair.any() and isinstance(encoder.text, PairTower):
                rows, usable = rows[is_pair], [items for items, is_read in zip(usable, is_pair, strict=True) if is_read]
                repeated = [texts[row] for row, items in zip(rows.tolist(), usable, strict=True) for _ in items]
                vectors = encoder.text.encode_pairs(repeated, [item for items in usable for item in items])
                text[rows] = _finite(encoder, _means(vectors, [len(items) for items in usable]), ids, rows)
    has_parts = image_status == "ok", text_status == "ok"
    embeddings = Embeddings(strings(ids), image, text, *has_parts, encoder.fingerprint)
    return EmbeddedProducts(embeddings=embeddings, thumbnails=thumbnails, status=row_status(image_status, text_status))


def _means(vectors: Vectors, counts: Sequence[int]) -> Vectors:
    """Return the mean of the unit vectors of each product, of unit length; a single vector stays what it is."""
    several = np.array(counts) > 1
    means = np.add.reduceat(vectors, np.cumsum([0, *counts[:-1]]))
    means[several] = unit_rows(means[several])
    return means


def _finite(encoder: Encoder, vectors: Vectors, ids: Sequence[str], rows: Rows) -> Vectors:
    is_finite = np.abs(vectors).max(axis=1) <= np.finfo(np.float16).max  # False for NaN
    if not is_finite.all():
        raise ArtifactError(
            f"vectors must be finite numbers: {encoder.name} computes others, first for product "
            f"{ids[rows[int(np.argmin(is_finite))]]}; use another number format (--dtype float32) or undamaged weights"
        )
    return vectors


def thumbnail(image: PreparedImage) -> Thumbnails:
    """Return (192,) uint8, an RGB image shrunk to 8 x 8 pixels; at least 1, since 0 means that there is no image."""
    if isinstance(image, DeviceImage):
        return np.maximum(image.thumbnail, 1)
    size = (_THUMBNAIL_PX, _THUMBNAIL_PX)
    small = as_rgb(image).resize(size, Image.Resampling.BOX)
    return np.asarray(np.maximum(np.asarray(small).ravel(), 1))


def prepare_image(encoder: Encoder, image: ImageInput, channels: Channels, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image as a caller gives it and shrink it; channels and limit are those of files, other images are RGB.

    A type or shape that no image can have is a `DataError`, what cannot be read or decoded a `PhotoError`.
    """
    try:
        if (data := _file_bytes(image)) is None:
            return encoder.image.prepare(_as_rgb(image))
        least = encoder.image.min_decode_size
        decoded = decode_image(data, channels=channels, max_pixels=max_pixels, min_decode_size=least)
        return encoder.image.prepare(decoded)
    except DataError:
        raise
    except Exception as error:  # a lazily opened Pillow image raises many classes, SyntaxError among them
        reason, message = (error.reason, error.message) if isinstance(error, PhotoError) else ("unreadable", str(error))
        is_path = isinstance(image, Path) or (isinstance(image, str) and not image.startswith("data:"))
        raise PhotoError(reason, f"{image!s}: {message}" if is_path else message) from error


def _as_rgb(image: ImageInput) -> Image.Image:
    if isinstance(image, Image.Image) and min(image.size) > 0:
        return to_rgb(ImageOps.exif_transpose(image))
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0:
            return Image.fromarray(image)
        received = f"{image.dtype} {image.shape}"
    elif isinstance(image, Image.Image):
        received = f"an image of {image.width} x {image.height} pixels"
    else:
        received = type(image).__name__
    must_be = "an image, its file's path or bytes, an open file, a base64 data URI, or an (h, w, 3) uint8 array"
    raise DataError(f"a photo must be {must_be}, got {received}")


def _file_bytes(image: Any) -> bytes | None:
    """Return the bytes of an image file; `None` if the image is not one."""
    if isinstance(image, str) and image.startswith("data:"):
        return base64.b64decode(image.partition(",")[2])
    if isinstance(image, str) and "://" in image:
        raise PhotoError("missing", "photos are not fetched from URLs: give its bytes")
    try:
        image = Path(image).read_bytes() if isinstance(image, str | Path) else image
    except FileNotFoundError as error:
        raise PhotoError("missing", "there is no such file") from error
    if hasattr(image, "read"):
        image.seek(0)  # an upload may have been looked at before
        image = image.read()
    return bytes(image) if isinstance(image, bytes | bytearray | memoryview) else None


def align(texts: TextsInput, images: ImagesInput) -> tuple[list[str], list[list[ImageInput]]]:
    """Return the text ("" if there is none) and the images of each of n products."""
    text_list, image_list = _as_list(texts), _as_list(images)
    if text_list is None and image_list is None:
        raise DataError("a product needs a photo or a text: give texts, images, or both")
    if text_list is not None and image_list is not None and len(text_list) != len(image_list):
        hint = "; several photos of one product are a list among the photos"
        raise DataError(f"texts and images must have the same length, got {len(text_list)} and {len(image_list)}{hint}")
    n = len(text_list if text_list is not None else image_list or [])
    if wrong := {type(text).__name__ for text in text_list or [] if text is not None and not isinstance(text, str)}:
        raise DataError(f"a text must be a string or None, got {sorted(wrong)}")
    images_of = [item if isinstance(item, list | tuple) else [item] for item in image_list or [None] * n]
    return [str(text or "") for text in text_list or [""] * n], [
        [i for i in item if i is not None] for item in images_of
    ]


def _as_list(value: object) -> list[Any] | None:
    if value is None:
        return None
    is_array = isinstance(value, np.ndarray) and value.ndim in (2, 3)
    is_file = isinstance(value, str | Path | bytes | bytearray | memoryview) or hasattr(value, "read")
    if is_array or is_file or isinstance(value, Image.Image):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise DataError(f"texts and images must be one, a sequence, or None, got {type(value).__name__}")
    return [None if _is_missing(item) else item for item in value]


def _is_missing(item: object) -> bool:
    """Whether an item is NaN or `pd.NA`, without importing pandas."""
    return (isinstance(item, float) and item != item) or type(item).__name__ == "NAType"
