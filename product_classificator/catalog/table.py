"""Turns a table file or a DataFrame into a stream of record batches whose columns are all strings.

Everything is a string because ids, texts and labels are; a list is a JSON array. `canonical` unifies ids and labels
that formats write differently (`1` and `1.0`, `true` and `True`). Only the requested columns are read, a batch at a
time; the cost is that CSV and JSON lines are parsed again on every pass.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from product_classificator.catalog.columns import unique_names
from product_classificator.catalog.delimited import CsvTable, TextFile, shortened, warn_once
from product_classificator.errors import DataError, culprits

logger = logging.getLogger(__name__)

_LISTS = (list, tuple, set, frozenset, np.ndarray)
_ARROW_FORMATS = {"parquet": "parquet", "pq": "parquet", "feather": "feather", "arrow": "feather"}
_CSV, _JSON, _COMPRESSED = ("csv", "tsv", "txt"), ("jsonl", "ndjson", "json"), ("gz", "gzip", "zst", "bz2")


@runtime_checkable
class Table(Protocol):
    """A table that can be streamed any number of times."""

    name: str
    columns: list[str]

    @property
    def issues(self) -> Mapping[str, int]:
        """Problem -> how often, in the last whole pass."""

    def holds_lists(self, column: str) -> bool:
        """Return whether a column holds lists: by its type or, without types, by its values."""

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most `size` rows; every column is a string array with nulls."""


@runtime_checkable
class DataFrame(Protocol):
    """A pandas DataFrame, recognised without importing pandas."""

    @property
    def iloc(self) -> Any:
        """Rows by position."""


@runtime_checkable
class ArrowTable(Protocol):
    """What hands its columns over as Arrow memory: a pyarrow Table, a polars DataFrame, ..."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Return a PyCapsule of an Arrow stream."""


TableSource: TypeAlias = str | Path | DataFrame | ArrowTable | Table


def open_table(source: TableSource, *, encoding: str | None = None) -> Table:
    """Open a file, a folder or pattern (`parts/*.parquet`) of parquet files, a pandas or polars DataFrame, or Arrow.

    Args:
        source: parquet, feather, CSV or other separated text, JSON lines or a JSON array; text may be compressed.
        encoding: of text; `None`: found from the whole file.

    Raises:
        DataError: there is no such file, its format is unknown, or it cannot be read as what its name says.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, DataFrame):
        return _FrameTable(source)
    if not isinstance(source, str | Path):
        if not isinstance(source, ArrowTable):
            raise DataError(f"a table must be a file, a DataFrame or an Arrow table, got {type(source).__name__}")
        return _ArrowTable("Arrow table", ds.dataset(pa.table(source)))
    path = Path(source)
    files = _files(path)
    kind = _format(files[0])
    try:
        if kind in ("csv", "json"):
            return CsvTable(path, encoding) if kind == "csv" else _JsonTable(path, encoding)
        return _ArrowTable(str(path), _dataset(files, kind, partitioned=files != [path]))
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _files(path: Path) -> list[Path]:
    """Return the files of a table: one, or the parquet files in a folder or of a pattern like `parts/*.parquet`."""
    if path.is_file():
        files = [path]
    else:
        found = path.rglob("*") if path.is_dir() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        files = sorted(file for file in found if _format(file) == "parquet")
        if not files:
            missing = "the folder has no parquet files" if path.is_dir() else "there is no file"
            raise DataError(f"a table must be a file, a DataFrame or a folder of parquet files: {missing} {path}")
    if not _format(files[0]):
        endings = ", ".join(f".{name}" for name in (*_ARROW_FORMATS, *_CSV, *_JSON))
        raise DataError(
            f"a table must end in one of {endings} (text also in .gz, .zst), got {path.name}: save it as CSV or parquet"
        )
    return files


def _format(path: Path) -> str:
    """Return parquet, feather, csv or json after the ending of a name, "" if it is unknown."""
    *_, before, last = ["", "", *path.name.lower().split(".")]
    if last in _ARROW_FORMATS or (before in _ARROW_FORMATS and last in _COMPRESSED):
        return _ARROW_FORMATS[last if last in _ARROW_FORMATS else before]
    ending = before if last in _COMPRESSED else last
    return "csv" if ending in _CSV else "json" if ending in _JSON else ""


def _dataset(files: Sequence[Path], kind: str, *, partitioned: bool) -> Any:
    """Return files as one table with the columns of all of them, and of folders like `kind=Mug`."""
    partitions = ds.partitioning(flavor="hive") if partitioned else None
    data = ds.dataset([str(file) for file in files], format=kind, partitioning=partitions)
    schemas = [data.schema, *(fragment.physical_schema for fragment in data.get_fragments())]
    return data.replace_schema(pa.unify_schemas(schemas, promote_options="permissive")) if len(files) > 1 else data


_DATE, _TIME = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d:\d\d"
_CANONICAL_FORMS = (
    (r"^(-?\d+)\.0+$", r"\1"),
    (rf"^({_DATE})[ T]00:00:00(\.0+)?$", r"\1"),
    (rf"^((?:{_DATE} )?{_TIME})\.0+$", r"\1"),
    (rf"^((?:{_DATE} )?{_TIME}\.\d*[1-9])0+$", r"\1"),
    ("^True$", "true"),
    ("^False$", "false"),
)


def canonical(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return ids or labels trimmed, with one spelling of whole numbers, booleans, dates and times.

    A letter and its combining accent become one character (NFC); signs without width are left out.

    >>> canonical(pa.array(["12.0", " True", "v1.0", "2024-01-31 00:00:00.000", None])).to_pylist()
    ['12', 'true', 'v1.0', '2024-01-31', None]
    """
    array = pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_normalize(array, "NFC"), r"\p{Cf}+", ""))
    for pattern, replacement in _CANONICAL_FORMS:
        array = pc.replace_substring_regex(array, pattern, replacement)
    return array


def as_strings(array: pa.Array, issues: Counter[str] | None = None) -> pa.Array:
    """Cast a column to strings: 12 and 12.0 -> "12", true -> "true", NaN -> null; lists become JSON arrays of strings.

    `issues` counts cells with bytes that are not UTF-8, which become U+FFFD.

    Raises:
        DataError: the column holds structs, durations or types of other libraries, or lists of lists or structs.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if _is_list(kind) and _is_text(kind.value_type) and not _is_valid(array):
        array = array.cast(pa.large_list(pa.large_binary()))
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if _is_text(kind) and not _is_valid(array):
        array, is_binary = array.cast(pa.large_binary()), True
    if _is_list(kind) or is_binary or isinstance(kind, pa.UuidType):
        convert = (
            _list_cell if _is_list(kind) else partial(str, encoding="utf-8", errors="replace") if is_binary else str
        )
        cells = [None if value is None else convert(value) for value in array.to_pylist()]
        if issues is not None and not isinstance(kind, pa.UuidType):
            issues["cells_with_wrong_bytes"] += sum("\ufffd" in cell for cell in cells if cell)
        return pa.array(cells, pa.string())
    if pa.types.is_nested(kind) or pa.types.is_duration(kind) or isinstance(kind, pa.BaseExtensionType):
        raise DataError(f"a column must hold plain values or lists of them, found {kind}: flatten it to text first")
    if pa.types.is_floating(kind):
        fractions = pc.cast(array, pa.string())  # in its own precision: a float32 of 0.1 is 0.1
        array = pc.cast(array, pa.float64())
        whole = pc.and_(pc.equal(array, pc.floor(array)), pc.less(pc.abs(array), 2.0**63))
        integers = pc.cast(pc.if_else(whole, array, 0.0), pa.int64())
        if issues is not None and (rounded := pc.sum(pc.greater_equal(pc.abs(array), 2.0**53)).as_py()):
            issues["numbers_rounded_by_float64"] += rounded
        return pc.if_else(pc.is_finite(array), pc.if_else(whole, pc.cast(integers, pa.string()), fractions), None)
    return pc.cast(array, pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind)) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _list_cell(values: Iterable[object]) -> str:
    """Return a list as a JSON array of strings; nulls stay."""
    entries = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    nested = [type(value).__name__ for value in entries if isinstance(value, (*_LISTS, dict))]
    if nested:
        raise DataError(f"lists must hold plain values, found {culprits(nested)}: flatten them first")
    return _encodable(json.dumps([None if value is None else str(value) for value in entries], ensure_ascii=False))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # UTF-8 holds no lone surrogates


def _column(values: Any, name: str, issues: Counter[str]) -> pa.Array:
    """Return a pandas column, a list or an Arrow array as strings; mixed objects are converted one by one."""
    try:
        column = None
        # Not for mixed types, lone surrogates, huge integers and what only pandas can write (intervals, periods).
        with suppress(
            *(() if isinstance(values, pa.Array) else (pa.ArrowException, UnicodeEncodeError, OverflowError))
        ):
            array = pa.array(values, from_pandas=True) if not isinstance(values, pa.Array) else values
            array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
            kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
            if array is values or not (isinstance(kind, pa.BaseExtensionType) or pa.types.is_duration(kind)):
                column = as_strings(array, issues)
        if column is None:
            is_known = values.notna() if hasattr(values, "notna") else (value is not None for value in values)
            cells = (
                (_list_cell(value) if isinstance(value, _LISTS) else _encodable(str(value))) if known else None
                for value, known in zip(values, is_known, strict=True)
            )
            column = pa.array(list(cells), pa.string())
    except (DataError, pa.ArrowException) as error:
        raise DataError(f"column {name!r} cannot be used: {error}") from error
    return shortened(column, issues)


class _FrameTable:
    def __init__(self, frame: Any) -> None:
        self.name = "DataFrame"
        self.columns = unique_names(frame.columns, self.name)
        self.issues: Counter[str] = Counter()
        self._frame = frame.set_axis(self.columns, axis=1)

    def holds_lists(self, column: str) -> bool:
        return any(isinstance(value, _LISTS) for value in self._frame[column])

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        issues: Counter[str] = Counter()
        for start in range(0, len(self._frame), size):
            rows = self._frame.iloc[start : start + size]
            yield pa.record_batch([_column(rows[name], name, issues) for name in columns], names=list(columns))
        self.issues = warn_once(self.name, self.issues, issues)


class _ArrowTable:
    """Parquet or feather files, or Arrow memory."""

    def __init__(self, name: str, data: Any) -> None:
        self.name = name
        self.columns = unique_names(data.schema.names, name)
        self.issues: Counter[str] = Counter()
        self._data = data

    def holds_lists(self, column: str) -> bool:
        return _is_list(self._data.schema.field(self.columns.index(column)).type)

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        issues: Counter[str] = Counter()
        names = [self._data.schema.names[self.columns.index(name)] for name in columns]
        try:
            for batch in self._data.to_batches(columns=names, batch_size=size, batch_readahead=1, use_threads=False):
                if batch.num_rows:
                    arrays = [_column(array, name, issues) for array, name in zip(batch.columns, columns, strict=True)]
                    yield pa.record_batch(arrays, names=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name} is damaged: {error}") from error
        self.issues = warn_once(self.name, self.issues, issues)


class _JsonTable:
    """A JSON object per line, or an array of objects; its columns are those of all objects."""

    def __init__(self, path: Path, encoding: str | None) -> None:
        self.name = str(path)
        self.issues: Counter[str] = Counter()
        self._file = TextFile(path, encoding)
        self._array: list[object] | None = None
        first = next((line for line in self._file.lines(Counter()) if line.strip()), "")
        if first.lstrip().startswith("["):
            with suppress(ValueError, RecursionError):
                array = json.loads("\n".join(self._file.lines(Counter())))
                self._array = array if any(isinstance(record, dict) for record in array) else None
        names: dict[str, None] = {}
        self._lists: set[str] = set()
        for record in self._records(Counter()):
            names.update(dict.fromkeys(record))
            self._lists.update(name for name, value in record.items() if isinstance(value, list))
        if not names:
            raise DataError(f"{path} holds no JSON objects: one object per line, or an array of objects, is expected")
        self.columns = unique_names(names, self.name)
        self._keys = dict(zip(self.columns, names, strict=True))

    def holds_lists(self, column: str) -> bool:
        return self._keys[column] in self._lists

    def _records(self, issues: Counter[str]) -> Iterator[dict[str, object]]:
        wrong: list[int] = []
        for number, item in enumerate(self._file.lines(issues) if self._array is None else self._array, 1):
            record = item
            if isinstance(item, str):
                with suppress(ValueError, RecursionError):
                    record = json.loads(item) if item.strip() else None
            if isinstance(record, dict):
                yield record
            elif record is not None:
                wrong.append(number)
        if wrong and not self.issues:
            logger.warning("%s: lines that are not a JSON object were left out: %s", self.name, culprits(wrong))
        issues["lines_that_are_no_object"] += len(wrong)

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        issues: Counter[str] = Counter()
        records = self._records(issues)
        while rows := list(islice(records, size)):
            arrays = [_column([row.get(self._keys[name]) for row in rows], name, issues) for name in columns]
            yield pa.record_batch(arrays, names=list(columns))
        self.issues = warn_once(self.name, self.issues, issues)
