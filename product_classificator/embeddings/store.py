"""Keep embeddings on disk: a folder of parquet shards under one encoder fingerprint.

A product is identified by the digest of its text and image bytes: it is encoded again only when one of them changes.
A shard is written whole or not at all and named after its bytes: a killed run loses at most the current chunk, several
writers may share a folder, and what is damaged is never read. Vectors are float16: three digits of unit vectors.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from product_classificator.embeddings.products import EncodedProducts
from product_classificator.encoders import Encoder
from product_classificator.errors import ArtifactError
from product_classificator.files import write_bytes, write_text
from product_classificator.types import Embeddings, strings

logger = logging.getLogger(__name__)

_STORE_FORMAT = 1
_FINGERPRINT = b"fingerprint"


class EmbeddingStore:
    """A folder of the embeddings of one encoder, created if missing; resumable and safe against crashes.

    Raises:
        ArtifactError: the folder holds the vectors of another encoder, or is not a store.
    """

    def __init__(self, folder: str | Path, encoder: Encoder) -> None:
        self.folder = Path(folder)
        self._fingerprint = encoder.fingerprint
        self._locations: dict[bytes, tuple[int, int]] = {}  # digest -> shard and row; 190 bytes per product
        self._shards: list[Path] = []
        self._last_read: dict[int, EncodedProducts] = {}  # shards of the last read
        if not (self.folder / "store.json").exists():
            self._create(encoder)
        if (fingerprint := read_store_facts(self.folder)["fingerprint"]) != encoder.fingerprint:
            raise ArtifactError(
                f"a store holds the vectors of one encoder: {self.folder} has those of {fingerprint}, "
                f"got {encoder.fingerprint}; use another folder"
            )
        for path in sorted((self.folder / "parts").glob("*.parquet")):
            try:
                digests = self._load(path, ["digest"])["digest"].to_pylist()
            except ArtifactError as error:
                logger.warning("%s; its products are encoded again", error)
            else:
                self._add(path, digests)

    def _create(self, encoder: Encoder) -> None:
        if self.folder.is_dir() and any(
            path.name not in ("parts", "store.json") and path.suffix != ".tmp" for path in self.folder.iterdir()
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
        temporary = self.folder / f".store.json.{uuid4().hex}.tmp"
        write_text(temporary, json.dumps(facts, indent=2))
        try:
            os.link(temporary, self.folder / "store.json")  # never replaces that of a process with another encoder
        except FileExistsError:
            pass
        except OSError:  # the file system has no links
            temporary.replace(self.folder / "store.json")
        finally:
            temporary.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._locations)

    def __contains__(self, digest: object) -> bool:
        return digest in self._locations

    def _add(self, path: Path, digests: Sequence[bytes]) -> None:
        for row, digest in enumerate(digests):
            self._locations.setdefault(digest, (len(self._shards), row))
        self._shards.append(path)

    def append(self, ids: Sequence[str], digests: Sequence[bytes], products: EncodedProducts) -> None:
        """Write n products (float16) as a new shard; they survive a crash once this returns.

        A digest is that of text and image bytes, 16 bytes.

        Raises:
            ArtifactError: the folder cannot be written to.
        """
        columns = {name: _to_arrow(array) for name, array in vars(products).items()}
        table = pa.table({"id": pa.array(ids, pa.string()), "digest": pa.array(digests, pa.binary(16)), **columns})
        table = table.replace_schema_metadata({_FINGERPRINT: self._fingerprint})
        buffer = pa.BufferOutputStream()
        # Vectors hardly compress, but the zeros of a missing part do.
        pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
        data = buffer.getvalue().to_pybytes()
        path = self.folder / "parts" / f"{_name(data)}.parquet"
        try:
            write_bytes(path, data)
        except OSError as error:
            raise ArtifactError(f"{self.folder} cannot be written to ({error}): name another store") from error
        self._add(path, digests)

    def read(self, digests: Sequence[bytes]) -> EncodedProducts:
        """Return the products of `digests`, in that order.

        Raises:
            ArtifactError: a product is not in the store, or its shard is damaged or gone.
        """
        locations = [self._locations.get(digest) for digest in digests]
        if None in locations:
            raise ArtifactError(f"{self.folder} does not hold all requested products: embed the catalog first")
        shard_of, row_of = np.array(locations, dtype=np.int64).reshape(-1, 2).T
        cached, self._last_read = self._last_read, {}
        parts, rows = [], []
        for number in np.unique(shard_of).tolist():
            self._last_read[number] = cached.get(number) or _products(self._load(self._shards[number]))
            rows.append(np.flatnonzero(shard_of == number))
            parts.append(self._last_read[number].take(row_of[rows[-1]]))
        return EncodedProducts.concatenate(parts).take(np.argsort(np.concatenate(rows)))

    def scan(self) -> Iterator[Embeddings]:
        """Yield all products shard by shard, in flat memory; a product that changed comes once per content.

        Raises:
            ArtifactError: a shard is damaged or gone.
        """
        for path in self._shards:
            table = self._load(path)
            yield _products(table).embeddings(table["id"].to_pylist(), self._fingerprint)

    def _load(self, path: Path, columns: list[str] | None = None) -> pa.Table:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} was there and cannot be read now ({error}): run again") from error
        if _name(data) != path.stem:
            raise ArtifactError(f"{path} is damaged: run again, it will be ignored")
        table = pq.read_table(pa.BufferReader(data), columns=columns)
        if table.schema.metadata.get(_FINGERPRINT) != self._fingerprint.encode():
            raise ArtifactError(f"{path} is of another encoder")
        return table


def _name(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _products(table: pa.Table) -> EncodedProducts:
    return EncodedProducts(**{name: _to_numpy(table[name]) for name in EncodedProducts.__dataclass_fields__})


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


def _to_arrow(array: np.ndarray) -> pa.Array:
    if array.dtype == object:
        return pa.array(array, pa.string()).dictionary_encode()
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    if not pa.types.is_fixed_size_list(column.type):
        return strings(column.to_pylist())
    values: np.ndarray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)
