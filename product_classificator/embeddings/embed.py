"""Turns a catalog into embeddings, each product once.

Photos of the next chunk are read, decoded and shrunk by threads while the encoder works on this one; memory is bounded
by two chunks, whatever the catalog's size. Vectors are rounded to float16, with a store and without, so that both ways
give the same numbers.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Container, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

import numpy as np
import pandas as pd
from PIL import Image

from product_classificator.catalog.catalog import Catalog, Products
from product_classificator.catalog.images import ImageError
from product_classificator.catalog.split import Keys
from product_classificator.embeddings.store import EmbeddingStore, Record
from product_classificator.encoders import Encoder, cores
from product_classificator.encoders.combined import clip_within
from product_classificator.text import clean
from product_classificator.types import Embeddings, Floats, Rows, Strings, row_status, strings

CHUNK_PRODUCTS = 256
WORTH_A_TRIAL = 1000
"""Products of a catalog below which choosing a precision would cost more than it brings."""
_TRIED_PRODUCTS = 32


@dataclass(frozen=True)
class EmbeddedChunk:
    """Embeddings of consecutive products of a catalog.

    Attributes:
        first_row: row number in the catalog of the first of them.
        embeddings: n products.
        texts: their n raw texts.
        image_keys: (n,) equal for photos of the same bytes, 0 without a photo.
        status: (n,) "ok", or what is wrong with the row, e.g. "image_missing,text_empty".
        encoded: how many of them were encoded now; the others were in the store.
        waited_s: wall time that the encoder waited for their photos to be read and decoded.
        took_s: wall time since the chunk before.
    """

    first_row: int
    embeddings: Embeddings
    texts: list[str]
    image_keys: Keys
    status: Strings
    encoded: int
    waited_s: float = 0.0
    took_s: float = 0.0


@dataclass(frozen=True)
class EmbeddedCatalog:
    """Embeddings of a whole catalog in RAM.

    Attributes:
        embeddings: n products.
        image_keys: as in `EmbeddedChunk`.
        status: likewise.
        idle_share: share of its time that the encoder waited for photos; `None` where nothing was encoded.
    """

    embeddings: Embeddings
    image_keys: Keys
    status: Strings
    idle_share: float | None = None

    def set_aside(self) -> Strings:
        """Returns (n,) "ok", or why a product can be neither learned from nor judged: its status, or "duplicate_id".

        That is a product with neither photo nor text, and one whose id came before.
        """
        found = self.embeddings.has_image | self.embeddings.has_text
        reasons = np.where(found, "ok", self.status).astype(object)
        repeated = pd.Series(self.embeddings.ids).duplicated().to_numpy() & (self.embeddings.ids != "")
        reasons[repeated & found] = "duplicate_id"
        return strings(reasons)


class Idle:
    """The share of its time that an encoder waits for photos; of chunks in which nothing is encoded nothing counts."""

    def __init__(self) -> None:
        self._waited_s = self._took_s = 0.0

    def add(self, chunk: EmbeddedChunk) -> None:
        """Counts a chunk."""
        if chunk.encoded:
            self._waited_s += chunk.waited_s
            self._took_s += chunk.took_s

    @property
    def share(self) -> float | None:
        """0..1; `None` where nothing was encoded."""
        return self._waited_s / self._took_s if self._took_s else None


OnChunk = Callable[[EmbeddedChunk], None]


def embed(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None = None, *, on_chunk: OnChunk | None = None
) -> EmbeddedCatalog:
    """Embeds all products of a catalog, in its order, and returns them in RAM (float32).

    Args:
        catalog: the products.
        encoder: what turns them into vectors.
        store: where vectors are kept and looked up; without one everything is encoded.
        on_chunk: called after each chunk, for progress.
    """
    n = len(catalog)
    image, text = np.zeros((n, encoder.image_dim), np.float32), np.zeros((n, encoder.text_dim), np.float32)
    has_image, has_text = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    image_keys, status = np.zeros(n, dtype=np.uint64), np.full(n, "", dtype=object)
    row, idle = 0, Idle()
    for chunk in embed_chunks(catalog, encoder, store):
        part, here = chunk.embeddings, slice(row, row + len(chunk.embeddings))
        has_image[here], has_text[here] = part.has_image, part.has_text
        if part.has_image.any():  # rows that are not written cost no memory
            image[here] = part.image
        if part.has_text.any():
            text[here] = part.text
        image_keys[here], status[here] = chunk.image_keys, chunk.status
        row += len(part)
        idle.add(chunk)
        if on_chunk:
            on_chunk(chunk)
    embeddings = Embeddings(catalog.ids, image, text, has_image, has_text, encoder.fingerprint)
    return EmbeddedCatalog(embeddings, image_keys, status, idle.share)


def embed_chunks(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None = None, *, first_row: int = 0
) -> Iterator[EmbeddedChunk]:
    """Yields the embeddings of a catalog from `first_row` on, `CHUNK_PRODUCTS` at a time, in flat memory."""
    if len(catalog) >= WORTH_A_TRIAL:
        _settle(catalog, encoder)
    began = time.perf_counter()
    with closing(_load_ahead(catalog, encoder, store, first_row)) as chunks:
        for products, futures in chunks:
            asked = time.perf_counter()
            loaded = [future.result() for future in futures]
            waited = time.perf_counter() - asked
            chunk = _embed_chunk(catalog, encoder, store, products, loaded)
            ended = time.perf_counter()
            yield replace(chunk, waited_s=waited, took_s=ended - began)
            began = ended


def _load_ahead(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None, first_row: int
) -> Generator[tuple[Products, list[Future["Loaded"]]]]:
    """Yields products whose photos are being loaded; those of the next chunk are begun before."""
    with ThreadPoolExecutor(cores(), thread_name_prefix="photos") as pool:
        ahead: deque[tuple[Products, list[Future[Loaded]]]] = deque()
        try:
            for products in catalog.batches(CHUNK_PRODUCTS, first_row):
                rows = zip(products.ids, products.image_names, products.texts, strict=True)
                ahead.append((products, [pool.submit(load_product, catalog, encoder, store, *row) for row in rows]))
                if len(ahead) > 1:
                    yield ahead.popleft()
            yield from ahead
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _settle(catalog: Catalog, encoder: Encoder) -> None:
    """Lets an encoder choose its precision by the first products; most have none to choose."""
    if clip_within(encoder) is None:
        return
    from product_classificator.encoders.precision import may_settle, settle  # imports torch

    if not may_settle(encoder):
        return
    for products in catalog.batches(_TRIED_PRODUCTS):
        rows = zip(products.ids, products.image_names, products.texts, strict=True)
        loaded = [load_product(catalog, encoder, None, *row) for row in rows]
        photos = [item.image for item in loaded if item.image is not None]
        settle(encoder, photos, [text for text in products.texts if clean(text)])
        break


def embed_rows(catalog: Catalog, encoder: Encoder, rows: Rows) -> Embeddings:
    """Returns the embeddings of some products, `rows` ascending, encoded anew and rounded as those of a store are."""
    wanted, records, ids = set(rows.tolist()), [], []
    with ThreadPoolExecutor(cores(), thread_name_prefix="photos") as pool:
        for products in catalog.batches(CHUNK_PRODUCTS):
            chosen = products.take([row for row in range(len(products)) if products.first_row + row in wanted])
            if len(chosen):
                load = partial(load_product, catalog, encoder, None)
                loaded = list(pool.map(load, chosen.ids, chosen.image_names, chosen.texts))
                records.append(_encode(catalog, encoder, chosen, loaded, np.arange(len(chosen))))
                ids += chosen.ids
    image, text, image_status, text_status = (
        np.concatenate([getattr(record, name) for record in records])
        for name in ("image", "text", "image_status", "text_status")
    )
    sides = (image.astype(np.float32), text.astype(np.float32), image_status == "ok", text_status == "ok")
    return Embeddings(strings(ids), *sides, encoder.fingerprint)


@dataclass(frozen=True)
class Loaded:
    """A product's photo, ready for the encoder unless the product is known, and what names its content."""

    digest: bytes
    image_key: int
    image_status: str
    image: Image.Image | None


def load_product(
    catalog: Catalog, encoder: Encoder, known: Container[bytes] | None, id_: str, photo: str | None, text: str
) -> Loaded:
    """Reads a product's photo, and decodes and shrinks it unless the product's digest is `known`."""
    status, key, data = "unused", b"", None
    if catalog.images is not None:
        try:
            data = catalog.image_bytes(id_, photo)
            status, key = "ok", blake2b(data, digest_size=16, person=catalog.images.channels.encode()).digest()
        except ImageError as error:
            status = error.reason
    digest = blake2b(key or status.encode(), digest_size=16)
    digest.update(text.encode("utf-8", "replace") if catalog.columns.text else b"\0unused")
    image = None
    if catalog.images is not None and data is not None and (known is None or digest.digest() not in known):
        try:
            image = encoder.prepare_image(catalog.images.decode(data, encoder.min_decode_size))
        except ImageError as error:
            status = error.reason
            if status == "too_large":  # under another limit it is another outcome
                digest.update(str(catalog.images.max_pixels).encode())
    return Loaded(digest.digest(), int.from_bytes(key[:8], "little"), status, image)


def _embed_chunk(
    catalog: Catalog,
    encoder: Encoder,
    store: EmbeddingStore | None,
    products: Products,
    loaded: list[Loaded],
) -> EmbeddedChunk:
    first = {item.digest: row for row, item in reversed(list(enumerate(loaded)))}
    new = np.array(sorted(row for digest, row in first.items() if store is None or digest not in store), dtype=np.int64)
    record = _encode(catalog, encoder, products, loaded, new)
    if store is not None:
        if len(new):
            store.append(record, [products.ids[row] for row in new])
        record = store.read([item.digest for item in loaded])
    elif len(new) < len(loaded):
        place = {digest: row for row, digest in enumerate(record.digests)}
        record = _take(record, np.array([place[item.digest] for item in loaded]))
    embeddings = Embeddings(
        strings(products.ids),
        record.image.astype(np.float32),
        record.text.astype(np.float32),
        record.image_status == "ok",
        record.text_status == "ok",
        encoder.fingerprint,
    )
    keys = np.array([item.image_key for item in loaded], dtype=np.uint64)
    return EmbeddedChunk(
        products.first_row,
        embeddings,
        products.texts,
        keys,
        row_status(record.image_status, record.text_status),
        len(new),
    )


def _encode(catalog: Catalog, encoder: Encoder, products: Products, loaded: list[Loaded], rows: Rows) -> Record:
    """Encodes the products of `rows`; a side that is not there stays zero and says why."""
    image_status = strings([loaded[row].image_status for row in rows])
    images = [loaded[row].image for row in rows]
    texts = [products.texts[row] for row in rows]
    no_text = "empty" if catalog.columns.text else "unused"
    text_status = strings(["ok" if clean(text) else no_text for text in texts])
    image: Floats = np.zeros((len(rows), encoder.image_dim), dtype=np.float32)
    text: Floats = np.zeros((len(rows), encoder.text_dim), dtype=np.float32)
    with_image, with_text = np.flatnonzero(image_status == "ok"), np.flatnonzero(text_status == "ok")
    if len(with_image):
        image[with_image] = encoder.encode_images([found for found in images if found is not None])
    if len(with_text):
        text[with_text] = encoder.encode_texts([texts[row] for row in with_text])
    digests = [loaded[row].digest for row in rows]
    return Record(digests, image.astype(np.float16), text.astype(np.float16), image_status, text_status)


def _take(record: Record, rows: Rows) -> Record:
    return Record(
        [record.digests[row] for row in rows],
        record.image[rows],
        record.text[rows],
        record.image_status[rows],
        record.text_status[rows],
    )


def count_statuses(status: Strings) -> dict[str, int]:
    """Counts the rows by what is wrong with them, most frequent first; sound rows are not listed."""
    return dict(Counter(value for value in status if value != "ok").most_common())
