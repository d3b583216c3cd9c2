"""Turns a catalog into embeddings, once per product, and keeps them on disk.

`EmbeddingStore` is a folder of parquet parts under one encoder fingerprint. A product is known by the digest of its
text and photo bytes, so it is encoded again only when one of them changed. A part is written under a temporary name,
flushed and renamed: a killed run loses at most the chunk at hand, and several writers may share a folder.

`embed_chunks` is the pipeline: photos of the next chunk are read, decoded and shrunk by threads while the encoder
works on this one; memory is bounded by two chunks, whatever the catalog's size. Vectors are rounded to float16, with
a store and without, so that both ways give the same numbers.
"""

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from product_classificator.catalog.images import PhotoError
from product_classificator.catalog.read import Catalog, Products
from product_classificator.catalog.splits import Keys
from product_classificator.encoders import Encoder
from product_classificator.errors import ArtifactError
from product_classificator.files import replacing, write_text
from product_classificator.text import clean
from product_classificator.types import Embeddings, Floats, Rows, Strings, strings

logger = logging.getLogger(__name__)

CHUNK_PRODUCTS = 256
_STORE_FORMAT = 1
_MERGE_FRESH = 65_536


@dataclass(frozen=True)
class Record:
    """What a store keeps of products: vectors, and "ok" or the reason why a side is not there.

    Attributes:
        digests: (n,) 16 bytes each, of text and photo bytes.
        image: (n, image_dim) float16, zeros unless `image_status` is "ok".
        text: (n, text_dim) float16, zeros unless `text_status` is "ok".
        image_status: (n,) "ok", "unused" (a catalog without photos), or a reason such as "missing".
        text_status: (n,) "ok", "unused", or "empty".
    """

    digests: list[bytes]
    image: np.ndarray
    text: np.ndarray
    image_status: Strings
    text_status: Strings


class EmbeddingStore:
    """A folder of embeddings, resumable and safe against crashes.

    Args:
        folder: made if it is not there.
        encoder: whose vectors it holds.

    Raises:
        ArtifactError: the folder holds the vectors of another encoder, or is not a store.
    """

    def __init__(self, folder: str | Path, encoder: Encoder) -> None:
        self.folder = Path(folder)
        self._dims = (encoder.image_dim, encoder.text_dim)
        self._index = _DigestIndex()
        self._parts: list[Path] = []
        self._last: tuple[int, Record] | None = None
        facts = {
            "format": _STORE_FORMAT,
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "image_dim": encoder.image_dim,
            "text_dim": encoder.text_dim,
        }
        if not (self.folder / "store.json").exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ArtifactError(f"a store needs a folder of its own: {self.folder} holds other things")
            (self.folder / "parts").mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "store.json", json.dumps(facts, indent=2))
        found = read_store_facts(self.folder)
        if found["fingerprint"] != encoder.fingerprint:
            raise ArtifactError(
                f"a store holds the vectors of one encoder: {self.folder} is of {found['fingerprint']}, "
                f"now {encoder.fingerprint} is asked for; use another folder"
            )
        for path in sorted((self.folder / "parts").glob("*.parquet")):
            self._add(path)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, digest: bytes) -> bool:
        return self._index.find(digest) is not None

    def _add(self, path: Path) -> None:
        try:
            digests = pq.read_table(path, columns=["digest"])["digest"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s is damaged and left out; its products are encoded again (%s)", path, error)
            return
        self._index.add(digests, len(self._parts))
        self._parts.append(path)

    def append(self, record: Record, ids: Sequence[str]) -> None:
        """Writes products as a new part; once this returns they survive a crash."""
        table = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "digest": pa.array(record.digests, pa.binary(16)),
                "image": _vectors(record.image),
                "text": _vectors(record.text),
                "image_status": pa.array(record.image_status, pa.string()).dictionary_encode(),
                "text_status": pa.array(record.text_status, pa.string()).dictionary_encode(),
            }
        )
        path = self.folder / "parts" / f"{len(self._parts):06d}-{uuid4().hex[:12]}.parquet"
        with replacing(path) as temporary:
            # Float16 vectors do not compress; the rest is a hundredth of the bytes.
            pq.write_table(table, temporary, compression="none", use_dictionary=False)
        self._index.add(record.digests, len(self._parts))
        self._parts.append(path)

    def read(self, digests: Sequence[bytes]) -> Record:
        """Returns the products of `digests`, in that order.

        Raises:
            ArtifactError: one is not in the store, or its part is damaged.
        """
        places = [self._index.find(digest) for digest in digests]
        if None in places:
            raise ArtifactError(f"{self.folder} does not hold all asked products: embed the catalog first")
        part_of, row_of = np.array(places, dtype=np.int64).reshape(-1, 2).T
        n = len(digests)
        image = np.zeros((n, self._dims[0]), dtype=np.float16)
        text = np.zeros((n, self._dims[1]), dtype=np.float16)
        image_status, text_status = np.empty(n, dtype=object), np.empty(n, dtype=object)
        for part in np.unique(part_of):
            here = np.flatnonzero(part_of == part)
            record = self._part(int(part))
            rows = row_of[here]
            image[here], text[here] = record.image[rows], record.text[rows]
            image_status[here], text_status[here] = record.image_status[rows], record.text_status[rows]
        return Record(list(digests), image, text, image_status, text_status)

    def _part(self, number: int) -> Record:
        if self._last is None or self._last[0] != number:
            try:
                table = pq.read_table(self._parts[number])
            except (OSError, pa.ArrowException) as error:
                raise ArtifactError(f"{self._parts[number]} is damaged ({error}): delete it and run again") from error
            record = Record(
                [],
                _matrix(table["image"], self._dims[0]),
                _matrix(table["text"], self._dims[1]),
                strings(table["image_status"].to_pylist()),
                strings(table["text_status"].to_pylist()),
            )
            self._last = (number, record)
        return self._last[1]


def read_store_facts(folder: Path) -> dict[str, object]:
    """Reads `store.json`.

    Raises:
        ArtifactError: the folder is not a store, or one of a newer version.
    """
    try:
        facts: dict[str, object] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} is not a store of embeddings: {error}") from error
    if facts.get("format") != _STORE_FORMAT:
        raise ArtifactError(f"{folder} has store format {facts.get('format')}, this version reads {_STORE_FORMAT}")
    return facts


def _vectors(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float16).ravel()), matrix.shape[1])


def _matrix(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) for chunk in column.chunks]
    return np.concatenate(chunks) if chunks else np.empty((0, dim), dtype=np.float16)


class _DigestIndex:
    """Where each digest is stored: 24 bytes a product, so that a million fit in little memory."""

    _TYPE = np.dtype([("head", "<u8"), ("tail", "<u8"), ("part", "<u4"), ("row", "<u4")])

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=self._TYPE)
        self._fresh: dict[bytes, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._sorted) + len(self._fresh)

    def add(self, digests: Sequence[bytes], part: int) -> None:
        for row, digest in enumerate(digests):
            if self.find(digest) is None:
                self._fresh[digest] = (part, row)
        if len(self._fresh) > _MERGE_FRESH:
            keys = np.frombuffer(b"".join(self._fresh), dtype="<u8").reshape(-1, 2)
            places = np.array(list(self._fresh.values()))
            fresh = np.empty(len(keys), dtype=self._TYPE)
            fresh["head"], fresh["tail"] = keys.T
            fresh["part"], fresh["row"] = places.T
            merged = np.concatenate([self._sorted, fresh])
            self._sorted = merged[np.argsort(merged["head"], kind="stable")]
            self._fresh = {}

    def find(self, digest: bytes) -> tuple[int, int] | None:
        found = self._fresh.get(digest)
        if found is not None or not len(self._sorted):
            return found
        head, tail = np.frombuffer(digest, dtype="<u8")
        at = int(np.searchsorted(self._sorted["head"], head))
        while at < len(self._sorted) and self._sorted["head"][at] == head:
            if self._sorted["tail"][at] == tail:
                return int(self._sorted["part"][at]), int(self._sorted["row"][at])
            at += 1
        return None


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
    """

    first_row: int
    embeddings: Embeddings
    texts: list[str]
    image_keys: Keys
    status: Strings
    encoded: int


@dataclass(frozen=True)
class EmbeddedCatalog:
    """Embeddings of a whole catalog in RAM; fields as in `EmbeddedChunk`."""

    embeddings: Embeddings
    image_keys: Keys
    status: Strings


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
    row = 0
    for chunk in embed_chunks(catalog, encoder, store):
        part, here = chunk.embeddings, slice(row, row + len(chunk.embeddings))
        image[here], text[here], has_image[here], has_text[here] = part.image, part.text, part.has_image, part.has_text
        image_keys[here], status[here] = chunk.image_keys, chunk.status
        row += len(part)
        if on_chunk:
            on_chunk(chunk)
    embeddings = Embeddings(catalog.ids, image, text, has_image, has_text, encoder.fingerprint)
    return EmbeddedCatalog(embeddings, image_keys, status)


def embed_chunks(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None = None, *, first_row: int = 0
) -> Iterator[EmbeddedChunk]:
    """Yields the embeddings of a catalog from `first_row` on, `CHUNK_PRODUCTS` at a time, in flat memory."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="photos") as pool:
        ahead: deque[tuple[Products, list[Future[_Loaded]]]] = deque()
        try:
            for products in catalog.batches(CHUNK_PRODUCTS, first_row):
                rows = zip(products.ids, products.photos, products.texts, strict=True)
                ahead.append((products, [pool.submit(_load, catalog, encoder, store, *row) for row in rows]))
                if len(ahead) > 1:
                    yield _embed_chunk(catalog, encoder, store, *ahead.popleft())
            while ahead:
                yield _embed_chunk(catalog, encoder, store, *ahead.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Loaded:
    """A product's photo, ready for the encoder unless the store knows the product, and what names its content."""

    digest: bytes
    image_key: int
    image_status: str
    image: Image.Image | None


def _load(
    catalog: Catalog, encoder: Encoder, store: EmbeddingStore | None, id_: str, photo: str | None, text: str
) -> _Loaded:
    status, key, data = "unused", b"", None
    if catalog.images is not None:
        try:
            data = catalog.photo_bytes(id_, photo)
            status, key = "ok", blake2b(data, digest_size=16, person=catalog.images.channels.encode()).digest()
        except PhotoError as error:
            status = error.reason
    digest = blake2b(key or status.encode(), digest_size=16)
    digest.update(text.encode("utf-8", "replace") if catalog.columns.text else b"\0unused")
    image = None
    if catalog.images is not None and data is not None and (store is None or digest.digest() not in store):
        try:
            image = encoder.prepare_image(catalog.images.decode(data))
        except PhotoError as error:
            status = error.reason
    return _Loaded(digest.digest(), int.from_bytes(key[:8], "little"), status, image)


def _embed_chunk(
    catalog: Catalog,
    encoder: Encoder,
    store: EmbeddingStore | None,
    products: Products,
    futures: list[Future[_Loaded]],
) -> EmbeddedChunk:
    loaded = [future.result() for future in futures]
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
    return EmbeddedChunk(products.first_row, embeddings, products.texts, keys, row_status(record), len(new))


def _encode(catalog: Catalog, encoder: Encoder, products: Products, loaded: list[_Loaded], rows: Rows) -> Record:
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


def row_status(record: Record) -> Strings:
    """Returns for each product "ok" or its reasons joined by commas, such as "image_missing,text_empty"."""
    sides = (("image", record.image_status), ("text", record.text_status))
    reasons = [
        ",".join(f"{side}_{status[row]}" for side, status in sides if status[row] not in ("ok", "unused"))
        for row in range(len(record.digests))
    ]
    return strings([reason or "ok" for reason in reasons])


def count_statuses(status: Strings) -> dict[str, int]:
    """Counts the rows by what is wrong with them, most frequent first; sound rows are not listed."""
    return dict(Counter(value for value in status if value != "ok").most_common())
