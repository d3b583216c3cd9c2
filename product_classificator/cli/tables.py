"""Opens the tables that a command names."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from product_classificator.catalog import PUBLISHED_CHARACTERISTICS, Catalog, is_wildberries, open_images, read_catalog
from product_classificator.catalog.cells import Table
from product_classificator.catalog.columns import MAX_PHOTOS, UNKNOWN
from product_classificator.catalog.labels import PathTable
from product_classificator.catalog.photo import MAX_PIXELS
from product_classificator.catalog.table import open_table
from product_classificator.catalog.wildberries import published_in, wildberries_files
from product_classificator.cli import console
from product_classificator.cli.options import ProductOptions
from product_classificator.runs import Run

logger = logging.getLogger(__name__)


def open_once(table: Path, encoding: str | None) -> tuple[Path | Table, set[str]]:
    """Return an opened table, whose text is not scanned again, or the path of Wildberries tables; and its columns."""
    if not is_wildberries(table):
        opened = open_table(table, encoding=encoding)
        return opened, set(opened.columns)
    parts = [open_table([*files]) for files in wildberries_files(table) if files]
    return table, {*published_in(table), *(name for part in parts for name in part.columns)}


def names(joined: str | None, columns: Collection[str]) -> list[str] | None:
    """Split names joined by commas; where a column has a comma in its name, that name wins over its parts.

    >>> names("sex, season", []), names("price, rub, sex", ["price, rub"])
    (['sex', 'season'], ['price, rub', 'sex'])
    """
    if joined is None:
        return None
    parts, split = joined.split(","), []
    while parts:
        candidates = [(n, ",".join(parts[:n])) for n in range(len(parts), 0, -1)]
        exact = [(n, name) for n, text in candidates for name in (text, text.strip()) if name in columns]
        n, name = [*exact, (1, parts[0].strip())][0]
        split.append(name)
        del parts[:n]
    return [name for name in split if name]


def open_catalog(
    table: Path | Table, columns: Collection[str], options: ProductOptions, *, run: Run | None = None, **labels: Any
) -> Catalog:
    """Read what `open_once` returned, as the table of `run` unless an option differs; print how columns are used.

    `labels` are the arguments of `read_catalog` that name labels; without them, none are read.
    """
    text, id_, photo = names(options.text, columns), options.id, options.photo
    has_fixed_names = isinstance(table, Path)  # ids and photo names of these tables are fixed, red and blue are swapped
    channels = options.channels or ("bgr" if has_fixed_names else run.channels if run else "rgb")
    if run is not None:
        text = list(run.columns.text) if text is None else text
    if run is not None and isinstance(table, Table):
        id_ = id_ or (run.columns.id if run.columns.id in columns else None)  # None: guessed, or rows are numbered
        of_run = run.columns.photo
        in_table = of_run is not None and of_run in columns and table.holds_images(of_run)
        photo = of_run if photo is None and (options.images or in_table or options.photo_urls) else photo
        if run.columns.has_title and text and text[0] != run.columns.text[0]:
            logger.warning(
                "the run takes the first line of a text for the title (%s), but --text starts with %s: name it first",
                run.columns.text[0],
                text[0],
            )
    limits = {"follow_links": options.follow_links, "allow_truncated": options.allow_truncated_photos}
    images = open_images(options.images, channels=channels, max_pixels=options.max_pixels or MAX_PIXELS, **limits)
    catalog = read_catalog(
        table,
        images,
        id=id_,
        text=text,
        photo=photo,
        na_values=_unknown(options),
        photo_urls=options.photo_urls,
        max_photos=options.max_photos or (run.columns.max_photos if run else MAX_PHOTOS),
        **{"characteristics": (), **labels},
    )
    used = catalog.columns
    console.log.print(
        f"{catalog.table.name}: {len(catalog)} products; id {used.id}; "
        f"text {', '.join(used.text) or 'none (photos only)'}; "
        f"photos {f'by {used.photo or used.id} ({channels})' if catalog.images else 'none (text only)'}"
        + (f"; multi-label {', '.join(used.multi_label)}" if used.multi_label else "")
    )
    return catalog


def _unknown(options: ProductOptions) -> Sequence[str]:
    return UNKNOWN if options.na_values is None else names(options.na_values, ()) or ()


def open_labelled(run: Run, table: Path, options: ProductOptions) -> Catalog:
    """Open a table as the run's table was opened, with those characteristics of the run that it holds."""
    opened, columns = open_once(table, options.encoding)
    if run.columns.path in columns and isinstance(opened, Table):
        path, separator = run.columns.path or "", run.columns.path_separator
        n_levels = sum(name.removeprefix(f"{path}_").isdecimal() for name in run.columns.characteristics)
        opened = PathTable(opened, path, separator, _unknown(options), n_levels)
        columns.update(opened.levels)
    has_raw = isinstance(opened, Path) and "sex" in columns  # then other names may be those of raw characteristics
    known = set(run.columns.characteristics) - set(PUBLISHED_CHARACTERISTICS) if has_raw else set()
    characteristics = [name for name in run.columns.characteristics if name in columns or name in known]
    labels: dict[str, Any] = {"characteristics": characteristics, "label_separator": run.columns.label_separator}
    labels["multi_label"] = [name for name in run.columns.multi_label if name in characteristics]
    return open_catalog(opened, columns, options, run=run, **labels)
