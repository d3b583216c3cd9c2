"""Turns a folder, zip or tars, also at a URL, or a table, into the bytes of images, found by product id or file name.

- A name is never opened as the table has it: it is looked up among the files of the source (`lookup`), so nothing
  outside is read. Links that lead out are refused unless `follow_links`.
- Where ids find images, the whole tree is listed once (200,000 files: 1.5 s), as a product may have several; names have
  it listed when the first is not where its path says. Files added later are found only at their path, or the top.
- A zip's directory is read once and kept (200,000 entries: 3 s), and each image by a range: so also on an object store.
"""

import logging
import os
import stat
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from product_classificator.catalog.lookup import EXTENSIONS, ImageIndex, parts_of
from product_classificator.catalog.photo import MAX_PIXELS, Channels, PhotoError, Size, decode_image
from product_classificator.errors import DataError, MissingExtraError, nearest
from product_classificator.remote.archives import files_of, read_file, read_member, shards_of
from product_classificator.remote.paths import UrlPath, as_path, file_infos, identity, open_input

logger = logging.getLogger(__name__)

_IS_WINDOWS = os.name == "nt"
_ENCRYPTED, _UTF8 = 0x1, 0x800
_REMOTE_READERS = 32  # most of the time they wait
_CODE_PAGES = ("big5", "cp949", "cp932", "gbk", "cp1252", "cp437", "cp1251", "cp866", "utf-8")  # the last one wins


def open_images(
    path: str | Path | None,
    *,
    channels: Channels = "rgb",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = 100_000_000,
    follow_links: bool = False,
    allow_truncated: bool = False,
) -> "ImageSource":
    """Open the images of a folder, a zip, or a table.

    Args:
        path: a folder, a zip with any name, tars (`shards/*.tar`), or a URL; `None` for images that are in the table.
        channels: "bgr" if the images were saved with red and blue swapped.
        max_pixels: images with more pixels (width times height) are too_large.
        max_bytes: larger files are too_large.
        follow_links: whether links may lead out of the folder, as in a cache of Hugging Face or DVC.
        allow_truncated: whether JPEGs that end too early are used as far as they go.

    Raises:
        DataError: `path` is neither a folder nor a sound zip without a password, or an argument is out of range.
    """
    if channels not in get_args(Channels):
        raise DataError(f"channels must be 'rgb' or 'bgr', got {channels!r}")
    if max_pixels < 1 or max_bytes < 1:
        raise DataError(f"max_pixels and max_bytes must be positive, got {max_pixels} and {max_bytes}")
    if path is None:
        return ImageSource(None, channels, max_pixels, max_bytes, follow_links, allow_truncated)
    path, kind = as_path(path), _kind_of(as_path(path))
    if kind:
        return kind(path.resolve(), channels, max_pixels, max_bytes, follow_links, allow_truncated)
    if isinstance(path, UrlPath):
        raise DataError(f"photos must be in a folder, a zip or tars: there is no {path}")
    if path.exists():
        raise DataError(f"photos must be in a folder or a zip: {path} is neither")
    siblings = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
    hint = nearest(path.name, siblings) if siblings else "its folder is empty or missing too"
    raise DataError(f"photos must be in a folder or a zip: there is no {path}; {hint}")


@dataclass(eq=False)
class ImageSource(AbstractContextManager["ImageSource"]):
    """Images by product id or file name, or in a table; safe to use from many threads. Attributes as in `open_images`.

    Finding, reading and decoding raise `PhotoError`, after `close` a `DataError`.
    """

    path: Path | None
    channels: Channels
    max_pixels: int
    max_bytes: int
    follow_links: bool
    allow_truncated: bool

    readers = 1  # threads that should read at once

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._index: ImageIndex | None = None
        self._is_closed = False

    def read(self, name: str, *, is_id: bool = False, data: bytes | None = None) -> bytes:
        """Read the file whose path is closest to `name`, or `<name>.<ext>`, unless the table has its bytes (`data`).

        Several files that match are an error, as are none.
        """
        if self._is_closed:
            raise DataError(f"photos can be read only until close(): {self.path} is closed; open it again")
        data = self._read(self.locate(name, is_id=is_id)) if data is None else data
        self._check_size(len(data))  # the size in a directory can be wrong
        return data

    def locate(self, name: str, *, is_id: bool = False) -> Any:
        """Find the file of a name or an id without reading it."""
        return self._listed().find(name, is_id=is_id)

    def several(self, product_id: str, other_ids: Collection[str] = ()) -> list[str]:
        """Return the names of a product's images, in order, if it has several, as `ImageIndex.several` finds them."""
        return self._listed().several(product_id, other_ids)

    def identity(self, *, ids: bool) -> list[str]:
        """Return what changes with zip and tars, and with a folder if `ids` find the images: it is listed anyway."""
        files = self.path and (shards_of(self.path) or ([] if self.path.is_dir() else [self.path]))
        if files or not self.path:
            return [*map(identity, files or ())]
        total = 0  # in whatever order they are listed
        for info in file_infos(self.path) if ids else ():
            if info.path.lower().endswith(EXTENSIONS):
                file = f"{info.path} {info.size} {info.mtime_ns}"
                total += int.from_bytes(blake2b(file.encode(), digest_size=16).digest(), "big")
        return [str(self.path), f"{total % 2**128:x}"]

    def names(self) -> list[str]:
        """Return the names of all files."""
        return [*self._listed().paths]

    def nearest(self, name: str) -> str:
        """Return words about the file whose path, of the first 10,000, is most similar to a missing name."""
        paths = list(islice(self._listed().paths, 10_000))
        return f"the most similar name is {get_close_matches(name, paths, 1, 0.0)[0]!r}" if paths else "it has no files"

    def decode(self, data: bytes, min_decode_size: Callable[[Size], Size] | None = None) -> Image.Image:
        """Decode the bytes of a file to an upright RGB image (`decode_image`) within the limits of this source."""
        self._check_size(len(data))
        limits: dict[str, Any] = {"max_pixels": self.max_pixels, "min_decode_size": min_decode_size}
        return decode_image(data, channels=self.channels, allow_truncated=self.allow_truncated, **limits)

    def close(self) -> None:
        """Close the files."""
        self._is_closed = True

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, location: Any) -> bytes:
        raise PhotoError("missing", f"{location!r} is not in the table")

    def _entries(self) -> Iterable[tuple[str, Any]]:
        return ()

    def _listed(self) -> ImageIndex:
        with self._lock:
            if self._index is None:
                logger.info("listing the photos of %s", self.path)
                self._index = ImageIndex(self._entries())
            return self._index

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self.max_bytes:
            raise PhotoError("too_large", f"{size_bytes} bytes, at most {self.max_bytes} are read")
        if not size_bytes:
            raise PhotoError("empty", "the file has no bytes")


class _Folder(ImageSource):
    path: Path

    def _find_directly(self, name: str, *, is_id: bool) -> str | None:
        path = "/".join(parts_of(name))
        paths = [path + extension for extension in EXTENSIONS] if is_id else [path]
        # Windows takes some names for devices: there, only what a listing shows is opened.
        return None if _IS_WINDOWS or not path else next(filter(self._is_file, paths), None)

    def locate(self, name: str, *, is_id: bool = False) -> Path:
        file_name = self._find_directly(name, is_id=is_id) or self._listed().find(name, is_id=is_id)
        location = Path(os.path.realpath(self.path / file_name))  # Path.resolve raises if links form a cycle
        if self.follow_links or location.is_relative_to(self.path):
            return location
        message = f"{file_name!r} is a link that leads out of the folder: allow it (--follow-links)"
        raise PhotoError("unsafe_name", message)

    def _is_file(self, path: str) -> bool:
        return os.path.lexists(self.path / path) and not (self.path / path).is_dir()

    def _entries(self) -> Iterator[tuple[str, str]]:
        visited = set()
        for folder, folders, names in os.walk(self.path, followlinks=self.follow_links):
            if self.follow_links:  # they may form a cycle
                visited.add(os.path.realpath(folder))
                folders[:] = [name for name in folders if os.path.realpath(Path(folder, name)) not in visited]
            for name in names:
                path = f"{folder}/{name}"[len(str(self.path)) + 1 :].replace(os.sep, "/")
                yield unicodedata.normalize("NFC", path), path

    def _read(self, location: Path) -> bytes:
        try:
            status = location.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device would block or never end
                raise PhotoError("missing", f"{location.name!r} is not a file")
            self._check_size(status.st_size)
            with location.open("rb") as file:
                return file.read(self.max_bytes + 1)
        except FileNotFoundError as error:
            raise PhotoError("missing", f"{location.name!r} is a broken link") from error
        except OSError as error:
            raise PhotoError("unreadable", str(error)) from error


class _Listed(ImageSource):
    """A folder at a URL, or tar shards."""

    path: Path
    readers = _REMOTE_READERS

    def read(self, name: str, *, is_id: bool = False, data: bytes | None = None) -> bytes:
        """Read a file as the others do; that of a name at its path, so that a large folder need not be listed."""
        if data is None and not is_id and self._index is None and self.path.suffix != ".tar" and parts_of(name):
            with suppress(PhotoError):
                data = self._read(partial(read_file, self.path.joinpath(*parts_of(name))))
        return super().read(name, is_id=is_id, data=data)

    def _entries(self) -> Iterator[tuple[str, Any]]:
        yield from (("/".join(parts_of(name)), read) for name, read in files_of(self.path))

    def _read(self, location: Callable[[int], bytes]) -> bytes:
        try:
            return location(self.max_bytes + 1)
        except FileNotFoundError as error:
            raise PhotoError("missing", str(error)) from error
        except Exception as error:  # every file system has its own kinds
            raise PhotoError("unreadable", str(error)) from error


class _Zip(ImageSource):
    path: Path

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self._file = open_input(self.path)
            self._zip, self.readers = zipfile.ZipFile(self._file), _REMOTE_READERS * isinstance(self.path, UrlPath)
        except Exception as error:  # damaged directories raise many kinds
            hint = f"is neither, or its directory is damaged ({error}): unpack it with another program, name the folder"
            raise DataError(f"photos must be in a folder or a zip: {self.path} {hint}") from error
        self._infos = [info for info in self._zip.infolist() if not info.is_dir()]
        if self._infos and all(info.flag_bits & _ENCRYPTED for info in self._infos):
            self.close()
            raise DataError(f"photos must be readable without a password: {self.path} is encrypted, unpack it first")

    def locate(self, name: str, *, is_id: bool = False) -> zipfile.ZipInfo:
        info: zipfile.ZipInfo = super().locate(name, is_id=is_id)
        if info.flag_bits & _ENCRYPTED:
            raise PhotoError("encrypted", f"{info.filename!r} in the zip is encrypted: unpack it with its password")
        return info

    def close(self) -> None:
        super().close()
        self._file.close()

    def _entries(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        """Yield entries by name, those of unknown encoding in every code page; of equal names the last one counts.

        It is that of the page that reads more of all such names as letters, or comes later in the zip.
        """
        names = {info.orig_filename.encode("cp437"): info for info in self._infos if _name_in_zip(info) is None}

        def share_of_letters(code_page: str) -> float:
            signs = [sign for sign in b"/".join(names).decode(code_page, "replace") if not sign.isascii()]
            return sum(map(str.isalpha, signs)) / max(len(signs), 1)

        for code_page in sorted(_CODE_PAGES, key=share_of_letters) if names else ():
            yield from (("/".join(parts_of(name.decode(code_page, "replace"))), info) for name, info in names.items())
        yield from (
            ("/".join(parts_of(name)), info) for info in self._infos if (name := _name_in_zip(info)) is not None
        )

    def _read(self, location: zipfile.ZipInfo) -> bytes:
        self._check_size(location.file_size)
        if location.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # The size can lie, and Python inflates blocks of the other methods whole: 1.7 kB of bzip2 to 4 GB.
            message = "in the zip is neither stored nor deflated: pack it anew"
            raise PhotoError("unreadable", f"{location.filename!r} {message}")
        try:
            return read_member(self._file, location, self.max_bytes + 1)
        except Exception as error:  # damaged
            raise PhotoError("unreadable", f"{location.filename!r} in the zip: {error}") from error


class UrlImages(ImageSource):
    """Images at https URLs that the table holds, fetched as `remote.photo_urls` does when they are read."""

    readers = _REMOTE_READERS

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            from product_classificator.remote.photo_urls import PhotoCache  # an extra
        except ImportError as error:
            raise MissingExtraError("fetching photos by URL", "remote") from error
        self._photos = PhotoCache(self.max_bytes)

    def locate(self, name: str, *, is_id: bool = False) -> str:
        """Return the URL: whether there is an image shows when it is read."""
        return name or str(super().locate(name))  # which has none

    def _read(self, location: str) -> bytes:
        return self._photos.fetch(location)


def _kind_of(path: Path) -> type[ImageSource] | None:
    if shards_of(path):
        return _Listed
    if path.is_dir():
        return _Listed if isinstance(path, UrlPath) else _Folder
    return _Zip if path.is_file() else None


def _name_in_zip(info: zipfile.ZipInfo) -> str | None:
    """Return the name of an entry, from its Unicode Path field if it has one; `None` if its encoding is unknown."""
    name, extra = info.orig_filename, info.extra  # Python 3.12 puts that field into `filename`
    if info.flag_bits & _UTF8:
        return name
    while len(extra) >= 9:
        end = 4 + int.from_bytes(extra[2:4], "little")
        if extra[:2] == b"up" and extra[5:9] == zlib.crc32(name.encode("cp437")).to_bytes(4, "little"):
            with suppress(UnicodeDecodeError):  # Python 3.11 opens archives with damaged fields
                return extra[9:end].decode() or None
        extra = extra[end:]
    return name if name.isascii() else None
