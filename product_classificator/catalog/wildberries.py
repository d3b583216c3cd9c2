"""Turns the two tables of the Wildberries set into one streamed table of products.

`wb_school_train.parquet` has raw characteristics, `wb_school_test.parquet` has category, sub_category and isadult; both
have nm, title and description. Rows with the same nm are one product: it has the texts of its first row with any text
and, for each characteristic, its first known label. Opening reads both tables once and keeps ids and labels in memory.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.cells import Table, canonical
from product_classificator.catalog.table import open_table
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


class WildberriesTable(Table):
    """The products of both tables, one row each: nm, title, description, then the requested columns.

    Its `issues` are title_and_description_empty (products, left out), characteristics_unreadable (rows), nm_missing
    (rows, left out) and nm_repeated (rows of one file).
    """

    def __init__(self, folder: str | Path, columns: Sequence[str]) -> None:
        """Read the ids and labels (`columns`: characteristics, other columns of the test table) of both tables."""
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
        super().__init__(str(folder), dict.fromkeys((ID, *TEXTS, *columns)))
        logger.info("reading %s and %s in %s", TRAIN_FILE, TEST_FILE, folder)
        train_rows, unreadable = _read_rows(train, raw_names, [])
        test_rows, _ = _read_rows(test, [], others)
        rows = pa.concat_tables([train_rows, test_rows], promote_options="default")
        text_rows = pc.if_else(rows[_HAS_TEXT], pa.array(np.arange(len(rows))), None)
        rows = rows.drop([_HAS_TEXT]).append_column(_ROW, text_rows)
        self._products = _merge_rows(rows)
        is_kept = np.zeros(len(rows), dtype=bool)
        is_kept[self._products[_ROW].to_numpy()] = True
        self._tables = ((train, is_kept[: len(train_rows)]), (test, is_kept[len(train_rows) :]))
        has_id = [table[ID].drop_null() for table in (train_rows, test_rows)]
        self.issues = +Counter(
            title_and_description_empty=pc.count_distinct(rows[ID]).as_py() - len(self._products),
            characteristics_unreadable=unreadable,
            nm_missing=rows[ID].null_count,
            nm_repeated=sum(len(ids) - pc.count_distinct(ids).as_py() for ids in has_id),
        )

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[list[pa.Array]]:
        issues.update(self.issues)
        names, start = [self.columns[index] for index in indices], 0
        read = TEXTS if set(names) & set(TEXTS) else (ID,)
        for table, is_kept in self._tables:
            row = 0
            for batch in table.batches(read, size):
                kept = batch.filter(pa.array(is_kept[row : row + len(batch)]))
                row += len(batch)
                if len(kept):
                    texts = {name: _blank_to_null(kept.column(name)) for name in read}
                    columns = {name: pc.coalesce(texts[name], *texts.values()) for name in read}
                    products = self._products.slice(start, len(kept))
                    columns |= {name: products[name].combine_chunks() for name in names if name not in TEXTS}
                    yield [columns[name] for name in names]
                    start += len(kept)


def _open(path: Path, columns: Sequence[str], wanted: str = "") -> Table:
    table = open_table(path)
    needed = (ID, *TEXTS, *columns)
    if missing := [name for name in needed if name not in table.columns]:
        raise DataError(
            f"{path} must have the columns {', '.join(needed)}{wanted}: there is no {missing[0]!r}; "
            f"export it, or ask for other characteristics. {nearest(missing[0], table.columns)}"
        )
    return table


def _read_rows(table: Table, raw_names: Sequence[str], others: Sequence[str]) -> tuple[pa.Table, int]:
    """Return the rows (id, text flag, labels), and how many have unreadable characteristics; set `isadult` for some."""
    schema = pa.schema([(ID, pa.string()), (_HAS_TEXT, pa.bool_()), *((n, pa.string()) for n in (*raw_names, *others))])
    reads_category = "isadult" in others and "category" in table.columns
    needed = [ID, *TEXTS, *others, *([_RAW] if raw_names else []), *(["category"] if reads_category else [])]
    batches, unreadable = [], 0
    for batch in table.batches(list(dict.fromkeys(needed)), _READ_ROWS):
        parsed = [parse_characteristics(raw) for raw in batch.column(_RAW).to_pylist()] if raw_names else []
        unreadable += parsed.count(None)
        raw_labels = [labels_of(values or {}) for values in parsed]
        labels = {name: pa.array([row.get(name) for row in raw_labels], pa.string()) for name in raw_names}
        labels |= {name: canonical(batch.column(name)) for name in others}
        if reads_category:
            category = pc.utf8_trim_whitespace(batch.column("category"))
            is_for_adults = pc.is_in(category, value_set=pa.array(ADULT_CATEGORIES))
            labels["isadult"] = pc.if_else(is_for_adults, "true", labels["isadult"])
        has_text = pc.or_(*(pc.is_valid(_blank_to_null(batch.column(name))) for name in TEXTS))
        arrays = [_blank_to_null(canonical(batch.column(ID))), has_text, *map(_blank_to_null, labels.values())]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    if unreadable:
        logger.warning("%s: the characteristics of %d rows cannot be read", table.name, unreadable)
    return pa.Table.from_batches(batches, schema), unreadable


def _blank_to_null(array: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(array), ""), None, array)


def _merge_rows(rows: pa.Table) -> pa.Table:
    """Return each product with a text: its id, its first known labels, and the row with its texts, ascending."""
    labels = [name for name in rows.column_names if name not in (ID, _ROW)]
    first = [(_ROW, "min"), *((name, "first") for name in labels)]
    # Threads would change the order of the rows, and with it what is first.
    merged = rows.filter(pc.is_valid(rows[ID])).group_by(ID, use_threads=False).aggregate(first)
    merged = merged.filter(pc.is_valid(merged[f"{_ROW}_min"])).sort_by(f"{_ROW}_min")
    columns = {name: merged[f"{name}_first"].dictionary_encode() for name in labels}
    return pa.table({ID: merged[ID], _ROW: merged[f"{_ROW}_min"], **columns}).combine_chunks()
