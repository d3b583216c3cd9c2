"""Turns the two tables of the Wildberries set into one streamed table of products.

`wb_school_train.parquet` has raw characteristics, `wb_school_test.parquet` has category, sub_category and isadult; both
have nm, title and description. Rows with the same nm are one product: it has the texts of its first row with any text
and, for each characteristic, its first known label. Opening reads both tables once (8,000 rows of 13 characteristics a
second) and keeps only ids and labels in memory, some 60 bytes a product; texts are streamed on every pass.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.table import Table, canonical, open_table
from product_classificator.catalog.wildberries_values import RAW_CHARACTERISTICS, labels_of, parse_characteristics
from product_classificator.errors import DataError, nearest

logger = logging.getLogger(__name__)

TRAIN_FILE, TEST_FILE = "wb_school_train.parquet", "wb_school_test.parquet"
ID = "nm"
TEXTS = ("title", "description")
ADULT_CATEGORIES = ("Товары для взрослых", "Товары для курения")

_RAW = "characteristics"
_ROW, _HAS_TEXT = "#row", "#has_text"
_READ_ROWS = 16_384


def is_wildberries(path: str | Path) -> bool:
    """Return whether a folder holds a table of the Wildberries set."""
    return any((Path(path) / name).is_file() for name in (TRAIN_FILE, TEST_FILE))


class WildberriesTable:
    """The products of both tables, one row each; a `Table`.

    Attributes:
        name: the folder.
        columns: nm, title, description, then the requested ones.
        issues: problem -> how often it was found: title_and_description_empty (products, left out),
            characteristics_unreadable (rows), nm_missing (rows, left out), nm_repeated (rows of one file).
    """

    def __init__(self, folder: str | Path, columns: Sequence[str], *, min_products_in_sub_cat: int = 10) -> None:
        """Read the ids and labels (`columns`: characteristics, other columns of the test table) of both tables.

        Raises:
            DataError: a table is missing, damaged or lacks a column, or the minimum is below 1.
        """
        if min_products_in_sub_cat < 1:
            raise DataError(
                f"min_products_in_sub_cat must be at least 1, got {min_products_in_sub_cat}: 1 keeps every sub_category"
            )
        folder = Path(folder)
        if missing := [name for name in (TRAIN_FILE, TEST_FILE) if not (folder / name).is_file()]:
            raise DataError(
                f"a folder of tables must hold {TRAIN_FILE} and {TEST_FILE}: "
                f"{folder} has no {' and no '.join(missing)}; add it, or name a single table file"
            )
        raw_names = [name for name in RAW_CHARACTERISTICS if name in columns]
        others = [name for name in dict.fromkeys(columns) if name not in (ID, *TEXTS, *raw_names)]
        wanted = f" (for {', '.join(raw_names)})" if raw_names else ""
        train = _open(folder / TRAIN_FILE, [_RAW] if raw_names else [], wanted)
        test = _open(folder / TEST_FILE, others)
        self.name = str(folder)
        self.columns = list(dict.fromkeys((ID, *TEXTS, *columns)))
        logger.info("reading %s and %s in %s", TRAIN_FILE, TEST_FILE, folder)
        train_rows, unreadable = _read_train(train, raw_names)
        test_rows = _read_test(test, others)
        rows = pa.concat_tables([train_rows, test_rows], promote_options="default")
        rows = rows.append_column(_ROW, pa.array(np.arange(len(rows))))
        self._products = _merge_rows(rows, min_products_in_sub_cat)
        is_kept = np.zeros(len(rows), dtype=bool)
        is_kept[self._products[_ROW].to_numpy()] = True
        self._tables = ((train, is_kept[: len(train_rows)]), (test, is_kept[len(train_rows) :]))
        has_id = [table[ID].drop_null() for table in (train_rows, test_rows)]
        issues = {
            "title_and_description_empty": pc.count_distinct(rows[ID]).as_py() - len(self._products),
            "characteristics_unreadable": unreadable,
            "nm_missing": rows[ID].null_count,
            "nm_repeated": sum(len(ids) - pc.count_distinct(ids).as_py() for ids in has_id),
        }
        self.issues: Mapping[str, int] = {name: count for name, count in issues.items() if count}

    def holds_lists(self, column: str) -> bool:
        """Return false: characteristics with several values become one label or none."""
        return False

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most `size` products; every column is a string array with nulls."""
        if not set(columns) & set(TEXTS):
            for start in range(0, len(self._products), size):
                yield self._batch(columns, {}, start, min(size, len(self._products) - start))
            return
        start = 0
        for table, is_kept in self._tables:
            row = 0
            for batch in table.batches(TEXTS, size):
                kept = batch.filter(pa.array(is_kept[row : row + batch.num_rows]))
                row += batch.num_rows
                if kept.num_rows:
                    title, description = (_blank_to_null(kept.column(name)) for name in TEXTS)
                    texts = (pc.coalesce(title, description), pc.coalesce(description, title))
                    yield self._batch(columns, dict(zip(TEXTS, texts, strict=True)), start, kept.num_rows)
                    start += kept.num_rows

    def _batch(self, columns: Sequence[str], texts: Mapping[str, pa.Array], start: int, rows: int) -> pa.RecordBatch:
        products = self._products.slice(start, rows)
        arrays = [texts[name] if name in texts else products[name].combine_chunks() for name in columns]
        return pa.record_batch([array.cast(pa.string()) for array in arrays], names=list(columns))


def _open(path: Path, columns: Sequence[str], wanted: str = "") -> Table:
    table = open_table(path)
    needed = (ID, *TEXTS, *columns)
    for name in needed:
        if name not in table.columns:
            raise DataError(
                f"{path} must have the columns {', '.join(needed)}{wanted}: there is no {name!r}; "
                f"export it, or ask for other characteristics. {nearest(name, table.columns)}"
            )
    return table


def _read_train(table: Table, characteristics: Sequence[str]) -> tuple[pa.Table, int]:
    """Return the rows (id, text flag, labels), and how many of them have unreadable characteristics."""
    batches, unreadable = [], 0
    for batch in table.batches([ID, *TEXTS, *([_RAW] if characteristics else [])], _READ_ROWS):
        parsed = [parse_characteristics(raw) for raw in batch.column(_RAW).to_pylist()] if characteristics else []
        unreadable += parsed.count(None)
        labels = [labels_of(values or {}) for values in parsed]
        columns = {name: pa.array([row.get(name) for row in labels], pa.string()) for name in characteristics}
        batches.append(_row_batch(batch, columns))
    if unreadable:
        logger.warning("%s: the characteristics of %d rows cannot be read", table.name, unreadable)
    return pa.Table.from_batches(batches, _row_schema(characteristics)), unreadable


def _read_test(table: Table, columns: Sequence[str]) -> pa.Table:
    """Return the rows (id, text flag, labels); goods for adults and for smoking are `isadult`."""
    reads_category = "isadult" in columns and "category" in table.columns
    names = dict.fromkeys([ID, *TEXTS, *columns, *(["category"] if reads_category else [])])
    batches = []
    for batch in table.batches(list(names), _READ_ROWS):
        labels = {name: canonical(batch.column(name)) for name in columns}
        if reads_category:
            category = pc.utf8_trim_whitespace(batch.column("category"))
            is_for_adults = pc.is_in(category, value_set=pa.array(ADULT_CATEGORIES))
            labels["isadult"] = pc.if_else(is_for_adults, "true", labels["isadult"])
        batches.append(_row_batch(batch, labels))
    return pa.Table.from_batches(batches, _row_schema(columns))


def _row_schema(labels: Sequence[str]) -> pa.Schema:
    return pa.schema([(ID, pa.string()), (_HAS_TEXT, pa.bool_()), *((name, pa.string()) for name in labels)])


def _row_batch(batch: pa.RecordBatch, labels: Mapping[str, pa.Array]) -> pa.RecordBatch:
    has_text = pc.or_(*(pc.is_valid(_blank_to_null(batch.column(name))) for name in TEXTS))
    arrays = [_blank_to_null(canonical(batch.column(ID))), has_text, *map(_blank_to_null, labels.values())]
    return pa.RecordBatch.from_arrays(arrays, schema=_row_schema(list(labels)))


def _blank_to_null(array: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(array), ""), None, array)


def _merge_rows(rows: pa.Table, min_products_in_sub_cat: int) -> pa.Table:
    """Return one row a product with a text: its id, its first known labels, and the row with its texts, ascending."""
    labels = [name for name in rows.column_names if name not in (ID, _ROW, _HAS_TEXT)]
    text_row = pc.if_else(rows[_HAS_TEXT], rows[_ROW], None)
    rows = rows.set_column(rows.schema.get_field_index(_ROW), _ROW, text_row)
    first = [(_ROW, "min"), *((name, "first") for name in labels)]
    # Threads would change the order of the rows, and with it what is first.
    merged = rows.filter(pc.is_valid(rows[ID])).group_by(ID, use_threads=False).aggregate(first)
    merged = merged.filter(pc.is_valid(merged[f"{_ROW}_min"])).sort_by(f"{_ROW}_min")
    columns = {ID: merged[ID], _ROW: merged[f"{_ROW}_min"]}
    for name in labels:
        column = merged[f"{name}_first"]
        if name == "sub_category":
            counts = column.value_counts()
            is_frequent = pc.greater_equal(counts.field("counts"), min_products_in_sub_cat)
            column = pc.if_else(pc.is_in(column, counts.field("values").filter(is_frequent)), column, None)
        columns[name] = column.dictionary_encode()
    return pa.table(columns).combine_chunks()
