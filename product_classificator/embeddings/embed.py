"""Embed a catalog, each distinct product once.

Threads read, decode and shrink the images of the next chunk while the encoder works on the current one; memory is
bounded by two chunks. Vectors are rounded to float16, with a store and without, so that both give the same numbers.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Container, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from PIL import Image

from product_classificator.catalog.catalog import Catalog, Products
from product_classificator.catalog.photo import PhotoError
from product_classificator.embeddings.products import THUMBNAIL_BYTES, Thumbnails, encode_products
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import Encoder, cores
from product_classificator.types import Embeddings, Strings, strings

CHUNK_PRODUCTS = 256


@dataclass(frozen=True, kw_only=True)
class EmbeddedCatalog:
    """Embeddings of a catalog in memory.

    Attributes:
        embeddings: n products.
        thumbnails: (n, 192) uint8, to recognise the same photo; all 0 without an image.
        status: (n,) "ok", or what is wrong with the row, e.g. "image_missing,text_empty".
        idle_share: share of its time that the encoder has waited for images so far, 0..1, chunks in which nothing was
            encoded not counted; `None` if nothing was encoded yet.
    """

    embeddings: Embeddings
    thumbnails: Thumbnails
    status: Strings
    idle_share: float | None = None

    def set_aside(self) -> Strings:
        """Return (n,) "ok", or why a product can be neither learned from nor evaluated.

        The reason is the status of a product with neither image nor text, or "duplicate_id" for a repeated id.
        """
        usable = self.embeddings.has_image | self.embeddings.has_text
        reasons = np.where(usable, "ok", self.status).astype(object)
        is_repeated = self.embeddings.ids != ""
        is_repeated[np.unique(self.embeddings.ids, return_index=True)[1]] = False
        reasons[is_repeated & usable] = "duplicate_id"
        return strings(reasons)


@dataclass(frozen=True, kw_only=True)
class EmbeddedChunk(EmbeddedCatalog):
    """Embeddings of consecutive products, from `first_row` of the catalog on, with their raw texts.

    Attributes:
        encoded: number of products encoded now; the others were in the store or are repeated.
    """

    first_row: int
    texts: list[str]
    encoded: int


def embed(
    catalog: Catalog,
    encoder: Encoder,
    store: EmbeddingStore | None = None,
    *,
    on_chunk: Callable[[EmbeddedChunk], None] | None = None,
) -> EmbeddedCatalog:
    """Embed all products of a catalog, in its order, and return them in memory (float32).

    Vectors in `store` are not computed again, new ones are added; `on_chunk` is called after each chunk, for progress.
    """
    n = len(catalog)
    image, text = np.zeros((n, encoder.image_dim), np.float32), np.zeros((n, encoder.text_dim), np.float32)
    has_image, has_text = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    thumbnails, status = np.zeros((n, THUMBNAIL_BYTES), np.uint8), np.full(n, "", dtype=object)
    idle_share = None
    for chunk in embed_chunks(catalog, encoder, store):
        rows = slice(chunk.first_row, chunk.first_row + len(chunk.texts))
        has_image[rows], has_text[rows] = chunk.embeddings.has_image, chunk.embeddings.has_text
        if chunk.embeddings.has_image.any():  # pages of zeros that are never written cost no memory
            image[rows] = chunk.embeddings.image
        if chunk.embeddings.has_text.any():
            text[rows] = chunk.embeddings.text
        thumbnails[rows], status[rows] = chunk.thumbnails, chunk.status
        idle_share = chunk.idle_share
        if on_chunk:
            on_chunk(chunk)
    embeddings = Embeddings(catalog.ids, image, text, has_image, has_text, encoder.fingerprint)
    return EmbeddedCatalog(embeddings=embeddings, thumbnails=thumbnails, status=status, idle_share=idle_share)


def embed_chunks(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None = None, *, first_row: int = 0
) -> Iterator[EmbeddedChunk]:
    """Yield the embeddings of a catalog, starting at `first_row`, `CHUNK_PRODUCTS` at a time, in flat memory."""
    waited_s = took_s = 0.0
    chunk_start = time.perf_counter()
    with closing(_load_ahead(catalog, encoder, store, first_row)) as chunks:
        for products, futures in chunks:
            wait_start = time.perf_counter()
            loaded = [future.result() for future in futures]
            wait_end = time.perf_counter()
            chunk = _embed_chunk(catalog, encoder, store, products, loaded)
            chunk_end = time.perf_counter()
            if chunk.encoded:
                waited_s += wait_end - wait_start
                took_s += chunk_end - chunk_start
            yield replace(chunk, idle_share=waited_s / took_s if took_s else None)
            chunk_start = time.perf_counter()  # what the caller does in between is not the encoder's time


def _load_ahead(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None, first_row: int
) -> Generator[tuple[Products, list[Future["LoadedProduct"]]]]:
    """Yield products whose images are being loaded, after those of the next chunk have been queued."""
    with ThreadPoolExecutor(cores(), thread_name_prefix="images") as pool:
        ahead: deque[tuple[Products, list[Future[LoadedProduct]]]] = deque()
        try:
            for products in catalog.batches(CHUNK_PRODUCTS, first_row):
                rows = zip(products.ids, products.image_names, products.texts, strict=True)
                ahead.append((products, [pool.submit(load_product, catalog, encoder, store, *row) for row in rows]))
                if len(ahead) > 1:
                    yield ahead.popleft()
            yield from ahead
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class LoadedProduct:
    """A product's image, prepared unless the store has the product (else `None`), and the digest of its content."""

    digest: bytes
    image_status: str
    image: Image.Image | None


def load_product(
    catalog: Catalog, encoder: Encoder, stored: Container[bytes] | None, id_: str, image_name: str | None, text: str
) -> LoadedProduct:
    """Read a product's image; decode and shrink it unless the product's digest is in `stored`."""
    status, key, data = "unused", b"", None
    if catalog.images is not None:
        try:
            data = catalog.image_bytes(id_, image_name)
            status, key = "ok", blake2b(data, digest_size=16, person=catalog.images.channels.encode()).digest()
        except PhotoError as error:
            status = error.reason
    digest = blake2b(key or status.encode(), digest_size=16)
    digest.update(text.encode("utf-8", "replace") if catalog.columns.text else b"\0unused")
    image = None
    if catalog.images is not None and data is not None and (stored is None or digest.digest() not in stored):
        try:
            image = encoder.image.prepare(catalog.images.decode(data, encoder.image.min_decode_size))
        except PhotoError as error:
            status = error.reason
            if status == "too_large":  # a larger limit has another outcome, so it needs another digest
                digest.update(str(catalog.images.max_pixels).encode())
    return LoadedProduct(digest.digest(), status, image)


def _embed_chunk(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None, products: Products, loaded: list[LoadedProduct]
) -> EmbeddedChunk:
    digests = [product.digest for product in loaded]
    first_row_of = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    new = sorted(row for digest, row in first_row_of.items() if store is None or digest not in store)
    texts = [products.texts[row] for row in new] if catalog.columns.text else None
    images = (loaded[row].image or loaded[row].image_status for row in new) if catalog.images is not None else None
    encoded = encode_products(encoder, len(new), texts, images).as_float16()
    if store is None:
        encoded_row_of = {digests[row]: encoded_row for encoded_row, row in enumerate(new)}
        encoded = encoded.take(np.array([encoded_row_of[digest] for digest in digests], dtype=np.int64))
    else:
        if new:
            store.append([products.ids[row] for row in new], [digests[row] for row in new], encoded)
        encoded = store.read(digests)
    return EmbeddedChunk(
        embeddings=encoded.embeddings(products.ids, encoder.fingerprint),
        thumbnails=encoded.thumbnails,
        status=encoded.status,
        first_row=products.first_row,
        texts=products.texts,
        encoded=len(new),
    )


def count_statuses(status: Strings) -> dict[str, int]:
    """Count rows by status, most frequent first, without "ok"."""
    return dict(Counter(value for value in status if value != "ok").most_common())
