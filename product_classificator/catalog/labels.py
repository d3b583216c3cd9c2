"""Turns columns of strings into labels: `None` where unknown; of a multi-label characteristic the set that is borne.

A cell of a multi-label column is a JSON array, which is what `tables` makes of lists, or labels joined by "|". Null and
blank are unknown, and so is a list of nothing but blanks (`"".split(",")` is one); an empty list says that the product
bears none of the labels. Repeated labels count once, blank entries among others are dropped.
"""

import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.tables import canonical
from product_classificator.errors import DataError, culprits
from product_classificator.text import split_labels
from product_classificator.types import Strings, strings

_UNKNOWN_LABELS = ("", "nan", "none", "null", "<na>")


def read_labels(array: pa.ChunkedArray) -> Strings:
    """Returns a column of strings as labels, `None` where a label is unknown."""
    encoded = _encoded(canonical(array))
    names = [None if name.lower() in _UNKNOWN_LABELS else name for name in encoded.dictionary.to_pylist()]
    return _decoded(names, encoded)


def read_label_sets(array: pa.ChunkedArray, name: str) -> Strings:
    """Returns a column of strings as sets of labels, `None` where they are unknown.

    Args:
        array: cells as `split_labels` reads them.
        name: of the column, for errors.

    Raises:
        DataError: a cell looks like a list and is no JSON array of plain values.
    """
    encoded = _encoded(pc.utf8_trim_whitespace(array))
    entries, broken = [], []
    for cell in encoded.dictionary.to_pylist():
        try:
            entries.append([None if entry is None else str(entry) for entry in split_labels(cell)])
        except ValueError:
            broken.append(cell)
    if broken:
        raise DataError(
            f'a cell of the multi-label column {name!r} is a JSON array of labels or labels joined by "|", found '
            f'{culprits(broken)}; write lists like ["a", "b"], or save the table as parquet'
        )
    found = list(dict.fromkeys(entry for cell in entries for entry in cell))
    known = dict(zip(found, read_labels(pa.chunked_array([found], pa.string())), strict=True))
    return _decoded([_set_of([known[entry] for entry in cell]) for cell in entries], encoded)


def _set_of(entries: list[str | None]) -> frozenset[str] | None:
    labels = frozenset(entry for entry in entries if entry is not None)
    return labels if labels or not entries else None


def _encoded(array: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = array.combine_chunks().dictionary_encode()
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _decoded(values: list[str | None] | list[frozenset[str] | None], encoded: pa.DictionaryArray) -> Strings:
    labels: Strings = strings([*values, None])[encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]
    return labels
