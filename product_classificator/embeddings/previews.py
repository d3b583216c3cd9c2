"""Turn rows of a catalog into what a page shows of them: a shortened text and a thumbnail."""

import base64
import io
from collections.abc import Collection, Sequence

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.lookup import ImageRef
from product_classificator.catalog.photo import PhotoError
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
            previews[row] = (text, _thumbnail(catalog, products.images[i]))
    return previews


def _thumbnail(catalog: Catalog, images: Sequence[ImageRef]) -> str:
    if catalog.images is None or not images:
        return ""
    try:
        image = catalog.images.decode(catalog.image_bytes(images[0]))
    except PhotoError:
        return ""
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
