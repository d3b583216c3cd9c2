"""Turns columns of strings into labels, `None` where unknown, or into sets of them where many are borne; keeps labels.

A cell of a multi-label column is a JSON array, which is what `tables` makes of lists, or labels joined by "|"; where a
column holds lists, a plain cell among them is one label. Null and blank are unknown, and so is a list of nothing but
blanks (`"".split(",")` is one); an empty list says that the product bears none of the labels. Repeated labels count
once, blank entries among others are dropped.
"""

import logging
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from product_classificator.catalog.table import canonical
from product_classificator.errors import ArtifactError, DataError, culprits
from product_classificator.files import replacing
from product_classificator.text import is_list_cell, split_labels
from product_classificator.types import Strings, Truth, is_multi_label, strings

logger = logging.getLogger(__name__)

_UNKNOWN_LABELS = ("", "nan", "none", "null", "<na>")


def read_labels(array: pa.ChunkedArray) -> Strings:
    """Returns a column of strings as labels, `None` where a label is unknown."""
    encoded = _encoded(canonical(array))
    names = [None if name.lower() in _UNKNOWN_LABELS else name for name in encoded.dictionary.to_pylist()]
    return _decoded(names, encoded)


def read_label_sets(array: pa.ChunkedArray, name: str, *, has_lists: bool) -> Strings:
    """Returns a column of strings as sets of labels, `None` where they are unknown.

    Args:
        array: cells as `split_labels` reads them.
        name: of the column, for errors.
        has_lists: whether the table holds lists there: plain cells are then one label each, with a warning.

    Raises:
        DataError: a cell looks like a list and is no JSON array of plain values.
    """
    encoded = _encoded(pc.utf8_trim_whitespace(array))
    entries, broken, plain = [], [], []
    for cell in encoded.dictionary.to_pylist():
        is_plain = has_lists and not is_list_cell(cell)
        if is_plain and cell.lower() not in _UNKNOWN_LABELS:
            plain.append(cell)
        try:
            own = [None if entry is None else str(entry) for entry in ([cell] if is_plain else split_labels(cell))]
            # Half of an emoji, as an escape, cannot be encoded.
            entries.append([None if entry is None else entry.encode("utf-8", "replace").decode() for entry in own])
        except ValueError:
            broken.append(cell)
    if broken:
        raise DataError(
            f'a cell of the multi-label column {name!r} is a JSON array of labels or labels joined by "|", found '
            f'{culprits(broken)}; write lists like ["a", "b"], or save the table as parquet'
        )
    if plain:
        sentence = "%s holds lists, so it is multi-label; plain cells are one label each: %s"
        logger.warning(sentence, name, culprits(plain))
    found = list(dict.fromkeys(entry for cell in entries for entry in cell))
    known = dict(zip(found, read_labels(pa.chunked_array([found], pa.string())), strict=True))
    return _decoded([_set_of([known[entry] for entry in cell]) for cell in entries], encoded)


def save_labels(ids: Strings, truth: Truth, path: Path) -> None:
    """Writes a parquet file with the id of each product and a struct of its labels, or lists of them."""
    labels = pa.StructArray.from_arrays([_arrow(column) for column in truth.values()], list(truth))
    table = pa.table({"id": pa.array(ids, pa.string()), "labels": labels})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def load_labels(path: Path) -> pd.DataFrame:
    """Reads what `save_labels` wrote: ids are the index, characteristics the columns; lists come as tuples.

    Raises:
        ArtifactError: the file is damaged or missing, as in runs of older versions.
    """
    try:
        table = pq.read_table(path)
        names = [field.name for field in table["labels"].type]
        columns = zip(names, table["labels"].flatten(), strict=True)
        return pd.DataFrame({name: _pandas(column) for name, column in columns}).set_axis(table["id"].to_pandas())
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise ArtifactError(f"a run keeps its labels, {path} is damaged ({error}): train again") from error


def _arrow(labels: Strings) -> pa.Array:
    if not is_multi_label(labels):
        return pa.array(labels, pa.string()).dictionary_encode()
    return pa.array([None if item is None else sorted(item) for item in labels], pa.list_(pa.string()))


def _pandas(column: pa.ChunkedArray) -> pd.Series:
    if not pa.types.is_list(column.type):
        return column.to_pandas()
    return pd.Series([None if item is None else tuple(item) for item in column.to_pylist()], dtype=object)


def _set_of(entries: list[str | None]) -> frozenset[str] | None:
    labels = frozenset(entry for entry in entries if entry is not None)
    return labels if labels or not entries else None


def _encoded(array: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = array.combine_chunks().dictionary_encode()
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _decoded(values: list[str | None] | list[frozenset[str] | None], encoded: pa.DictionaryArray) -> Strings:
    labels: Strings = strings([*values, None])[encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]
    return labels
