"""The options that commands share, and how the tables and runs they name are opened."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from product_classificator.catalog import Catalog, Columns

MAX_PIXELS = 50_000_000


class Channels(StrEnum):
    """Order of colours in the files of the photos."""

    rgb = "rgb"
    bgr = "bgr"


class Recipe(StrEnum):
    """How heads are fitted."""

    joint = "joint"
    published = "published"


TableArg = Annotated[Path, typer.Argument(metavar="TABLE", help="Products: a parquet, CSV/TSV or JSON lines file.")]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished training.")]
ImagesOpt = Annotated[Path | None, typer.Option("--images", help="Folder or zip of photos. Left out: text only.")]
IdOpt = Annotated[str | None, typer.Option("--id", help="Column of product ids.")]
TextOpt = Annotated[
    str | None,
    typer.Option("--text", help="Text column, or several joined by commas. Left out: photos only, if there are any."),
]
LikeRunTextOpt = Annotated[str | None, typer.Option("--text", help="Text columns. Left out: those of the run.")]
PhotoOpt = Annotated[
    str | None, typer.Option("--photo", help="Column of photo file names. Left out: photos are found by id.")
]
ChannelsOpt = Annotated[Channels, typer.Option("--channels", help="bgr: red and blue of the photos are swapped.")]
MaxPixelsOpt = Annotated[int, typer.Option("--max-pixels", min=1, help="Photos of more pixels are not decoded.")]
StoreOpt = Annotated[Path | None, typer.Option("--store", help="Folder of embeddings to use and fill.")]
CharacteristicsOpt = Annotated[
    str | None, typer.Option("--characteristics", help="Columns with labels, joined by commas.")
]


class Source(NamedTuple):
    """A table and its photos, as a command line names them."""

    table: Path
    images: Path | None
    id: str | None
    text: str | None
    photo: str | None
    channels: Channels
    max_pixels: int


def names(joined: str | None) -> list[str] | None:
    """Splits names joined by commas.

    >>> names("sex, season")
    ['sex', 'season']
    """
    return None if joined is None else [name.strip() for name in joined.split(",") if name.strip()]


def open_catalog(source: Source, characteristics: list[str] | None) -> "Catalog":
    """Opens a table; without `--text` it is photos only where there are photos."""
    from product_classificator.catalog import open_images, read_catalog

    images = None
    if source.images is not None:
        images = open_images(source.images, channels=source.channels.value, max_pixels=source.max_pixels)
    text = names(source.text)
    return read_catalog(
        source.table,
        images,
        id=source.id,
        text=[] if text is None and images is not None else text,
        characteristics=characteristics,
        photo=source.photo,
    )


def open_catalog_like(columns: "Columns", source: Source, characteristics: list[str] | None) -> "Catalog":
    """Opens a table with the columns of a run, as far as the command line names no others."""
    text = ",".join(columns.text) if source.text is None else source.text
    photo = source.photo if source.photo is not None or source.images is None else columns.photo
    return open_catalog(source._replace(id=source.id or columns.id, text=text, photo=photo), characteristics)
