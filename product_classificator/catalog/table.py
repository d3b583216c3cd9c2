"""Turns a table file or a DataFrame into a stream of record batches whose columns are all strings.

Everything is a string because ids, texts and labels are; a list is a JSON array. `canonical` unifies ids and labels
that formats write differently (`1` and `1.0`, `true` and `True`). Only the requested columns are read, a batch at a
time; the cost is that CSV and JSON lines are parsed again on every pass.
"""

import csv
import json
import logging
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from product_classificator.errors import DataError, culprits

logger = logging.getLogger(__name__)

_CSV_BLOCK_BYTES = 8 << 20
_SAMPLE_BYTES = 1 << 20
_JSON_SAMPLE_ROWS = 1000
_LISTS = (list, tuple, set, frozenset, np.ndarray)


class Table(Protocol):
    """A table that can be streamed any number of times."""

    name: str
    columns: list[str]

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


def open_table(source: str | Path | DataFrame) -> Table:
    """Open a parquet, CSV/TSV or JSON lines file, or a DataFrame.

    Raises:
        DataError: there is no such file, its format is unknown, or it cannot be read as what its name says.
    """
    if isinstance(source, DataFrame):
        return _checked(_FrameTable(source))
    path = Path(source)
    if not path.is_file():
        raise DataError(f"a table must be a file or a DataFrame: there is no file {path}")
    if path.suffix.lower() not in _FORMATS:
        raise DataError(f"a table must end in one of {', '.join(_FORMATS)}, got {path.name}")
    try:
        return _checked(_FORMATS[path.suffix.lower()](path))
    except (pa.ArrowException, OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _checked(table: Table) -> Table:
    repeated = [name for name, count in Counter(filter(None, table.columns)).items() if count > 1]
    if repeated:
        raise DataError(f"column names must be unique, {table.name} repeats {culprits(repeated)}")
    return table


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

    A letter and its combining accent become one character (NFC), as on most keyboards.

    >>> canonical(pa.array(["12.0", " True", "v1.0", "2024-01-31 00:00:00.000", None])).to_pylist()
    ['12', 'true', 'v1.0', '2024-01-31', None]
    """
    array = pc.utf8_normalize(pc.utf8_trim_whitespace(array), "NFC")
    for pattern, replacement in _CANONICAL_FORMS:
        array = pc.replace_substring_regex(array, pattern, replacement)
    return array


def as_strings(array: pa.Array) -> pa.Array:
    """Cast a column to strings: 12 and 12.0 -> "12", true -> "true", NaN -> null; lists become JSON arrays of strings.

    Raises:
        DataError: the column holds structs, durations or types of other libraries, or lists of lists or structs.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if _is_list(kind) or is_binary or isinstance(kind, pa.UuidType):
        convert = (
            _list_cell if _is_list(kind) else partial(str, encoding="utf-8", errors="replace") if is_binary else str
        )
        return pa.array([None if value is None else convert(value) for value in array.to_pylist()], pa.string())
    if pa.types.is_nested(kind) or pa.types.is_duration(kind) or isinstance(kind, pa.BaseExtensionType):
        raise DataError(f"a column must hold plain values or lists of them, found {kind}: flatten it to text first")
    if pa.types.is_floating(kind):
        fractions = pc.cast(array, pa.string())  # in its own precision: a float32 of 0.1 is 0.1
        array = pc.cast(array, pa.float64())
        whole = pc.and_(pc.equal(array, pc.floor(array)), pc.less(pc.abs(array), 2.0**53))
        integers = pc.cast(pc.if_else(whole, array, 0.0), pa.int64())
        return pc.if_else(pc.is_finite(array), pc.if_else(whole, pc.cast(integers, pa.string()), fractions), None)
    return pc.cast(array, pa.string())


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


def _as_strings(values: Any, name: str) -> pa.Array:
    """Return a pandas column, a list or an Arrow array as strings; mixed objects are converted one by one."""
    try:
        if isinstance(values, pa.Array):
            return as_strings(values)
        # Not for mixed types, lone surrogates, huge integers and what only pandas can write (intervals, periods).
        with suppress(pa.ArrowException, UnicodeEncodeError, OverflowError):
            array = pa.array(values, from_pandas=True)
            kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
            if not isinstance(kind, pa.BaseExtensionType) and not pa.types.is_duration(kind):
                return as_strings(array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array)
        is_known = values.notna() if hasattr(values, "notna") else (value is not None for value in values)
        cells = (
            (_list_cell(value) if isinstance(value, _LISTS) else _encodable(str(value))) if known else None
            for value, known in zip(values, is_known, strict=True)
        )
        return pa.array(list(cells), pa.string())
    except (DataError, pa.ArrowException) as error:
        raise DataError(f"column {name!r} cannot be used: {error}") from error


class _FrameTable:
    def __init__(self, frame: Any) -> None:
        self.name = "DataFrame"
        self.columns = [str(column) for column in frame.columns]
        self._frame = frame.set_axis(self.columns, axis=1)

    def holds_lists(self, column: str) -> bool:
        return any(isinstance(value, _LISTS) for value in self._frame[column])

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self._frame), size):
            rows = self._frame.iloc[start : start + size]
            yield pa.record_batch([_as_strings(rows[column], column) for column in columns], names=list(columns))


class _ParquetTable:
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        with pq.ParquetFile(path) as file:
            self._schema = file.schema_arrow
        self.columns: list[str] = list(self._schema.names)

    def holds_lists(self, column: str) -> bool:
        return _is_list(self._schema.field(column).type)

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(self._path) as file:
                for batch in file.iter_batches(batch_size=size, columns=list(columns), use_threads=False):
                    arrays = [_as_strings(batch.column(column), column) for column in columns]
                    yield pa.record_batch(arrays, names=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path} is damaged: {error}") from error


class _CsvTable:
    """CSV with a header; its delimiter and encoding (UTF-8, else Windows-1251) are guessed from its beginning."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._is_checked = False
        self._encoding = _encoding(path)
        if self._encoding != "utf-8":
            logger.warning("%s is not UTF-8: read as %s", path, self._encoding)
        with path.open(encoding=self._encoding.replace("utf-8", "utf-8-sig"), newline="") as text:
            header = re.sub(r'"[^"]*"', "", text.readline())  # without quoted delimiters
            self._delimiter = max("\t;|,", key=header.count)
            text.seek(0)
            self.columns: list[str] = next(csv.reader(text, delimiter=self._delimiter), [])
        if not any(map(str.strip, self.columns)):
            raise DataError(f"{path} is empty or begins with an empty line: a CSV table needs a header")

    def holds_lists(self, column: str) -> bool:
        return False

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        rows = skipped = 0

        def skip(row: pa.csv.InvalidRow) -> str:
            nonlocal skipped
            skipped += 1
            return "skip"

        try:
            reader = pa.csv.open_csv(
                self._path,
                pa.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES, encoding=self._encoding),
                pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=skip),
                pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(columns, pa.string()),
                    include_columns=list(dict.fromkeys(columns)),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )
            for block in reader:
                rows += block.num_rows
                for start in range(0, block.num_rows, size):
                    yield block.slice(start, size).select(list(columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self._path} cannot be read as CSV ({self._encoding}): {error}") from error
        if self._is_checked:
            return
        self._is_checked = True
        if skipped:
            logger.warning("%s: %d rows without the header's number of columns were left out", self._path, skipped)
        with self._path.open("rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(_CSV_BLOCK_BYTES), b""))
        if lines > rows + skipped + 1:
            sentence = "%s: %d lines hold %d rows: values span several lines, or a quote is not closed"
            logger.warning(sentence, self._path, lines, rows)


def _encoding(path: Path) -> str:
    """Return utf-16, utf-8 or cp1251, as the beginning of a file suggests."""
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    if sample.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "utf-16"
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:  # the sample may end inside a character: its last three bytes do not count
        return "utf-8" if error.start >= len(sample) - 3 and len(sample) > 3 else "cp1251"
    return "utf-8"


class _JsonLinesTable:
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._is_checked = False
        self._encoding = _encoding(path).replace("utf-8", "utf-8-sig")
        columns: dict[str, None] = {}
        self._lists: set[str] = set()
        for record in islice(self._records(), _JSON_SAMPLE_ROWS):
            columns.update(dict.fromkeys(record))
            self._lists.update(name for name, value in record.items() if isinstance(value, list))
        if not columns:
            raise DataError(f"{path} holds no JSON objects: one object per line is expected")
        self.columns = list(columns)

    def holds_lists(self, column: str) -> bool:
        return column in self._lists

    def _records(self) -> Iterator[dict[str, object]]:
        skipped: list[int] = []
        with self._path.open(encoding=self._encoding, errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line) if line.strip() else None
                except ValueError:
                    record = line
                if isinstance(record, dict):
                    yield record
                elif record is not None:
                    skipped.append(number)
        if skipped and not self._is_checked:
            self._is_checked = True
            logger.warning("%s: lines that are not a JSON object were left out: %s", self._path, culprits(skipped))

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        records = self._records()
        while rows := list(islice(records, size)):
            self._lists.update(name for name in columns if any(isinstance(row.get(name), list) for row in rows))
            arrays = [_as_strings([row.get(name) for row in rows], name) for name in columns]
            yield pa.record_batch(arrays, names=list(columns))


_FORMATS: dict[str, Callable[[Path], Table]] = {
    ".parquet": _ParquetTable,
    ".pq": _ParquetTable,
    ".csv": _CsvTable,
    ".tsv": _CsvTable,
    ".jsonl": _JsonLinesTable,
    ".ndjson": _JsonLinesTable,
}
