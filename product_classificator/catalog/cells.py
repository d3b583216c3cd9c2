"""Turns columns of any type into columns of strings, a batch at a time: what tables of every format share.

Everything is a string because ids, texts and labels are; a list is a JSON array. `canonical` unifies ids and labels
that formats write differently (`1` and `1.0`, `true` and `True`).
"""

import json
import logging
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from product_classificator.catalog.columns import ROW_NUMBER, unique_names
from product_classificator.errors import DataError

logger = logging.getLogger(__name__)

MAX_CELL_CHARS = 100_000
"""The rest of a longer cell is cut off: 50 pages say what a product is, and a batch must fit in memory."""
LISTS = (list, tuple, set, frozenset, np.ndarray)
LIST_TYPES = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
_TEXT_TYPES, _BINARY_TYPES = (
    (pa.string(), pa.large_string(), pa.string_view()),
    (pa.binary(), pa.large_binary(), pa.binary_view()),
)


class Table(ABC):
    """A table that can be streamed any number of times; `issues` counts each problem of the last whole pass."""

    n_rows: int | None = None  # None: nobody has counted them yet

    def __init__(self, name: str, names: Iterable[object]) -> None:
        self.name, self.columns = name, unique_names(names, name)
        self.issues: Counter[str] = Counter()
        self.sources: Sequence[Path] = ()  # files, folders and patterns that it was opened as

    def holds_lists(self, column: str) -> bool:
        """Return whether a column holds lists: by its type or, without types, by its values."""
        return False

    def holds_images(self, column: str) -> bool:
        """Return whether a column holds bytes or, as that of a `datasets.Image`, structs with bytes."""
        return False

    def row_groups(self) -> Sequence[int]:
        """Return how many rows can be read together without the others; all of them if none can."""
        if self.n_rows is None:
            for _ in self.batches(self.columns[:1]):
                pass
        return [self.n_rows or 0]

    def files(self) -> Sequence["Table"]:
        """Return the tables of its files, in their order."""
        return [self]

    def after(self, first_row: int) -> tuple["Table", int]:
        """Return a table without row groups that end before a row, and how many rows that leaves out."""
        return self, 0

    def batches(
        self, columns: Sequence[str], size: int = 16_384, images: str | None = None, first_row: int = 0
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most `size` rows, from `first_row` on; every column is a string array with nulls.

        Bytes and structs in the column `images` stay what they are. `ROW_NUMBER`, if the table has no such column,
        numbers the rows from 1.
        """
        issues, (rest, n_rows) = Counter[str](), self.after(first_row)
        names = [name for name in columns if name != ROW_NUMBER or name in self.columns] or self.columns[:1]
        for values in rest._read([self.columns.index(name) for name in names], size, issues):
            pairs = zip(names, values, strict=True)
            arrays = {name: _column(array, name, issues, is_image=name == images) for name, array in pairs}
            n = len(arrays[names[0]])
            if ROW_NUMBER in columns:
                arrays.setdefault(ROW_NUMBER, pa.array(np.arange(n_rows + 1, n_rows + n + 1)).cast(pa.string()))
            n_rows += n
            batch = pa.record_batch([arrays[name] for name in columns], names=list(columns))
            yield batch.slice(min(max(n - (n_rows - first_row), 0), n))
        self.n_rows, issues = n_rows, +issues
        if issues and not self.issues:
            logger.warning("%s: %s", self.name, ", ".join(f"{n} {key.replace('_', ' ')}" for key, n in issues.items()))
        self.issues = issues

    @abstractmethod
    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[Sequence[Any]]:
        """Yield the columns of at most `size` rows, as Arrow arrays, pandas columns or lists."""


class StoredTable(Table):
    """A parquet or feather file, or Arrow memory; label ids of `datasets` become their names."""

    def __init__(self, name: str, data: Any) -> None:
        self._data, self._labels = data, dict[str, pa.Array]()
        self._paths, self._types = zip(*_plain_fields(data.schema), strict=True)
        super().__init__(name, map(".".join, self._paths))
        self.n_rows, self._groups = data.count_rows(), range(0)  # row groups to read; none: all
        facts = json.loads((data.schema.metadata or {}).get(b"huggingface", "{}"))
        for column, feature in facts.get("info", {}).get("features", {}).items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                self._labels[column] = pa.array(feature["names"])

    def holds_lists(self, column: str) -> bool:  # noqa: D102 - as above
        return isinstance(self._types[self.columns.index(column)], LIST_TYPES)

    def holds_images(self, column: str) -> bool:  # noqa: D102
        index = self.columns.index(column)
        return is_image_type(self._types[index]) and any(has_bytes(*a) for a in self._read([index], 16, Counter()))

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[pa.Array]]:
        names = [self.columns[index] for index in indices]
        try:
            for arrays in self._arrays(indices, size):
                if len(arrays[0]):
                    yield [self._plain(array, name) for array, name in zip(arrays, names, strict=True)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name} is damaged: {error}") from error

    @property
    def _is_parquet(self) -> bool:
        return isinstance(getattr(self._data, "format", None), ds.ParquetFileFormat)

    def row_groups(self) -> Sequence[int]:  # noqa: D102
        fragments = self._data.get_fragments() if self._is_parquet else ()
        return [group.num_rows for file in fragments for group in file.row_groups] or super().row_groups()

    def after(self, first_row: int) -> tuple[Table, int]:  # noqa: D102
        starts = [*accumulate(self.row_groups(), initial=0)][:-1] if first_row and self._is_parquet else [0]
        number, rest = bisect_right(starts, first_row) - 1, copy(self)
        rest._groups = range(number, len(starts)) if number else range(0)
        return rest, starts[number]

    def _arrays(self, indices: Sequence[int], size: int) -> Iterator[list[pa.Array]]:
        if self._is_parquet and any(is_image_type(self._types[index]) for index in indices):
            # A data set reads row groups whole, with all of their images: 1.8 GB for 600 MB; this way 0.5 GB.
            paths = [self._paths[index] for index in indices]
            source = self._data.filesystem.open_input_file(self._data.files[0])
            with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
                tops = list(dict.fromkeys(path[0] for path in paths))
                groups = [*self._groups] or None
                for batch in file.iter_batches(min(size, 256), groups, columns=tops, use_threads=False):
                    columns = [(batch.column(top), inner) for top, *inner in paths]
                    yield [pc.struct_field(column, inner) if inner else column for column, inner in columns]
            return
        fields = {str(index): pc.field(*self._paths[index]) for index in indices}
        data = self._data
        if self._groups:
            (data,) = (file.subset(row_group_ids=[*self._groups]) for file in data.get_fragments())
        for batch in data.to_batches(columns=fields, batch_size=size, batch_readahead=1, use_threads=False):
            yield batch.columns

    def _plain(self, array: pa.Array, name: str) -> pa.Array:
        if name not in self._labels:
            return array
        return self._labels[name].take(pc.if_else(pc.less(array, 0), None, array))  # -1: unknown


def _plain_fields(fields: Iterable[pa.Field], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield paths and types of the columns; a struct `title` with the field `en` is the column `title.en`."""
    for field in fields:
        if pa.types.is_struct(field.type) and not is_image_type(field.type):
            yield from _plain_fields(field.type, (*above, field.name))
        else:
            yield (*above, field.name), field.type


def _column(values: Any, name: str, issues: Counter[str], *, is_image: bool) -> pa.Array:
    try:
        with suppress(pa.ArrowException):  # names alone and in lists are mixed
            if is_image and is_image_type((images := _from_pandas(values)).type):
                return images
        column = as_strings(values, issues) if isinstance(values, pa.Array) else _from_python(values, issues)
    except (DataError, pa.ArrowException) as error:
        raise DataError(f"column {name!r} cannot be used: {error}") from error
    is_long = pc.greater(pc.utf8_length(column), MAX_CELL_CHARS)
    if not (n_long := pc.sum(is_long).as_py()):
        return column
    issues["cells_cut"] += n_long
    return pc.if_else(is_long, pc.utf8_slice_codeunits(column, 0, MAX_CELL_CHARS), column)


def _from_python(values: Any, issues: Counter[str]) -> pa.Array:
    """Return a pandas column or a list as strings; mixed objects are converted one by one."""
    # Arrow refuses mixed types, lone surrogates, huge integers and what only pandas can write (intervals, periods).
    with suppress(pa.ArrowException, UnicodeEncodeError, OverflowError):
        array = _from_pandas(values)
        kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        if not (isinstance(kind, pa.BaseExtensionType) or pa.types.is_duration(kind) or _is_nested(kind)):
            return as_strings(array, issues)
    is_known = values.notna() if hasattr(values, "notna") else (value is not None for value in values)
    cells = [_cell(value, issues) if known else None for value, known in zip(values, is_known, strict=True)]
    return pa.array(cells, pa.string())


def _from_pandas(values: Any) -> pa.Array:
    array = values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def is_image_type(kind: pa.DataType) -> bool:
    """Return whether values of a type may be images: bytes, structs with bytes, or lists of them."""
    kind = kind.value_type if isinstance(kind, LIST_TYPES) else kind
    return kind in _BINARY_TYPES or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _is_nested(kind: pa.DataType) -> bool:
    return isinstance(kind, LIST_TYPES) and pa.types.is_nested(kind.value_type)


def has_bytes(images: pa.Array) -> bool:
    """Return whether there are bytes in an array of such a type: structs may hold paths alone."""
    images = images.flatten() if isinstance(images.type, LIST_TYPES) else images
    images = pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images
    return bool(images.null_count < len(images))


def as_strings(array: pa.Array, issues: Counter[str] | None = None) -> pa.Array:
    """Cast a column to strings: 12 and 12.0 -> "12", true -> "true", NaN -> null; lists become JSON arrays of strings.

    `issues` counts cells with bytes that are not UTF-8, which become U+FFFD, and numbers that float64 has rounded.
    """
    issues = Counter() if issues is None else issues
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    is_list = isinstance(array.type, LIST_TYPES)
    if (array.type.value_type if is_list else array.type) in _TEXT_TYPES:
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            array = array.cast(pa.large_list(pa.large_binary()) if is_list else pa.large_binary())
    kind = array.type
    if _is_nested(kind):
        raise DataError(f"lists must hold plain values, found {kind}: flatten them first")
    if is_list or kind in _BINARY_TYPES or isinstance(kind, pa.UuidType):
        cells = [None if value is None else _cell(value, issues) for value in array.to_pylist()]
        issues["cells_with_wrong_bytes"] += sum("\ufffd" in cell for cell in cells if cell)
        return pa.array(cells, pa.string())
    if pa.types.is_nested(kind) or pa.types.is_duration(kind) or isinstance(kind, pa.BaseExtensionType):
        raise DataError(f"a column must hold plain values or lists of them, found {kind}: flatten it to text first")
    if pa.types.is_floating(kind):
        fractions = pc.cast(array, pa.string())  # in its own precision: a float32 of 0.1 is 0.1
        array = pc.cast(array, pa.float64())
        whole = pc.and_(pc.equal(array, pc.floor(array)), pc.less(pc.abs(array), 2.0**63))
        integers = pc.cast(pc.if_else(whole, array, 0.0), pa.int64())
        issues["numbers_rounded_by_float64"] += pc.sum(pc.greater_equal(pc.abs(array), 2.0**53)).as_py() or 0
        return pc.if_else(pc.is_finite(array), pc.if_else(whole, pc.cast(integers, pa.string()), fractions), None)
    return pc.cast(array, pa.string())


def _cell(value: Any, issues: Counter[str]) -> str | None:
    """Return a value as text, a list as a JSON array of strings in which nulls stay; nothing of nested lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, LISTS):
        return str(value).encode("utf-8", "replace").decode()  # UTF-8 holds no lone surrogates
    if any(isinstance(entry, (*LISTS, dict)) for entry in value):
        issues["cells_left_out_for_nested_lists"] += 1
        return None
    return json.dumps([None if entry is None else _cell(entry, issues) for entry in value], ensure_ascii=False)


_DATE, _TIME = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d:\d\d"
_CANONICAL_FORMS = (
    (r'^="(.*)"$', r"\1"),  # keeps zeros before a number in spreadsheets
    (r"^'([=+\-@])", r"\1"),  # keeps spreadsheets from computing
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


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return an object without objects inside: the key of `{"title": {"en": "mug"}}` is "title.en"; in lists, too."""
    fields: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            fields |= {f"{key}.{inner}": entry for inner, entry in flat(value).items()}
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            for inner, cell in (pair for entry in value for pair in flat(entry).items()):
                fields.setdefault(f"{key}.{inner}", []).append(cell)
        else:
            fields[key] = value
    return fields


def ids_of(column: pa.Array) -> list[str]:
    """Return a column of ids in one spelling, "" for none."""
    return list(pc.fill_null(canonical(column), "").to_pylist())
