"""Turns the two tables of the Wildberries set into one streamed table of products.

`wb_school_train` has raw characteristics, `wb_school_test` has category, sub_category and isadult; both have nm, title
and description. Each is a parquet file, or shards (`wb_school_train-00000-of-00002.parquet`, or a folder). Rows with
the same nm are one product: it has the texts of its first row with any text and, for each characteristic, its first
known label. Opening reads the tables once and keeps ids and labels in memory.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.cells import Table, canonical
from product_classificator.catalog.table import open_table
from product_classificator.catalog.wildberries_values import RAW_CHARACTERISTICS, labels_of, parse_characteristics
from product_classificator.errors import DataError, nearest
from product_classificator.remote.paths import as_path

logger = logging.getLogger(__name__)

TRAIN_FILE, TEST_FILE = "wb_school_train.parquet", "wb_school_test.parquet"
ID = "nm"
TEXTS = ("title", "description")
ADULT_CATEGORIES = ("Товары для взрослых", "Товары для курения")

RAW = "characteristics"
_OF_TEST = ("category", "sub_category", "isadult")
_ROW, _HAS_TEXT = "#row", "#has_text"


def wildberries_files(path: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the files or folders of the train and of the test table: in a folder, of a pattern, or one file alone."""
    path = as_path(path)
    found = [path] if path.is_file() else []
    with suppress(ValueError, OSError):  # not a pattern
        root = as_path(path.anchor)
        found = found or sorted(path.iterdir() if path.is_dir() else root.glob(str(path.relative_to(root))))
    names = (rf"{Path(name).stem}([-_.]?\d[\w-]*)?(\.parquet)?" for name in (TRAIN_FILE, TEST_FILE))  # no other tables
    train, test = ([file for file in found if re.fullmatch(name, file.name)] for name in names)
    return train, test


def is_wildberries(path: str | Path) -> bool:
    """Return whether a path holds a table of the Wildberries set."""
    return any(wildberries_files(path))


def published_in(path: str | Path) -> tuple[str, ...]:
    """Return the published characteristics that the tables of a path hold."""
    train, test = wildberries_files(path)
    return (*(_OF_TEST if test else ()), *(RAW_CHARACTERISTICS if train else ()))


class WildberriesTable(Table):
    """The products of one or both tables, one row each: nm, title, description, then the requested columns.

    Its `issues` are title_and_description_empty (products, left out), characteristics_unreadable (rows), nm_missing
    (rows, left out) and nm_repeated (rows of one file).
    """

    def __init__(self, path: str | Path, columns: Sequence[str], multi_label: Sequence[str] = ()) -> None:
        """Read the ids and labels of the tables.

        Args:
            path: what `wildberries_files` takes.
            columns: published characteristics, columns of the test table, or names of raw characteristics ("Цвет"), of
                which the first value counts, or all if `multi_label` names them.
            multi_label: those of `columns` that have several labels.
        """
        train, test = (open_table(list(files)) if files else None for files in wildberries_files(path))
        in_test = {*_OF_TEST, *(test.columns if test else ())} - set(RAW_CHARACTERISTICS)
        names = [name for name in dict.fromkeys(columns) if name not in (ID, *TEXTS)]
        raw_names, others = ([n for n in names if (n in in_test) is is_other] for is_other in (False, True))
        if wrong := [name for name in multi_label if name not in raw_names or name in RAW_CHARACTERISTICS]:
            raise DataError(f"the Wildberries set has one label per characteristic: leave out multi_label={wrong}")
        for file, table, wanted in ((TRAIN_FILE, train, raw_names), (TEST_FILE, test, others)):
            if wanted and table is None:
                raise DataError(f"{path} has no {file}, which holds {', '.join(wanted)}: add it, or leave them out")
            _check(table, [RAW] if wanted is raw_names and wanted else wanted, wanted)
        super().__init__(str(path), dict.fromkeys((ID, *TEXTS, *columns)))
        self.sources = [file for files in wildberries_files(path) for file in files]
        logger.info("reading %s", path)
        parts = [(train, *_read_rows(train, raw_names, [], multi_label))] if train else []
        parts += [(test, *_read_rows(test, [], others))] if test else []
        rows = pa.concat_tables([table_rows for _, table_rows, _ in parts], promote_options="default")
        unknown = [name for name in raw_names if name not in RAW_CHARACTERISTICS and not rows[name].drop_null()]
        if unknown and len(rows):
            raise DataError(f"no product of {path} has a characteristic {unknown[0]!r}: name it as the table does")
        text_rows = pc.if_else(rows[_HAS_TEXT], pa.array(np.arange(len(rows))), None)
        rows = rows.drop([_HAS_TEXT]).append_column(_ROW, text_rows)
        self._products = _merge_rows(rows)
        is_kept = np.zeros(len(rows), dtype=bool)
        is_kept[self._products[_ROW].to_numpy()] = True
        ends = np.cumsum([len(table_rows) for _, table_rows, _ in parts])
        self._tables = [*zip((table for table, _, _ in parts), np.split(is_kept, ends[:-1]), strict=True)]
        has_id = [table_rows[ID].drop_null() for _, table_rows, _ in parts]
        self.issues = +Counter(
            title_and_description_empty=pc.count_distinct(rows[ID]).as_py() - len(self._products),
            characteristics_unreadable=sum(unreadable for _, _, unreadable in parts),
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


def _check(table: Table | None, columns: Sequence[str], wanted: Sequence[str]) -> None:
    needed = (ID, *TEXTS, *columns)
    if table and (missing := [name for name in needed if name not in table.columns]):
        raise DataError(
            f"{table.name} must have the columns {', '.join(needed)} (for {', '.join(wanted) or 'texts'}): there is no "
            f"{missing[0]!r}; export it, or name other characteristics. {nearest(missing[0], table.columns)}"
        )


def _read_rows(
    table: Table, raw_names: Sequence[str], others: Sequence[str], multi_label: Sequence[str] = ()
) -> tuple[pa.Table, int]:
    """Return the rows (id, text flag, labels), and how many have unreadable characteristics; set `isadult` for some."""
    schema = pa.schema([(ID, pa.string()), (_HAS_TEXT, pa.bool_()), *((n, pa.string()) for n in (*raw_names, *others))])
    reads_category = "isadult" in others and "category" in table.columns
    needed = [ID, *TEXTS, *others, *([RAW] if raw_names else []), *(["category"] if reads_category else [])]
    batches, unreadable = [], 0
    for batch in table.batches(list(dict.fromkeys(needed))):
        parsed = [parse_characteristics(raw) for raw in batch.column(RAW).to_pylist()] if raw_names else []
        unreadable += parsed.count(None)
        raw_labels = [labels_of(values or {}, raw_names, multi_label) for values in parsed]
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
