"""Keep embeddings on disk: a folder of parquet shards under one encoder fingerprint.

A product is identified by the digest of its text and image bytes: it is encoded again only when one of them changes.
A shard is written whole or not at all and named after its bytes: a killed run loses at most the current chunk, several
writers may share a folder, and what is damaged is never read. Vectors are float16: three digits of unit vectors.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.encoders import Encoder
from product_classificator.errors import ArtifactError
from product_classificator.files import read_checked_format
from product_classificator.remote.paths import UrlPath, as_path, write_bytes
from product_classificator.types import Embeddings, strings

logger = logging.getLogger(__name__)

_STORE_FORMAT = 2
_FINGERPRINT = b"fingerprint"
_READERS = 16


class EmbeddingStore:
    """A folder or URL of the embeddings of one encoder, created if missing; resumable and safe against crashes.

    A folder with vectors of another encoder, or other files, is an `ArtifactError`. Without `reads`, what others have
    written is not known: for one of many writers, which has no memory for the digests of all.
    """

    def __init__(self, folder: str | Path, encoder: Encoder, *, reads: bool = True) -> None:
        self.folder = as_path(folder)
        self._fingerprint = encoder.fingerprint
        self._locations: dict[bytes, tuple[int, int]] = {}  # digest -> shard and row; 190 bytes per product
        self._shards: list[Path] = []
        self._last_read: dict[int, pa.Table] = {}  # shards of the last read
        if not (self.folder / "store.json").exists():
            self._create(encoder)
        if (fingerprint := read_store_facts(self.folder)["fingerprint"]) != encoder.fingerprint:
            raise ArtifactError(
                f"a store holds the vectors of one encoder: {self.folder} has those of {fingerprint}, "
                f"got {encoder.fingerprint}; use another folder"
            )
        paths = sorted((self.folder / "parts").glob("*.parquet")) if reads else []
        with ThreadPoolExecutor(_READERS) as pool:
            for path, digests in zip(paths, pool.map(self._digests_in, paths), strict=True):
                self._add(path, digests)

    def _digests_in(self, path: Path) -> list[bytes]:
        try:
            digests: list[bytes] = self._load(path, ["digest"])["digest"].to_pylist()
        except ArtifactError as error:
            logger.warning("%s; its products are encoded again", error)
            return []
        return digests

    def _create(self, encoder: Encoder) -> None:
        own = ("parts", "store.json", ".lock")
        if self.folder.is_dir() and any(
            path.name not in own and path.suffix != ".tmp" for path in self.folder.iterdir()
        ):
            raise ArtifactError(f"a store needs a folder of its own: {self.folder} holds other files")
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        facts = {
            "format": _STORE_FORMAT,
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "image_dim": encoder.image.dim,
            "text_dim": encoder.text.dim,
        }
        lock: Any = nullcontext() if isinstance(self.folder, UrlPath) else FileLock(self.folder / ".lock")
        with lock:
            if not (self.folder / "store.json").exists():  # of a process with another encoder, at the same time
                write_bytes(self.folder / "store.json", json.dumps(facts, indent=2).encode())

    def __len__(self) -> int:
        return len(self._locations)

    def __contains__(self, digest: object) -> bool:
        return digest in self._locations

    def _add(self, path: Path, digests: Sequence[bytes]) -> None:
        for row, digest in enumerate(digests):
            self._locations.setdefault(digest, (len(self._shards), row))
        self._shards += [path] * bool(digests)

    def append(self, digests: Sequence[bytes], products: EmbeddedProducts) -> None:
        """Write n products as a new shard, with their 16-byte digests; they survive a crash once this returns."""
        table, buffer = to_table(digests, products), pa.BufferOutputStream()
        # Vectors hardly compress, but the zeros of a missing part do.
        pq.write_table(table, buffer, compression="zstd", use_dictionary=False, write_statistics=False)
        data = buffer.getvalue().to_pybytes()
        path = self.folder / "parts" / f"{_name(data)}.parquet"
        try:
            write_bytes(path, data)
        except OSError as error:
            raise ArtifactError(f"{self.folder} cannot be written to ({error}): name another store") from error
        self._last_read[len(self._shards)] = table  # until the next read, which needs it
        self._add(path, digests)

    def read(self, digests: Sequence[bytes]) -> EmbeddedProducts:
        """Return the products of `digests`, in that order; what is not there, or damaged, is an `ArtifactError`."""
        if any(digest not in self for digest in digests):
            raise ArtifactError(f"{self.folder} does not hold all requested products: embed the catalog first")
        locations = [self._locations[digest] for digest in digests]
        shards = sorted({shard for shard, _ in locations})
        cached = self._last_read
        self._last_read = {n: cached[n] if n in cached else self._load(self._shards[n]) for n in shards}
        starts = dict(zip(shards, accumulate(map(len, self._last_read.values()), initial=0), strict=False))
        rows = [starts[shard] + row for shard, row in locations]
        return to_products(pa.concat_tables(self._last_read.values()).take(rows))

    def scan(self) -> Iterator[EmbeddedProducts]:
        """Yield all products shard by shard, in flat memory; a product that changed comes once per content."""
        for path in self._shards:
            yield to_products(self._load(path))

    def _load(self, path: Path, columns: list[str] | None = None) -> pa.Table:
        by_range = columns is not None and isinstance(path, UrlPath)  # an object is never half
        try:
            source: Any = path.open("rb") if by_range else pa.BufferReader(path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"{path} was there and cannot be read now ({error}): run again") from error
        if not by_range and _name(source.read_buffer()) != path.stem:
            raise ArtifactError(f"{path} is damaged: run again, it will be ignored")
        try:
            table = pq.read_table(source, columns=columns)
        except pa.ArrowException as error:
            raise ArtifactError(f"{path} is damaged: run again, it will be ignored") from error
        if table.schema.metadata.get(_FINGERPRINT) != self._fingerprint.encode():
            raise ArtifactError(f"{path} is of another encoder")
        for index, column in enumerate(table.columns):
            if pa.types.is_fixed_size_list(column.type):  # of stores until 2026-11-28
                matrix = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
                table = table.set_column(index, table.column_names[index], _rows(matrix))
        return table


def _name(data: Any) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def to_table(digests: Sequence[bytes], products: EmbeddedProducts) -> pa.Table:
    """Return n products as a shard holds them: vectors are float16."""
    embeddings = products.embeddings
    columns = {
        "id": pa.array(embeddings.ids, pa.string()),
        "digest": pa.array(digests, pa.binary(16)),
        "status": pa.array(products.status, pa.string()),
        "image": _rows(embeddings.image.astype(np.float16)),
        "text": _rows(embeddings.text.astype(np.float16)),
        "has_image": pa.array(embeddings.has_image),
        "has_text": pa.array(embeddings.has_text),
        "thumbnails": _rows(products.thumbnails),
    }
    return pa.table(columns, metadata={_FINGERPRINT: embeddings.fingerprint})


def to_products(table: pa.Table) -> EmbeddedProducts:
    """Return the products of a table that `to_table` made; vectors are float32."""
    image, text = (_matrix(table[name], np.float16).astype(np.float32) for name in ("image", "text"))
    flags = table["has_image"].to_numpy(), table["has_text"].to_numpy()
    fingerprint = table.schema.metadata[_FINGERPRINT].decode()
    return EmbeddedProducts(
        embeddings=Embeddings(strings(table["id"].to_pylist()), image, text, *flags, fingerprint),
        thumbnails=_matrix(table["thumbnails"], np.uint8),
        status=strings(table["status"].to_pylist()),
        digests=table["digest"].to_pylist(),
    )


def _rows(matrix: np.ndarray) -> pa.Array:
    """Return the bytes of each row; lists of numbers take parquet ten times as long to write and four to read."""
    row_bytes = matrix.shape[1] * matrix.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), len(matrix), [None, pa.py_buffer(matrix)])


def _matrix(column: pa.ChunkedArray, dtype: type[np.generic]) -> np.ndarray:
    rows = column.combine_chunks()
    width = column.type.byte_width // np.dtype(dtype).itemsize
    return np.frombuffer(rows.buffers()[1], dtype)[rows.offset * width :][: len(rows) * width].reshape(-1, width)


def own_store(run: Path, encoder: Encoder) -> Path:
    """Return the folder of a run's embeddings; another encoder than before gets another folder."""
    folder = run / "embeddings"
    is_free = not (folder / "store.json").exists() or read_store_facts(folder)["fingerprint"] == encoder.fingerprint
    return folder if is_free else run / f"embeddings-{encoder.fingerprint}"


def read_store_facts(folder: Path) -> dict[str, object]:
    """Read `store.json`; another format, or none, is an `ArtifactError`."""
    try:
        content = read_checked_format(folder / "store.json", _STORE_FORMAT, "delete it, and embed again")
        facts: dict[str, object] = json.loads(content)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} is not a store of embeddings: {error}") from error
    if not isinstance(facts, dict) or not {"format", "encoder", "fingerprint"} <= set(facts):
        raise ArtifactError(f"{folder} is not a store of embeddings: store.json does not describe one")
    return facts
