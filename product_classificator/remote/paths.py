"""Turns URLs (s3://, gs://, az://, hf://, file://) into paths that are listed, read and written like local ones.

A `UrlPath` holds no secret. Credentials come from the environment, as the libraries read them (AWS_*, GOOGLE_*,
AZURE_*, HF_TOKEN); those in a URL open its bucket in this process and are cut off, so that nothing can repeat them.
pyarrow opens S3, Google and disks; obstore opens Azure, where pyarrow would show an empty blob until all is written.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO, Any
from urllib.request import url2pathname

from product_classificator import files
from product_classificator.errors import DataError, MissingExtraError, ProductClassificatorError

_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]+):/{1,2}((?P<user>[^/@]*)@)?(?P<path>.*?)(\?(?P<query>\w+=.*))?", re.DOTALL | re.I
)
_OF_ARROW, _OF_AZURE = ("s3", "gs"), ("az", "abfs", "abfss")
_MAGIC = re.compile(r"[*?\[]")
_FILE_SYSTEMS: dict[tuple[str, str], Any] = {}  # by scheme and bucket


class UrlPath(type(Path())):  # type: ignore[misc] # Python 3.11 has no other way
    """A file or folder at a URL; what is not overridden works on its parts alone, as that of `PurePath`."""

    def __str__(self) -> str:
        return super().__str__().replace("\\", "/").replace(":/", "://", 1)

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Return whether there are files in it."""
        return bool(self._info().type.name == "Directory")

    def exists(self) -> bool:
        """Return whether there is a file, or there are files in it."""
        return bool(self._info().type.name != "NotFound")

    def resolve(self, strict: bool = False) -> "UrlPath":
        """Return the path itself."""
        return self

    def absolute(self) -> "UrlPath":
        """Return the path itself."""
        return self

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Open the file to be read; each read is a request for a range, of which several may go on at once."""
        system, location = open_file_system(self)
        with _explained(self):
            file: IO[bytes] = system.open_input_file(location)
        return file

    def read_bytes(self) -> bytes:
        """Return the whole file."""
        with _explained(self), self.open() as file:
            return file.read()

    def iterdir(self) -> Iterator["UrlPath"]:
        """Yield the files and folders in it."""
        return self.glob("*")

    def rglob(self, pattern: str) -> Iterator["UrlPath"]:
        """Yield the files and folders in it and its folders that match a pattern."""
        return self.glob(f"**/{pattern}")

    def glob(self, pattern: str) -> Iterator["UrlPath"]:
        """Yield the files and folders that match a pattern; of a folder that does not exist, none."""
        from fsspec.utils import glob_translate
        from pyarrow import fs

        system, location = open_file_system(self)
        selector = fs.FileSelector(location, allow_not_found=True, recursive="/" in pattern or "**" in pattern)
        matches = re.compile(glob_translate(f"{escape(location)}/{pattern}")).match
        with _explained(self):
            infos = system.get_file_info(selector)
        found = (info.path.strip("/") for info in infos)
        return (UrlPath(self.parts[0], path) for path in found if matches(path))

    def _info(self) -> Any:
        system, location = open_file_system(self)
        with _explained(self):
            return system.get_file_info(location)


def as_path(path: str | Path) -> Path:
    """Return the path of a URL, also of one that a `Path` was made of (one slash), or of a plain path."""
    url = None if isinstance(path, UrlPath) else _URL.fullmatch(str(path))
    if not url:
        return path if isinstance(path, Path) else Path(path)
    scheme = url["scheme"].lower()
    if scheme in ("file", "local"):
        return Path(url2pathname("/" + url["path"].lstrip("/")))
    found = UrlPath(f"{scheme}://{url['path']}")
    if url["user"] or url["query"]:
        _FILE_SYSTEMS[_key(found)] = _connect(*_key(found), url["user"] or "", url["query"] or "")
    return found


def open_file_system(path: str | Path) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` of a path or URL, and the path in it.

    Raises:
        DataError: the scheme of the URL is unknown, or its credentials cannot be used.
        MissingExtraError: it needs a package that is not installed.
    """
    path = as_path(path)
    if not isinstance(path, UrlPath):
        from pyarrow import fs  # classifying one product must not import it

        return fs.LocalFileSystem(), str(path.absolute())
    key = _key(path)
    if key not in _FILE_SYSTEMS:
        _FILE_SYSTEMS[key] = _connect(*key)
    return _FILE_SYSTEMS[key], "/".join(path.parts[1:])


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: renamed at the end on a disk, one PUT or a completed upload elsewhere."""
    path = as_path(path)
    if not isinstance(path, UrlPath):
        files.write_bytes(path, data)
        return
    system, location = open_file_system(path)
    with _explained(path):
        if hasattr(system, "handler"):  # of fsspec
            system.handler.fs.pipe_file(location, data)
        else:
            stream = system.open_output_stream(location)
            stream.write(data)  # in one call: an upload is completed when a stream is closed, whatever it holds
            stream.close()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a local temporary path; when the block ends without an error, its file is at `path`, whole."""
    path = as_path(path)
    if not isinstance(path, UrlPath):
        with files.replacing(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, path.name)
        write_bytes(path, Path(folder, path.name).read_bytes())


def _key(path: UrlPath) -> tuple[str, str]:
    scheme, *rest = path.parts
    if not rest:
        raise DataError(f"a URL names a bucket and what is in it, like s3://shop/products.parquet: got {path}")
    return scheme[:-1], rest[0]


def _connect(scheme: str, bucket: str, user: str = "", query: str = "") -> Any:
    from pyarrow import fs  # as above

    try:
        if scheme in _OF_ARROW:
            query = "&".join(filter(None, (query, "allow_delayed_open=true" * (scheme == "s3"))))
            return fs.FileSystem.from_uri(f"{scheme}://{user}{'@' * bool(user)}{bucket}/?{query}")[0]
        if user or query:
            raise DataError(f"credentials for {scheme}:// belong in the environment, not in the URL: take them out")
        if scheme in _OF_AZURE:
            from obstore.fsspec import FsspecStore  # an extra

            return fs.PyFileSystem(fs.FSSpecHandler(FsspecStore(scheme)))
        import fsspec

        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except ImportError as error:
        raise MissingExtraError(f"opening {scheme}:// ({error})", "remote") from error
    except (ValueError, OSError) as error:
        known = "s3, gs, az, hf and file"
        raise DataError(f"URLs are those of {known}: {scheme}://{bucket} cannot be opened: {_shown(error)}") from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ProductClassificatorError):
        raise
    except Exception as error:  # every file system has its own kinds
        hint = "check its name, the network and the credentials, then run again"
        raise DataError(f"{path} cannot be used: {_shown(error)}: {hint}") from error


def _shown(error: Exception) -> str:
    return re.sub(r"\?\S+", "?...", str(error))  # signed URLs
