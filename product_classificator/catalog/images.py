"""Turns a folder or a zip of photos into bytes by product id or file name, and bytes into checked RGB images.

Decisions and their cost:
- `<id>.<ext>` at the top wins; deeper files count only if exactly one has that name. Ids match exactly (letters
  composed, as in NFC), extensions in any case. Of several extensions at the top the first of `EXTENSIONS` is taken.
- A folder is not listed to find `<id>.<ext>` at its top: a hit costs a few look-ups. The first photo not found so has
  the whole tree listed once (200,000 files: 0.5 s, 54 MB); files added later are found only at the top.
- A zip's directory is read once, when it is opened, and kept (200,000 entries: 2 s, 155 MB). Threads share one handle:
  opening an entry takes a lock for microseconds, inflating runs outside it. After a fork, open the source anew.
- Nothing outside the source is ever read: names that climb, absolute names, and links that lead out are refused.
"""

import logging
import os
import re
import stat
import threading
import unicodedata
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from product_classificator.catalog.photo import MAX_PIXELS, Channels, ImageError, ImageReason, Size, decode_image
from product_classificator.errors import DataError, culprits, nearest

__all__ = ["EXTENSIONS", "ImageError", "ImageReason", "ImageSource", "open_images"]

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

_DRIVE = re.compile(r"[A-Za-z]:/")
_IS_WINDOWS = os.name == "nt"
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_UTF8_FLAG = 0x800

Entry = TypeVar("Entry")


def open_images(
    path: str | Path, *, channels: Channels = "rgb", max_pixels: int = MAX_PIXELS, max_bytes: int = 100_000_000
) -> "ImageSource":
    """Opens the photos of a folder or a zip, by what is there.

    Args:
        path: a folder, or a zip archive whatever its name.
        channels: "bgr" if the photos were saved with red and blue swapped.
        max_pixels: photos of more pixels (width times height) are too_large.
        max_bytes: files of more bytes are too_large.

    Raises:
        DataError: there is nothing at `path`, it is neither folder nor zip, the zip is damaged,
            or an argument is wrong.
    """
    path = Path(path)
    if channels not in ("rgb", "bgr"):
        raise DataError(f"channels must be 'rgb' or 'bgr', got {channels!r}")
    if max_pixels < 1 or max_bytes < 1:
        raise DataError(f"max_pixels and max_bytes must be positive, got {max_pixels} and {max_bytes}")
    if path.is_dir():
        return _Folder(path, channels, max_pixels, max_bytes)
    if path.is_file():
        return _Zip(path, channels, max_pixels, max_bytes)
    if path.exists():
        raise DataError(f"photos must be in a folder or a zip: {path} is neither")
    siblings = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
    hint = nearest(path.name, siblings) if siblings else "its folder is empty or missing too"
    raise DataError(f"photos must be in a folder or a zip: there is no {path}; {hint}")


class ImageSource(ABC):
    """Photos by product id or file name; every method may be called from many threads at once.

    Attributes:
        path: the folder or zip.
        channels: "bgr" if the photos' red and blue are swapped; `decode` swaps them back.
        max_pixels: the largest width times height that `decode` accepts.
        max_bytes: the largest file that is read.
    """

    def __init__(self, path: Path, channels: Channels, max_pixels: int, max_bytes: int) -> None:
        self.path = path.resolve()
        self.channels: Channels = channels
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes

    @abstractmethod
    def read_by_id(self, product_id: str) -> bytes:
        """Reads `<product_id>.<ext>`.

        Raises:
            ImageError: missing (also if several files fit), empty, unreadable, too_large or unsafe_name.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Reads a file by its path inside the source; a bare file name is also looked for in sub-folders.

        Raises:
            ImageError: missing (also if several files fit), empty, unreadable, too_large or unsafe_name.
        """

    def decode(self, data: bytes, min_decode_size: Callable[[Size], Size] | None = None) -> Image.Image:
        """Decodes a photo to an upright RGB image: transparency on white, the first frame, 16 bits scaled to 8.

        Args:
            data: the bytes of its file.
            min_decode_size: answers for the size of a photo the size that it must have at least; `None`: its own.

        Raises:
            ImageError: empty, truncated, unreadable or too_large.
        """
        self._check_size(len(data))
        return decode_image(data, channels=self.channels, max_pixels=self.max_pixels, min_decode_size=min_decode_size)

    @abstractmethod
    def close(self) -> None:
        """Closes the files; reading after that is a DataError."""

    def __enter__(self) -> "ImageSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self.max_bytes:
            raise ImageError("too_large", f"{size_bytes} bytes, at most {self.max_bytes} are read")

    def _checked(self, data: bytes) -> bytes:
        self._check_size(len(data))
        if not data:
            raise ImageError("empty", "the file has no bytes")
        return data


class _Index(Generic[Entry]):
    """Finds entries by path, and by stem (the file name without folder and extension)."""

    def __init__(self, entries: Iterable[tuple[str, Entry]]) -> None:
        self._by_path = dict(entries)
        self._by_stem: dict[str, list[str]] = {}
        for name in self._by_path:
            self._by_stem.setdefault(_stem_and_extension(name)[0], []).append(name)

    def by_id(self, product_id: str) -> Entry:
        found = [name for name in self._by_stem.get(_composed(product_id), ()) if _rank(name) < len(EXTENSIONS)]
        top = sorted((name for name in found if "/" not in name), key=lambda name: (_rank(name), name))
        return self._only(top[:1] or found, product_id)

    def by_name(self, name: str) -> Entry:
        name = _composed(name)
        if name in self._by_path:
            return self._by_path[name]
        same_stem = self._by_stem.get(_stem_and_extension(name)[0], ())
        return self._only([found for found in same_stem if _basename(found) == name], name)

    def _only(self, found: Sequence[str], wanted: str) -> Entry:
        if not found:
            raise ImageError("missing", f"no photo {wanted!r}")
        if len(found) > 1:
            raise ImageError("missing", f"several photos fit {wanted!r}: {culprits(found)}")
        return self._by_path[found[0]]


class _Folder(ImageSource):
    def __init__(self, path: Path, channels: Channels, max_pixels: int, max_bytes: int) -> None:
        super().__init__(path, channels, max_pixels, max_bytes)
        self._lock = threading.Lock()
        self._listed: _Index[str] | None = None
        self._is_closed = False

    def read_by_id(self, product_id: str) -> bytes:
        _check_id(product_id)
        for extension in EXTENSIONS:
            for name in (product_id + extension, product_id + extension.upper()):
                if self._has(name):
                    return self._read_file(name)
        return self._read_file(self._index().by_id(product_id))

    def read(self, name: str) -> bytes:
        name = _inside(name)
        if self._has(name):
            return self._read_file(name)
        return self._read_file(self._index().by_name(name))

    def close(self) -> None:
        self._is_closed = True
        self._listed = None

    def _has(self, name: str) -> bool:
        return os.path.lexists(self.path / name) and not (self.path / name).is_dir()

    def _index(self) -> _Index[str]:
        with self._lock:
            if self._listed is None:
                logger.info("listing the photos under %s", self.path)
                self._listed = _Index(self._files())
            return self._listed

    def _files(self) -> Iterable[tuple[str, str]]:
        for folder, _, names in os.walk(self.path):
            below = Path(folder).relative_to(self.path).as_posix()
            for name in names:
                path = name if below == "." else f"{below}/{name}"
                yield _composed(path), path

    def _read_file(self, name: str) -> bytes:
        if self._is_closed:
            raise DataError(f"photos can be read only until close(): {self.path} is closed; open it again")
        path = Path(os.path.realpath(self.path / name))  # Path.resolve raises where links go in circles
        if not path.is_relative_to(self.path):
            raise ImageError("unsafe_name", f"{name!r} is a link that leads out of the folder")
        try:
            status = path.stat()
            # A pipe or a device would block or never end.
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("missing", f"{name!r} is not a file")
            self._check_size(status.st_size)
            with path.open("rb") as file:
                data = file.read(self.max_bytes + 1)
        except FileNotFoundError as error:
            raise ImageError("missing", f"{name!r} leads nowhere") from error
        except OSError as error:
            raise ImageError("unreadable", str(error)) from error
        return self._checked(data)


class _Zip(ImageSource):
    def __init__(self, path: Path, channels: Channels, max_pixels: int, max_bytes: int) -> None:
        super().__init__(path, channels, max_pixels, max_bytes)
        # ZipFile counts its open entries without a lock; reading from an open entry is safe among threads.
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # damaged directories let out many kinds
            raise DataError(
                f"photos must be in a folder or a zip: {path} is neither, or its directory is damaged ({error}); "
                "check it with `python -m zipfile -t`"
            ) from error
        # Of several entries of one name the last counts, as for every unzipper.
        entries = (info for info in self._zip.NameToInfo.values() if not info.is_dir())
        self._index = _Index((_composed(_name_in_zip(info)), info) for info in entries)

    def read_by_id(self, product_id: str) -> bytes:
        _check_id(product_id)
        return self._read_entry(self._index.by_id(product_id))

    def read(self, name: str) -> bytes:
        return self._read_entry(self._index.by_name(_inside(name)))

    def close(self) -> None:
        self._zip.close()

    def _read_entry(self, info: zipfile.ZipInfo) -> bytes:
        if self._zip.fp is None:
            raise DataError(f"photos can be read only until close(): {self.path} is closed; open it again")
        _check_entry(info)
        self._check_size(info.file_size)
        try:
            with self._lock:
                entry = self._zip.open(info)
            try:
                # The size in the directory can lie: never inflate more than the limit.
                data = entry.read(self.max_bytes + 1)
            finally:
                with self._lock:
                    entry.close()
        except Exception as error:  # damaged, encrypted, or packed by an unknown method
            raise ImageError("unreadable", f"{info.filename!r} in the zip: {error}") from error
        return self._checked(data)


def _check_entry(info: zipfile.ZipInfo) -> None:
    if "\0" in info.orig_filename or stat.S_ISLNK(info.external_attr >> 16):
        raise ImageError("unsafe_name", f"{info.orig_filename!r} in the zip has a NUL in its name or is a link")
    _inside(_name_in_zip(info))


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """Returns the name with forward slashes; without the UTF-8 flag it is UTF-8 nevertheless, or Windows' Russian."""
    name = info.filename
    if not info.flag_bits & _UTF8_FLAG and not name.isascii():
        raw = name.encode("cp437")  # what zipfile decoded it with
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = raw.decode("cp866")
    return name.replace("\\", "/")


def _check_id(product_id: str) -> None:
    if not product_id:
        raise ImageError("missing", "the product has no id")
    if "/" in product_id or "\\" in product_id:
        raise ImageError("unsafe_name", f"an id must not hold a path separator: {product_id!r}")
    _inside(product_id)


def _inside(name: str) -> str:
    """Returns a path inside the source with forward slashes; refuses whatever could lead elsewhere."""
    if not name:
        raise ImageError("missing", "the product has no photo name")
    name = name.replace("\\", "/")
    parts = name.split("/")
    # Elsewhere a colon and these words are names like any other, and stock numbers use them.
    is_reserved = _IS_WINDOWS and (":" in name or any(_RESERVED.fullmatch(part) for part in parts))
    is_utf8 = name.encode("utf-8", "ignore").decode("utf-8") == name
    if not parts[0] or ".." in parts or _DRIVE.match(name) or "\0" in name or is_reserved or not is_utf8:
        raise ImageError("unsafe_name", f"a photo's name must stay inside the folder or zip: {name!r}")
    return "/".join(part for part in parts if part not in ("", "."))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _basename(name: str) -> str:
    return name.rpartition("/")[2]


def _stem_and_extension(name: str) -> tuple[str, str]:
    stem, dot, extension = _basename(name).rpartition(".")
    return (stem, dot + extension) if stem else (_basename(name), "")


def _rank(name: str) -> int:
    extension = _stem_and_extension(name)[1].lower()
    return EXTENSIONS.index(extension) if extension in EXTENSIONS else len(EXTENSIONS)
