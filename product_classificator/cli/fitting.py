"""Commands that learn from labels, score them or convert heads; they import torch."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from product_classificator.audit import KIND_TITLES, audit_run
from product_classificator.catalog import Catalog, read_catalog
from product_classificator.classificator import Classificator
from product_classificator.cli import console
from product_classificator.cli import options as opt
from product_classificator.cli.answering import predict
from product_classificator.cli.tables import names, open_catalog, open_labelled, open_once
from product_classificator.demo import make_marketplace
from product_classificator.embeddings.progress import bars, product_bar
from product_classificator.encoders import RUCLIP_MODELS, EncoderSpec, load_encoder
from product_classificator.errors import DataError, nearest
from product_classificator.evaluate_run import evaluate_run
from product_classificator.evaluation import Evaluation, evaluation_json
from product_classificator.evaluation.page import of_all
from product_classificator.export import export_classificator
from product_classificator.files import cache_home, write_text
from product_classificator.finetuning import Distributed, FinetuneSettings, finetune
from product_classificator.finetuning.trackers import tracking, training_progress
from product_classificator.heads import HeadBundle
from product_classificator.published.clusters import ClusterSettings, cluster_products
from product_classificator.published.heads import read_published_heads
from product_classificator.runs import Run
from product_classificator.training import Training, TrainSettings, read_settings, train_heads


def train(options: opt.Train) -> None:
    """Train heads, print their scores and the next step."""
    settings, catalog = _open(options, options.encoder.encoder)
    if (options.out / "run.json").exists():
        console.log.print(f"{options.out} already holds a run: it is replaced when the new one is done", style="yellow")
    encoder = load_encoder(settings.encoder, device=options.encoder.device, dtype=options.encoder.dtype)
    with (
        training_progress(len(catalog)) as progress,
        tracking(progress, options.training.tracker, options.out, asdict(settings)) as callbacks,
    ):
        trained = train_heads(catalog, options.out, settings, encoder=encoder, store=options.store, callbacks=callbacks)
    console.out.print(f"\n{trained.fitted.bundle.facts['judged']}", soft_wrap=True)
    print_scores(trained.evaluation)
    for pair in trained.fitted.bundle.hierarchy:
        console.log.print(f"{pair.child} refines {pair.parent}: predictions do not contradict it")
    left_out = {name: len(labels) for name, labels in trained.fitted.left_out.items()}
    console.print_counts("labels with too few products to learn (listed in the report)", left_out)
    _cluster(options, trained, catalog)
    print_next(options.out / "report" / "report.html", options)
    print_warnings(trained.evaluation)


def tune(options: opt.Tune) -> None:
    """Fine-tune an encoder, print the scores of the best epoch and the next step."""
    distributed = Distributed(options.device)
    console.out.quiet = console.log.quiet = not distributed.is_main
    settings, catalog = _open(options, options.encoder)
    if catalog.images is None:
        raise DataError("fine-tuning needs photos: name a folder or zip (--images), or the column that holds them")
    encoder = load_encoder(settings.encoder, device=distributed.device, dtype="float32")
    tuning = FinetuneSettings(**asdict(options.finetuning))
    shown = {**asdict(settings), "finetuning": asdict(tuning)}
    with (
        training_progress(len(catalog)) as progress,
        tracking(progress, options.training.tracker, options.out, shown) as callbacks,
    ):
        tuned = finetune(catalog, options.out, settings, tuning, encoder=encoder, callbacks=callbacks)
    kept = f"epoch {tuned.best_epoch}" if tuned.best_epoch else "the untuned encoder, since no epoch was better"
    console.out.print(f"\nTest split of {options.table.name}; kept by validation: {kept}", soft_wrap=True)
    print_scores(tuned.evaluation)
    _cluster(options, tuned, catalog)
    print_next(tuned.run.report / "tuning.md", options)
    print_warnings(tuned.evaluation)


def _cluster(options: opt.Train | opt.Tune, training: Training, catalog: Catalog) -> None:
    if options.training.clusters:
        settings, folder = ClusterSettings(options.training.clusters), options.out / "clusters"
        if options.training.corrections:
            catalog = catalog.corrected(options.training.corrections)
        with console.log.status("clustering the embeddings"):
            scores = cluster_products(folder, training.embeddings, catalog.truth(), settings).scores
        shown = (f"{name} {ami:.3f}" for name, ami in scores["ami"].items())
        console.log.print(f"clusters: {folder}; agreement with the labels (AMI): {', '.join(shown)}")


def _open(options: opt.Train | opt.Tune, encoder: str | None) -> tuple[TrainSettings, Catalog]:
    training, (table, columns) = options.training, open_once(options.table, options.products.encoding)
    changes = {"encoder": encoder, "seed": training.seed, "taxonomy": training.taxonomy}
    changes |= {name: getattr(training, name) or None for name in ("allow_missing_photos", "judge_corrections")}
    corrections = None if training.corrections is None else str(training.corrections)
    changes |= {"corrections": corrections, "correction_weight": training.correction_weight}
    if isinstance(options, opt.Train):
        changes |= {f"split.{name}": getattr(options, name) for name in ("folds", "holdout", "groups")}
        changes |= {"split.column": options.split_column, "split.refit": False if options.no_refit else None}
        changes["max_train_products"] = options.max_train_products
    settings = read_settings(training.config, changes)
    labels = {
        "characteristics": names(training.characteristics, columns),
        "multi_label": names(training.multi_label, columns) or [],
        **{name: getattr(training, name) for name in ("label_separator", "path", "path_separator")},
    }
    return settings, open_catalog(table, columns, options.products, **labels)


def evaluate(options: opt.Evaluate) -> None:
    """Score a run and print the scores."""
    run = Run.load(options.run)
    if options.json is not None and not options.json.parent.is_dir():
        raise DataError(f"the folder of --json must exist: create {options.json.parent} first")
    catalog = open_labelled(run, options.table, options.products)
    with bars() as progress:
        heldout = evaluate_run(
            run,
            catalog,
            classificator=Classificator.from_run(options.run, **asdict(options.encoder)),
            store=options.store,
            min_precision=options.min_precision,
            on_chunk=product_bar(progress, len(catalog)),
        )
    console.log.print(
        f"{len(heldout.rows)} products scored, {heldout.out_of_fold} of them the run's own, predicted by heads fitted "
        f"without them; {heldout.seen} left out because the run was trained on them or on near-identical ones "
        f"({heldout.seen_by_id_alone} of these share only an id with a training product: other products need other "
        f"ids); {heldout.set_aside} set aside (neither photo nor text, or a repeated id)"
    )
    print_scores(heldout.evaluation)
    if options.json is not None:
        write_text(options.json, json.dumps(evaluation_json(heldout.evaluation), ensure_ascii=False, indent=2))
    print_warnings(heldout.evaluation)


def audit(options: opt.Audit) -> None:
    """Audit a table, print how many products have findings of each kind and where these are."""
    run = Run.load(options.run)
    catalog = open_labelled(run, options.table, options.products)
    classificator = Classificator.from_run(options.run, **asdict(options.encoder))
    with training_progress(len(catalog)) as callbacks:
        findings = audit_run(
            run, catalog, options.out, encoder=classificator.encoder, store=options.store, callbacks=callbacks
        )
    titles = [KIND_TITLES[kind] for kind in findings.counts]
    table = console.result_table("products", *titles, right=titles)
    for name in sorted({name for counts in findings.counts.values() for name in counts}):
        table.add_row(name or "the whole product", *(str(counts.get(name, "")) for counts in findings.counts.values()))
    console.out.print(table)
    console.print_counts("products whose label has too few different products to be judged", findings.unjudged)
    console.log.print(f"all: {findings.table}\nthe worst, with photos, for a browser: {findings.page}")


def export(options: opt.Export) -> None:
    """Export a run and print what the export needs."""
    classificator = Classificator(model_name=options.encoder, heads_ver=options.run, dtype="float32")
    with console.log.status("exporting the networks and comparing their predictions with the run's"):
        export_classificator(classificator, options.out)
    requirements = options.out / "requirements.txt"
    packages = [line.partition("==")[0] for line in requirements.read_text(encoding="utf-8").split()]
    size_mb = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file()) / 1e6
    console.log.print(
        f"{len(classificator.labels)} characteristics, encoder {classificator.model_name}: {options.out}, "
        f"{size_mb:.0f} MB; its predictions are those of the run\n"
        f"needs:  {', '.join(packages)} (see {requirements})\n"
        f"next:   Classificator(heads_ver={str(options.out)!r}).predict(texts, images)"
    )


def import_heads(options: opt.ImportHeads) -> None:
    """Convert published heads and print how to load them."""
    spec = replace(EncoderSpec.parse(options.encoder), clean=True)  # published heads were trained on cleaned texts
    if spec.base not in RUCLIP_MODELS and not Path(spec.base).is_dir():
        raise DataError(f"published heads need a ruCLIP model or its folder: {nearest(spec.base, RUCLIP_MODELS)}")
    encoder = load_encoder(str(spec)) if Path(spec.base).is_dir() else None
    bundle = read_published_heads(options.folder, encoder_name=encoder.name if encoder else str(spec))
    if encoder is not None:
        bundle = bundle.bound_to(encoder.name, encoder.fingerprint, encoder.image.dim, encoder.text.dim)
    target = options.out or cache_home() / "heads" / options.folder.resolve().name
    bundle.save(target)
    console.print_counts("labels", {name: len(labels) for name, labels in bundle.labels.items()})
    console.log.print(
        f"{len(bundle.labels)} heads for {bundle.encoder_name} in {target}\n"
        f"next:   Classificator(heads_ver={str(options.out or target.name)!r})"
    )


def demo(options: opt.Demo) -> None:
    """Train on a synthetic shop, predict it, and show three of its products, judged by heads fitted without them."""
    console.log.print(
        f"Generating {options.products} SYNTHETIC products (photos and Russian texts of our own making): scores say "
        "nothing of real ones",
        style="bold",
    )
    shop = make_marketplace(options.out / "marketplace", options.products, options.seed)
    folder, predictions, photos = options.out / "synthetic-run", options.out / "predictions.parquet", shop.images
    products, training = opt.ProductOptions(images=photos), opt.TrainingOptions(seed=options.seed)
    train(opt.Train(shop.table, out=folder, products=products, training=training))
    run = Run.load(folder)
    predict(opt.Predict(folder, shop.table, out=predictions, products=products, store=run.store))

    console.out.print("\nThree products, predicted by heads that never saw them\n", style="bold")
    catalog, out_of_fold = read_catalog(shop.table, photos), run.load_out_of_fold()
    is_ok = pq.read_table(predictions, columns=["status"])["status"].to_numpy() == "ok"
    ok = np.flatnonzero(is_ok[out_of_fold.rows])
    shown = out_of_fold.take(np.random.default_rng(options.seed).permutation(ok)[:3])
    texts = catalog.texts()
    titles = [texts[row].split("\n")[0] for row in shown.rows.tolist()]
    console.print_products(HeadBundle.load(run.bundle).judged(shown, catalog.ids[shown.rows]), titles, top_k=1)
    console.log.print(f"The report, for a browser: {run.report / 'report.html'}\n", soft_wrap=True)
    console.out.print(
        "Your own products:\n"
        "  product-classificator train TABLE.parquet --images PHOTOS.zip --id nm --text title,description \\\n"
        "      --characteristics category,sex,season --out my-run",
        soft_wrap=True,
    )


def print_scores(evaluation: Evaluation) -> None:
    """Print macro-F1, its interval, accuracy and the number of products and labels of each characteristic."""
    columns = ("macro-F1", "95 % interval", "accuracy", "products", "labels")
    table = console.result_table("characteristic", *columns, right=columns)
    for name, score in evaluation.characteristics.items():
        interval = "-" if score.interval is None else f"{score.interval[0]:.3f}-{score.interval[1]:.3f}"
        coverage = score.coverage
        covered = of_all(coverage.products, coverage.all_products), of_all(coverage.labels, coverage.all_labels)
        table.add_row(name, _score(score.macro_f1), interval, _score(score.accuracy), *covered)
    table.add_row("mean", _score(evaluation.mean_macro_f1), style="bold")
    console.out.print(table)
    if selective := evaluation.selective:
        shares = ", ".join(f"{name} {accepted.share:.0%}" for name, accepted in selective.characteristics.items())
        console.log.print(
            f"accepted at a target precision of {selective.min_precision:g}: {shares}; all characteristics for "
            f"{selective.share:.0%} of the products"
        )


def print_warnings(evaluation: Evaluation) -> None:
    """Print what a reader of the scores must know; the last lines of a command."""
    for warning in evaluation.warnings:
        console.log.print(f"Warning: {warning}", style="yellow")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_next(report: Path, options: opt.Train | opt.Tune) -> None:
    """Print where the report is, and how the run is used, on products that it has not learned from."""
    photos = " --images PHOTOS" * (options.products.images is not None)
    run = shlex.quote(str(options.out))
    console.log.print(f"report: {report}")
    console.log.print(f"next:   product-classificator predict {run} TABLE{photos} --out predictions.parquet")
