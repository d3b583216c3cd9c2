"""Opens a table file or a DataFrame as a `Table`: a stream of record batches whose columns are all strings.

Only the requested columns are read, a batch at a time; CSV and JSON lines are parsed again on every pass.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds

from product_classificator.catalog.cells import LISTS, StoredTable, Table, flat
from product_classificator.catalog.columns import unique_names
from product_classificator.catalog.delimited import CsvTable, TextFile, header_row
from product_classificator.errors import DataError, MissingExtraError, culprits
from product_classificator.remote.paths import as_path, copied, open_file_system

logger = logging.getLogger(__name__)

_FORMATS = {"parquet": "parquet", "pq": "parquet", "feather": "feather", "arrow": "feather"}
_FORMATS |= dict.fromkeys(("csv", "tsv"), "csv") | dict.fromkeys(("jsonl", "ndjson", "json"), "json")
_FORMATS |= dict.fromkeys(("xlsx", "xlsm"), "excel") | {"txt": "text"}
"""Ending -> format; of a folder that holds several formats, the first one is read."""
_HEADER_ROWS, _HIVE_NULL = 200, "__HIVE_DEFAULT_PARTITION__"
_COMPRESSED = ("gz", "gzip", "zst", "bz2", "snappy")
_NO_TEXTS = {
    b"PAR1": "a parquet file",
    b"PK\3\4": "a workbook or a zip",
    b"\xd0\xcf\x11\xe0": "a workbook of old Excel",
}


@runtime_checkable
class ArrowTable(Protocol):
    """What hands its columns over as Arrow memory: a pyarrow Table, a pandas or polars DataFrame, ..."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Return a PyCapsule of an Arrow stream."""


@runtime_checkable
class HuggingFaceDataset(Protocol):
    """A `datasets.Dataset`."""

    features: Any

    def with_format(self, type: str) -> Any:  # noqa: A002 - its name there
        """Return the rows as Arrow tables."""


TableSource: TypeAlias = str | Path | Sequence[str | Path] | ArrowTable | HuggingFaceDataset | Table


def open_table(source: TableSource, *, encoding: str | None = None) -> Table:
    """Open a file, or several as one table; a pandas or polars DataFrame, a `datasets.Dataset`, or Arrow memory.

    Args:
        source: parquet, feather, CSV or other separated text, JSON lines, a JSON array, or a workbook of Excel; text
            may be compressed. Several files: a list, a pattern like `parts/*.csv`, or a folder, also one that
            `Dataset.save_to_disk` wrote; folders like `kind=Mug` are columns. All of them may be URLs.
        encoding: of text; `None`: found from the whole file.

    Raises:
        DataError: there is no such file, its format is unknown, or it cannot be read as what its name says.
    """
    if isinstance(source, Table):
        return source
    if hasattr(source, "iloc"):  # pandas, which is not imported here, holds what Arrow refuses
        return _FrameTable(source)
    if isinstance(source, HuggingFaceDataset):
        source = source.with_format("arrow")[:]
    if isinstance(source, ArrowTable):
        return StoredTable("Arrow table", ds.dataset(pa.table(source)))
    paths = [source] if isinstance(source, str | Path) else source
    if not isinstance(paths, list | tuple) or not paths or not all(isinstance(path, str | Path) for path in paths):
        raise DataError(f"a table must be a file, a DataFrame or an Arrow table, got {type(source).__name__}")
    places = [*map(as_path, paths)]
    files = [file for path in places for file in _files(path)]
    parts = [_open_file(file, encoding) for file in files]
    name = culprits(places) if len(places) > 1 else str(places[0])
    table = parts[0] if files == places[:1] else _JoinedTable(name, parts)
    table.sources = places
    return table


def _open_file(path: Path, encoding: str | None) -> Table:
    kind = _format(path)
    with path.open("rb") as file:
        content = _NO_TEXTS.get(file.read(4))
    if content and kind in ("csv", "text", "json"):
        raise DataError(f"{path} cannot be read as a table: it is {content}, rename it or save it as CSV")
    try:
        if kind == "excel":
            return _ExcelTable(path)
        if kind == "json":
            return _JsonTable(path, encoding)
        return CsvTable(path, encoding) if kind in ("csv", "text") else StoredTable(str(path), _dataset(path, kind))
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _files(path: Path) -> list[Path]:
    """Return the files of a table: one, or those of the first format in a folder or of a pattern like `parts/*.csv`."""
    if path.is_file():
        if _format(path):
            return [path]
        endings = ", ".join(f".{name}" for name in _FORMATS)
        raise DataError(
            f"a table must end in one of {endings} (text also in .gz, .zst), got {path.name}: save it as CSV or parquet"
        )
    try:
        root = as_path(path.anchor)
        found = [*(path.rglob("*") if path.is_dir() else root.glob(str(path.relative_to(root))))]
    except ValueError as error:
        raise DataError(f"a table must be a file or a pattern like parts/*.csv, got {path}: {error}") from error
    if path.is_dir():  # without what is hidden, unfinished, or a run, a store or parts of predictions
        own = {file.parent for file in found if file.name in ("run.json", "store.json")}
        hidden = re.compile(r"(^|/)([._]|[^/]*\.parts/)")
        found = [file for file in found if not hidden.search(file.relative_to(path).as_posix())]
        found = [file for file in found if own.isdisjoint(file.parents)]
    kinds = {file: _format(file) for file in found if not file.name.startswith("cache-")}  # of Hugging Face
    first = next((kind for kind in _FORMATS.values() if kind in kinds.values()), None)
    if first is None:
        missing = "the folder has no tables" if path.is_dir() else "there is no file"
        raise DataError(f"a table must be a file, a DataFrame or a folder of files: {missing} {path}")
    return sorted(file for file, kind in kinds.items() if kind == first)


def _format(path: Path) -> str:
    """Return the format that the ending of a name stands for, "" if it is unknown."""
    *_, before, last = ["", "", *path.name.lower().split(".")]
    return _FORMATS.get(before if last in _COMPRESSED else last, "")


def _dataset(path: Path, kind: str) -> Any:
    system, location = open_file_system(path)
    try:
        return ds.dataset(location, format=kind, filesystem=system)
    except (pa.ArrowException, OSError):
        if kind != "feather":
            raise
        return ds.dataset(pa.ipc.open_stream(pa.memory_map(str(copied(path)))).read_all())  # as `datasets` writes it


def first_cells(table: Table, names: Sequence[str]) -> dict[str, list[str | None]]:
    """Return the first cells of columns, those that can be read, in few passes: of a text, each costs one."""
    try:
        batch = next(table.batches(names, 200), None) if names else None
        return batch.to_pydict() if batch else {}
    except DataError:  # structs cannot be read
        half = len(names) // 2
        return first_cells(table, names[:half]) | first_cells(table, names[half:]) if half else {}


class _JoinedTable(Table):
    """Tables one after the other, with the columns of all, and those of folders like `kind=Mug`."""

    def __init__(self, name: str, parts: Sequence[Table]) -> None:
        folders = [re.findall(r"(?<![^/])([^/=]+)=([^/]*)(?=/)", Path(part.name).as_posix()) for part in parts]
        values = [{key: None if cell == _HIVE_NULL else unquote(cell) for key, cell in pairs} for pairs in folders]
        self._parts = [*zip(parts, values, strict=True)]
        super().__init__(name, dict.fromkeys(chain(*(chain(part.columns, pairs) for part, pairs in self._parts))))
        self.encoding = " ".join(getattr(part, "encoding", "") for part in parts)

    def holds_lists(self, column: str) -> bool:
        return any(column in part.columns and part.holds_lists(column) for part, _ in self._parts)

    def holds_images(self, column: str) -> bool:
        return any(column in part.columns and part.holds_images(column) for part, _ in self._parts)

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[Any]]:
        names = [self.columns[index] for index in indices]
        for part, folders in self._parts:
            own, n_rows = [name for name in names if name in part.columns] or part.columns[:1], 0
            for values in part._read([part.columns.index(name) for name in own], size, issues):
                columns, n = dict(zip(own, values, strict=True)), len(values[0])
                yield [columns[name] if name in columns else [folders.get(name)] * n for name in names]
                n_rows += n
            part.n_rows = n_rows if part.n_rows is None else part.n_rows
            part.issues = Counter(issues)  # what was logged is not logged again

    def files(self) -> Sequence[Table]:
        return [part for part, _ in self._parts]

    def after(self, first_row: int) -> tuple[Table, int]:
        before, rest = 0, copy(self)
        for number, (part, folders) in enumerate(self._parts):
            if part.n_rows is None or first_row < before + part.n_rows:
                part, skipped = part.after(first_row - before)
                rest._parts = [(part, folders), *self._parts[number + 1 :]]
                return rest, before + skipped
            before += part.n_rows
        return self, 0


class _FrameTable(Table):
    def __init__(self, frame: Any) -> None:
        super().__init__("DataFrame", frame.columns)
        self._frame = frame

    def holds_lists(self, column: str) -> bool:
        return any(isinstance(value, LISTS) for value in self._frame.iloc[:, self.columns.index(column)])

    def holds_images(self, column: str) -> bool:
        values = self._frame.iloc[:, self.columns.index(column)]
        values = [next(iter(value), None) if isinstance(value, LISTS) else value for value in values]
        return any(isinstance(value, bytes) or (isinstance(value, dict) and value.get("bytes")) for value in values)

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[Any]]:
        for start in range(0, len(self._frame), size):
            yield [self._frame.iloc[start : start + size, index] for index in indices]


class _ExcelTable(Table):
    """The first sheet of a workbook; lines above its header are skipped."""

    def __init__(self, path: Path) -> None:
        try:
            from openpyxl import load_workbook  # an extra
        except ImportError as error:
            raise MissingExtraError(f"reading {path.name}", "excel") from error
        try:
            sheets = load_workbook(copied(path), read_only=True, data_only=True).worksheets
            sheets[0].reset_dimensions()  # some programs write wrong ones
            rows = [*sheets[0].iter_rows(values_only=True)]
        except Exception as error:  # damaged workbooks raise many kinds
            raise DataError(f"{path} cannot be read as a workbook ({error!r}): save it again, or as CSV") from error
        rows = [row for row in rows if any(cell is not None for cell in row)]
        texts = [["" if cell is None else str(cell) for cell in row] for row in rows[:_HEADER_ROWS]]
        if not rows:
            raise DataError(f"{path} is empty: the first sheet needs a header")
        header = header_row([*enumerate(texts)])
        columns = zip_longest(*rows[header:])
        self._columns = [column for column in columns if any(cell is not None for cell in column)]
        if len(sheets) > 1:
            logger.warning("%s has %d sheets: the first one, %r, is read", path, len(sheets), sheets[0].title)
        if empty := [name for name, *cells in self._columns if cells and set(cells) == {None}]:
            rule = "columns without a value are empty, or hold formulas that no program has computed: open and save it"
            logger.warning("%s: %s: %s", path, rule, culprits(empty))
        super().__init__(str(path), ["" if name is None else name for name, *_ in self._columns])

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[Any]]:
        for start in range(1, len(self._columns[0]), size):
            yield [self._columns[index][start : start + size] for index in indices]


class _JsonTable(Table):
    """A JSON object per line, or an array of objects; its columns are those of all objects."""

    def __init__(self, path: Path, encoding: str | None) -> None:
        super().__init__(str(path), ())
        self._file = TextFile(path, encoding)
        self.encoding = self._file.encoding
        self._array: list[object] | None = None
        self._n_wrong, hint = 0, ""  # characters of an array, which is read once
        first = next((line for line in self._file.lines(Counter()) if line.strip()), "")
        if first.lstrip().startswith("["):
            text = self._file.text()
            try:
                array = json.loads(text)
                if any(isinstance(record, dict) for record in array):
                    self._array, self._n_wrong = array, text.count("\ufffd")
            except (ValueError, RecursionError) as error:
                hint = f"; the array is damaged: {error}"
        holds_lists: dict[str, bool] = {}
        for record in self._records(Counter()):
            for key, value in record.items():
                holds_lists[key] = holds_lists.get(key, False) or isinstance(value, list)
        if not holds_lists:
            rule = "one object per line, or an array of objects, is expected"
            raise DataError(f"{path} holds no JSON objects: {rule}{hint}")
        self.columns, self._keys = unique_names(holds_lists, self.name), list(holds_lists)
        self._holds_lists = dict(zip(self.columns, holds_lists.values(), strict=True))

    def holds_lists(self, column: str) -> bool:
        return self._holds_lists[column]

    def _records(self, issues: Counter[str]) -> Iterator[dict[str, object]]:
        wrong: list[int] = []
        issues["wrong_characters"] += self._n_wrong
        for number, item in enumerate(self._file.lines(issues) if self._array is None else self._array, 1):
            record = item
            if isinstance(item, str):
                with suppress(ValueError, RecursionError):
                    record = json.loads(item) if (item := item.strip(" \t,\ufeff")) else None
            if isinstance(record, dict):
                yield flat(record)
            elif record is not None:
                wrong.append(number)
        if wrong and not self.issues:
            logger.warning("%s: lines that are not a JSON object were left out: %s", self.name, culprits(wrong))
        issues["lines_that_are_no_object"] += len(wrong)

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[list[object]]]:
        records = self._records(issues)
        while rows := list(islice(records, size)):
            yield [[row.get(self._keys[index]) for row in rows] for index in indices]
