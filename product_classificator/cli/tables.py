"""Opens the tables that a command names."""

import logging
from collections.abc import Sequence
from pathlib import Path

from product_classificator import console
from product_classificator.catalog import PUBLISHED_CHARACTERISTICS, Catalog, is_wildberries, open_images, read_catalog
from product_classificator.catalog.table import open_table
from product_classificator.catalog.wildberries import TEST_FILE, TRAIN_FILE
from product_classificator.cli.options import ProductOptions
from product_classificator.runs import Run

logger = logging.getLogger(__name__)


def names(joined: str | None) -> list[str] | None:
    """Split names joined by commas.

    >>> names("sex, season")
    ['sex', 'season']
    """
    return None if joined is None else [name.strip() for name in joined.split(",") if name.strip()]


def open_catalog(
    table: Path,
    options: ProductOptions,
    characteristics: Sequence[str] | None,
    multi_label: Sequence[str] | None = None,
    *,
    run: Run | None = None,
    guess_text: bool = False,
) -> Catalog:
    """Open a table, as the table of `run` was opened unless an option differs, and print how its columns are used.

    Without `--text` and `run`, photos alone are used if there are any, unless text columns are to be guessed.
    """
    text: Sequence[str] | None = names(options.text)
    id_, photo, channels = options.id, options.photo, options.channels
    if run is not None and text is None:
        text = run.columns.text
    if is_wildberries(table):  # ids and photo names of these tables are fixed, red and blue are swapped
        channels = channels or "bgr"
    elif run is not None:
        columns = run.columns
        if columns.has_title and text and text[0] != columns.text[0]:
            logger.warning(
                "the run takes the first line of a text for the title (%s), but --text starts with %s: name it first",
                columns.text[0],
                text[0],
            )
        id_, channels = id_ or columns.id, channels or run.channels
        photo = (columns.photo if options.images else None) if photo is None else photo or None
    elif text is None and options.images is not None and not guess_text:
        text = []
    images = None
    if options.images is not None:
        limits = {} if options.max_pixels is None else {"max_pixels": options.max_pixels}
        images = open_images(options.images, channels=channels or "rgb", **limits)
    catalog = read_catalog(
        table,
        images,
        id=id_,
        text=text,
        characteristics=characteristics,
        photo=photo,
        multi_label=multi_label or (),
    )
    _print_columns(catalog)
    return catalog


def open_labelled(run: Run, table: Path, options: ProductOptions) -> Catalog:
    """Open a table as the run's table was opened, with those characteristics of the run that it holds."""
    files = [table / TRAIN_FILE, table / TEST_FILE] if table.is_dir() else [table]
    available = {name for file in files for name in open_table(file).columns}
    if table.is_dir():
        available |= set(PUBLISHED_CHARACTERISTICS)
    characteristics = [name for name in run.columns.characteristics if name in available]
    multi_label = [name for name in run.columns.multi_label if name in characteristics]
    return open_catalog(table, options, characteristics, multi_label, run=run)


def _print_columns(catalog: Catalog) -> None:
    columns, images = catalog.columns, catalog.images
    text = ", ".join(columns.text) or "none (photos only)"
    photos = "none (text only)" if images is None else f"by {columns.photo or columns.id} ({images.channels})"
    multi = f"; multi-label {', '.join(columns.multi_label)}" if columns.multi_label else ""
    console.log.print(
        f"{catalog.table.name}: {len(catalog)} products; id {columns.id}; text {text}; photos {photos}{multi}"
    )
