"""`train` and `tune`: heads for a catalog, or the encoder as well."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from product_classificator.cli.options import (
    ChannelsOpt,
    CharacteristicsOpt,
    ConfigOpt,
    DeviceOpt,
    EncoderOpt,
    IdOpt,
    ImagesOpt,
    MaxPixelsOpt,
    MultiLabelOpt,
    PhotoOpt,
    Precision,
    PrecisionOpt,
    Recipe,
    SeedOpt,
    Source,
    StoreOpt,
    TableArg,
    TaxonomyOpt,
    TextEncoderOpt,
    TextOpt,
    TrackerOpt,
    TunePrecision,
    names,
    open_catalog,
    with_text_encoder,
)


def train(
    table: TableArg,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; made if it is not there.")],
    images: ImagesOpt = None,
    characteristics: CharacteristicsOpt = None,
    multi_label: MultiLabelOpt = None,
    text: TextOpt = None,
    id_: IdOpt = None,
    photo: PhotoOpt = None,
    channels: ChannelsOpt = None,
    max_pixels: MaxPixelsOpt = None,
    encoder: EncoderOpt = None,
    text_encoder: TextEncoderOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = Precision.auto,
    recipe: Annotated[Recipe | None, typer.Option("--recipe", help="How the heads are fitted.")] = None,
    seed: SeedOpt = None,
    config: ConfigOpt = None,
    taxonomy: TaxonomyOpt = None,
    store: StoreOpt = None,
    tracker: TrackerOpt = None,
) -> None:
    """Train heads on a table of products and report how well they do on held-back ones."""
    from product_classificator import console
    from product_classificator.encoders import load_encoder
    from product_classificator.trackers import tracked, tracking
    from product_classificator.training import read_settings, train_heads

    settings = read_settings(config, {"encoder": encoder, "seed": seed, "heads.recipe": recipe and recipe.value})
    settings = replace(settings, encoder=with_text_encoder(settings.encoder, text_encoder))
    source = Source(table, images, id_, names(text), photo, channels, max_pixels)
    catalog = open_catalog(source, names(characteristics), names(multi_label))
    console.print_columns(catalog)
    if (out / "run.json").exists():
        console.log.print(f"{out} holds a run already: it is replaced when the new one is done", style="yellow")
    loaded = load_encoder(settings.encoder, device=device, dtype=precision.value)
    with console.training_watch(len(catalog)) as callbacks, tracking(tracker, out, asdict(settings)) as logger:
        callbacks = tracked(callbacks, logger)
        training = train_heads(
            catalog, out, settings, encoder=loaded, store=store, taxonomy=taxonomy, callbacks=callbacks
        )
    console.out.print(f"\nTest part of {table.name}, {settings.heads.recipe} recipe, seed {settings.seed}")
    console.print_scores(training.evaluation)
    console.print_hierarchy(training.fitted.bundle.hierarchy)
    console.print_left_out(training.fitted.left_out)
    console.print_next(training.run.report / "report.md", out, table, images)


def tune(
    table: TableArg,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; an interrupted tuning there goes on.")],
    images: ImagesOpt,
    encoder: Annotated[str, typer.Option("--encoder", help="A CLIP-like one; see `info encoders`.")],
    characteristics: CharacteristicsOpt = None,
    multi_label: MultiLabelOpt = None,
    text: TextOpt = None,
    id_: IdOpt = None,
    photo: PhotoOpt = None,
    channels: ChannelsOpt = None,
    max_pixels: MaxPixelsOpt = None,
    device: DeviceOpt = "auto",
    last_blocks: Annotated[int, typer.Option("--last-blocks", min=1, help="Blocks of each tower to train.")] = 1,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the pairs.")] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Pairs compared with one another.")] = 256,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="At its highest.")] = 5e-5,
    seed: SeedOpt = None,
    config: ConfigOpt = None,
    taxonomy: TaxonomyOpt = None,
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Folder of the activations.")] = None,
    cache_limit_gb: Annotated[
        float, typer.Option("--cache-limit-gb", help="What is above is computed anew in every epoch.")
    ] = 100.0,
    precision: Annotated[
        TunePrecision, typer.Option("--precision", help="auto: bfloat16 on a GPU that can.")
    ] = TunePrecision.auto,
    tracker: TrackerOpt = None,
) -> None:
    """Tune the last blocks of an encoder on pairs of photo and text, fit heads, and keep the best epoch.

    On several GPUs: accelerate launch -m product_classificator tune ...
    """
    from product_classificator import console
    from product_classificator.encoders import load_encoder
    from product_classificator.finetuning import Distributed, FinetuneSettings
    from product_classificator.finetuning import finetune as tune_blocks
    from product_classificator.trackers import tracked_finetuning, tracking
    from product_classificator.training import read_settings

    settings = read_settings(config, {"encoder": encoder, "seed": seed})
    source = Source(table, images, id_, names(text), photo, channels, max_pixels)
    catalog = open_catalog(source, names(characteristics), names(multi_label), guesses_text=True)
    distributed = Distributed(device, precision.value)
    console.out.quiet = console.log.quiet = not distributed.is_main
    console.print_columns(catalog)
    loaded = load_encoder(settings.encoder, device=distributed.device, dtype="float32")
    tuning = FinetuneSettings(
        last_blocks=last_blocks,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        cache_limit_gb=cache_limit_gb,
    )
    shown = {**asdict(settings), "tuning": asdict(tuning)}
    with console.tune_watch(len(catalog)) as callbacks, tracking(tracker, out, shown) as logger:
        callbacks = tracked_finetuning(callbacks, logger)
        found = tune_blocks(
            catalog,
            out,
            settings,
            tuning,
            encoder=loaded,
            cache_dir=cache_dir,
            taxonomy=taxonomy,
            distributed=distributed,
            callbacks=callbacks,
        )
    kept = f"epoch {found.best_epoch}" if found.best_epoch else "the untuned encoder: no epoch was better"
    console.out.print(f"\nTest part of {table.name}; kept on the valid part: {kept}", soft_wrap=True)
    console.print_scores(found.evaluation)
    console.print_next(found.run.report / "tuning.md", out, table, images)
