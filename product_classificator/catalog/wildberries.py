"""Turns the two tables of the Wildberries set into one table of products that can be streamed.

`wb_school_train.parquet` has raw characteristics, `wb_school_test.parquet` has category, sub_category and isadult; both
have nm, title and description. Rows of one nm are one product: it has the texts of the first row that has any, and of
each characteristic the first label that is known.

Decisions and their cost:
- Opening reads both tables once and parses the characteristics, 20,000 rows a second or more; only ids and labels stay
  in memory, some 60 bytes a product, while texts are streamed from the files on every pass.
- An empty description takes the title and the reverse; with both asked for, such a text is there twice.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.table import Table, canonical, open_table
from product_classificator.catalog.wildberries_values import TOLD_BY_VALUES, labels_of, parse_characteristics
from product_classificator.errors import DataError, nearest
from product_classificator.types import Bools, Rows

logger = logging.getLogger(__name__)

TRAIN_FILE, TEST_FILE = "wb_school_train.parquet", "wb_school_test.parquet"
ID = "nm"
TEXTS = ("title", "description")
ADULT_CATEGORIES = ("Товары для взрослых", "Товары для курения")

_RAW = "characteristics"
_READ_ROWS = 16_384


def is_wildberries(path: str | Path) -> bool:
    """Whether a folder holds both tables of the Wildberries set."""
    return not _missing(Path(path))


def _missing(folder: Path) -> list[str]:
    return [name for name in (TRAIN_FILE, TEST_FILE) if not (folder / name).is_file()]


class WildberriesTable:
    """The products of both tables, one row each; a `Table`.

    Attributes:
        name: the folder.
        columns: nm, title, description, then those asked for.
        issues: what was set aside while reading -> how many: title_and_description_empty (products),
            characteristics_unreadable (rows), nm_missing (rows), nm_repeated (rows of one file).
    """

    def __init__(self, folder: str | Path, columns: Sequence[str], *, min_products_in_sub_cat: int = 10) -> None:
        """Reads the ids and labels of both tables.

        Args:
            folder: holds both tables.
            columns: characteristics, and any other columns of the test table.
            min_products_in_sub_cat: a sub_category with fewer products is unknown.

        Raises:
            DataError: a table is missing, damaged or without a needed column, or the minimum is too small.
        """
        if min_products_in_sub_cat < 1:
            raise DataError(
                f"min_products_in_sub_cat must be at least 1, got {min_products_in_sub_cat}: 1 keeps every sub_category"
            )
        folder = Path(folder)
        missing = _missing(folder)
        if missing:
            raise DataError(
                f"a folder of tables must hold {TRAIN_FILE} and {TEST_FILE}: "
                f"{folder} has no {' and no '.join(missing)}; add it, or name a single table file"
            )
        told = [name for name in TOLD_BY_VALUES if name in columns]
        others = [name for name in dict.fromkeys(columns) if name not in told]
        self._tables = (
            _open(folder / TRAIN_FILE, [_RAW] if told else [], {_RAW: told}),
            _open(folder / TEST_FILE, others, {}),
        )
        self.name = str(folder)
        self.columns = [ID, *TEXTS, *dict.fromkeys(columns)]
        logger.info("reading %s and %s in %s", TRAIN_FILE, TEST_FILE, folder)
        train, test = _read_train(self._tables[0], told), _read_test(self._tables[1], others)
        self._kept, self._held, self.issues = _join(train, test, min_products_in_sub_cat)

    def holds_lists(self, column: str) -> bool:
        """Answers no: values that are lists are told as text."""
        return False

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Yields batches of at most `size` products; every column is a string array with nulls."""
        start = 0
        if not set(columns) & set(TEXTS):
            for start in range(0, len(self._held[ID]), size):
                yield self._batch(columns, {}, start, min(size, len(self._held[ID]) - start))
            return
        for table, is_kept in zip(self._tables, self._kept, strict=True):
            row = 0
            for batch in table.batches(TEXTS, size):
                kept = batch.filter(pa.array(is_kept[row : row + batch.num_rows]))
                row += batch.num_rows
                if kept.num_rows:
                    yield self._batch(columns, _filled(kept), start, kept.num_rows)
                    start += kept.num_rows

    def _batch(self, columns: Sequence[str], texts: Mapping[str, pa.Array], start: int, rows: int) -> pa.RecordBatch:
        arrays = [texts[name] if name in texts else _plain(self._held[name].slice(start, rows)) for name in columns]
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))


class _Rows:
    """What is held of the rows of one file: ids, whether there is a text, and labels as codes."""

    def __init__(self) -> None:
        self.ids: list[pa.Array] = []
        self.has_text: list[Bools] = []
        self.labels: dict[str, list[pa.Array]] = {}
        self.unreadable = 0

    def add(self, batch: pa.RecordBatch, labels: Mapping[str, pa.Array]) -> None:
        self.ids.append(_known(canonical(batch.column(ID))))
        empty = [pc.is_null(_known(batch.column(name))) for name in TEXTS]
        self.has_text.append(~pc.and_(*empty).to_numpy(zero_copy_only=False))
        for name, array in labels.items():
            self.labels.setdefault(name, []).append(_known(array).dictionary_encode())


def _open(path: Path, needed: Sequence[str], stands_for: Mapping[str, Sequence[str]]) -> Table:
    table = open_table(path)
    for name in (ID, *TEXTS, *needed):
        if name not in table.columns:
            wanted = f" (for {', '.join(stands_for[name])})" if name in stands_for else ""
            raise DataError(
                f"{path} must have the columns {', '.join((ID, *TEXTS, *needed))}{wanted}: there is no {name!r}; "
                f"export it, or ask for other characteristics. {nearest(name, table.columns)}"
            )
    return table


def _read_train(table: Table, told: Sequence[str]) -> _Rows:
    rows = _Rows()
    for batch in table.batches([ID, *TEXTS, *([_RAW] if told else [])], _READ_ROWS):
        labels: dict[str, list[str | None]] = {name: [] for name in told}
        for raw in batch.column(_RAW).to_pylist() if told else ():
            values = parse_characteristics(raw)
            rows.unreadable += values is None
            found = labels_of(values or {})
            for name, column in labels.items():
                column.append(found.get(name))
        rows.add(batch, {name: pa.array(column, pa.string()) for name, column in labels.items()})
    if rows.unreadable:
        logger.warning("%s: the characteristics of %d rows cannot be read", table.name, rows.unreadable)
    return rows


def _read_test(table: Table, columns: Sequence[str]) -> _Rows:
    is_adult_known = "isadult" in columns and "category" in table.columns
    read = dict.fromkeys([ID, *TEXTS, *columns, *(["category"] if is_adult_known else [])])
    rows = _Rows()
    for batch in table.batches(list(read), _READ_ROWS):
        labels = {name: canonical(batch.column(name)) for name in columns}
        if is_adult_known:
            category = pc.utf8_trim_whitespace(batch.column("category"))
            is_for_adults = pc.is_in(category, value_set=pa.array(ADULT_CATEGORIES))
            labels["isadult"] = pc.if_else(is_for_adults, "true", labels["isadult"])
        rows.add(batch, labels)
    return rows


def _join(
    train: _Rows, test: _Rows, min_products_in_sub_cat: int
) -> tuple[tuple[Bools, Bools], dict[str, pa.Array], dict[str, int]]:
    """Makes one row a product of the rows of both files.

    Returns:
        Which rows of each file give a product its place and texts; its id and labels, in that order; the issues.
    """
    ids = pa.chunked_array([*train.ids, *test.ids], pa.string()).combine_chunks().dictionary_encode()
    product: Rows = ids.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    has_text = np.concatenate([*train.has_text, *test.has_text, np.zeros(0, dtype=bool)])
    rows = np.flatnonzero(has_text & (product >= 0))
    place = np.sort(rows[np.unique(product[rows], return_index=True)[1]])
    n_train, chosen = sum(map(len, train.ids)), product[place]
    held: dict[str, pa.Array] = {ID: ids.dictionary.take(pa.array(chosen))}
    for source, of_rows in ((train, product[:n_train]), (test, product[n_train:])):
        for name, arrays in source.labels.items():
            labels = pa.chunked_array(arrays).unify_dictionaries().combine_chunks()
            codes = _first_known(labels, of_rows, len(ids.dictionary))[chosen]
            if name == "sub_category":
                codes = _without_rare(codes, min_products_in_sub_cat)
            indices = pa.array(codes.astype(np.int32), mask=codes < 0)
            held[name] = pa.DictionaryArray.from_arrays(indices, labels.dictionary)
    is_kept = np.zeros(len(product), dtype=bool)
    is_kept[place] = True
    known = [part[part >= 0] for part in (product[:n_train], product[n_train:])]
    issues = {
        "title_and_description_empty": len(ids.dictionary) - len(place),
        "characteristics_unreadable": train.unreadable,
        "nm_missing": int((product < 0).sum()),
        "nm_repeated": sum(len(part) - len(np.unique(part)) for part in known),
    }
    return (is_kept[:n_train], is_kept[n_train:]), held, {name: count for name, count in issues.items() if count}


def _first_known(labels: pa.DictionaryArray, product: Rows, n_products: int) -> Rows:
    """Returns the code of the first known label of each product, -1 without one."""
    codes = labels.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    known = np.flatnonzero((codes >= 0) & (product >= 0))[::-1]  # of several values NumPy keeps the last
    first = np.full(n_products, -1, dtype=np.int64)
    first[product[known]] = codes[known]
    return first


def _without_rare(codes: Rows, least: int) -> Rows:
    counts = np.bincount(codes[codes >= 0], minlength=1)
    return np.where((codes >= 0) & (counts[codes] < least), -1, codes)


def _known(array: pa.Array) -> pa.Array:
    """Returns strings with null instead of what is blank."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(array), ""), None, array)


def _filled(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    title, description = (_known(batch.column(name)) for name in TEXTS)
    return {TEXTS[0]: pc.coalesce(title, description), TEXTS[1]: pc.coalesce(description, title)}


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
