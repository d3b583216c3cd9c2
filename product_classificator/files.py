"""Write files and folders atomically: a killed process leaves the old one or the new one, never a half.

A process killed while it exchanges folders leaves the old one as `.<name>.<digits>.old`.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, reduce
from pathlib import Path
from uuid import uuid4

from product_classificator.errors import ArtifactError, culprits

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 18
LEFT_BY_DESKTOPS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that file managers put into any folder; they are no reason to refuse one."""


def cache_home() -> Path:
    """Return the folder of files that can be made or fetched again; `PRODUCT_CLASSIFICATOR_CACHE` overrides it."""
    if chosen := os.environ.get("PRODUCT_CLASSIFICATOR_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "product_classificator"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is flushed to the disk and renamed to `path`.

    The temporary name starts with a dot and ends with `.tmp`; it is deleted when the block fails.
    """
    temporary = path.parent / f".{path.name}.{uuid4().hex}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that killed processes left in a folder more than an hour ago."""
    replaced = (path for path in folder.glob(".*.old") if (folder / path.name[1:].rsplit(".", 2)[0]).exists())
    for path in (*folder.glob(".*.tmp"), *replaced):
        with suppress(FileNotFoundError):  # another process is cleaning up
            if path.stat().st_mtime < time.time() - 3600:
                delete(path)


def delete(*paths: Path) -> None:
    """Delete files, links and folders, as far as they exist and that is allowed."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def read_checked_format(path: Path, number: int, way_out: str) -> bytes:
    """Return the bytes of a JSON file, whose fields the caller checks; another "format" is an `ArtifactError`."""
    content = path.read_bytes()
    found: object = None
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        found = json.loads(content)["format"]
    if isinstance(found, int) and found != number:
        raise ArtifactError(f"{path.parent} has format {found}, this version reads {number}: {way_out}")
    return content


def cached_file(name: str, make: Callable[[], bytes]) -> Path | None:
    """Return a file of the cache folder, made at its first use and again if it is damaged.

    `name` must identify all that the content depends on; its CRC-32 ends the file name. `None`: the folder is unusable.
    """
    try:
        folder = cache_home() / "made"
        for path in folder.glob(f"{name}.{'?' * 8}"):
            if path.suffix == f".{_crc32_of(path):08x}":
                return path
            delete(path)
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        content = make()
        path = folder / f"{name}.{zlib.crc32(content):08x}"
        write_bytes(path, content)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        logger.info("%s cannot be cached (%s): it is made at every start", name, error)
        return None
    return path


def _crc32_of(path: Path) -> int:
    with path.open("rb") as file:
        return reduce(lambda crc, block: zlib.crc32(block, crc), iter(partial(file.read, _BLOCK_BYTES), b""), 0)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; it replaces `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.parent / f".{folder.name}.{uuid4().hex}.old"
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        yield new
        try:
            if folder.exists():
                folder.replace(old)
            new.replace(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.replace(folder)
            raise
        finally:
            if folder.exists():
                delete(old)


def fetch_files(
    repository: str, patterns: Iterable[str], folder: Path | None = None, required: Iterable[str] = ()
) -> Path:
    """Fetch files of "user/name" or "user/name@revision" of the Hugging Face hub that are not here yet.

    They go to `folder` or the hub's cache. Raises `ArtifactError` if they are not here and cannot be fetched.
    """
    from huggingface_hub import snapshot_download  # most programs fetch nothing
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        name, _, revision = repository.partition("@")
        of_hub = snapshot_download(name, revision=revision or None, allow_patterns=list(patterns), local_dir=folder)
        fetched = Path(of_hub)
        if missing := [name for name in required if not (fetched / name).is_file()]:  # fetched in part, and offline now
            raise FileNotFoundError(f"of its files are missing: {culprits(missing)}")
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ArtifactError(
            f"{repository} is not on this machine and cannot be fetched from the hub ({reason}): "
            "name a folder that holds its files instead"
        ) from error
    return fetched
