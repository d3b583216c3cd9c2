"""The options that commands share, and how the tables and runs they name are opened."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from product_classificator.errors import DataError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from product_classificator.catalog import Catalog
    from product_classificator.runs import Run


class Channels(StrEnum):
    """Order of colours in the files of the photos."""

    rgb = "rgb"
    bgr = "bgr"


class Recipe(StrEnum):
    """How heads are fitted."""

    joint = "joint"
    published = "published"


class Precision(StrEnum):
    """How an encoder computes."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


class TunePrecision(StrEnum):
    """How matrix products are computed while blocks are trained."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


TableArg = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE",
        help="Products: a parquet, CSV/TSV or JSON lines file, or a folder with the Wildberries tables.",
    ),
]
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
ChannelsOpt = Annotated[
    Channels | None,
    typer.Option("--channels", help="bgr: the photos' red and blue are swapped. Left out: rgb, or as the run had it."),
]
MaxPixelsOpt = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Larger photos are not decoded.", show_default="50 million")
]
StoreOpt = Annotated[Path | None, typer.Option("--store", help="Folder of embeddings to use and fill.")]
EncoderOpt = Annotated[str | None, typer.Option("--encoder", help="See `info encoders`.", show_default="lite")]
TextEncoderOpt = Annotated[
    str | None,
    typer.Option("--text-encoder", help="Texts through a model of sentence-transformers: st:<repository or folder>."),
]
DeviceOpt = Annotated[str, typer.Option("--device", help="Where the encoder computes: auto, cpu, cuda, mps.")]
PrecisionOpt = Annotated[
    Precision, typer.Option("--precision", help="What the encoder computes in. auto: the fastest here that agrees.")
]
SeedOpt = Annotated[int | None, typer.Option("--seed", help="Same seed, same result.")]
ConfigOpt = Annotated[Path | None, typer.Option("--config", help="TOML file of settings; options win.")]
TaxonomyOpt = Annotated[
    Path | None,
    typer.Option("--taxonomy", help="Table with the columns label and parent. Left out: learned from TABLE."),
]
TrackerOpt = Annotated[
    str | None, typer.Option("--tracker", help="Who is told of the progress, too: tensorboard, mlflow, wandb, ...")
]
MinPrecisionOpt = Annotated[
    float | None,
    typer.Option("--min-precision", help="Call values auto such a share of which is right, the others review."),
]
MovedEncoderOpt = Annotated[
    str | None, typer.Option("--encoder", help="Where the run's encoder lies now, if it has moved.")
]
CharacteristicsOpt = Annotated[
    str | None, typer.Option("--characteristics", help="Columns with labels, joined by commas.")
]


MultiLabelOpt = Annotated[
    str | None,
    typer.Option(
        "--multi-label",
        help='Further columns with several labels in a cell: "a|b", or a JSON array. Columns of lists need no naming.',
    ),
]
LikeRunPhotoOpt = Annotated[
    str | None,
    typer.Option("--photo", help='Column of photo file names. Left out: as the run had it; "": found by id.'),
]


class Source(NamedTuple):
    """A table and its photos, as a command line names them."""

    table: Path
    images: Path | None
    id: str | None
    text: Sequence[str] | None
    photo: str | None
    channels: Channels | None
    max_pixels: int | None


def names(joined: str | None) -> list[str] | None:
    """Splits names joined by commas.

    >>> names("sex, season")
    ['sex', 'season']
    """
    return None if joined is None else [name.strip() for name in joined.split(",") if name.strip()]


def with_text_encoder(encoder: str, text_encoder: str | None) -> str:
    """Returns the name for `load_encoder` of an encoder with a text encoder beside it.

    >>> with_text_encoder("lite+clean", "st:./sentences")
    'lite+clean+st:./sentences'

    Raises:
        DataError: the text encoder is not written as `st:<repository or folder>`.
    """
    if text_encoder is None:
        return encoder
    if not text_encoder.startswith("st:"):
        raise DataError(f"--text-encoder is written st:<repository or folder>, got {text_encoder!r}")
    from product_classificator.encoders import EncoderSpec

    return str(replace(EncoderSpec.parse(encoder), text_encoder=text_encoder.removeprefix("st:")))


def open_catalog(
    source: Source,
    characteristics: Sequence[str] | None,
    multi_label: Sequence[str] | None = None,
    *,
    guesses_text: bool = False,
) -> "Catalog":
    """Opens a table; without `--text` it is photos only where there are photos, unless its texts are guessed.

    The Wildberries tables are opened as they were published: with the description, red and blue of photos swapped.
    """
    from product_classificator.catalog import is_wildberries, open_images, read_catalog

    images, text, channels = None, source.text, Channels.rgb
    if is_wildberries(source.table):
        channels = Channels.bgr
    elif text is None and source.images is not None and not guesses_text:
        text = []
    if source.images is not None:
        limits = {} if source.max_pixels is None else {"max_pixels": source.max_pixels}
        images = open_images(source.images, channels=(source.channels or channels).value, **limits)
    return read_catalog(
        source.table,
        images,
        id=source.id,
        text=text,
        characteristics=characteristics,
        photo=source.photo,
        multi_label=multi_label or (),
    )


def table_columns(table: Path) -> list[str]:
    """Returns the columns of a table; of a folder with the Wildberries tables, those of both and what is read out."""
    from product_classificator.catalog import PUBLISHED_CHARACTERISTICS
    from product_classificator.catalog.table import open_table
    from product_classificator.catalog.wildberries import TEST_FILE, TRAIN_FILE

    if not table.is_dir():
        return open_table(table).columns
    columns = [name for file in (TRAIN_FILE, TEST_FILE) for name in open_table(table / file).columns]
    return [*PUBLISHED_CHARACTERISTICS, *columns]


def open_catalog_like(run: "Run", source: Source, characteristics: Sequence[str]) -> "Catalog":
    """Opens a table as that of a run was opened, as far as the command line says nothing else."""
    from product_classificator.catalog import is_wildberries

    columns = run.columns
    if is_wildberries(source.table):  # its ids and photos are found in one way only
        text = columns.text if source.text is None else source.text
        return open_catalog(source._replace(text=text), characteristics)
    if columns.has_title and source.text and source.text[0] != columns.text[0]:
        logger.warning(
            "the run takes the first line of a text for the title (%s), and --text begins with %s: name it first",
            columns.text[0],
            source.text[0],
        )
    like_run = source._replace(
        id=source.id or columns.id,
        text=columns.text if source.text is None else source.text,
        photo=(columns.photo if source.images else None) if source.photo is None else source.photo or None,
        channels=source.channels or Channels(run.channels),
    )
    return open_catalog(like_run, characteristics, [name for name in columns.multi_label if name in characteristics])
