"""Turns a folder or a zip into the bytes of images, found by product id or file name.

- `<id>.<ext>` at the top wins; deeper files count only if exactly one has that name. Ids match exactly (in NFC), the
  case of extensions is ignored. If a product has several extensions, the first of `EXTENSIONS` is taken.
- A folder is not listed to find `<id>.<ext>` at its top. The first image that is not there has the whole tree listed
  once (200,000 files: 0.5 s, 54 MB); files added later are found only at the top.
- A zip's directory is read once and kept (200,000 entries: 2 s, 155 MB); after a fork, open the source again.
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
from typing import Generic, Self, TypeVar, get_args

from PIL import Image

from product_classificator.catalog.photo import MAX_PIXELS, Channels, PhotoError, Size, decode_image
from product_classificator.errors import DataError, culprits, nearest

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

_DRIVE = re.compile(r"[A-Za-z]:/")
_IS_WINDOWS = os.name == "nt"
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

Entry = TypeVar("Entry")


def open_images(
    path: str | Path, *, channels: Channels = "rgb", max_pixels: int = MAX_PIXELS, max_bytes: int = 100_000_000
) -> "ImageSource":
    """Open the images of a folder or a zip.

    Args:
        path: a folder, or a zip archive with any name.
        channels: "bgr" if the images were saved with red and blue swapped.
        max_pixels: images with more pixels (width times height) are too_large.
        max_bytes: larger files are too_large.

    Raises:
        DataError: there is nothing at `path`, it is neither a folder nor a zip, the zip is damaged, or an argument is
            out of range.
    """
    path = Path(path)
    if channels not in get_args(Channels):
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
    """Images by product id or file name; every method may be called from many threads at once.

    Reading and decoding raise `PhotoError`, after `close` a `DataError`. Attributes are the arguments of `open_images`.
    """

    def __init__(self, path: Path, channels: Channels, max_pixels: int, max_bytes: int) -> None:
        self.path = path.resolve()
        self.channels: Channels = channels
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self._lock = threading.Lock()

    @abstractmethod
    def read_by_id(self, product_id: str) -> bytes:
        """Read `<product_id>.<ext>`; several files that match are an error, as are none."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a file by its path inside the source; a bare file name is also looked for in sub-folders."""

    def decode(self, data: bytes, min_decode_size: Callable[[Size], Size] | None = None) -> Image.Image:
        """Decode the bytes of a file to an upright RGB image (`decode_image`) within the limits of this source."""
        self._check_size(len(data))
        return decode_image(data, channels=self.channels, max_pixels=self.max_pixels, min_decode_size=min_decode_size)

    @abstractmethod
    def close(self) -> None:
        """Close the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self.max_bytes:
            raise PhotoError("too_large", f"{size_bytes} bytes, at most {self.max_bytes} are read")
        if not size_bytes:
            raise PhotoError("empty", "the file has no bytes")

    def _check_open(self, *, is_open: bool) -> None:
        if not is_open:
            raise DataError(f"photos can be read only until close(): {self.path} is closed; open it again")


class _Index(Generic[Entry]):
    """Finds entries by path, and by stem (the file name without folder and extension)."""

    def __init__(self, entries: Iterable[tuple[str, Entry]]) -> None:
        self._by_path = {unicodedata.normalize("NFC", name): entry for name, entry in entries}
        self._by_stem: dict[str, list[str]] = {}
        for name in self._by_path:
            self._by_stem.setdefault(_stem(name), []).append(name)

    def by_id(self, product_id: str) -> Entry:
        product_id = unicodedata.normalize("NFC", product_id)
        names = [name for name in self._by_stem.get(product_id, ()) if _extension_rank(name) < len(EXTENSIONS)]
        top = sorted((name for name in names if "/" not in name), key=lambda name: (_extension_rank(name), name))
        return self._only(top[:1] or names, product_id)

    def by_name(self, name: str) -> Entry:
        name = unicodedata.normalize("NFC", name)
        if name in self._by_path:
            return self._by_path[name]
        same_stem = self._by_stem.get(_stem(name), ())
        return self._only([path for path in same_stem if path.rpartition("/")[2] == name], name)

    def _only(self, names: Sequence[str], wanted: str) -> Entry:
        if not names:
            raise PhotoError("missing", f"no photo {wanted!r}")
        if len(names) > 1:
            raise PhotoError("missing", f"several photos match {wanted!r}: {culprits(names)}")
        return self._by_path[names[0]]


class _Folder(ImageSource):
    _index: _Index[str] | None = None
    _is_open = True

    def read_by_id(self, product_id: str) -> bytes:
        _check_id(product_id)
        names = (product_id + case for extension in EXTENSIONS for case in (extension, extension.upper()))
        return self._read_file(next(filter(self._is_file, names), None) or self._listed().by_id(product_id))

    def read(self, name: str) -> bytes:
        name = _inside(name)
        return self._read_file(name if self._is_file(name) else self._listed().by_name(name))

    def close(self) -> None:
        self._is_open = False
        self._index = None

    def _is_file(self, name: str) -> bool:
        return os.path.lexists(self.path / name) and not (self.path / name).is_dir()

    def _listed(self) -> _Index[str]:
        with self._lock:
            if self._index is None:
                logger.info("listing the photos under %s", self.path)
                files = (f"{folder}/{name}" for folder, _, names in os.walk(self.path) for name in names)
                paths = (file[len(str(self.path)) + 1 :].replace(os.sep, "/") for file in files)
                self._index = _Index((path, path) for path in paths)
            return self._index

    def _read_file(self, name: str) -> bytes:
        self._check_open(is_open=self._is_open)
        path = Path(os.path.realpath(self.path / name))  # Path.resolve raises if links form a cycle
        if not path.is_relative_to(self.path):
            raise PhotoError("unsafe_name", f"{name!r} is a link that leads out of the folder")
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device would block or never end
                raise PhotoError("missing", f"{name!r} is not a file")
            self._check_size(status.st_size)
            with path.open("rb") as file:
                data = file.read(self.max_bytes + 1)
        except FileNotFoundError as error:
            raise PhotoError("missing", f"{name!r} is a broken link") from error
        except OSError as error:
            raise PhotoError("unreadable", str(error)) from error
        self._check_size(len(data))  # the size before may have been wrong
        return data


class _Zip(ImageSource):
    def __init__(self, path: Path, channels: Channels, max_pixels: int, max_bytes: int) -> None:
        super().__init__(path, channels, max_pixels, max_bytes)
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # damaged directories raise many kinds
            raise DataError(
                f"photos must be in a folder or a zip: {path} is neither, or its directory is damaged ({error}); "
                "check it with `python -m zipfile -t`"
            ) from error
        # If several entries have the same name, the last one counts, as for every unzipper.
        entries = (info for info in self._zip.NameToInfo.values() if not info.is_dir())
        self._index = _Index((_name_in_zip(info), info) for info in entries)

    def read_by_id(self, product_id: str) -> bytes:
        _check_id(product_id)
        return self._read_entry(self._index.by_id(product_id))

    def read(self, name: str) -> bytes:
        return self._read_entry(self._index.by_name(_inside(name)))

    def close(self) -> None:
        self._zip.close()

    def _read_entry(self, info: zipfile.ZipInfo) -> bytes:
        self._check_open(is_open=self._zip.fp is not None)
        if "\0" in info.orig_filename or stat.S_ISLNK(info.external_attr >> 16):
            raise PhotoError("unsafe_name", f"{info.orig_filename!r} in the zip has a NUL in its name or is a link")
        _inside(_name_in_zip(info))
        self._check_size(info.file_size)
        try:
            # ZipFile counts its open entries without a lock; reading from an open entry is safe among threads.
            with self._lock:
                entry = self._zip.open(info)
            try:
                # The size in the directory can lie: never inflate more than the limit.
                data = entry.read(self.max_bytes + 1)
            finally:
                with self._lock:
                    entry.close()
        except Exception as error:  # damaged, encrypted, or an unknown compression
            raise PhotoError("unreadable", f"{info.filename!r} in the zip: {error}") from error
        self._check_size(len(data))  # the size before may have been wrong
        return data


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """Return the name with forward slashes; without the UTF-8 flag it is read as UTF-8 or Russian Windows' cp866."""
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        raw = name.encode("cp437")  # what zipfile decoded it with
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = raw.decode("cp866")
    return name.replace("\\", "/")


def _check_id(product_id: str) -> None:
    if not product_id:
        raise PhotoError("missing", "the product has no id")
    if "/" in product_id or "\\" in product_id:
        raise PhotoError("unsafe_name", f"an id must not hold a path separator: {product_id!r}")
    _inside(product_id)


def _inside(name: str) -> str:
    """Return a path inside the source with forward slashes; a name that could lead out of it is refused."""
    if not name:
        raise PhotoError("missing", "the product has no photo name")
    name = name.replace("\\", "/")
    parts = name.split("/")
    # On other systems a colon and these words are allowed, and stock numbers use them.
    is_reserved = _IS_WINDOWS and (":" in name or any(_RESERVED.fullmatch(part) for part in parts))
    is_utf8 = name.encode("utf-8", "ignore").decode("utf-8") == name
    if not parts[0] or ".." in parts or _DRIVE.match(name) or "\0" in name or is_reserved or not is_utf8:
        raise PhotoError("unsafe_name", f"a photo's name must stay inside the folder or zip: {name!r}")
    return "/".join(part for part in parts if part not in ("", "."))


def _stem(name: str) -> str:
    base = name.rpartition("/")[2]
    return base.rpartition(".")[0] or base


def _extension_rank(name: str) -> int:
    extension = name.rpartition("/")[2].removeprefix(_stem(name)).lower()
    return EXTENSIONS.index(extension) if extension in EXTENSIONS else len(EXTENSIONS)
