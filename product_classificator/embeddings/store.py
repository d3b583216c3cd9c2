"""Keeps embeddings on disk: a folder of parquet parts under one encoder fingerprint.

A product is known by the digest of its text and photo bytes, so it is encoded again only when one of them changed. A
part is written under a temporary name, flushed and renamed: a killed run loses at most the chunk at hand, and several
writers may share a folder. Vectors are float16: for unit vectors that is three decimal digits, at half the size.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from product_classificator.encoders import Encoder
from product_classificator.errors import ArtifactError
from product_classificator.files import replacing, write_text
from product_classificator.types import Embeddings, Strings, strings

logger = logging.getLogger(__name__)

_STORE_FORMAT = 1
_MERGE_FRESH = 16_384
_HELD_BYTES = 256 << 20

Half = npt.NDArray[np.float16]


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
    image: Half
    text: Half
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
        self._fingerprint = encoder.fingerprint
        self._index = _DigestIndex()
        self._parts: list[Path] = []
        self._held: OrderedDict[int, Record] = OrderedDict()
        facts = {
            "format": _STORE_FORMAT,
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "image_dim": encoder.image_dim,
            "text_dim": encoder.text_dim,
        }
        if not (self.folder / "store.json").exists():
            if self.folder.is_dir() and any(
                path.name != "parts" and path.suffix != ".tmp" for path in self.folder.iterdir()
            ):
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

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and self._index.find(digest) is not None

    def _add(self, path: Path) -> None:
        try:
            digests = pq.read_table(path, columns=["digest"])["digest"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s is damaged and left out; its products are encoded again (%s)", path, error)
            return
        self._index.add(digests, len(self._parts))
        self._parts.append(path)

    def append(self, record: Record, ids: Sequence[str]) -> None:
        """Writes products as a new part; once this returns they survive a crash.

        Raises:
            ArtifactError: the folder cannot be written to.
        """
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
        try:
            with replacing(path) as temporary:
                # Vectors hardly compress, but the zeros of a side that is not there do.
                pq.write_table(table, temporary, compression="zstd", use_dictionary=False)
        except OSError as error:
            raise ArtifactError(f"{self.folder} cannot be written to ({error}): name another store") from error
        self._index.add(record.digests, len(self._parts))
        self._parts.append(path)

    def clear(self) -> None:
        """Removes all products, as if nothing had been embedded."""
        for path in (self.folder / "parts").glob("*.parquet"):
            path.unlink(missing_ok=True)
        self._index, self._parts, self._held = _DigestIndex(), [], OrderedDict()

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
        parts = np.unique(part_of)
        for part in parts:
            here = np.flatnonzero(part_of == part)
            record = self._part(int(part))
            rows = row_of[here]
            image[here], text[here] = record.image[rows], record.text[rows]
            image_status[here], text_status[here] = record.image_status[rows], record.text_status[rows]
        self._forget(_HELD_BYTES if len(parts) > 1 else 0)
        return Record(list(digests), image, text, image_status, text_status)

    def scan(self) -> Iterator[Embeddings]:
        """Yields all products part by part, in flat memory; one that has changed comes once for each of its contents.

        Raises:
            ArtifactError: a part is damaged.
        """
        for path in self._parts:
            table = self._table(path)
            record = self._record(table)
            yield Embeddings(
                strings(table["id"].to_pylist()),
                record.image.astype(np.float32),
                record.text.astype(np.float32),
                record.image_status == "ok",
                record.text_status == "ok",
                self._fingerprint,
            )

    def _part(self, number: int) -> Record:
        record = self._held.pop(number, None) or self._record(self._table(self._parts[number]))
        self._held[number] = record
        self._forget(_HELD_BYTES)
        return record

    def _forget(self, allowed_bytes: int) -> None:
        """Lets go of the parts that were read the longest ago, but for the last one.

        A catalog in the order in which it was embedded needs one at a time, in another order all of them again and
        again.
        """
        held_bytes = sum(each.image.nbytes + each.text.nbytes for each in self._held.values())
        while len(self._held) > 1 and held_bytes > allowed_bytes:
            _, oldest = self._held.popitem(last=False)
            held_bytes -= oldest.image.nbytes + oldest.text.nbytes

    def _table(self, path: Path) -> pa.Table:
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(f"{path} is damaged ({error}): delete it and run again") from error

    def _record(self, table: pa.Table) -> Record:
        return Record(
            [],
            _matrix(table["image"], self._dims[0]),
            _matrix(table["text"], self._dims[1]),
            strings(table["image_status"].to_pylist()),
            strings(table["text_status"].to_pylist()),
        )


def own_store(run: Path, encoder: Encoder) -> Path:
    """Returns the folder of the embeddings of a run; with another encoder than before it is another one."""
    folder = run / "embeddings"
    is_free = not (folder / "store.json").exists() or read_store_facts(folder)["fingerprint"] == encoder.fingerprint
    return folder if is_free else run / f"embeddings-{encoder.fingerprint}"


def read_store_facts(folder: Path) -> dict[str, object]:
    """Reads `store.json`.

    Raises:
        ArtifactError: the folder is not a store, or one of a newer version.
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


def _vectors(matrix: Half) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float16).ravel()), matrix.shape[1])


def _matrix(column: pa.ChunkedArray, dim: int) -> Half:
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
