"""Turns URLs (s3://, gs://, az://, hf://, file://) into paths that are listed, read and written like local ones.

A `UrlPath` holds no secret. Credentials come from the environment, as the libraries read them (AWS_*, GOOGLE_*,
AZURE_*, HF_TOKEN); those in a URL open its bucket in this process and are cut off, so that nothing can repeat them.
pyarrow opens S3, Google and disks; obstore opens Azure, where pyarrow would show an empty blob until all is written.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from product_classificator import files
from product_classificator.errors import DataError, MissingExtraError, ProductClassificatorError

_URL = re.compile(r"(?s)(?P<kind>\w[\w+.-]+):/+((?P<user>[^/@:]*(:[^@]*)?)@)?(?P<path>[^/?].*?)(\?(?P<query>\w+=.*))?")
_FILE_SYSTEMS: dict[tuple[str, ...], Any] = {}  # by scheme and bucket
_WITH_SECRETS: set[tuple[str, ...]] = set()  # those that a URL opened with credentials or an endpoint


class UrlPath(type(Path())):  # type: ignore[misc] # Python 3.11 has no other way
    """A file or folder at a URL; each method does what that of `Path` does, or works on the parts alone.

    `glob` and its like yield files only. `anchor` is the folder from which a pattern is listed.
    """

    @property
    def anchor(self) -> str:
        return str(UrlPath(*takewhile(lambda part: not re.search(r"[*?\[]", part), self.parts[:-1])))

    def __str__(self) -> str:
        return str(super().__str__()).replace("\\", "/").replace(":/", "://", 1)

    def resolve(self, strict: bool = False) -> "UrlPath":
        return self

    absolute = resolve

    def is_file(self) -> bool:
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        return bool(self._info().type.name == "Directory")

    def exists(self) -> bool:
        return bool(self._info().type.name != "NotFound")

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: a folder is there when a file is in it."""

    def open(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        with _explained(self):
            return open_input(self)

    def iterdir(self) -> Iterator["UrlPath"]:
        return self.glob("*")

    def rglob(self, pattern: str) -> Iterator["UrlPath"]:
        return self.glob(f"**/{pattern}")

    def glob(self, pattern: str) -> Iterator["UrlPath"]:
        from fsspec.utils import glob_translate
        from pyarrow import fs

        system, location = open_file_system(self)
        selector = fs.FileSelector(location, allow_not_found=True, recursive="/" in pattern or "**" in pattern)
        matches = re.compile(glob_translate(f"{escape(location)}/{pattern}")).match
        with _explained(self):
            infos = system.get_file_info(selector)
        found = (info.path.strip("/") for info in infos if info.is_file)
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
    scheme = url["kind"].lower()
    if scheme == "file":
        return Path(re.sub("^/(?=[A-Za-z]:)", "", "/" + unquote(url["path"])))
    plain = UrlPath(f"{scheme}://{url['path']}")
    if url["user"] or url["query"]:
        _FILE_SYSTEMS[plain.parts[:2]] = _connect(plain, url["user"] or "", url["query"] or "")
        _WITH_SECRETS.add(plain.parts[:2])
    return plain


def open_file_system(path: str | Path) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` of a path or URL, and the path in it; a `DataError` says what is wrong."""
    path = as_path(path)
    if not isinstance(path, UrlPath):
        from pyarrow import fs  # classifying one product must not import it

        return fs.LocalFileSystem(), str(path.absolute())
    if path.parts[:2] not in _FILE_SYSTEMS:
        _FILE_SYSTEMS[path.parts[:2]] = _connect(path)
    return _FILE_SYSTEMS[path.parts[:2]], "/".join(path.parts[1:])


def open_input(path: str | Path) -> Any:
    """Return the `pyarrow.NativeFile` of a path or URL, to be read in any order; errors are those of its kind."""
    system, location = open_file_system(path)
    return system.open_input_file(location)


def has_secrets(path: Path) -> bool:
    """Return whether only this process can open a path, since a URL had what that needs."""
    return isinstance(path, UrlPath) and path.parts[:2] in _WITH_SECRETS


def identity(name: str | Path) -> str:
    """Return a path with the size and the time of change of its file, if it is one."""
    path = as_path(name).resolve()
    system, location = open_file_system(path)
    info = system.get_file_info(location)
    return f"{path} {info.size} {info.mtime_ns}" if info.is_file else str(path)


def file_infos(folder: Path) -> list[Any]:
    """Return the `pyarrow.fs.FileInfo` of all that is in a folder; nothing if a part of it may not be read."""
    from pyarrow import fs  # as above

    system, location = open_file_system(folder)
    with suppress(OSError):
        return list(system.get_file_info(fs.FileSelector(location, allow_not_found=True, recursive=True)))
    return []


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
            return
        stream = system.open_output_stream(location)
        stream.write(data)  # in one call: an upload is completed when a stream is closed, whatever it holds
        stream.close()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a local temporary path; when the block ends without an error, its file is at `path`, whole."""
    path = as_path(path)
    local = on_disk(path)
    with files.replacing(local) as temporary:
        yield temporary
    if isinstance(path, UrlPath):
        try:
            _send_file(local, path)
        finally:
            files.delete(local.parent)


def on_disk(path: Path) -> Path:
    """Return a local path itself, or a temporary one for what will be written to a URL."""
    return Path(tempfile.mkdtemp(dir=_temporary().name), path.name) if isinstance(path, UrlPath) else path


def copied(path: Path, without: str = "//") -> Path:
    """Return a local path itself, or that of a copy of the file or folder at a URL, kept as long as this process.

    Files of a folder whose path in it begins with `without` are left out.
    """
    if not isinstance(path, UrlPath):
        return path
    from pyarrow import fs  # as above

    system, location = open_file_system(path)
    with _explained(path):
        info = system.get_file_info(location)
        infos = [info] if info.is_file else system.get_file_info(fs.FileSelector(location, True, recursive=True))
        content = repr([(info.path, info.size, info.mtime_ns) for info in infos])
        folder = Path(_temporary().name, blake2b(content.encode(), digest_size=16).hexdigest())
        if not folder.exists():
            with files.replacing_folder(folder) as new:
                for info in infos:
                    inside = info.path.strip("/")[len(location) :].lstrip("/")
                    if info.is_file and not inside.startswith(without):
                        target = new / path.name / inside
                        target.parent.mkdir(parents=True, exist_ok=True)
                        fs.copy_files(info.path, str(target), system, fs.LocalFileSystem())
    return Path(folder, path.name)


def send(folder: Path, path: Path, *, last: str) -> None:
    """Copy a local folder to a URL, at the end the file `last`, without which it is unfinished; else do nothing."""
    if not isinstance(path, UrlPath):
        return
    system, location = open_file_system(path / last)
    with _explained(path), suppress(FileNotFoundError):
        system.delete_file(location)
    for file in sorted(filter(Path.is_file, folder.rglob("[!.]*")), key=lambda file: file == folder / last):
        _send_file(file, path.joinpath(*file.relative_to(folder).parts))


def _send_file(file: Path, path: UrlPath) -> None:
    from pyarrow import fs  # as above

    system, location = open_file_system(path)
    with _explained(path):
        if hasattr(system, "handler"):
            system.handler.fs.put_file(str(file), location)
        else:
            fs.copy_files(str(file), location, fs.LocalFileSystem(), system)


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="product_classificator-")


def _connect(path: UrlPath, user: str = "", query: str = "") -> Any:
    from pyarrow import fs  # as above

    scheme, bucket = path.parts[0][:-1], path.parts[1]
    with _explained(f"{scheme}://{bucket}"):
        if scheme in ("s3", "gs"):
            query += "&allow_delayed_open=true" * (scheme == "s3")
            who = user.replace("/", "%2F") + "@" * bool(user)
            return fs.FileSystem.from_uri(f"{scheme}://{who}{bucket}/?{query.lstrip('&')}")[0]
        if user or query:
            raise DataError(f"credentials of {scheme}:// belong in the environment, not in the URL: take them out")
        from fsspec import filesystem

        if scheme in ("az", "abfs", "abfss"):
            from obstore.fsspec import register  # an extra

            register(scheme)
        handler = fs.FSSpecHandler(filesystem(scheme))
        describe, names = handler._create_file_info, ("mtime", "last_modified", "created")
        handler._create_file_info = lambda path, info: describe(
            path, {**info, "mtime": next(filter(None, map(info.get, names)), None)}
        )
        return fs.PyFileSystem(handler)


@contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ProductClassificatorError):
        raise
    except ImportError as error:
        raise MissingExtraError(f"opening {path} ({error})", "remote") from error
    except Exception as error:  # every file system has its own kinds
        rule = "URLs are s3://, gs://, az://, hf:// or file://, of what is there and may be used"
        raise DataError(f"{rule}: {path} cannot be used: {without_secrets(str(error))}") from error


def without_secrets(text: str) -> str:
    """Return a text whose URLs have neither passwords nor queries, which may be signatures."""
    return re.sub(r"(?<=://)[^/@\s]*@|(?<=\S)\?\w+=\S+", "", text)
