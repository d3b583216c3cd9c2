"""`train`, `tune`, `evaluate` and `audit`: what learns from labels or scores them."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from product_classificator.audit import KIND_TITLES, audit_run
from product_classificator.catalog import Catalog
from product_classificator.classificator import Classificator
from product_classificator.cli import console
from product_classificator.cli.options import Audit, Evaluate, Train, Tune
from product_classificator.cli.tables import bars, names, open_catalog, open_labelled, open_once, product_bar
from product_classificator.encoders import load_encoder
from product_classificator.errors import DataError
from product_classificator.evaluate_run import evaluate_run
from product_classificator.evaluation import Evaluation, evaluation_json, of_all
from product_classificator.files import write_text
from product_classificator.finetuning import Distributed, FinetuneSettings, finetune
from product_classificator.runs import Run
from product_classificator.trackers import tracking
from product_classificator.training import Callbacks, EpochFacts, TrainSettings, read_settings, train_heads

print_stage = partial(console.log.print, style="bold")


def train(options: Train) -> None:
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
    print_next(trained.run.report / "report.md", options)
    print_warnings(trained.evaluation)


def tune(options: Tune) -> None:
    """Fine-tune an encoder, print the scores of the best epoch and the next step."""
    distributed = Distributed(options.device)
    console.out.quiet = console.log.quiet = not distributed.is_main
    settings, catalog = _open(options, options.encoder)
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
    print_next(tuned.run.report / "tuning.md", options)
    print_warnings(tuned.evaluation)


def _open(options: Train | Tune, encoder: str | None) -> tuple[TrainSettings, Catalog]:
    training, (table, columns) = options.training, open_once(options.table, options.products.encoding)
    changes = {"encoder": encoder, "seed": training.seed, "taxonomy": training.taxonomy}
    changes["allow_missing_photos"] = training.allow_missing_photos or None
    if isinstance(options, Train):
        changes |= {f"split.{name}": getattr(options, name) for name in ("folds", "holdout", "groups")}
        changes |= {"split.column": options.split_column, "split.refit": False if options.no_refit else None}
    settings = read_settings(training.config, changes)
    labels, multi_label = names(training.characteristics, columns), names(training.multi_label, columns) or []
    return settings, open_catalog(table, columns, options.products, labels, multi_label)


def evaluate(options: Evaluate) -> None:
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


def audit(options: Audit) -> None:
    """Audit a table, print how often each kind of finding occurs and where the findings are."""
    run = Run.load(options.run)
    catalog = open_labelled(run, options.table, options.products)
    classificator = Classificator.from_run(options.run, **asdict(options.encoder))
    with training_progress(len(catalog)) as callbacks:
        findings = audit_run(
            run, catalog, options.out, encoder=classificator.encoder, store=options.store, callbacks=callbacks
        )
    titles = [KIND_TITLES[kind] for kind in findings.counts]
    table = console.result_table("findings", *titles, right=titles)
    for name in sorted({name for counts in findings.counts.values() for name in counts}):
        table.add_row(name or "the whole product", *(str(counts.get(name, "")) for counts in findings.counts.values()))
    console.out.print(table)
    console.print_counts("products whose label has too few different products to be judged", findings.unjudged)
    console.log.print(f"all: {findings.table}\nthe worst, with photos, for a browser: {findings.page}")


@contextmanager
def training_progress(total: int) -> Iterator[Callbacks]:
    """Show the progress of a training: a line per stage and epoch, bars over products and the steps of an epoch."""

    def on_step(epoch: int, step: int, of: int, loss: float) -> None:
        progress.update(steps, completed=step, total=of, description=f"epoch {epoch}, loss {loss:.3f}", visible=True)

    def on_epoch(facts: EpochFacts) -> None:
        values = {"validation loss": facts.valid_loss, "recall@1": facts.recall_at_1, "loss": facts.train_loss}
        values["macro-F1 of the heads"] = facts.valid_macro_f1
        shown = [f"{name} {value:.3f}" for name, value in values.items() if value is not None]
        shown += [f"{facts.seconds:.1f} s"] if facts.seconds else []
        console.log.print(f"   epoch {facts.epoch:>2}  {'  '.join(shown)}")

    with bars() as progress:
        on_chunk = product_bar(progress, total)
        steps = progress.add_task("steps", total=None, visible=False, notes="")
        yield Callbacks(print_stage, on_chunk, on_epoch, partial(progress.advance, progress.task_ids[0]), on_step)


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


def print_next(report: Path, options: Train | Tune) -> None:
    """Print where the report is, and how the run is used, on products that it has not learned from."""
    photos = " --images PHOTOS" * (options.products.images is not None)
    run = shlex.quote(str(options.out))
    console.log.print(f"report: {report}")
    console.log.print(f"next:   product-classificator predict {run} TABLE{photos} --out predictions.parquet")
