"""Turns a table file or a DataFrame into a stream of record batches whose columns are all strings.

Everything is a string because ids, texts and labels are; a list is a JSON array. `canonical` makes those of ids and
labels that formats write differently alike (`1` and `1.0`, `true` and `True`). Only the asked columns are read, a batch
at a time; a million rows never stand in memory as Python objects. The cost: CSV and JSON lines are parsed again on
every pass.
"""

import csv
import json
import logging
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from product_classificator.errors import DataError, culprits

logger = logging.getLogger(__name__)

_CSV_BLOCK_BYTES = 8 << 20
_JSON_ROWS_LOOKED_AT = 1000
_DATE, _TIME = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d:\d\d"
_LISTS = (list, tuple, set, frozenset, np.ndarray)


class Table(Protocol):
    """A table that can be streamed any number of times."""

    name: str
    columns: list[str]

    def holds_lists(self, column: str) -> bool:
        """Whether a column holds lists, by its type, or where there are no types by its values."""

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Yields batches of at most `size` rows; every column is a string array with nulls."""


def open_table(source: str | Path | pd.DataFrame) -> Table:
    """Opens a parquet, CSV/TSV or JSON lines file, or a DataFrame.

    Raises:
        DataError: there is no such file, its format is unknown, or it cannot be read as what its name says.
    """
    if isinstance(source, pd.DataFrame):
        return _checked(_FrameTable(source))
    path = Path(source)
    if not path.is_file():
        raise DataError(f"a table must be a file or a DataFrame: there is no file {path}")
    formats: dict[str, Callable[[Path], Table]] = {
        ".parquet": _ParquetTable,
        ".pq": _ParquetTable,
        ".csv": _CsvTable,
        ".tsv": _CsvTable,
        ".jsonl": _JsonLinesTable,
        ".ndjson": _JsonLinesTable,
    }
    if path.suffix.lower() not in formats:
        raise DataError(f"a table must end in one of {', '.join(formats)}, got {path.name}")
    try:
        return _checked(formats[path.suffix.lower()](path))
    except (pa.ArrowException, OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _checked(table: Table) -> Table:
    repeated = [name for name, count in Counter(filter(None, table.columns)).items() if count > 1]
    if repeated:
        raise DataError(f"column names must differ, {table.name} has several of {culprits(repeated)}")
    return table


def canonical(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Returns ids or labels trimmed, whole numbers, truth values, dates and times as every format writes them.

    Letters and their accents become one sign (NFC), as on most keyboards.

    >>> canonical(pa.array(["12.0", " True", "v1.0", "2024-01-31 00:00:00.000", None])).to_pylist()
    ['12', 'true', 'v1.0', '2024-01-31', None]
    """
    array = pc.utf8_normalize(pc.utf8_trim_whitespace(array), "NFC")
    array = pc.replace_substring_regex(array, r"^(-?\d+)\.0+$", r"\1")
    array = pc.replace_substring_regex(array, rf"^({_DATE})[ T]00:00:00(\.0+)?$", r"\1")
    array = pc.replace_substring_regex(array, rf"^((?:{_DATE} )?{_TIME})\.0+$", r"\1")
    array = pc.replace_substring_regex(array, rf"^((?:{_DATE} )?{_TIME}\.\d*[1-9])0+$", r"\1")
    for capital, small in (("True", "true"), ("False", "false")):
        array = pc.if_else(pc.equal(array, capital), small, array)
    return array


def as_strings(array: pa.Array) -> pa.Array:
    """Casts any column of plain values, or lists of them, to strings: 12 and 12.0 -> "12", true -> "true", NaN -> null.

    Lists become JSON arrays of strings.

    Raises:
        DataError: the column holds structs, durations or types of other libraries, or lists of lists or structs.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if _is_list(kind):
        return pa.array([None if values is None else _list_cell(values) for values in array.to_pylist()], pa.string())
    if isinstance(kind, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
    if pa.types.is_nested(kind) or pa.types.is_duration(kind) or isinstance(kind, pa.BaseExtensionType):
        raise DataError(f"a column must hold plain values or lists of them, found {kind}: flatten it to text first")
    if pa.types.is_floating(kind):
        fractions = pc.cast(array, pa.string())  # of its own width: a float32 of 0.1 is 0.1
        array = pc.cast(array, pa.float64())
        whole = pc.and_(pc.equal(array, pc.floor(array)), pc.less(pc.abs(array), 2.0**53))
        integers = pc.cast(pc.if_else(whole, array, 0.0), pa.int64())
        return pc.if_else(pc.is_finite(array), pc.if_else(whole, pc.cast(integers, pa.string()), fractions), None)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = [None if value is None else value.decode("utf-8", "replace") for value in array.to_pylist()]
        return pa.array(values, pa.string())
    return pc.cast(array, pa.string())


def _is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _list_cell(values: Iterable[object]) -> str:
    """Returns a list as a JSON array of strings; nulls stay.

    >>> _list_cell(["wool", 12, None])
    '["wool", "12", null]'
    """
    entries = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    nested = [type(value).__name__ for value in entries if isinstance(value, (*_LISTS, dict))]
    if nested:
        raise DataError(f"lists must hold plain values, found {culprits(nested)}: flatten them first")
    cell = json.dumps([None if value is None else str(value) for value in entries], ensure_ascii=False)
    return cell.encode("utf-8", "replace").decode()


def _stringify(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    arrays = []
    for column in columns:
        try:
            arrays.append(as_strings(batch.column(column)))
        except (DataError, pa.ArrowException) as error:
            raise DataError(f"column {column!r} cannot be used: {error}") from error
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


class _FrameTable:
    def __init__(self, frame: pd.DataFrame) -> None:
        self.name = "DataFrame"
        self.columns = [str(column) for column in frame.columns]
        self._frame = frame.set_axis(self.columns, axis=1)

    def holds_lists(self, column: str) -> bool:
        return any(isinstance(value, _LISTS) for value in self._frame[column])

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self._frame), size):
            part = self._frame.iloc[start : start + size]
            yield pa.RecordBatch.from_arrays([_series(part[column]) for column in columns], names=list(columns))


def _series(series: pd.Series) -> pa.Array:
    """Returns a column of a DataFrame as strings; a column of mixed objects goes value by value."""
    try:
        with suppress(pa.ArrowException, UnicodeEncodeError, OverflowError):
            array = pa.Array.from_pandas(series)
            kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
            if not isinstance(kind, pa.BaseExtensionType) and not pa.types.is_duration(kind):
                return as_strings(array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array)
        # Mixed types, lone surrogates, huge integers, or what only pandas can write: intervals, periods, UUIDs.
        known = zip(series, series.notna(), strict=True)
        return pa.array([_cell(value) if is_known else None for value, is_known in known], pa.string())
    except DataError as error:
        raise DataError(f"column {series.name!r} cannot be used: {error}") from error


def _cell(value: object) -> str:
    if isinstance(value, _LISTS):
        return _list_cell(value)
    return str(value).encode("utf-8", "replace").decode()


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
                    yield _stringify(batch, columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path} is damaged: {error}") from error


class _CsvTable:
    """CSV with a header; the delimiter and the encoding (UTF-8, else Windows-1251) are found from its beginning."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        with path.open("rb") as file:
            sample = file.read(1 << 20)
        if not sample.strip():
            raise DataError(f"{path} is empty: a CSV table needs a header")
        self._is_checked = False
        self._encoding = _encoding(sample)
        if self._encoding != "utf-8":
            logger.warning("%s is not UTF-8: read as %s", path, self._encoding)
        with path.open(encoding=self._encoding + ("-sig" if self._encoding == "utf-8" else ""), newline="") as text:
            header = re.sub(r'"[^"]*"', "", text.readline())  # what is quoted separates nothing
            self._delimiter = max("\t;|,", key=header.count)
            text.seek(0)
            self.columns: list[str] = next(csv.reader(text, delimiter=self._delimiter))

    def holds_lists(self, column: str) -> bool:
        return False

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        rows = broken = 0

        def skip(row: pa.csv.InvalidRow) -> str:
            nonlocal broken
            broken += 1
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
        if not self._is_checked:
            self._is_checked = True
            self._warn(rows, broken)

    def _warn(self, rows: int, broken: int) -> None:
        """Tells of rows that are likely lost; once, after the first whole pass."""
        if broken:
            logger.warning("%s: %d rows without the header's number of columns were left out", self._path, broken)
        with self._path.open("rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(_CSV_BLOCK_BYTES), b""))
        if lines > rows + broken + 1:
            sentence = "%s: %d lines hold %d rows: values span several lines, or a quote is not closed"
            logger.warning(sentence, self._path, lines, rows)


def _encoding(sample: bytes) -> str:
    if sample.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "utf-16"
    try:
        # The sample may end inside a character: its last three bytes are not judged.
        sample[:-3].decode("utf-8") if len(sample) > 3 else sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return "utf-8" if error.end >= len(sample) - 3 and len(sample) > 3 else "cp1251"
    return "utf-8"


class _JsonLinesTable:
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._is_checked = False
        with path.open("rb") as file:
            self._encoding = _encoding(file.read(1 << 20)).replace("utf-8", "utf-8-sig")
        first: dict[str, None] = {}
        self._lists: set[str] = set()
        for record in islice(self._records(), _JSON_ROWS_LOOKED_AT):
            first.update(dict.fromkeys(record))
            self._lists.update(name for name, value in record.items() if isinstance(value, list))
        if not first:
            raise DataError(f"{path} holds no JSON objects: one object a line is expected")
        self.columns = list(first)

    def holds_lists(self, column: str) -> bool:
        return column in self._lists

    def _records(self) -> Iterator[dict[str, object]]:
        broken: list[int] = []
        with self._path.open(encoding=self._encoding, errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line) if line.strip() else None
                except ValueError:
                    record = line
                if isinstance(record, dict):
                    yield record
                elif record is not None:
                    broken.append(number)
        if broken and not self._is_checked:
            self._is_checked = True
            logger.warning("%s: lines that are no JSON object were left out: %s", self._path, culprits(broken))

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        records = self._records()
        while chunk := list(islice(records, size)):
            self._lists.update(name for name in columns if any(isinstance(row.get(name), list) for row in chunk))
            arrays = [_series(pd.Series([row.get(name) for row in chunk], dtype=object, name=name)) for name in columns]
            yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
