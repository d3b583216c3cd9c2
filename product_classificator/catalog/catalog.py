"""Turns a table and its images into a checked `Catalog`: the role of each column, and products in batches.

Opening a catalog reads only the header; ids, labels and texts are read when they are requested, in Arrow or NumPy form.
Texts stay raw here: encoders and heads prepare them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from product_classificator.catalog.columns import Columns
from product_classificator.catalog.images import ImageSource, open_images
from product_classificator.catalog.labels import read_label_sets, read_labels
from product_classificator.catalog.table import DataFrame, Table, canonical, open_table
from product_classificator.catalog.wildberries import ID, TEXTS, WildberriesTable
from product_classificator.errors import DataError, culprits, nearest
from product_classificator.types import Strings, Truth, strings

PUBLISHED_CHARACTERISTICS = ("category", "sub_category", "isadult", "sex", "season", "age_restrictions", "fragility")
_ID_GUESSES = ("nm", "id", "sku", "product_id", "item_id", "offer_id", "nm_id", "article")
_TEXT_GUESSES = ("title", "name", "text", "description")
_READ_ROWS = 16_384


@dataclass(frozen=True)
class Products:
    """A batch of consecutive rows of a catalog, starting at row `first_row`.

    Ids and raw texts are "" where the table has none; `image_names` are `None` where images are found by id.
    """

    first_row: int
    ids: list[str]
    texts: list[str]
    image_names: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)


class Texts(Sequence[str]):
    """Texts of products in Arrow memory: a Python string exists only while it is looked at."""

    def __init__(self, array: pa.ChunkedArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        item = self._array[key]
        texts: str | list[str] = item.to_pylist() if isinstance(key, slice) else item.as_py()
        return texts

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self._array.slice(start, 4096).to_pylist()

    def take(self, rows: np.ndarray) -> "Texts":
        """Return the texts of `rows`, in that order."""
        return Texts(pa.chunked_array([self._array.cast(pa.large_string()).take(pa.array(rows)).combine_chunks()]))


class Catalog:
    """Products of a table with their images; made by `read_catalog`.

    `issues` counts the rows with each problem that was found while the table was opened.
    """

    def __init__(
        self,
        table: Table,
        columns: Columns,
        images: ImageSource | None,
        issues: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.table, self.columns, self.images, self.issues = table, columns, images, issues

    @cached_property
    def ids(self) -> Strings:
        """(n,) product ids, "" where the table has none."""
        batches = self.table.batches([self.columns.id], _READ_ROWS)
        return strings([id_ for batch in batches for id_ in _ids(batch.column(0))])

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, first_row: int = 0) -> Iterator[Products]:
        """Yield the products from `first_row` on, at most `size` at a time, in the order of the table."""
        columns = self.columns
        names = list(dict.fromkeys([columns.id, *columns.text, *([columns.photo] if columns.photo else [])]))
        row = 0
        for batch in self.table.batches(names, size):
            skipped = min(max(first_row - row, 0), batch.num_rows)
            if skipped < batch.num_rows:
                rows = batch.slice(skipped)
                photos = pc.utf8_trim_whitespace(rows.column(columns.photo)) if columns.photo else pa.nulls(len(rows))
                ids, texts = _ids(rows.column(columns.id)), _joined(rows, columns.text)
                yield Products(row + skipped, ids, texts, photos.to_pylist())
            row += batch.num_rows

    def image_bytes(self, product_id: str, image_name: str | None) -> bytes:
        """Read the image file of a product.

        Raises:
            PhotoError: the product has no image that may be read; its `reason` says why.
        """
        if self.images is None:
            raise DataError("this catalog has no photos: give read_catalog(..., images=...)")
        return self.images.read(image_name or "") if self.columns.photo else self.images.read_by_id(product_id)

    def texts(self) -> Texts:
        """Return the joined raw texts of all products."""
        batches = self.table.batches(list(dict.fromkeys(self.columns.text or (self.columns.id,))), _READ_ROWS)
        texts = (pa.array(_joined(batch, self.columns.text), pa.string()) for batch in batches)
        return Texts(pa.chunked_array(texts, pa.string()))

    def truth(self) -> Truth:
        """Return the (n,) labels of each characteristic; blank, "nan", "none" and "null" are unknown (`None`).

        Raises:
            DataError: a cell of a multi-label column cannot be read, or the first lists of a column come too late.
        """
        names, is_multi = list(self.columns.characteristics), self.columns.multi_label
        batches = list(self.table.batches(names, _READ_ROWS))
        columns = {name: pa.chunked_array([b.column(name) for b in batches], pa.string()) for name in names}
        has_lists = {name: self.table.holds_lists(name) for name in names}
        late = [name for name in names if name not in is_multi and has_lists[name]]
        if late:  # in JSON lines, of which only the first rows were looked at
            raise DataError(f"lists appear only far down in {culprits(late)}: name them in multi_label (--multi-label)")
        return {
            name: read_label_sets(array, name, has_lists=has_lists[name]) if name in is_multi else read_labels(array)
            for name, array in columns.items()
        }


def _ids(column: pa.Array) -> list[str]:
    ids: list[str] = pc.fill_null(canonical(column), "").to_pylist()
    return ids


def _joined(batch: pa.RecordBatch, columns: Sequence[str]) -> list[str]:
    """Join text columns by line breaks, skipping empty ones; the first of several is always the first line."""
    # Not pyarrow's binary_join_element_wise: it loses rows whose values are all null (seen in 26.0.1).
    rows = zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
    texts = []
    for first, *others in ([(value or "").strip() for value in row] for row in rows):
        texts.append("\n".join([" ".join(first.splitlines()), *filter(None, others)]) if others else first)
    return texts if columns else [""] * batch.num_rows


def read_catalog(
    table: str | Path | DataFrame,
    images: str | Path | ImageSource | None = None,
    *,
    id: str | None = None,  # noqa: A002 - the name of the command-line option
    text: str | Sequence[str] | None = None,
    characteristics: str | Sequence[str] | None = None,
    photo: str | None = None,
    multi_label: str | Sequence[str] = (),
) -> Catalog:
    """Open a table of products and their photos.

    A folder is opened as the Wildberries set, by `read_wildberries`, with all its sub-categories.

    Args:
        table: a parquet, CSV/TSV or JSON lines file, a DataFrame, or a folder with the Wildberries set.
        images: a folder or zip with photos, or what `open_images` returned; `None`: text only.
        id: the column of ids; `None`: guessed among nm, id, sku, ...
        text: the text columns, joined; empty for photos only. `None`: those of title, name, text, description present.
        characteristics: the columns with labels; `None`: those of the published seven that exist.
        photo: the column of photo file names; `None`: photos are found by id (`<id>.jpg`, `.png`, ...).
        multi_label: further characteristics with any number of labels, in a cell of text joined by "|" or as a JSON
            array. Characteristics that hold lists are multi-label in any case; a plain cell among lists is one label.

    Raises:
        DataError: the table or photos cannot be read, a column does not exist (the nearest one is named), or there are
            lists where text is needed.
    """
    if isinstance(table, str | Path) and Path(table).is_dir():
        if id not in (None, ID) or photo is not None:
            raise DataError(f"products and photos of the Wildberries set are found by {ID}: leave out id and photo")
        if multi_label:
            raise DataError(f"the Wildberries set has one label per characteristic: leave out {multi_label=}")
        texts = ("description",) if text is None else text
        return read_wildberries(table, images, min_products_in_sub_cat=1, text=texts, characteristics=characteristics)
    opened = open_table(table)
    source = open_images(images) if isinstance(images, str | Path) else images
    named = _existing(opened, PUBLISHED_CHARACTERISTICS) if characteristics is None else _names(characteristics)
    columns = Columns(
        id if id is not None else _guess_id(opened),
        _existing(opened, _TEXT_GUESSES) if text is None else _names(text),
        _names((*named, *_names(multi_label))),
        photo,
    )
    _check_columns(opened, columns, source)
    labels = columns.characteristics
    multi = tuple(name for name in labels if name in _names(multi_label) or opened.holds_lists(name))
    return Catalog(opened, replace(columns, multi_label=multi), source)


def _check_columns(table: Table, columns: Columns, images: ImageSource | None) -> None:
    plain = (columns.id, *columns.text, *([columns.photo] if columns.photo is not None else []))
    for name in (*plain, *columns.characteristics):
        if name not in table.columns:
            raise DataError(f"{table.name} has no column {name!r}: {nearest(name, table.columns)}")
    lists = [name for name in plain if table.holds_lists(name)]
    if lists:
        raise DataError(f"ids, texts and photos are plain values, but {culprits(lists)} hold lists: join them to text")
    if images is None and columns.photo is not None:
        raise DataError(f"a column of photo names ({columns.photo!r}) needs photos: say where they are (images)")
    _check_inputs(columns, images, table.columns)


def _check_inputs(columns: Columns, images: ImageSource | None, available: Sequence[str]) -> None:
    if images is None and not columns.text:
        hint = nearest("", available)
        raise DataError(f"products need a photo or a text: name the text columns or the photos. {hint}")


def read_wildberries(
    folder: str | Path,
    images: str | Path | ImageSource | None = None,
    *,
    min_products_in_sub_cat: int = 10,
    text: str | Sequence[str] = ("description",),
    characteristics: str | Sequence[str] | None = None,
) -> Catalog:
    """Open the Wildberries set as published: both its tables, and photos `<nm>.jpg` with red and blue swapped.

    Raw characteristics become sex, season, age_restrictions and fragility; goods for adults and for smoking are
    `isadult`; a product without title and description is left out, and counted in the catalog's `issues`.

    Args:
        folder: holds wb_school_train.parquet and wb_school_test.parquet.
        images: a folder or zip with photos, or what `open_images` returned; `None`: text only.
        min_products_in_sub_cat: a sub_category with fewer products becomes unknown.
        text: one or several text columns, joined; an empty description is replaced by the title, and the reverse.
        characteristics: the columns with labels; `None`: the published seven.

    Raises:
        DataError: a table or the photos cannot be read, or a column does not exist.
    """
    source = open_images(images, channels="bgr") if isinstance(images, str | Path) else images
    labels = PUBLISHED_CHARACTERISTICS if characteristics is None else _names(characteristics)
    columns = Columns(ID, _names(text), labels)
    _check_inputs(columns, source, (ID, *TEXTS))
    table = WildberriesTable(folder, [*labels, *columns.text], min_products_in_sub_cat=min_products_in_sub_cat)
    return Catalog(table, columns, source, MappingProxyType(table.issues))


def read_frame(table: str | Path) -> Any:
    """Return a whole table as a pandas DataFrame: values as strings, lists as lists; both Wildberries tables as one.

    Raises:
        DataError: the table cannot be read.
    """
    opened: Table = (
        WildberriesTable(table, PUBLISHED_CHARACTERISTICS, min_products_in_sub_cat=1)
        if Path(table).is_dir()
        else open_table(table)
    )
    schema = pa.schema([(name, pa.string()) for name in opened.columns])
    frame = pa.Table.from_batches(opened.batches(opened.columns, _READ_ROWS), schema).to_pandas()
    for name in filter(opened.holds_lists, opened.columns):
        frame[name] = frame[name].map(_parse_list, "ignore")
    return frame


def _parse_list(cell: str) -> object:
    with suppress(ValueError):
        return json.loads(cell) if cell.startswith("[") else cell
    return cell  # a plain one among lists


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))


def _existing(table: Table, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in table.columns)


def _guess_id(table: Table) -> str:
    if guesses := _existing(table, _ID_GUESSES):
        return guesses[0]
    hint = nearest("id", table.columns)
    raise DataError(f"name the column of product ids: {table.name} has none of {', '.join(_ID_GUESSES)}. {hint}")
