"""Opens a table file or a DataFrame as a `Table`: a stream of record batches whose columns are all strings.

Only the requested columns are read, a batch at a time; CSV and JSON lines are parsed again on every pass.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pyarrow as pa
import pyarrow.dataset as ds

from product_classificator.catalog.cells import LIST_TYPES, LISTS, Table, is_image_type
from product_classificator.catalog.columns import unique_names
from product_classificator.catalog.delimited import CsvTable, TextFile
from product_classificator.errors import DataError, culprits

logger = logging.getLogger(__name__)

_FORMATS = {"parquet": "parquet", "pq": "parquet", "feather": "feather", "arrow": "feather"}
_FORMATS |= dict.fromkeys(("csv", "tsv", "txt"), "csv") | dict.fromkeys(("jsonl", "ndjson", "json"), "json")
_COMPRESSED = ("gz", "gzip", "zst", "bz2")


@runtime_checkable
class ArrowTable(Protocol):
    """What hands its columns over as Arrow memory: a pyarrow Table, a pandas or polars DataFrame, ..."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Return a PyCapsule of an Arrow stream."""


TableSource: TypeAlias = str | Path | ArrowTable | Table


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
    if hasattr(source, "iloc"):  # pandas, which is not imported here, holds what Arrow refuses
        return _FrameTable(source)
    if isinstance(source, ArrowTable):
        return _ArrowTable("Arrow table", ds.dataset(pa.table(source)))
    if not isinstance(source, str | Path):
        raise DataError(f"a table must be a file, a DataFrame or an Arrow table, got {type(source).__name__}")
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
        endings = ", ".join(f".{name}" for name in _FORMATS)
        raise DataError(
            f"a table must end in one of {endings} (text also in .gz, .zst), got {path.name}: save it as CSV or parquet"
        )
    return files


def _format(path: Path) -> str:
    """Return parquet, feather, csv or json after the ending of a name, "" if it is unknown."""
    *_, before, last = ["", "", *path.name.lower().split(".")]
    return _FORMATS.get(before if last in _COMPRESSED else last, "")


def _dataset(files: Sequence[Path], kind: str, *, partitioned: bool) -> Any:
    """Return files as one table with the columns of all of them, and of folders like `kind=Mug`."""
    partitions = ds.partitioning(flavor="hive") if partitioned else None
    data = ds.dataset([str(file) for file in files], format=kind, partitioning=partitions)
    schemas = [data.schema, *(fragment.physical_schema for fragment in data.get_fragments())]
    return data.replace_schema(pa.unify_schemas(schemas, promote_options="permissive")) if len(files) > 1 else data


class _FrameTable(Table):
    def __init__(self, frame: Any) -> None:
        super().__init__("DataFrame", frame.columns)
        self._frame = frame

    def holds_lists(self, column: str) -> bool:
        return any(isinstance(value, LISTS) for value in self._frame.iloc[:, self.columns.index(column)])

    def holds_images(self, column: str) -> bool:
        values = self._frame.iloc[:, self.columns.index(column)]
        values = [next(iter(value), None) if isinstance(value, LISTS) else value for value in values]
        return any(isinstance(value, bytes) or (isinstance(value, dict) and "bytes" in value) for value in values)

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[Any]]:
        for start in range(0, len(self._frame), size):
            yield [self._frame.iloc[start : start + size, index] for index in indices]


class _ArrowTable(Table):
    """Parquet or feather files, or Arrow memory."""

    def __init__(self, name: str, data: Any) -> None:
        super().__init__(name, data.schema.names)
        self._data = data

    def holds_lists(self, column: str) -> bool:
        return isinstance(self._data.schema.types[self.columns.index(column)], LIST_TYPES)

    def holds_images(self, column: str) -> bool:
        return is_image_type(self._data.schema.types[self.columns.index(column)])

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[pa.Array]]:
        names = [self._data.schema.names[index] for index in indices]
        try:
            for batch in self._data.to_batches(columns=names, batch_size=size, batch_readahead=1, use_threads=False):
                if batch.num_rows:
                    yield batch.columns
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name} is damaged: {error}") from error


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
                yield record
            elif record is not None:
                wrong.append(number)
        if wrong and not self.issues:
            logger.warning("%s: lines that are not a JSON object were left out: %s", self.name, culprits(wrong))
        issues["lines_that_are_no_object"] += len(wrong)

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[list[object]]]:
        records = self._records(issues)
        while rows := list(islice(records, size)):
            yield [[row.get(self._keys[index]) for row in rows] for index in indices]
