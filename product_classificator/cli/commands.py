"""The commands. What is heavy to import is imported by the command that needs it, so that `--help` is quick."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from product_classificator.cli.options import (
    ChannelsOpt,
    DeviceOpt,
    EncoderOpt,
    IdOpt,
    ImagesOpt,
    LikeRunPhotoOpt,
    LikeRunTextOpt,
    MaxPixelsOpt,
    MinPrecisionOpt,
    MovedEncoderOpt,
    PhotoOpt,
    Precision,
    PrecisionOpt,
    RunArg,
    Source,
    StoreOpt,
    TableArg,
    TextEncoderOpt,
    TextOpt,
    names,
    open_catalog,
    open_catalog_like,
    table_columns,
    with_text_encoder,
)
from product_classificator.errors import ArtifactError, DataError, nearest


def evaluate(
    run: RunArg,
    table: TableArg,
    images: ImagesOpt = None,
    text: LikeRunTextOpt = None,
    id_: IdOpt = None,
    photo: LikeRunPhotoOpt = None,
    channels: ChannelsOpt = None,
    max_pixels: MaxPixelsOpt = None,
    json_: Annotated[Path | None, typer.Option("--json", help="File for the scores.")] = None,
    min_precision: MinPrecisionOpt = None,
    store: StoreOpt = None,
    encoder: MovedEncoderOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = Precision.auto,
) -> None:
    """Score a run on labelled products; those it has learned from are left out."""
    from product_classificator import console
    from product_classificator.classificator import Classificator
    from product_classificator.evaluate_run import evaluate_run
    from product_classificator.evaluation import evaluation_json
    from product_classificator.files import write_text
    from product_classificator.runs import Run

    opened = Run.load(run)
    if json_ is not None and not json_.parent.is_dir():
        raise DataError(f"the folder of --json must be there: make {json_.parent} first")
    source = Source(table, images, id_, names(text), photo, channels, max_pixels)
    have = table_columns(table)
    catalog = open_catalog_like(opened, source, [n for n in opened.columns.characteristics if n in have])
    console.print_columns(catalog)
    with console.product_progress(len(catalog)) as progress:
        classificator = Classificator.from_run(run, device=device, encoder=encoder, dtype=precision.value)
        heldout = evaluate_run(
            opened,
            catalog,
            classificator=classificator,
            store=store,
            min_precision=min_precision,
            on_chunk=progress.on_chunk,
        )
    console.log.print(
        f"{heldout.scored} products scored; {heldout.seen} left out, for the run has learned from them or from "
        f"near-identical ones; {heldout.set_aside} set aside (neither photo nor text, or a repeated id)"
    )
    console.print_scores(heldout.evaluation)
    if json_ is not None:
        write_text(json_, json.dumps(evaluation_json(heldout.evaluation), ensure_ascii=False, indent=2))


def predict(
    run: RunArg,
    table: TableArg,
    out: Annotated[Path, typer.Option("--out", help="File to write: .parquet, .csv or .jsonl.")],
    images: ImagesOpt = None,
    text: LikeRunTextOpt = None,
    id_: IdOpt = None,
    photo: LikeRunPhotoOpt = None,
    channels: ChannelsOpt = None,
    max_pixels: MaxPixelsOpt = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Labels per characteristic.")] = 1,
    min_precision: MinPrecisionOpt = None,
    store: StoreOpt = None,
    encoder: MovedEncoderOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = Precision.auto,
) -> None:
    """Predict the characteristics of every product of a table; an interrupted call goes on where it stopped."""
    from product_classificator import console
    from product_classificator.classificator import Classificator
    from product_classificator.embeddings.store import EmbeddingStore
    from product_classificator.predict_file import predict_to_file
    from product_classificator.runs import Run

    source = Source(table, images, id_, names(text), photo, channels, max_pixels)
    catalog = open_catalog_like(Run.load(run), source, [])
    console.print_columns(catalog)
    classificator = Classificator.from_run(run, device=device, encoder=encoder, dtype=precision.value)
    if catalog.images is None and classificator.bundle.image_dim:
        console.log.print("the run was trained with photos, and none are given here (--images)", style="yellow")
    embeddings = EmbeddingStore(store, classificator.encoder) if store else None
    with console.product_progress(len(catalog)) as progress:
        summary = predict_to_file(
            classificator,
            catalog,
            out,
            top_k=top_k,
            min_precision=min_precision,
            store=embeddings,
            on_chunk=progress.on_chunk,
        )
    taken_over = f", {summary.resumed} of them from an interrupted call" if summary.resumed else ""
    console.log.print(f"{summary.rows} rows in {out}{taken_over}")
    console.print_counts("rows with a flaw", summary.flaws)
    console.print_counts("rows that need no review", summary.auto)


def classify(
    run: RunArg,
    image: Annotated[Path | None, typer.Option("--image", help="File of the photo.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Text of the product.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Labels per characteristic.")] = 3,
    min_precision: MinPrecisionOpt = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what moved each prediction.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    channels: ChannelsOpt = None,
    encoder: MovedEncoderOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = Precision.auto,
) -> None:
    """Classify one product from its photo, its text, or both."""
    if image is None and not text:
        raise typer.BadParameter("a product needs a photo or a text: give --image, --text or both")
    from product_classificator import console
    from product_classificator.classificator import Classificator

    classificator = Classificator.from_run(run, device=device, encoder=encoder, dtype=precision.value)
    classificator.channels = channels.value if channels else classificator.channels
    product = None if text is None else [text], None if image is None else [image]
    predictions = classificator.predict(*product, min_precision=min_precision)
    explanations = predictions.explain(0) if explain else {}
    if not json_:
        console.print_products(predictions, top_k=top_k)
        console.print_explanations(explanations)
        return
    found = console.predictions_json(predictions, top_k)
    if explain:
        found = {"predictions": found, "explanations": {name: asdict(why) for name, why in explanations.items()}}
    typer.echo(json.dumps(found, ensure_ascii=False, indent=2))


def embed(
    table: TableArg,
    out: Annotated[Path, typer.Option("--out", help="Folder of the store; an existing one is continued.")],
    images: ImagesOpt = None,
    text: TextOpt = None,
    id_: IdOpt = None,
    photo: PhotoOpt = None,
    channels: ChannelsOpt = None,
    max_pixels: MaxPixelsOpt = None,
    encoder: EncoderOpt = None,
    text_encoder: TextEncoderOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = Precision.auto,
) -> None:
    """Embed products into a store that training and prediction can use; an interrupted call goes on."""
    from product_classificator import console
    from product_classificator.embeddings.embed import embed_chunks
    from product_classificator.embeddings.store import EmbeddingStore
    from product_classificator.encoders import load_encoder

    catalog = open_catalog(Source(table, images, id_, names(text), photo, channels, max_pixels), [])
    console.print_columns(catalog)
    loaded = load_encoder(with_text_encoder(encoder or "lite", text_encoder), device=device, dtype=precision.value)
    store = EmbeddingStore(out, loaded)
    status: Counter[str] = Counter()
    encoded = 0
    with console.product_progress(len(catalog)) as progress:
        for chunk in embed_chunks(catalog, loaded, store):
            progress.on_chunk(chunk)
            status.update(chunk.status)
            encoded += chunk.encoded
    console.log.print(f"{encoded} products encoded now, {status.total() - encoded} known or repeated; store: {out}")
    console.print_counts("rows with a flaw", {name: n for name, n in status.most_common() if name != "ok"})


def import_heads(
    folder: Annotated[Path, typer.Argument(help="Holds <characteristic>.pt, label_to_char.pkl and pca_all.pkl.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the bundle. Left out: kept under its name for Classificator()."),
    ] = None,
    encoder: Annotated[
        str, typer.Option("--encoder", help="What the heads were trained on; a folder ties them to its weights.")
    ] = "ruclip-vit-base-patch16-384",
) -> None:
    """Turn heads of the published system into a bundle; nothing in them is executed."""
    from product_classificator import console
    from product_classificator.encoders import RUCLIP_MODELS, EncoderSpec, load_encoder
    from product_classificator.files import cache_home
    from product_classificator.published.heads import read_published_heads

    spec = replace(EncoderSpec.parse(encoder), clean=True)  # the published heads were trained on cleaned texts
    if Path(spec.base).is_dir():
        loaded = load_encoder(str(spec))
        bundle = read_published_heads(folder, encoder_name=loaded.name)
        bundle = bundle.bound_to(loaded.name, loaded.fingerprint, loaded.image_dim, loaded.text_dim)
    elif spec.base in RUCLIP_MODELS:
        bundle = read_published_heads(folder, encoder_name=str(spec))
    else:
        raise DataError(f"published heads are for a ruCLIP model or its folder: {nearest(spec.base, RUCLIP_MODELS)}")
    target = out or cache_home() / "heads" / folder.resolve().name
    bundle.save(target)
    console.print_counts("labels", {name: len(labels) for name, labels in bundle.labels.items()})
    console.log.print(
        f"{len(bundle.labels)} heads for {bundle.encoder_name} in {target}\n"
        f"next:   Classificator(heads_ver={str(out or target.name)!r})",
        soft_wrap=True,
    )


def info(
    what: Annotated[str, typer.Argument(metavar="RUN|STORE|encoders", help="A run, a store, or the word `encoders`.")],
) -> None:
    """Describe a run, a store, or the encoders."""
    from product_classificator import console

    path = Path(what)
    if what == "encoders":
        console.print_encoders()
    elif (path / "run.json").is_file():
        console.print_run(path)
    elif (path / "store.json").is_file():
        console.print_store(path)
    else:
        raise ArtifactError(f"info describes a run, a store, or the word `encoders`: {what} is none of them")
