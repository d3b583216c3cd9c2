"""`audit`: what is likely wrong with a table."""

from pathlib import Path
from typing import Annotated

import typer

from product_classificator.cli.options import (
    ChannelsOpt,
    DeviceOpt,
    IdOpt,
    ImagesOpt,
    LikeRunPhotoOpt,
    LikeRunTextOpt,
    MaxPixelsOpt,
    MovedEncoderOpt,
    Precision,
    PrecisionOpt,
    RunArg,
    Source,
    StoreOpt,
    TableArg,
    names,
    open_catalog_like,
    table_columns,
)


def audit(
    run: RunArg,
    table: TableArg,
    out: Annotated[Path, typer.Option("--out", help="Folder of the findings; made if it is not there.")],
    images: ImagesOpt = None,
    text: LikeRunTextOpt = None,
    id_: IdOpt = None,
    photo: LikeRunPhotoOpt = None,
    channels: ChannelsOpt = None,
    max_pixels: MaxPixelsOpt = None,
    store: StoreOpt = None,
    encoder: MovedEncoderOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = Precision.auto,
) -> None:
    """List likely wrong labels, contradictions, outliers and broken rows of a table; an interrupted call goes on."""
    from product_classificator import console
    from product_classificator.audit import audit_run
    from product_classificator.classificator import Classificator
    from product_classificator.runs import Run

    opened, have = Run.load(run), table_columns(table)
    source = Source(table, images, id_, names(text), photo, channels, max_pixels)
    catalog = open_catalog_like(opened, source, [name for name in opened.columns.characteristics if name in have])
    console.print_columns(catalog)
    loaded = Classificator.from_run(run, device=device, encoder=encoder, dtype=precision.value).encoder
    with console.training_watch(len(catalog)) as callbacks:
        found = audit_run(opened, catalog, out, encoder=loaded, store=store, callbacks=callbacks)
    console.print_findings(found.counts)
    console.log.print(f"all: {found.table}\nthe worst, to look through in a browser: {found.page}", soft_wrap=True)
