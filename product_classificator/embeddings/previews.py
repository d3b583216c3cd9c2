"""Turn rows of a catalog into what a page shows of them: a shortened text and a thumbnail."""

import base64
import io
from collections.abc import Collection

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.lookup import ImageRef
from product_classificator.catalog.photo import PhotoError, Size
from product_classificator.text import clean

_THUMBNAIL_PX = 176
_TEXT_CHARACTERS = 180
_READ_ROWS = 16_384


def read_previews(catalog: Catalog, rows: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return row -> shortened text and thumbnail, a data URI or "" without a usable image."""
    previews, wanted = {}, set(rows)
    for products in catalog.batches(_READ_ROWS) if wanted else ():
        for row in wanted & set(range(products.first_row, products.first_row + len(products.ids))):
            i = row - products.first_row
            text = clean(products.texts[i])
            if len(text) > _TEXT_CHARACTERS:
                text = text[:_TEXT_CHARACTERS].rstrip() + "…"
            jpegs = (thumbnail(catalog, image, _THUMBNAIL_PX, quality=70) for image in products.images[i][:1])
            previews[row] = (text, _as_uri(next(jpegs, None)))
    return previews


def thumbnail(catalog: Catalog, image: ImageRef, longest_px: int, quality: int) -> bytes | None:
    """Return a photo as JPEG, at most so many pixels long; `None` if it cannot be read."""

    def enough(whole: Size) -> Size:
        scale = max(1.0, max(whole) / longest_px)
        return round(whole[0] / scale), round(whole[1] / scale)

    if catalog.images is None:
        return None
    try:
        decoded = catalog.images.decode(catalog.image_bytes(image), enough)
    except PhotoError:
        return None
    decoded.thumbnail((longest_px, longest_px))
    buffer = io.BytesIO()
    decoded.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _as_uri(jpeg: bytes | None) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else ""
