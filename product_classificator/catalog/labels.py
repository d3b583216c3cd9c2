"""Turns columns of strings into labels, or sets of labels where a product may have several; `None` where unknown.

Null and blank are unknown, and so is a list of blanks (`"".split(",")` is one); an empty list means none of the labels.
"""

import json
import logging
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from functools import cache
from itertools import accumulate, dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.cells import Table, canonical
from product_classificator.catalog.columns import UNKNOWN
from product_classificator.errors import DataError, culprits, nearest
from product_classificator.text import is_list_cell, split_labels
from product_classificator.types import Bools, Strings, Truth, strings

logger = logging.getLogger(__name__)

MAX_LABEL_CHARS = 1_000
_PATH_MARKS = (">>", "›", "»", "->", ">", "|", "/")
_MIN_LEVEL_SHARE = 0.1  # of the products; deeper levels are left out
_LATIN = str.maketrans("авсеёнкмортху", "abceehkmoptxy")


def read_labels(array: pa.ChunkedArray, name: str, unknown: Collection[str] = UNKNOWN) -> Strings:
    """Return a column of strings as labels, `None` where a label is unknown.

    Blanks in a row are one, and signs that cannot be seen do not count; other labels that look alike are a warning.
    """
    encoded = _encoded(array)
    names = canonical(pc.replace_substring_regex(encoded.dictionary, r"[\s\p{Z}]+", " ")).to_pylist()
    labels = [None if not label or label in unknown else label for label in names]
    if long := [f"{label[:30]}..." for label in labels if label and len(label) > MAX_LABEL_CHARS]:
        rule = f"a label has at most {MAX_LABEL_CHARS} characters"
        raise DataError(f"{rule}, {name!r} holds {culprits(long)}: is it a text?")
    distinct = {label for label in labels if label is not None}
    same = Counter(map(_look, distinct))
    if alike := sorted((_look(label), label) for label in distinct if same[_look(label)] > 1):
        rule = "labels that look alike (case, quotes, dashes, Cyrillic and Latin letters) are different labels"
        logger.warning("%s: %s: %s", name, rule, culprits(label for _, label in alike))
    if lists := [label for label in distinct if label.startswith("[") and label.endswith("]")]:
        sentence = "%s: cells that look like lists are one label each, name it in multi_label: %s"
        logger.warning(sentence, name, culprits(lists))
    return _decoded(labels, encoded)


def _look(label: str) -> str:
    """Return what is left of a label without case, blanks, dashes, quotes, final marks, and Cyrillic look-alikes."""
    plain = unicodedata.normalize("NFKC", label).casefold().translate(_LATIN)
    return re.sub(r"[\s_\-\u2010-\u201f\"'`«»]+", "", plain).rstrip(".,;:!") or label


def read_label_sets(array: pa.ChunkedArray, name: str, unknown: Collection[str], separator: str | None) -> Strings:
    """Return a column of strings as sets of labels, `None` where they are unknown.

    Cells are as `split_labels` reads them; without a `separator`, in a column of lists, a plain one is one label.
    """
    encoded = _encoded(pc.utf8_trim_whitespace(array))
    texts = encoded.dictionary.to_pylist()
    cells, malformed, plain = [], [], []
    for cell in texts:
        is_plain = separator is None and not is_list_cell(cell)
        if is_plain and cell and cell not in unknown:
            plain.append(cell)
        try:
            entries = [cell] if is_plain or cell in unknown else split_labels(cell, separator or "|")
            # Half of an emoji, as an escape, cannot be encoded.
            cells.append(["" if e is None else str(e).encode("utf-8", "replace").decode() for e in entries])
        except ValueError:
            malformed.append(cell)
            cells.append([""])
    if malformed:
        sentence = (
            f'a cell of the multi-label column {name!r} is a list of labels or labels joined by "|", found '
            f'{culprits(malformed)}; write lists like ["a", "b"], or save the table as parquet'
        )
        if len(malformed) * 2 > len(texts):
            raise DataError(sentence)
        logger.warning("%s: these are unknown", sentence)
    if plain:
        rule = "holds lists, so it is multi-label; plain cells are one label each"
        logger.warning("%s %s: %s", name, rule, culprits(plain))
    unique = list(dict.fromkeys(entry for cell in cells for entry in cell))
    labels = read_labels(pa.chunked_array([unique], pa.string()), name, unknown)
    label_of = dict(zip(unique, labels, strict=True))
    sets = [frozenset(label_of[entry] for entry in cell) - {None} for cell in cells]
    return _decoded([labels if labels or not cell else None for labels, cell in zip(sets, cells, strict=True)], encoded)


def correct_labels(truth: Truth, ids: Strings, path: str | Path) -> Bools:
    """Let what people agreed on in a review win over the (n,) labels of a table; return (n,) of which products.

    What is none of the labels becomes unknown. A file that is not the history of a review is a `DataError`.
    """
    is_corrected, row_of = np.zeros(len(ids), dtype=bool), {id_: row for row, id_ in enumerate(ids)}
    try:
        with closing(sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)) as history:
            for product, name, label in history.execute("SELECT product, characteristic, label FROM corrections"):
                if product in row_of and name in truth:
                    value = json.loads(label)
                    truth[name][row_of[product]] = frozenset(value) if isinstance(value, list) else value
                    is_corrected[row_of[product]] = True
    except (sqlite3.Error, ValueError) as error:
        raise DataError(f"corrections are the review.sqlite of a review, {path} cannot be read: {error}") from error
    return is_corrected


def find_separator(array: pa.ChunkedArray, name: str) -> str:
    """Return "|", or with a warning what else is in most different cells of a column without "|" and lists."""
    cells = [cell for cell in pc.unique(array).to_pylist() if cell is not None]
    if not any("|" in cell or is_list_cell(cell) for cell in cells):
        for mark in ";,":
            if sum(mark in cell for cell in cells) * 2 > len(cells):
                logger.warning('%s: no cell holds "|": labels are split at "%s"', name, mark)
                return mark
        if joined := [cell for cell in cells if cell and re.search(r"[;,/\n]", cell)]:
            logger.warning(
                '%s: no cell holds "|": cells with other marks are one label each: %s', name, culprits(joined)
            )
    return "|"


def _encoded(array: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = array.combine_chunks().dictionary_encode()
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _decoded(values: Sequence[str | frozenset[str] | None], encoded: pa.DictionaryArray) -> Strings:
    labels: Strings = strings([*values, None])[encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]
    return labels


class PathTable(Table):
    """A table with the levels of a column of paths, like `Clothing >> Women >> Dresses`, as further columns.

    `category_1` is "Clothing", `category_2` "Clothing >> Women": a level says all above it, and so refines it. Cells
    may be lists. An empty or unknown level ends a path. A `separator` of `None` is the one that most cells have;
    without `n_levels`, there are those that enough products reach.
    """

    def __init__(
        self, table: Table, path: str, separator: str | None, unknown: Collection[str], n_levels: int = 0
    ) -> None:
        if path not in table.columns:
            raise DataError(f"{table.name} has no column {path!r}: {nearest(path, table.columns)}")
        self._table, self.path, self._unknown = table, path, frozenset(unknown)
        self._levels_of = cache(self._split)
        self.separator = separator or ""
        n_levels = n_levels or self._find_levels()
        super().__init__(table.name, [*table.columns, *(f"{path}_{level}" for level in range(1, n_levels + 1))])
        self.levels = self.columns[-n_levels:]
        self.encoding, self.sources = getattr(table, "encoding", ""), table.sources

    def _find_levels(self) -> int:
        """Find what separates levels, unless it is named, and return their number."""
        path, batches = self.path, self._table.batches([self.path])
        cells = [cell for batch in batches for cell in batch.column(0).to_pylist() if cell]
        usual = (mark for mark in _PATH_MARKS if 2 * sum(mark in cell for cell in cells) > len(cells))
        self.separator = self.separator or next(usual, ">>")
        depths = np.array([len(self._levels_of(cell)) for cell in cells], dtype=np.int64)
        n_levels = sum((depths > level).mean() >= _MIN_LEVEL_SHARE for level in range(depths.max(initial=0)))
        if n_levels < 2:
            rule = f"paths have levels, but few cells of {path!r} hold {self.separator!r}"
            raise DataError(f"{rule}: name what separates them")
        return int(n_levels)

    def _split(self, cell: str) -> list[str]:
        """Return the way to each level; the entries of a list are levels, but its only one is a path."""
        entries: list[object] = [cell.strip()]
        with suppress(ValueError):
            entries = split_labels(cell) if is_list_cell(cell) else entries
        if len(entries) == 1 and entries[0] not in self._unknown:
            entries = list(str(entries[0]).split(self.separator))
        names = ["" if entry is None or entry in self._unknown else str(entry).strip() for entry in entries]
        mark = self.separator.strip() or self.separator
        levels = takewhile(bool, dropwhile(lambda name: not name, names))  # a path may begin with "/"
        return [*accumulate(levels, lambda way, name: f"{way} {mark} {name}")]

    def holds_lists(self, column: str) -> bool:
        """Return whether the table holds lists there; a level is one label."""
        return column not in self.levels and self._table.holds_lists(column)

    def holds_images(self, column: str) -> bool:
        """Return whether the table holds images there."""
        return column not in self.levels and self._table.holds_images(column)

    def batches(
        self, columns: Sequence[str], size: int = 16_384, images: str | None = None, first_row: int = 0
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches as the table does."""
        plain = dict.fromkeys(self.path if name in self.levels else name for name in columns)
        for batch in self._table.batches(list(plain), size, images, first_row):
            cells = batch.column(self.path).to_pylist() if self.path in plain else []
            ways = [self._levels_of(cell or "") for cell in cells]
            levels = {name: [way[k] if k < len(way) else None for way in ways] for k, name in enumerate(self.levels)}
            arrays = [pa.array(levels[n], pa.string()) if n in levels else batch.column(n) for n in columns]
            yield pa.record_batch(arrays, names=list(columns))
        self.issues, self.n_rows = self._table.issues, self._table.n_rows

    def _read(self, indices: Sequence[int], size: int, issues: Counter[str]) -> Iterator[Sequence[Any]]:
        return self._table._read(indices, size, issues)
