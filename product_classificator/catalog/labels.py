"""Turns columns of strings into labels, or sets of labels where a product may have several; `None` where unknown.

A cell of a multi-label column is a JSON array (which is what `table` makes of lists) or labels joined by "|"; where a
column holds lists, a plain cell among them is one label. Null and blank are unknown, and so is a list of nothing but
blanks (`"".split(",")` is one); an empty list means that the product has none of the labels.
"""

import logging
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.table import canonical
from product_classificator.errors import DataError, culprits
from product_classificator.text import is_list_cell, split_labels
from product_classificator.types import Strings, strings

logger = logging.getLogger(__name__)

_UNKNOWN_LABELS = ("", "nan", "none", "null", "<na>")


def read_labels(array: pa.ChunkedArray) -> Strings:
    """Return a column of strings as labels, `None` where a label is unknown."""
    encoded = _encoded(canonical(array))
    labels = [None if name.lower() in _UNKNOWN_LABELS else name for name in encoded.dictionary.to_pylist()]
    return _decoded(labels, encoded)


def read_label_sets(array: pa.ChunkedArray, name: str, *, has_lists: bool) -> Strings:
    """Return a column of strings as sets of labels, `None` where they are unknown.

    Args:
        array: cells as `split_labels` reads them.
        name: name of the column, for errors.
        has_lists: whether the table holds lists there: plain cells are then one label each, with a warning.

    Raises:
        DataError: a cell looks like a list and is not a JSON array of plain values.
    """
    encoded = _encoded(pc.utf8_trim_whitespace(array))
    cells, malformed, plain = [], [], []
    for cell in encoded.dictionary.to_pylist():
        is_plain = has_lists and not is_list_cell(cell)
        if is_plain and cell.lower() not in _UNKNOWN_LABELS:
            plain.append(cell)
        try:
            entries = ["" if entry is None else str(entry) for entry in ([cell] if is_plain else split_labels(cell))]
            # Half of an emoji, as an escape, cannot be encoded.
            cells.append([entry.encode("utf-8", "replace").decode() for entry in entries])
        except ValueError:
            malformed.append(cell)
    if malformed:
        raise DataError(
            f'a cell of the multi-label column {name!r} is a JSON array of labels or labels joined by "|", found '
            f'{culprits(malformed)}; write lists like ["a", "b"], or save the table as parquet'
        )
    if plain:
        sentence = "%s holds lists, so it is multi-label; plain cells are one label each: %s"
        logger.warning(sentence, name, culprits(plain))
    unique = list(dict.fromkeys(entry for cell in cells for entry in cell))
    label_of = dict(zip(unique, read_labels(pa.chunked_array([unique], pa.string())), strict=True))
    sets = [frozenset(label_of[entry] for entry in cell) - {None} for cell in cells]
    return _decoded([labels if labels or not cell else None for labels, cell in zip(sets, cells, strict=True)], encoded)


def _encoded(array: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = array.combine_chunks().dictionary_encode()
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _decoded(values: Sequence[str | frozenset[str] | None], encoded: pa.DictionaryArray) -> Strings:
    labels: Strings = strings([*values, None])[encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]
    return labels
