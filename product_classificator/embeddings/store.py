"""Keep embeddings on disk: a folder of parquet shards under one encoder fingerprint.

A product is identified by the digest of its text and image bytes: it is encoded again only when one of them changes.
A shard is written under a temporary name, flushed and renamed: a killed run loses at most the current chunk, and
several writers may share a folder. Vectors are float16: three decimal digits for unit vectors, at half the size.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from product_classificator.embeddings.products import THUMBNAIL_BYTES, EncodedProducts
from product_classificator.encoders import Encoder
from product_classificator.errors import ArtifactError
from product_classificator.files import replacing, write_text
from product_classificator.types import Embeddings, strings

logger = logging.getLogger(__name__)

_STORE_FORMAT = 1
_MAX_UNMERGED = 16_384


class EmbeddingStore:
    """A folder of embeddings, resumable and safe against crashes.

    Args:
        folder: created if missing.
        encoder: whose vectors it holds.

    Raises:
        ArtifactError: the folder holds the vectors of another encoder, or is not a store.
    """

    def __init__(self, folder: str | Path, encoder: Encoder) -> None:
        self.folder = Path(folder)
        self._dims = (encoder.image_dim, encoder.text_dim)
        self._fingerprint = encoder.fingerprint
        self._index = _DigestIndex()
        self._shards: list[Path] = []
        self._last_read: dict[int, EncodedProducts] = {}  # shards of the last read
        if not (self.folder / "store.json").exists():
            self._create(encoder)
        fingerprint = read_store_facts(self.folder)["fingerprint"]
        if fingerprint != encoder.fingerprint:
            raise ArtifactError(
                f"a store holds the vectors of one encoder: {self.folder} has those of {fingerprint}, "
                f"got {encoder.fingerprint}; use another folder"
            )
        for path in sorted((self.folder / "parts").glob("*.parquet")):
            self._add(path)

    def _create(self, encoder: Encoder) -> None:
        if self.folder.is_dir() and any(
            path.name != "parts" and path.suffix != ".tmp" for path in self.folder.iterdir()
        ):
            raise ArtifactError(f"a store needs a folder of its own: {self.folder} holds other files")
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        facts = {
            "format": _STORE_FORMAT,
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "image_dim": encoder.image_dim,
            "text_dim": encoder.text_dim,
        }
        write_text(self.folder / "store.json", json.dumps(facts, indent=2))

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and self._index.find(digest) is not None

    def _add(self, path: Path) -> None:
        try:
            digests = pq.read_table(path, columns=["digest"])["digest"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s is damaged and ignored; its products are encoded again (%s)", path, error)
            return
        self._index.add(digests, len(self._shards))
        self._shards.append(path)

    def append(self, ids: Sequence[str], digests: Sequence[bytes], products: EncodedProducts) -> None:
        """Write products as a new shard; they survive a crash once this returns.

        Args:
            ids: (n,) product ids.
            digests: (n,) of 16 bytes each, of text and image bytes.
            products: their vectors, float16.

        Raises:
            ArtifactError: the folder cannot be written to.
        """
        table = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "digest": pa.array(digests, pa.binary(16)),
                "image": _to_arrow(products.image.astype(np.float16)),
                "text": _to_arrow(products.text.astype(np.float16)),
                "image_status": pa.array(products.image_status, pa.string()).dictionary_encode(),
                "text_status": pa.array(products.text_status, pa.string()).dictionary_encode(),
                "thumbnail": _to_arrow(products.thumbnails),
            }
        )
        path = self.folder / "parts" / f"{len(self._shards):06d}-{uuid4().hex[:12]}.parquet"
        try:
            with replacing(path) as temporary:
                # Vectors hardly compress, but the zeros of a missing part do.
                pq.write_table(table, temporary, compression="zstd", use_dictionary=False)
        except OSError as error:
            raise ArtifactError(f"{self.folder} cannot be written to ({error}): name another store") from error
        self._index.add(digests, len(self._shards))
        self._shards.append(path)

    def read(self, digests: Sequence[bytes]) -> EncodedProducts:
        """Return the products of `digests`, in that order.

        Raises:
            ArtifactError: a product is not in the store, or its shard is damaged.
        """
        locations = [self._index.find(digest) for digest in digests]
        if None in locations:
            raise ArtifactError(f"{self.folder} does not hold all requested products: embed the catalog first")
        shard_of, row_of = np.array(locations, dtype=np.int64).reshape(-1, 2).T
        n = len(digests)
        image = np.zeros((n, self._dims[0]), dtype=np.float16)
        text = np.zeros((n, self._dims[1]), dtype=np.float16)
        image_status, text_status = np.empty(n, dtype=object), np.empty(n, dtype=object)
        thumbnails = np.zeros((n, THUMBNAIL_BYTES), np.uint8)
        cached, self._last_read = self._last_read, {}
        for number in np.unique(shard_of).tolist():
            shard = cached.pop(number, None) or self._products(self._read_table(self._shards[number]))
            self._last_read[number] = shard
            rows = np.flatnonzero(shard_of == number)
            products = shard.take(row_of[rows])
            image[rows], text[rows] = products.image, products.text
            image_status[rows], text_status[rows] = products.image_status, products.text_status
            thumbnails[rows] = products.thumbnails
        return EncodedProducts(image, text, image_status, text_status, thumbnails)

    def scan(self) -> Iterator[Embeddings]:
        """Yield all products shard by shard, in flat memory; a product that changed comes once per content.

        Raises:
            ArtifactError: a shard is damaged.
        """
        for path in self._shards:
            table = self._read_table(path)
            yield self._products(table).embeddings(table["id"].to_pylist(), self._fingerprint)

    def _read_table(self, path: Path) -> pa.Table:
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(f"{path} is damaged ({error}): delete it and run again") from error

    def _products(self, table: pa.Table) -> EncodedProducts:
        return EncodedProducts(
            _to_matrix(table["image"], self._dims[0]),
            _to_matrix(table["text"], self._dims[1]),
            strings(table["image_status"].to_pylist()),
            strings(table["text_status"].to_pylist()),
            _to_matrix(table["thumbnail"], THUMBNAIL_BYTES),
        )


def own_store(run: Path, encoder: Encoder) -> Path:
    """Return the folder of a run's embeddings; another encoder than before gets another folder."""
    folder = run / "embeddings"
    is_free = not (folder / "store.json").exists() or read_store_facts(folder)["fingerprint"] == encoder.fingerprint
    return folder if is_free else run / f"embeddings-{encoder.fingerprint}"


def read_store_facts(folder: Path) -> dict[str, object]:
    """Read `store.json`.

    Raises:
        ArtifactError: the folder is not a store, or has another format.
    """
    try:
        facts: dict[str, object] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} is not a store of embeddings: {error}") from error
    if not isinstance(facts, dict) or not {"format", "encoder", "fingerprint"} <= set(facts):
        raise ArtifactError(f"{folder} is not a store of embeddings: store.json does not describe one")
    if facts["format"] != _STORE_FORMAT:
        raise ArtifactError(f"{folder} has store format {facts['format']}, this version reads {_STORE_FORMAT}")
    return facts


def _to_arrow(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def _to_matrix(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) for chunk in column.chunks]
    return np.concatenate(chunks) if chunks else np.empty((0, dim), dtype=np.float16)


class _DigestIndex:
    """Shard and row of each digest: 24 bytes per product, so that millions fit into memory.

    A sorted array, and a dictionary of recent digests that is merged into the array when it has grown, since entries of
    a dictionary take ten times as much memory.
    """

    _TYPE = np.dtype([("digest", "S16"), ("shard", "<u4"), ("row", "<u4")])

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=self._TYPE)
        self._recent: dict[bytes, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, digests: Sequence[bytes], shard: int) -> None:
        """Add digests that are not there yet."""
        for row, digest in enumerate(digests):
            if self.find(digest) is None:
                self._recent[digest] = (shard, row)
        if len(self._recent) > _MAX_UNMERGED:
            recent = [(digest, *location) for digest, location in self._recent.items()]
            merged = np.concatenate([self._sorted, np.array(recent, dtype=self._TYPE)])
            self._sorted = merged[np.argsort(merged["digest"])]
            self._recent = {}

    def find(self, digest: bytes) -> tuple[int, int] | None:
        """Return shard and row of a digest, `None` if it is not there."""
        if digest in self._recent or not len(self._sorted):
            return self._recent.get(digest)
        digest = digest.rstrip(b"\0")  # as NumPy compares and returns bytes
        position = int(np.searchsorted(self._sorted["digest"], digest))
        if position == len(self._sorted) or self._sorted["digest"][position] != digest:
            return None
        return int(self._sorted["shard"][position]), int(self._sorted["row"][position])
