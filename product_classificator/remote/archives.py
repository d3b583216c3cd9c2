"""Reads photos of a folder at a URL, of a zip or of tar shards by ranges, several at once.

Shards are those of WebDataset: plain tars, scanned once; the key of a sample is the name of its photo without ending.
"""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from product_classificator.errors import DataError
from product_classificator.remote.paths import as_path, open_input

_OPEN_SHARDS = 128  # there may be thousands, and systems allow 256 open files
_ZIP_HEADER_BYTES, _ZIP_EXTRA_BYTES = 30, 128  # the extra field may be longer before a member than in the directory


def files_of(path: Path) -> Iterator[tuple[str, Callable[[int], bytes]]]:
    """Yield the names of files in a folder at a URL, or in tar shards, and what reads each, up to a number of bytes.

    What cannot be listed, and a damaged shard, are a `DataError`.
    """
    if path.suffix != ".tar":
        yield from ((file.relative_to(path).as_posix(), partial(read_file, file)) for file in path.rglob("*"))
    opened = lru_cache(_OPEN_SHARDS)(open_input)  # what it drops is closed when nobody reads it any more
    for shard in shards_of(path):
        headers = BufferedReader(opened(shard), 1 << 20)
        try:
            with tarfile.open(fileobj=headers, mode="r:") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined] # else it keeps them all
                    if member.isreg():
                        yield member.name, partial(_read_at, opened, shard, member.offset_data, member.size)
        except tarfile.TarError as error:
            raise DataError(f"shards are plain tars, not compressed: {shard} is damaged or none ({error})") from error
        finally:
            headers.detach()  # keeps the file open


def shards_of(path: Path) -> list[Path]:
    """Return the tars of a path or pattern."""
    root, is_tar = as_path(path.anchor), path.suffix == ".tar"
    return sorted(file for file in root.glob(path.relative_to(root).as_posix()) if file.is_file()) if is_tar else []


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read at most so many bytes of a file."""
    with path.open("rb") as file:
        return file.read(max_bytes)


def _read_at(opened: Callable[[Path], Any], shard: Path, start: int, size_bytes: int, max_bytes: int) -> Any:
    return opened(shard).read_at(min(size_bytes, max_bytes), start)


def read_member(file: Any, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """Read at most so many bytes of a stored or deflated member of a zip in one request; errors are those of Python."""
    # Deflate needs at most 5 bytes for 16 kB that it cannot shrink: a longer member is damaged, or larger than is read.
    n_bytes = min(info.compress_size, max_bytes + max_bytes // 1000 + 64)
    n_before = _ZIP_HEADER_BYTES + len(info.orig_filename.encode()) + len(info.extra) + _ZIP_EXTRA_BYTES
    block = file.read_at(n_before + n_bytes, info.header_offset)
    if block[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("there is no member where the directory has one")
    start = _ZIP_HEADER_BYTES + int.from_bytes(block[26:28], "little") + int.from_bytes(block[28:30], "little")
    data = block[start : start + n_bytes]
    if len(data) < n_bytes:
        data += file.read_at(n_bytes - len(data), info.header_offset + start + len(data))
    if info.compress_type == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max_bytes)
    if len(data) < max_bytes and (len(data), zlib.crc32(data)) != (info.file_size, info.CRC):
        raise zipfile.BadZipFile("its size or checksum is wrong")
    return bytes(data)
