"""Finds the files of images by what tables hold: paths, Windows paths, URLs, ids, one or several in a cell."""

import posixpath
import re
import unicodedata
from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple
from urllib.parse import unquote

from product_classificator.catalog.photo import PhotoError
from product_classificator.errors import culprits
from product_classificator.text import is_list_cell, split_labels

# If a product has several, the first is taken. HEIC is not read, but found, so that the error names it.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".jfif", ".jpe", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif"),
)
_MAX_CANDIDATES, _MAX_NAME_BYTES = 1000, 1000
_NUMBERED = re.compile(r"(.+?)(?:[_-]| ?\()\d{1,3}\)?", re.DOTALL)  # `1005_2`, `1005-02`, `1005 (2)`
_MAX_PER_FOLDER = 50  # a folder with more images is not that of one product


class ImageRef(NamedTuple):
    """An image of a product: the name of a file, the id that finds it, or the bytes that the table holds."""

    name: str
    is_id: bool = False
    data: bytes | None = None


def refs_of(cell: Any, *, names_as_bytes: bool = False) -> list[ImageRef]:
    r"""Return the images of a cell: bytes, a struct of bytes and path, or names, one or several.

    Names are a list, or joined by ";", "|", line breaks or, if all have the ending of an image, commas. With
    `names_as_bytes`, short bytes that can be printed are names: no image begins with letters alone.

    >>> [ref.name for ref in refs_of("https://cdn/1.jpg?w=9, 2.png;3")]
    ['https://cdn/1.jpg?w=9', '2.png', '3']
    >>> refs_of({"bytes": None, "path": "Dress, red.jpg"})
    [ImageRef(name='Dress, red.jpg', is_id=False, data=None)]
    """
    if isinstance(cell, dict):
        name, data = str(cell.get("path") or ""), cell.get("bytes")
        return [ImageRef(name or "(in the table)", data=data)] if data else refs_of(name)
    if isinstance(cell, bytes):
        name = cell.decode("utf-8", "replace") if names_as_bytes and len(cell) < _MAX_NAME_BYTES else ""
        is_name = name.isprintable() and name.strip() and "\ufffd" not in name
        return refs_of(name) if is_name else [ImageRef("(in the table)", data=cell)]
    if isinstance(cell, list):
        return [ref for entry in cell for ref in refs_of(entry, names_as_bytes=names_as_bytes)]
    if cell and is_list_cell(cell):
        with suppress(ValueError):
            return [ref for entry in split_labels(cell) if entry is not None for ref in refs_of(str(entry))]
    if cell and cell.startswith("data:"):  # an image as text is not read, and not torn to names
        return [ImageRef(cell[:80])]
    names: list[str] = []
    for name in re.split(r"[;|\r\n]", cell or ""):
        parts = name.split(",")
        names += parts if all(_split(part.partition("?")[0].strip())[1] >= 0 for part in parts) else [name]
    return [ImageRef(name.strip()) for name in names if name.strip()]


class ImageIndex:
    """Finds the file whose path is closest to a name.

    First the path itself, then without its first folders, so that `/data/shop/images/a/1.jpg` is found as `a/1.jpg`;
    the folder that holds all files counts for nothing. Then files of that name elsewhere, but for case, an extension of
    images, and zeros before a number: of these the one with most of the name's folders, the most similar spelling, and
    the fewest folders. Where the name's folder exists, the file must be there.
    """

    def __init__(self, entries: Iterable[tuple[str, Any]]) -> None:
        named = {path: entry for path, entry in entries if not re.search(r"(^|/)(__MACOSX/|\._[^/]*$)", path)}
        root = posixpath.commonpath({path.rpartition("/")[0] for path in named}) if named else ""
        self.paths = {path.removeprefix(root).lstrip("/"): entry for path, entry in named.items()}
        self._folders = {path.rpartition("/")[0] for path in self.paths} | {""}
        self._by_key: dict[str, list[str]] = {}
        self._numbered: dict[str, list[str]] = {}
        self._in_folder: dict[str, list[str]] = {}
        for path in self.paths:
            key = id_key(path)
            self._by_key.setdefault(key, []).append(path)
            if _split(path)[1] >= 0:
                if match := _NUMBERED.fullmatch(key):
                    self._numbered.setdefault(id_key(match[1]), []).append(path)
                if folder := path.rpartition("/")[0].rpartition("/")[2]:
                    self._in_folder.setdefault(_without_zeros(folder), []).append(path)

    def several(self, product_id: str, other_ids: Collection[str] = ()) -> list[str]:
        """Return the paths of a product with several images, by their numbers; none if it has one or no image.

        They are `<id>.jpg`, if it is there, with `<id>_1.jpg`, `<id>_2.jpg`, ..., else what the folder `<id>` holds;
        not images of other products: those named by an id in `other_ids` (as `id_key` returns them).
        """
        key = id_key(product_id)
        paths = [path for path in self._by_key.get(key, []) if _split(path)[1] >= 0]
        in_folder = self._in_folder.get(_without_zeros(product_id), [])
        if key in self._numbered:
            paths += [path for path in self._numbered[key] if id_key(path) not in other_ids]
        elif paths or len(in_folder) > _MAX_PER_FOLDER:
            paths = []
        else:  # a product with a folder of its own has its images there: `7/1.jpg` is not that of product 1
            keys = {path: id_key(path) for path in in_folder}
            paths = [path for path, other in keys.items() if other not in other_ids or other in self._in_folder]
        first = {_split(path)[0]: path for path in sorted(paths, key=lambda path: -_split(path)[1])}
        return [first[stem] for stem in sorted(first, key=_natural)]

    def find(self, name: str, *, is_id: bool) -> Any:
        """Return the entry of a name or an id; several that match are a `PhotoError`, as are none."""
        parts = parts_of(name)
        if not parts:
            raise PhotoError("missing", "the product has no id" if is_id else "the product has no photo name")
        for n_folders in range(len(parts) - 1, -1, -1):
            path = "/".join(parts[-1 - n_folders :])
            if path in self.paths:
                return self.paths[path]
            if is_id or path.rpartition("/")[0] in self._folders:
                break
        candidates = self._by_key.get(id_key(path), [])
        closeness = {path: _closeness(path, parts) for path in candidates[:_MAX_CANDIDATES]}
        closeness = {path: rank for path, rank in closeness.items() if rank[0] >= n_folders}
        closest = [path for path, rank in closeness.items() if rank == max(closeness.values())]
        if not closest:
            hint = "; URLs are not fetched (but see --photo-urls), only looked up" if "://" in name else ""
            raise PhotoError("missing", f"no photo {name!r}{hint}")
        if len(candidates) > _MAX_CANDIDATES or len({_split(path)[0] for path in closest}) > 1:
            raise PhotoError("missing", f"several photos match {name!r}: {culprits(closest)}")
        return self.paths[min(closest, key=lambda path: (_split(path)[1], path))]


def parts_of(name: str) -> list[str]:
    """Return the parts of a path, a Windows path or a URL without those that lead out of a folder."""
    name = unquote(re.split("[?#]", name)[0]) if re.match(r"(\w+:)?//", name) else name
    name = posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _split(path: str) -> tuple[str, int]:
    """Return a path without extension and the rank of that; other extensions than those of images are kept."""
    stem, dot, extension = path.rpartition(".")
    is_known = (dot + extension).lower() in EXTENSIONS
    return (stem, EXTENSIONS.index(dot + extension.lower())) if is_known else (path, -1)


def _natural(text: str) -> list[int | str]:
    """Return what sorts "a10" after "a9"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def id_key(path: str) -> str:
    """Return the name in a path without extension, case and zeros before a number: what ids and images are found by."""
    return _without_zeros(_split(path.rpartition("/")[2])[0])


def _without_zeros(name: str) -> str:
    return name.lstrip("0") or "0" if name.isdecimal() else name.casefold()


def _closeness(path: str, parts: list[str]) -> tuple[int, ...]:
    *folders, name = path.split("/")
    pairs = zip(reversed(folders), reversed(parts[:-1]), strict=False)
    n_shared = sum(1 for _ in takewhile(lambda pair: pair[0].casefold() == pair[1].casefold(), pairs))
    (stem, rank), (wanted_stem, wanted_rank) = _split(name), _split(parts[-1])
    is_alike = (stem == wanted_stem, stem.casefold() == wanted_stem.casefold(), rank == wanted_rank)
    return (n_shared, *is_alike, -len(folders))
