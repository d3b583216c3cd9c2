"""Turns a table and its photos into a checked `Catalog`: which column is what, and products in batches.

A catalog reads nothing but the header when it is made; ids, labels and texts are read when asked for, in Arrow or
NumPy form. Texts stay raw here: encoders and heads prepare them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.columns import Columns
from product_classificator.catalog.images import ImageSource, open_images
from product_classificator.catalog.labels import read_label_sets, read_labels
from product_classificator.catalog.table import Table, canonical, open_table
from product_classificator.catalog.wildberries import ID, TEXTS, WildberriesTable
from product_classificator.errors import DataError, culprits, nearest
from product_classificator.types import Strings, Truth, strings

PUBLISHED_CHARACTERISTICS = (
    "category",
    "sub_category",
    "isadult",
    "sex",
    "season",
    "age_restrictions",
    "fragility",
)
_ID_GUESSES = ("nm", "id", "sku", "product_id", "item_id", "offer_id", "nm_id", "article")
_TEXT_GUESSES = ("title", "name", "text", "description")
_READ_ROWS = 16_384


@dataclass(frozen=True)
class Products:
    """A batch of consecutive rows of a catalog, the first of them number `first_row`.

    Ids and raw texts are "" where the table has none; `image_names` are `None` where photos are found by id.
    """

    first_row: int
    ids: list[str]
    texts: list[str]
    image_names: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Products":
        """Returns the products of `rows`, counted from the first of these; `first_row` stays."""
        ids, texts = ([column[row] for row in rows] for column in (self.ids, self.texts))
        return Products(self.first_row, ids, texts, [self.image_names[row] for row in rows])


class Texts(Sequence[str]):
    """Texts of products kept as Arrow memory: a Python string exists only while it is looked at."""

    def __init__(self, array: pa.ChunkedArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        found = self._array[key]
        result: str | list[str] = found.to_pylist() if isinstance(key, slice) else found.as_py()
        return result

    def __iter__(self) -> Iterator[str]:
        for chunk in self._array.chunks:
            for start in range(0, len(chunk), 4096):
                yield from chunk.slice(start, 4096).to_pylist()

    def take(self, rows: np.ndarray) -> "Texts":
        """Returns the texts of `rows`, in that order."""
        return Texts(pa.chunked_array([self._array.cast(pa.large_string()).take(pa.array(rows)).combine_chunks()]))


class Catalog:
    """Products of a table with their photos; made by `read_catalog`.

    Attributes:
        table: the rows.
        columns: which column is what.
        images: the photos, if there are any.
        issues: problem found while the table was opened -> number of rows.
    """

    def __init__(
        self,
        table: Table,
        columns: Columns,
        images: ImageSource | None,
        issues: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.table = table
        self.columns = columns
        self.images = images
        self.issues = issues

    @cached_property
    def ids(self) -> Strings:
        """(n,) product ids, "" where the table has none."""
        parts = [_ids(batch.column(0)) for batch in self.table.batches([self.columns.id], _READ_ROWS)]
        return strings([value for part in parts for value in part])

    @cached_property
    def _n_products(self) -> int:
        return sum(batch.num_rows for batch in self.table.batches([self.columns.id], _READ_ROWS))

    def __len__(self) -> int:
        return self._n_products

    def batches(self, size: int, first_row: int = 0) -> Iterator[Products]:
        """Yields the products from `first_row` on, at most `size` at a time, in the order of the table."""
        columns = self.columns
        names = list(dict.fromkeys([columns.id, *columns.text, *([columns.photo] if columns.photo else [])]))
        row = 0
        for batch in self.table.batches(names, size):
            skipped = min(max(first_row - row, 0), batch.num_rows)
            if skipped < batch.num_rows:
                yield self._products(batch.slice(skipped), row + skipped)
            row += batch.num_rows

    def _products(self, batch: pa.RecordBatch, first_row: int) -> Products:
        ids = _ids(batch.column(self.columns.id))
        texts = _joined(batch, self.columns.text).to_pylist()
        photo = self.columns.photo
        photos = batch.column(photo).to_pylist() if photo else [None] * len(ids)
        return Products(first_row, ids, texts, [name if name is None else name.strip() for name in photos])

    def image_bytes(self, product_id: str, photo: str | None) -> bytes:
        """Reads the file of a product's photo.

        Raises:
            ImageError: the product has no photo that may be read; its `reason` says why.
        """
        if self.images is None:
            raise DataError("this catalog has no photos: give read_catalog(..., images=...)")
        return self.images.read(photo or "") if self.columns.photo else self.images.read_by_id(product_id)

    def texts(self) -> Texts:
        """Returns the joined raw texts of all products."""
        batches = self.table.batches(list(dict.fromkeys(self.columns.text)), _READ_ROWS)
        if not self.columns.text:
            return Texts(pa.chunked_array([pa.array([""] * len(self), pa.string())]))
        return Texts(pa.chunked_array([_joined(batch, self.columns.text) for batch in batches], pa.string()))

    def truth(self) -> Truth:
        """Returns for each characteristic the (n,) labels; blank, "nan", "none" and "null" are unknown (`None`).

        Raises:
            DataError: a cell of a multi-label column cannot be read, or lists begin too far down to be noticed.
        """
        names = list(self.columns.characteristics)
        batches = list(self.table.batches(names, _READ_ROWS))
        columns = {name: pa.chunked_array([b.column(name) for b in batches], pa.string()) for name in names}
        is_multi = self.columns.multi_label
        has_lists = {name: self.table.holds_lists(name) for name in names}
        late = [name for name in names if name not in is_multi and has_lists[name]]
        if late:  # of JSON lines, whose first rows were looked at
            raise DataError(
                f"lists are seen only far down in {culprits(late)}: name them in multi_label (--multi-label)"
            )
        return {
            name: read_label_sets(array, name, has_lists=has_lists[name]) if name in is_multi else read_labels(array)
            for name, array in columns.items()
        }


def _ids(column: pa.Array) -> list[str]:
    ids: list[str] = pc.fill_null(canonical(column), "").to_pylist()
    return ids


def _joined(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.Array:
    """Joins text columns by line breaks, skipping empty ones; the first of several is one line, though it be empty."""
    # Not pyarrow's binary_join_element_wise: of rows whose values are all null it loses some (seen in 26.0.1).
    values = [batch.column(column).to_pylist() for column in columns]
    stripped = ([(value or "").strip() for value in row] for row in zip(*values, strict=True))
    texts = [_text_of(*row) for row in stripped] if columns else [""] * batch.num_rows
    return pa.array(texts, pa.string())


def _text_of(first: str, *others: str) -> str:
    if not others:
        return first
    rest = list(filter(None, others))
    return "\n".join([" ".join(first.splitlines()), *rest])


def read_catalog(
    table: str | Path | pd.DataFrame,
    images: str | Path | ImageSource | None = None,
    *,
    id: str | None = None,  # noqa: A002 - the word of the command line, too
    text: str | Sequence[str] | None = None,
    characteristics: str | Sequence[str] | None = None,
    photo: str | None = None,
    multi_label: str | Sequence[str] = (),
) -> Catalog:
    """Opens a table of products and their photos.

    A folder is opened as the Wildberries set, by `read_wildberries`, with all its sub-categories.

    Args:
        table: a parquet, CSV/TSV or JSON lines file, a DataFrame, or a folder with the Wildberries set.
        images: a folder or zip with photos, or what `open_images` gave; `None`: text only.
        id: the column of ids; guessed among nm, id, sku, ... if not given.
        text: one or several text columns, joined; empty for photos only. `None`: title, name, text and description,
            as far as they are there.
        characteristics: the columns with labels; `None`: the published seven, as far as they are there.
        photo: the column of photo file names; `None`: photos are found by id (`<id>.jpg`, `.png`, ...).
        multi_label: further characteristics of which a product bears any number of labels, in a cell of text joined
            by "|" or as a JSON array. Characteristics that hold lists are multi-label without being named here; a
            plain cell among lists is one label.

    Raises:
        DataError: the table or photos cannot be read, a column is not there (the nearest one is named), or lists stand
            where text is needed.
    """
    if not isinstance(table, pd.DataFrame) and Path(table).is_dir():
        if id not in (None, ID) or photo is not None:
            raise DataError(f"products and photos of the Wildberries set are found by {ID}: leave out id and photo")
        if multi_label:
            raise DataError(
                f"the Wildberries set has one label a characteristic: leave out multi_label ({multi_label})"
            )
        texts = ("description",) if text is None else text
        return read_wildberries(table, images, min_products_in_sub_cat=1, text=texts, characteristics=characteristics)
    opened = open_table(table)
    have = opened.columns
    source = open_images(images) if isinstance(images, str | Path) else images
    if text is None:
        text = _guess(have, _TEXT_GUESSES)
    named = _guess(have, PUBLISHED_CHARACTERISTICS) if characteristics is None else _names(characteristics)
    labels = _names((*named, *_names(multi_label)))
    chosen = Columns(id if id is not None else _guess_id(opened), _names(text), labels, photo)
    plain = (chosen.id, *chosen.text, *([photo] if photo else []))
    for name in (*plain, *labels):
        if name not in have:
            raise DataError(f"{opened.name} has no column {name!r}: {nearest(name, have)}")
    lists = [name for name in plain if opened.holds_lists(name)]
    if lists:
        raise DataError(f"ids, texts and photos are plain values, but {culprits(lists)} hold lists: join them to text")
    multi = tuple(name for name in labels if name in _names(multi_label) or opened.holds_lists(name))
    chosen = replace(chosen, multi_label=multi)
    if source is None and photo is not None:
        raise DataError(f"a column of photo names ({photo!r}) needs photos: say where they are (images)")
    _check_something_to_see(chosen, source, have)
    return Catalog(opened, chosen, source)


def read_frame(table: str | Path) -> pd.DataFrame:
    """Reads a whole table into memory, values as strings, lists as lists; of the Wildberries set, both tables as one.

    Raises:
        DataError: the table cannot be read.
    """
    if Path(table).is_dir():
        opened: Table = WildberriesTable(table, PUBLISHED_CHARACTERISTICS, min_products_in_sub_cat=1)
    else:
        opened = open_table(table)
    schema = pa.schema([(name, pa.string()) for name in opened.columns])
    frame: pd.DataFrame = pa.Table.from_batches(opened.batches(opened.columns, _READ_ROWS), schema).to_pandas()
    for name in filter(opened.holds_lists, opened.columns):
        frame[name] = frame[name].map(_as_list, "ignore")
    return frame


def _as_list(cell: str) -> object:
    """Returns a list that `tables` has written as a JSON array; what is plain stays."""
    with suppress(ValueError):
        return json.loads(cell) if cell.startswith("[") else cell
    return cell


def read_wildberries(
    folder: str | Path,
    images: str | Path | ImageSource | None = None,
    *,
    min_products_in_sub_cat: int = 10,
    text: str | Sequence[str] = ("description",),
    characteristics: str | Sequence[str] | None = None,
) -> Catalog:
    """Opens the Wildberries set as published: both its tables, and photos `<nm>.jpg` with red and blue swapped.

    Raw characteristics become sex, season, age_restrictions and fragility; goods for adults and for smoking are
    `isadult`; a product without title and description is left out, and counted in the catalog's `issues`.

    Args:
        folder: holds wb_school_train.parquet and wb_school_test.parquet.
        images: a folder or zip with photos, or what `open_images` gave; `None`: text only.
        min_products_in_sub_cat: a sub_category with fewer products is unknown.
        text: one or several text columns, joined; an empty description is the title, and the reverse.
        characteristics: the columns with labels; `None`: the published seven.

    Raises:
        DataError: a table or the photos cannot be read, or a column is not there.
    """
    source = open_images(images, channels="bgr") if isinstance(images, str | Path) else images
    labels = PUBLISHED_CHARACTERISTICS if characteristics is None else _names(characteristics)
    chosen = Columns(ID, _names(text), labels)
    _check_something_to_see(chosen, source, (ID, *TEXTS))
    others = [name for name in chosen.text if name not in TEXTS]
    table = WildberriesTable(folder, [*labels, *others], min_products_in_sub_cat=min_products_in_sub_cat)
    return Catalog(table, chosen, source, MappingProxyType(table.issues))


def _check_something_to_see(columns: Columns, images: ImageSource | None, have: Sequence[str]) -> None:
    if images is None and not columns.text:
        raise DataError(f"products need a photo or a text: name the text columns or the photos. {nearest('', have)}")


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))


def _guess(have: Sequence[str], guesses: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in guesses if name in have)


def _guess_id(table: Table) -> str:
    found = _guess(table.columns, _ID_GUESSES)
    if not found:
        raise DataError(
            f"name the column of product ids: {table.name} has none of {', '.join(_ID_GUESSES)}. "
            f"{nearest('id', table.columns)}"
        )
    return found[0]
