"""Embed a catalog, each distinct product once.

Threads read, decode and shrink the images of the next chunk while the encoder works on the current one; memory is
bounded by two chunks. Vectors are rounded to float16, with a store and without, so that both give the same numbers.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL

from product_classificator.catalog.catalog import Catalog, Products
from product_classificator.catalog.lookup import ImageRef
from product_classificator.catalog.photo import PhotoError
from product_classificator.embeddings.feeding import Decode, Feeding, feeding
from product_classificator.embeddings.products import THUMBNAIL_BYTES, EmbeddedProducts, encode_products
from product_classificator.embeddings.store import EmbeddingStore, to_products, to_table
from product_classificator.encoders import Encoder
from product_classificator.encoders.base import PreparedImage
from product_classificator.errors import DataError
from product_classificator.remote.paths import UrlPath, without_secrets
from product_classificator.types import Embeddings, Strings, strings

logger = logging.getLogger(__name__)

CHUNK_PRODUCTS = 256
_MAX_IN_MEMORY_BYTES = 1 << 30


def embed(
    catalog: Catalog,
    encoder: Encoder,
    store: EmbeddingStore | None = None,
    *,
    on_chunk: Callable[[EmbeddedProducts], None] | None = None,
) -> EmbeddedProducts:
    """Embed all products of a catalog, in its order, and return them in float16.

    Vectors in `store` are not computed again, new ones are added; `on_chunk` is called after each chunk, for progress.
    More than fit in memory with ease are mapped from an unnamed file in the folder of the store.
    """
    n, folder = len(catalog), store.folder if store else None
    image, text = (_zeros(n, tower.dim, folder) for tower in (encoder.image, encoder.text))
    has_image, has_text, digests = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool), list[bytes]()
    embedded = EmbeddedProducts(
        embeddings=Embeddings(catalog.ids, image, text, has_image, has_text, encoder.fingerprint),
        thumbnails=np.zeros((n, THUMBNAIL_BYTES), np.uint8),
        status=strings([""] * n),
        digests=digests,
    )
    for chunk in embed_chunks(catalog, encoder, store):
        rows = slice(chunk.first_row, chunk.first_row + len(chunk.embeddings))
        for name in ("image", "text", "has_image", "has_text"):
            part = getattr(chunk.embeddings, name)
            if part.any():  # pages of zeros that are never written cost no memory
                getattr(embedded.embeddings, name)[rows] = part
        embedded.thumbnails[rows], embedded.status[rows] = chunk.thumbnails, chunk.status
        digests += chunk.digests
        embedded = replace(embedded, encoded=embedded.encoded + chunk.encoded, idle_share=chunk.idle_share)
        if on_chunk:
            on_chunk(chunk)
    return embedded


def _zeros(n: int, dim: int, folder: Path | None) -> npt.NDArray[Any]:
    if folder is None or 2 * n * dim <= _MAX_IN_MEMORY_BYTES:
        return np.zeros((n, dim), np.float16)
    with TemporaryFile(dir=None if isinstance(folder, UrlPath) else folder) as file:  # the mapping outlives it
        return np.memmap(file, np.float16, "w+", shape=(n, dim)).view(np.ndarray)


def embed_chunks(
    catalog: Catalog,
    encoder: Encoder,
    store: EmbeddingStore | None = None,
    *,
    chunks: Iterable[Products] | None = None,
    feed: Feeding | None = None,
) -> Iterator[EmbeddedProducts]:
    """Yield the embeddings of a catalog, or of `chunks` of its products, `CHUNK_PRODUCTS` at a time, in flat memory.

    At the end a warning counts the images that cannot be used, with an example of each reason. `feed` is what decodes,
    if it serves several calls.
    """
    chunks = catalog.batches(CHUNK_PRODUCTS) if chunks is None else chunks
    problems = ImageProblems(catalog)
    waited_s = took_s = 0.0
    with ExitStack() as stack:
        feed = feed or stack.enter_context(feeding(encoder, catalog))
        load = partial(load_product, catalog, store, feed.decode)
        for products, futures in stack.enter_context(closing(_load_ahead(chunks, load, feed))):
            start = time.perf_counter()
            loaded = [future.result() for future in futures]
            loaded_at = time.perf_counter()
            problems.add(products, [product.errors for product in loaded])
            chunk = _embed_chunk(catalog, encoder, store, products, loaded)
            if chunk.encoded:
                waited_s += loaded_at - start
                took_s += time.perf_counter() - start
            yield replace(chunk, idle_share=waited_s / took_s if took_s else None)
    if problems.counts:
        logger.warning("%s", problems)


def _load_ahead(
    chunks: Iterable[Products], load: Callable[..., "LoadedProduct"], feed: Feeding
) -> Generator[tuple[Products, list[Future["LoadedProduct"]]]]:
    """Yield products whose images are being loaded, after those of the next chunk have been queued."""
    with ThreadPoolExecutor(feed.threads, thread_name_prefix="images") as pool:
        ahead: deque[tuple[Products, list[Future[LoadedProduct]]]] = deque()
        try:
            for products in chunks:
                rows = zip(products.images, products.texts, strict=True)
                ahead.append((products, [pool.submit(load, *row) for row in rows]))
                if len(ahead) > feed.chunks_ahead:
                    yield ahead.popleft()
            yield from ahead
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class ImageProblems:
    """Counts the images of a catalog that cannot be used; the first of each reason is an example."""

    def __init__(self, catalog: Catalog) -> None:
        self.total, self.counts = 0, Counter[str]()
        self._catalog, self._first = catalog, dict[str, tuple[str, str]]()

    def add(self, products: Products, errors: Iterable["Errors"]) -> None:
        """Count the errors of products; those without a photo name should have no image."""
        for images, failed in zip(products.images, errors, strict=True):
            self.total += sum(bool(image.name) for image in images)
            for name, error in failed:
                if name:
                    self.counts[error.reason] += 1
                    self._first.setdefault(error.reason, (name, error.message))

    def __str__(self) -> str:
        source, parts = self._catalog.images, []
        for reason, n in self.counts.most_common():
            name, message = self._first[reason]
            nearest = f", {source.nearest(name)}" if source and reason == "missing" else ""
            parts.append(f"image_{reason} {n} (first {without_secrets(name)!r}: {message}{nearest})")
        where = source.path if source and source.path else self._catalog.table.name
        return f"{self.counts.total()} of {self.total} photos of {where} cannot be used: {'; '.join(parts)}"


def check_images(catalog: Catalog, *, allow_missing: bool) -> None:
    """Raise `DataError` if more than half of the images are not found; none is read."""
    if catalog.images is None or allow_missing:
        return
    problems = ImageProblems(catalog)
    for products in catalog.batches(CHUNK_PRODUCTS):
        problems.add(products, [_attempt(images, catalog.locate)[1] for images in products.images])
    if 2 * problems.counts.total() > problems.total:
        raise DataError(f"at least half of the photos must be found (or --allow-missing-photos): {problems}")


def _attempt(images: Iterable[Any], use: Callable[[Any], Any]) -> tuple[list[tuple[str, Any]], "Errors"]:
    """Return what `use` makes of images, and why it fails, with their names: the first field of each."""
    results, errors = [], []
    for image in images:
        try:
            results.append((image[0], use(image)))
        except PhotoError as error:
            errors.append((image[0], error))
    return results, errors


Errors: TypeAlias = Sequence[tuple[str, PhotoError]]
"""Names of images, and why they cannot be used."""


@dataclass(frozen=True)
class LoadedProduct:
    """A product's usable images, prepared unless the store has the product (else none), and its content's digest.

    `image_status` is "ok" if one can be used, or if the store has it.
    """

    digest: bytes
    images: Sequence[PreparedImage] = ()
    image_status: str = "ok"
    errors: Errors = ()


def load_product(
    catalog: Catalog, stored: Container[bytes] | None, decode: Decode, images: Sequence[ImageRef], text: str
) -> LoadedProduct:
    """Read a product's images; unless its digest is in `stored`, decode and shrink them."""
    content = text.encode("utf-8", "surrogatepass") if catalog.columns.text else b"\0unused"
    source = catalog.images
    if source is None:
        return LoadedProduct(_digest(b"unused", content), image_status="unused")
    kind = (source.channels + "+truncated" * source.allow_truncated).encode()
    files, errors = _attempt(images or (ImageRef(""),), catalog.image_bytes)
    keys = [blake2b(data, digest_size=16, person=kind).digest() for _, data in files]

    def digest() -> bytes:
        # Another limit, another Pillow or more memory may have another outcome, so that is never the digest of success.
        why = [f"{error.reason} {source.max_pixels} {PIL.__version__}".encode() for _, error in errors]
        return _digest(*(keys or [b""]), content, *why)

    if stored is not None and files and digest() in stored:
        return LoadedProduct(digest(), errors=errors)
    prepared, damaged = _attempt(files, lambda file: decode(file[1], source))
    errors = [*errors, *damaged]
    status = "ok" if prepared else errors[0][1].reason
    return LoadedProduct(digest(), [image for _, image in prepared], status, errors)


def _digest(*parts: bytes) -> bytes:
    lengths_alike = b"".join(blake2b(part, digest_size=16).digest() for part in parts)  # none can pass for two
    return blake2b(lengths_alike, digest_size=16).digest()


def _embed_chunk(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None, products: Products, loaded: list[LoadedProduct]
) -> EmbeddedProducts:
    digests = [product.digest for product in loaded]
    first_row_of = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    new = sorted(row for digest, row in first_row_of.items() if store is None or digest not in store)
    new_texts = [products.texts[row] for row in new] if catalog.columns.text else None
    images = (loaded[row].images or loaded[row].image_status for row in new) if catalog.images is not None else None
    encoded = encode_products(encoder, [products.ids[row] for row in new], new_texts, images)
    if store is None:
        row_of = {digests[row]: encoded_row for encoded_row, row in enumerate(new)}
        embedded = to_products(to_table([*row_of], encoded).take([row_of[digest] for digest in digests]))
    else:
        if new:
            store.append([digests[row] for row in new], encoded)
        embedded = store.read(digests)
    embeddings = replace(embedded.embeddings, ids=strings(products.ids))
    first_row, texts = products.first_row, products.texts
    return replace(embedded, embeddings=embeddings, first_row=first_row, texts=texts, encoded=len(new))


def count_statuses(status: Strings) -> dict[str, int]:
    """Count rows by status, most frequent first, without "ok"."""
    return dict(Counter(value for value in status if value != "ok").most_common())
