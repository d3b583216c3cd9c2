"""Turns a table and its images into a checked `Catalog`: the role of each column, and products in batches.

Ids, labels and texts are read when they are requested. Texts stay raw here: encoders and heads prepare them.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa

from product_classificator.catalog.cells import Table, canonical, ids_of
from product_classificator.catalog.columns import MAX_PHOTOS, ROW_NUMBER, UNKNOWN, Columns, guess, visible
from product_classificator.catalog.images import ImageSource, UrlImages, open_images
from product_classificator.catalog.labels import PathTable, correct_labels, find_separator, read_label_sets, read_labels
from product_classificator.catalog.lookup import ImageRef, id_key, refs_of
from product_classificator.catalog.photo import PhotoError
from product_classificator.catalog.table import TableSource, first_cells, open_table
from product_classificator.catalog.wildberries import ID, WildberriesTable, is_wildberries, published_in
from product_classificator.errors import DataError, culprits, nearest
from product_classificator.remote.paths import as_path
from product_classificator.types import Bools, Strings, Truth, strings

logger = logging.getLogger(__name__)

PUBLISHED_CHARACTERISTICS = ("category", "sub_category", "isadult", "sex", "season", "age_restrictions", "fragility")
MAX_CHARACTERISTICS = 1_000


@dataclass(frozen=True)
class Products:
    """Consecutive rows of a catalog; a product may have several images, or none."""

    first_row: int
    ids: list[str]
    texts: list[str]
    images: list[list[ImageRef]]

    def __len__(self) -> int:
        return len(self.ids)


class Catalog:
    """Products of a table with their images; made by `read_catalog`. Texts and labels in `unknown` mean nothing."""

    def __init__(
        self, table: Table, columns: Columns, images: ImageSource | None, unknown: Sequence[str] = UNKNOWN
    ) -> None:
        if images is None and not columns.text:
            hint = nearest("", table.columns)
            raise DataError(f"products need a photo or a text: name text columns or photos. {hint}")
        self.table, self.columns, self.images = table, columns, images
        self._unknown = frozenset(("", *unknown, *canonical(pa.array(unknown, pa.string())).to_pylist()))
        self._truth: Truth | None = None
        self.is_corrected: Bools | None = None  # (n,) products of which `corrected` has set a label
        self.label_separators: dict[str, str] = {}  # of the characteristics that were read

    @property
    def issues(self) -> Mapping[str, int]:
        """Count of each problem that was found when the table was last read from beginning to end."""
        return self.table.issues

    @property
    def read_as(self) -> list[str]:
        """What else decides the texts: the encoding of a text file, and the values that mean nothing."""
        return [getattr(self.table, "encoding", ""), *sorted(self._unknown)]

    @cached_property
    def ids(self) -> Strings:
        """(n,) product ids, "" where the table has none."""
        batches = self.table.batches([self.columns.id])
        ids = strings([id_ for batch in batches for id_ in ids_of(batch.column(0))])
        if rounded := [id_ for id_ in ids if "+" in id_ and re.fullmatch(r"-?\d+([.,]\d+)?[eE]\+\d+", id_)]:
            sentence = "%s: ids are numbers that a spreadsheet has rounded, several products may share one: %s"
            logger.warning(sentence, self.table.name, culprits(rounded))
        return ids

    def __len__(self) -> int:
        return len(self.ids) if self.table.n_rows is None else self.table.n_rows

    def batches(self, size: int, first_row: int = 0) -> Iterator[Products]:
        """Yield the products from `first_row` on, at most `size` at a time, in the order of the table."""
        for batch in self.rows(size, first_row):
            if len(batch):
                yield self.products(first_row, batch)
                first_row += len(batch)

    def rows(self, size: int, first_row: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield the rows that `products` takes, from `first_row` on, at most `size` at a time."""
        columns = self.columns
        names = dict.fromkeys([columns.id, *columns.text, *([columns.photo] if columns.photo else [])])
        return self.table.batches([*names], size, columns.photo, first_row)

    def products(self, first_row: int, batch: pa.RecordBatch) -> Products:
        """Return the products of rows, of which the first has this number."""
        ids = ids_of(batch.column(self.columns.id))
        cells = batch.column(self.columns.photo).to_pylist() if self.columns.photo else ids
        return Products(first_row, ids, self.texts_of(batch), [*map(self.images_of, cells)])

    def images_of(self, cell: Any) -> list[ImageRef]:
        """Return the images of a product, by its id or what its cell names or holds."""
        if self.images is None:
            return []
        n = self.columns.max_photos
        if self.columns.photo is None:
            names = self.images.several(cell, self._id_keys)[:n]
            return [*map(ImageRef, names)] or [ImageRef(cell, is_id=True)]
        images = refs_of(cell, names_as_bytes=self.images.path is not None)
        if len(images) > 1 and isinstance(cell, str) and "://" not in cell:
            last = cell.strip().replace("\\", "/").rpartition("/")[2]
            with suppress(PhotoError):  # one file may be called "Dress; red.jpg"
                if re.search("[;|,]", last) and self.images.locate(cell.strip()):
                    return [ImageRef(cell.strip())]
        return images[:n]

    @cached_property
    def _id_keys(self) -> frozenset[str]:
        return frozenset(map(id_key, self.ids))

    def image_bytes(self, image: ImageRef) -> bytes:
        """Read an image of a product; the `reason` of a `PhotoError` says why there is none."""
        if self.images is None:
            raise DataError("this catalog has no photos: give read_catalog(..., images=...)")
        return self.images.read(image.name, is_id=image.is_id, data=image.data)

    def locate(self, image: ImageRef) -> Any:
        """Find an image without reading it, errors as in `image_bytes`."""
        return image.data or (self.images and self.images.locate(image.name, is_id=image.is_id))

    def check_output(self, *paths: str | Path | None) -> None:
        """Raise `DataError` if an output is the table, or in its folder, where the next call reads it."""
        outputs = [as_path(path).resolve() for path in paths if path]
        for path, source in product(outputs, self.table.sources):
            folder = as_path(str(source).partition("**")[0]).resolve()
            if path == folder or path.match(str(source.absolute())):
                raise DataError(f"the output must not be the table or the photos themselves, got {path}")
            if folder.is_dir() and folder in path.parents:
                rule = "the output must not be in the folder that is the table, where the next call reads it"
                raise DataError(f"{rule}: name a path outside of {folder}, got {path}")

    def texts(self) -> list[str]:
        """Return the joined raw texts of all products."""
        batches = self.table.batches(self.columns.text or (self.columns.id,))
        return [text for batch in batches for text in self.texts_of(batch)]

    def texts_of(self, batch: pa.RecordBatch) -> list[str]:
        """Join text columns by line breaks, skipping empty ones; the first of several is always the first line."""
        # Not pyarrow's binary_join_element_wise: it loses rows whose values are all null (seen in 26.0.1).
        cells = {name: batch.column(name).to_pylist() for name in self.columns.text}
        for name in filter(self.table.holds_lists, cells):
            lists = [_parse_list(cell or "") for cell in cells[name]]
            cells[name] = [" ".join(map(str, filter(None, cell))) if isinstance(cell, list) else cell for cell in lists]
        texts = []
        for row in zip(*cells.values(), strict=True):
            first, *others = (text if (text := (value or "").strip()) not in self._unknown else "" for value in row)
            texts.append("\n".join([" ".join(first.splitlines()), *filter(None, others)]) if others else first)
        return texts if cells else [""] * batch.num_rows

    def column(self, name: str) -> Strings:
        """Return the (n,) cells of any column as text, `None` where they mean nothing."""
        if name not in self.table.columns:
            raise DataError(f"{self.table.name} has no column {name!r}: {nearest(name, self.table.columns)}")
        batches = self.table.batches([name])
        cells = (cell and cell.strip() for batch in batches for cell in canonical(batch.column(0)).to_pylist())
        return strings([None if cell is None or cell in self._unknown else cell for cell in cells])

    def truth(self) -> Truth:
        """Return the (n,) labels of each characteristic, `None` where a cell is blank, "nan", "NA" or the like.

        A cell of a multi-label column that cannot be read, and a label that is too long, are a `DataError`.
        """
        if self._truth is None:
            batches = list(self.table.batches(self.columns.characteristics))
            self._truth = {name: self._labels(name, batches) for name in self.columns.characteristics}
        return self._truth

    def corrected(self, path: str | Path) -> "Catalog":
        """Return this catalog with the labels that people agreed on in a review, see `correct_labels`."""
        other = copy(self)
        other._truth = {name: labels.copy() for name, labels in self.truth().items()}
        other.is_corrected = correct_labels(other._truth, self.ids, path)
        return other

    def _labels(self, name: str, batches: Sequence[pa.RecordBatch]) -> Strings:
        cells = pa.chunked_array([batch.column(name) for batch in batches], pa.string())
        if name not in self.columns.multi_label:
            return read_labels(cells, name, self._unknown)
        separator = self.columns.label_separator
        separator = separator.get(name) if isinstance(separator, dict) else separator
        separator = None if self.table.holds_lists(name) else separator or find_separator(cells, name)
        self.label_separators |= {name: separator} if separator else {}
        return read_label_sets(cells, name, self._unknown, separator)


def read_catalog(
    table: TableSource,
    images: str | Path | ImageSource | None = None,
    *,
    id: str | None = None,  # noqa: A002 - the name of the command-line option
    text: str | Sequence[str] | None = None,
    characteristics: str | Sequence[str] | None = None,
    photo: str | None = None,
    multi_label: str | Sequence[str] = (),
    encoding: str | None = None,
    na_values: str | Sequence[str] = UNKNOWN,
    max_photos: int = MAX_PHOTOS,
    photo_urls: bool = False,
    label_separator: str | dict[str, str] | None = None,
    path: str | None = None,
    path_separator: str | None = None,
) -> Catalog:
    """Open a table of products and their photos.

    A folder, file or pattern of one or both tables of the Wildberries set is opened as published: one product per nm,
    photos `<nm>.jpg` with red and blue swapped. Raw characteristics become sex, season, age_restrictions and fragility;
    others may be named as they are called ("Цвет"); goods for adults and for smoking are `isadult`; an empty
    description is replaced by the title, and the reverse; products with neither are left out, and counted in `issues`.

    Args:
        table: what `open_table` opens: a file, several files as one, a DataFrame, a `datasets.Dataset`, or Arrow
        images: a folder or zip with photos, or what `open_images` returned; `None`: those in the table, or text only.
        id: the column of ids; `None`: guessed among nm, id, sku, ... in any spelling; without one, rows are numbered.
        text: the text columns, joined; empty for photos only. `None`: guessed among title, name, description, ...
        characteristics: the columns with labels; `None`: those of the published seven that exist.
        photo: the column of photos: names of files, or bytes, alone or in structs like those of `datasets.Image`; one
            or, as a list or joined by ";", several. `None`: guessed among image, photo, ... if there are bytes, else as
            with "": photos are found by id: `<id>.jpg` (.png, ...), `<id>_1.jpg`, `<id>_2.jpg`, or a folder `<id>`.
        multi_label: further characteristics with any number of labels, in a cell of text joined by "|" or as a JSON or
            Python list. Characteristics that hold lists are multi-label in any case; a plain cell among lists is one
            label.
        encoding: of a text file; `None`: found from all of its bytes.
        na_values: cells that mean an unknown label or an empty text, besides blank ones.
        max_photos: the first so many photos of a product are used: the mean of their vectors.
        photo_urls: whether `photo` holds https URLs, whose photos are fetched, from public addresses only.
        label_separator: what separates labels in multi-label cells, or that of each characteristic; `None`: "|" or, if
            most cells have it, ";" or ",".
        path: a column like `Clothing >> Women >> Dresses`; its levels `<path>_1`, `<path>_2`, ... are characteristics.
        path_separator: what separates the levels, like ">>"; `None`: what most cells have.

    Raises:
        DataError: the table or photos cannot be read, a column does not exist (the nearest one is named), or there are
            lists where an id or a photo is needed.
    """
    if isinstance(table, str | Path) and is_wildberries(table):
        if id not in (None, ID) or photo or photo_urls:
            raise DataError(f"products and photos of the Wildberries set are found by {ID}: leave out id and photo")
        texts, multi = ("description",) if text is None else _names(text), _names(multi_label)
        labels = _names((*(published_in(table) if characteristics is None else _names(characteristics)), *multi))
        source = open_images(images, channels="bgr") if isinstance(images, str | Path) else images
        columns = Columns(ID, texts, labels, None, multi, max_photos, "|")
        published = WildberriesTable(table, [*labels, *texts], multi)
        return Catalog(published, columns, source if source and source.path else None)
    opened = open_table(table, encoding=encoding)
    levels: Sequence[str] = ()
    if path is not None:
        opened = PathTable(opened, path, path_separator, _names(na_values))
        levels, path_separator = opened.levels, opened.separator
    source = images if isinstance(images, ImageSource) else open_images(images)
    if photo is None and (source.path is None or photo_urls):
        photo = next((name for name in guess(opened.columns, "image") if photo_urls or opened.holds_images(name)), None)
    if photo_urls:
        if not photo or source.path:
            raise DataError("photos by URL need the column of URLs (photo), and no folder (images)")
        source = UrlImages(*astuple(source))
    elif source.path is None and not (photo in opened.columns and opened.holds_images(photo)):
        source = None
    if characteristics is None:
        characteristics = [name for name in PUBLISHED_CHARACTERISTICS if name in opened.columns and name != path]
    labels = _names((*_names(characteristics), *levels, *_names(multi_label)))
    free = [name for name in opened.columns if name not in (*labels, photo)]
    id = _guess_id(opened, free, needs_ids=source is not None and not photo) if id is None else id  # noqa: A001
    texts = tuple(guess(free, "text")) if text is None else _names(text)
    columns = Columns(id, texts, labels, photo or None, (), max_photos, label_separator, path, path_separator)
    columns = _checked(opened, columns, source, _names(multi_label))
    if text is None and (unused := _text_like(opened, columns)):
        logger.warning("%s: columns that look like texts are not used, name them (--text): %s", opened.name, unused)
    return Catalog(opened, columns, source, _names(na_values))


def _guess_id(table: Table, free: Sequence[str], *, needs_ids: bool) -> str:
    if guesses := guess(free, "id"):
        return guesses[0]
    if needs_ids:
        hint = nearest("id", table.columns)
        raise DataError(f"photos are found by product ids: name their column, or that of the photo names. {hint}")
    logger.warning("%s has no column of product ids: its rows are numbered from 1", table.name)
    return ROW_NUMBER


def _checked(table: Table, columns: Columns, images: ImageSource | None, multi_label: Sequence[str]) -> Columns:
    """Return the columns as they are spelled in the table, with those that hold lists as multi-label."""

    def spelled(name: str) -> str:
        spellings = [name, visible(name).strip()]
        if name != ROW_NUMBER and not set(spellings) & set(table.columns):
            raise DataError(f"{table.name} has no column {name!r}: {nearest(name, table.columns)}")
        return name if name in table.columns else spellings[1]

    id_, *texts = map(spelled, (columns.id, *columns.text))
    photo = columns.photo and spelled(columns.photo)
    labels, named = tuple(map(spelled, columns.characteristics)), set(map(spelled, multi_label))
    if id_ in table.columns and table.holds_lists(id_):
        raise DataError(f"ids are plain values, but {id_!r} holds lists: join them to text")
    if images is None and photo is not None:
        raise DataError(f"a column of photo names ({photo!r}) needs photos: say where (images), or name photo_urls")
    if columns.max_photos < 1:
        raise DataError(f"max_photos must be 1 or more, got {columns.max_photos}")
    if len(labels) > MAX_CHARACTERISTICS:
        raise DataError(f"a catalog has at most {MAX_CHARACTERISTICS} characteristics, got {len(labels)}: name some")
    multi = tuple(name for name in labels if name in named or table.holds_lists(name))
    return replace(columns, id=id_, text=tuple(texts), characteristics=labels, photo=photo, multi_label=multi)


def _text_like(table: Table, columns: Columns) -> str:
    """Return the columns without a role of which most cells have three words, joined."""
    used = {columns.id, columns.photo, columns.path, *columns.text, *columns.characteristics}
    names = []
    for name, values in first_cells(table, [name for name in table.columns if name not in used]).items():
        cells = list(filter(None, values))
        if sum(len(cell.split()) > 2 for cell in cells) * 2 > len(cells):
            names.append(name)
    return ", ".join(sorted(names))


def read_frame(table: TableSource) -> Any:
    """Return a whole table as a pandas DataFrame: values as strings, lists as lists."""
    opened = open_table(table)
    schema = pa.schema([(name, pa.string()) for name in opened.columns])
    frame = pa.Table.from_batches(opened.batches(opened.columns), schema).to_pandas()
    for name in filter(opened.holds_lists, opened.columns):
        frame[name] = frame[name].map(_parse_list, "ignore")
    return frame


def _parse_list(cell: str) -> object:
    with suppress(ValueError):
        return json.loads(cell) if cell.startswith("[") else cell
    return cell  # a plain one among lists


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
