"""Writes files and folders so that a killed process leaves the old one or the new one, never a half.

Of a folder the old one is renamed before the new one takes its place: a process killed in that moment leaves it whole
beside, as `.<name>.<digits>.old`.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

logger = logging.getLogger(__name__)


def cache_home() -> Path:
    """Returns the folder for what can be made or fetched again; `PRODUCT_CLASSIFICATOR_CACHE` names another."""
    chosen = os.environ.get("PRODUCT_CLASSIFICATOR_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "product_classificator"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to the disk and takes the name `path`.

    The temporary name starts with a dot and ends with `.tmp`; it is removed when the block fails.
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
    """Removes the temporary files and folders that killed processes have left in a folder, an hour ago or before."""
    replaced = (path for path in folder.glob(".*.old") if (folder / path.name[1:].rsplit(".", 2)[0]).exists())
    for path in (*folder.glob(".*.tmp"), *replaced):
        with suppress(FileNotFoundError):  # another process cleans up, too
            if path.stat().st_mtime < time.time() - 3600:
                _remove(path)


def _remove(path: Path) -> None:
    """Removes a file, link or folder, as far as it is there and that is allowed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text as `replacing` does."""
    write_bytes(path, text.encode("utf-8"))


def kept_file(name: str, write: Callable[[Path], object]) -> Path | None:
    """Returns a file of the cache folder that is written at its first use and only read after that.

    Args:
        name: names everything that the content depends on.
        write: writes the content to the path that it gets.

    Returns:
        The file; `None` if the cache folder cannot be read or written to.
    """
    try:
        path = cache_home() / "made" / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            with replacing(path) as temporary:
                write(temporary)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows the home folder
        logger.info("%s cannot be kept (%s): it is made anew at every start", name, error)
        return None
    return path


def forget(*paths: Path) -> None:
    """Removes kept files that proved to be damaged, as far as that is allowed."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to write to; it takes the place of `folder` when the block ends without an error."""
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
                _remove(old)
