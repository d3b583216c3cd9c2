"""Turns products as a caller gives them into embeddings; what cannot be used becomes a reason, never an exception."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from product_classificator.catalog.photo import Channels, ImageError
from product_classificator.encoders import Encoder
from product_classificator.errors import DataError
from product_classificator.inputs import Photo, opened
from product_classificator.text import clean
from product_classificator.types import Embeddings, Floats, Strings, row_status, strings

_CHUNK_PHOTOS = 256


def embed_products(
    encoder: Encoder, texts: Sequence[str] | None, photos: Sequence[Photo | None] | None, channels: Channels
) -> tuple[Embeddings, Strings]:
    """Embeds n products.

    Args:
        encoder: what turns them into vectors.
        texts: (n,) raw texts; `None`: texts are not used.
        photos: (n,) photos, `None` where there is none; `None`: photos are not used.
        channels: order of colours in files of photos.

    Returns:
        Embeddings, and (n,) "ok" or what is wrong with a product, such as "image_truncated,text_empty".

    Raises:
        DataError: a photo is nothing that a photo can be.
    """
    n = len(texts if texts is not None else photos or [])
    image: Floats = np.zeros((n, encoder.image_dim), np.float32)
    text: Floats = np.zeros((n, encoder.text_dim), np.float32)
    image_status, text_status = strings(["unused"] * n), strings(["unused"] * n)
    if texts is not None:
        text_status = strings(["ok" if clean(each) else "empty" for each in texts])
        rows = np.flatnonzero(text_status == "ok")
        if len(rows):
            text[rows] = encoder.encode_texts([texts[row] for row in rows.tolist()])
    for start in range(0, n if photos is not None else 0, _CHUNK_PHOTOS):  # prepared photos take memory
        here = slice(start, start + _CHUNK_PHOTOS)
        found = [_prepared(encoder, photo, channels) for photo in (photos or [])[here]]
        image_status[here] = strings(["ok" if isinstance(each, Image.Image) else each for each in found])
        images = [each for each in found if isinstance(each, Image.Image)]
        if images:
            image[start + np.flatnonzero(image_status[here] == "ok")] = encoder.encode_images(images)
    ids = strings([str(row) for row in range(n)])
    has_image, has_text = image_status == "ok", text_status == "ok"
    embeddings = Embeddings(ids, image, text, has_image, has_text, encoder.fingerprint)
    return embeddings, row_status(image_status, text_status)


def _prepared(encoder: Encoder, photo: Photo | None, channels: Channels) -> Image.Image | str:
    """Returns the photo as the encoder wants it, or in a word why there is none."""
    if photo is None:
        return "missing"
    try:
        return encoder.prepare_image(opened(photo, channels, encoder.min_decode_size))
    except ImageError as error:
        return error.reason
    except FileNotFoundError:
        return "missing"
    except DataError:  # no photo at all: a mistake in the caller's program
        raise
    except (OSError, ValueError):
        return "unreadable"
