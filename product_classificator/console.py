"""What the command line shows: progress, tables, bars. Nothing here computes a result."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from product_classificator.encoders import ENCODERS, OPTIONS

if TYPE_CHECKING:
    from product_classificator.catalog import Catalog
    from product_classificator.embeddings.embed import EmbeddedChunk
    from product_classificator.evaluation import Evaluation
    from product_classificator.finetuning import FinetuneCallbacks
    from product_classificator.heads import Hierarchy
    from product_classificator.training import Callbacks, EpochFacts
    from product_classificator.types import Explanation, Predictions

out = Console(highlight=False, markup=False, emoji=False)
"""Results go here (stdout); labels and paths are printed as they are, with "[bold]" and ":car:"."""

log = Console(stderr=True, highlight=False, markup=False, emoji=False)
"""Progress, sentences and errors go here (stderr)."""

_BAR_WIDTH = 20


class ProductProgress:
    """A progress bar over products: rate, time left, how many rows are flawed or came from the store, and idle time."""

    def __init__(self, progress: Progress, total: int) -> None:
        from product_classificator.embeddings.embed import Idle

        self._progress, self._idle = progress, Idle()
        self._flawed = self._known = 0
        self._first_row: int | None = None
        self._task = progress.add_task("products", total=total, rate=0.0, notes="")

    def on_chunk(self, chunk: "EmbeddedChunk") -> None:
        """Counts a chunk."""
        n = len(chunk.embeddings)
        self._flawed += int((chunk.status != "ok").sum())
        self._known += n - chunk.encoded
        done = chunk.first_row + n
        if self._first_row is None:
            self._first_row = chunk.first_row
        notes = [f"{self._known} known"] if self._known else []
        notes += [f"{self._flawed} with a flaw"] if self._flawed else []
        self._idle.add(chunk)
        if self._idle.share is not None:
            notes.append(f"encoder idle {self._idle.share:.0%}")
        rate = (done - self._first_row) / max(self._progress.tasks[0].elapsed or 0.0, 1e-3)
        self._progress.update(self._task, completed=done, rate=rate, notes=", ".join(notes))


@contextmanager
def product_progress(total: int) -> Iterator[ProductProgress]:
    """Shows a progress bar while the block runs."""
    columns = (
        TextColumn("  "),
        BarColumn(_BAR_WIDTH * 2),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f}/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[notes]}"),
    )
    with Progress(*columns, console=log) as progress:
        yield ProductProgress(progress, total)


@contextmanager
def training_watch(total: int) -> "Iterator[Callbacks]":
    """Shows the stages of a training: a sentence each, a bar while products are embedded, a line an epoch."""
    from product_classificator.training import Callbacks

    with product_progress(total) as products:

        def on_epoch(facts: "EpochFacts") -> None:
            log.print(
                f"   epoch {facts.epoch:>2}  loss {facts.train_loss:.3f}  "
                f"validation macro-F1 {facts.mean_valid_macro_f1:.3f}  {facts.seconds:.1f} s"
            )

        yield Callbacks(lambda sentence: log.print(sentence, style="bold", soft_wrap=True), products.on_chunk, on_epoch)


@contextmanager
def tune_watch(total: int) -> "Iterator[FinetuneCallbacks]":
    """Shows the stages of a tuning, its steps, and a line per epoch; `total` is the number of products."""
    from product_classificator.finetuning import FinetuneCallbacks

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(_BAR_WIDTH * 2),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=log) as progress:
        products = progress.add_task("products", total=total)
        steps = progress.add_task("steps", total=None, visible=False)

        def on_step(epoch: int, step: int, of: int, loss: float) -> None:
            progress.update(
                steps, completed=step, total=of, description=f"epoch {epoch}, loss {loss:.3f}", visible=True
            )

        def on_epoch(row: Mapping[str, Any]) -> None:
            log.print(
                f"   epoch {row['epoch']:>2}  valid loss {row['valid_loss']:.3f}  recall@1 {row['recall_at_1']:.3f}  "
                f"macro-F1 of the heads {row['valid_macro_f1']:.3f}"
            )

        yield FinetuneCallbacks(
            on_stage=lambda sentence: log.print(sentence, style="bold", soft_wrap=True),
            on_products=lambda n: progress.advance(products, n),
            on_step=on_step,
            on_epoch=on_epoch,
        )


def print_columns(catalog: "Catalog") -> None:
    """Says which column is taken as what."""
    columns = catalog.columns
    text = ", ".join(columns.text) or "none (photos only)"
    images = catalog.images
    photos = "none (text only)" if images is None else f"by {columns.photo or columns.id} ({images.channels})"
    multi = f"; multi-label {', '.join(columns.multi_label)}" if columns.multi_label else ""
    log.print(
        f"{catalog.table.name}: {len(catalog)} products; id {columns.id}; text {text}; photos {photos}{multi}",
        soft_wrap=True,
    )


def print_scores(evaluation: "Evaluation") -> None:
    """Prints macro-F1, its interval, accuracy and support of each characteristic."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for name in ("characteristic", "macro-F1", "95 % interval", "accuracy", "products", "labels", "untrained"):
        table.add_column(name, justify="left" if name == "characteristic" else "right", overflow="fold")
    for name, score in evaluation.characteristics.items():
        low_high = "-" if score.interval is None else f"{score.interval[0]:.3f}-{score.interval[1]:.3f}"
        table.add_row(
            name,
            _number(score.macro_f1),
            low_high,
            _number(score.accuracy),
            str(score.n),
            str(len(score.labels)),
            str(score.unknown_labels),
        )
    table.add_section()
    table.add_row("mean", _number(evaluation.mean_macro_f1), style="bold")
    out.print(table)
    if selective := evaluation.selective:
        shares = ", ".join(f"{name} {accepted.share:.0%}" for name, accepted in selective.characteristics.items())
        sentence = f"accepted at a target precision of {selective.min_precision:g}: {shares}"
        log.print(f"{sentence}; all characteristics for {selective.share:.0%} of the products", soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_products(predictions: "Predictions", titles: Sequence[str] | None = None, top_k: int = 3) -> None:
    """Prints the most probable labels of each product with bars; of a multi-label one those borne stand out."""
    for row in range(len(predictions)):
        if titles:
            out.print(titles[row], style="bold", soft_wrap=True)
        table = Table(box=None, show_header=False, pad_edge=False)
        for name in predictions.characteristics:
            is_multi = name in predictions.decision_thresholds
            borne = predictions.labels_of(name)[row] or []
            decision = predictions.decisions[name][row] if predictions.decisions else ""
            ranked = predictions.top(name, max(top_k, len(borne)))[row]
            # Each label of a multi-label characteristic has a cut of its own: those that are borne come first.
            ranked = sorted(ranked, key=lambda each: each[0] not in borne) if is_multi else ranked
            if is_multi and ranked and not borne:
                table.add_row(name, "(none)", "", decision)
            for rank, (label, probability) in enumerate(ranked):
                bar = "█" * round(probability * _BAR_WIDTH)
                is_first = not rank and bool(borne)
                shown = f"{bar:<{_BAR_WIDTH}} {probability:4.0%}"
                style = "dim" * (label not in borne)
                table.add_row(name if is_first else "", label, shown, decision if is_first else "", style=style)
        out.print(table)
        out.print()


def predictions_json(predictions: "Predictions", top_k: int) -> dict[str, Any]:
    """Returns what is said of one product as plain values: the best labels; of a multi-label one those borne."""
    found: dict[str, Any] = {}
    for name in predictions.characteristics:
        borne = predictions.labels_of(name)[0]
        ranked = predictions.top(name, max(top_k, len(borne or ())))[0]
        shares = [{"label": label, "probability": round(share, 6)} for label, share in ranked]
        decision = {"decision": predictions.decisions[name][0]} if predictions.decisions else {}
        if name in predictions.decision_thresholds:
            found[name] = {"labels": borne, **decision, "probabilities": shares}
        else:
            found[name] = [each | (decision if not rank else {}) for rank, each in enumerate(shares)]
    return found


def _written(label: str | tuple[str, ...] | None) -> str:
    return " + ".join(label) or "(none)" if isinstance(label, tuple) else label or "unknown"


def print_explanations(explanations: "Mapping[str, Explanation]", words: int = 4) -> None:
    """Prints what moved each prediction of one product; nothing if there are none."""
    if not explanations:
        return
    nearest = next(iter(explanations.values())).nearest
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for title in ("why", "rather than", "photo", "text", "strongest words", *["nearest are"] * bool(nearest)):
        table.add_column(title, justify="right" if title in ("photo", "text") else "left", overflow="fold")
    for name, why in explanations.items():
        strongest = ", ".join(f"{word} {weight:+.1f}" for word, weight in list(why.words.items())[:words])
        labels = Counter(_written(neighbour.label) for neighbour in why.nearest)
        near = ", ".join(f"{n} x {label}" for label, n in labels.most_common())
        table.add_row(
            f"{name}: {why.label}",
            "its absence" if why.runner_up is None else why.runner_up,
            f"{why.photo:+.1f}",
            f"{why.text:+.1f}",
            strongest or "-",
            *[near] * bool(nearest),
        )
    out.print(table)
    out.print("\nWeights are log-odds of the label against the runner-up: +0.7 doubles the odds.", style="dim")
    if nearest:
        told = ", ".join(f"{neighbour.id} ({neighbour.similarity:.2f})" for neighbour in nearest)
        out.print(f"Nearest training products, by their similarity: {told}", style="dim", soft_wrap=True)


def print_hierarchy(hierarchy: "Hierarchy") -> None:
    """Says which characteristic refines which."""
    for each in hierarchy:
        log.print(f"{each.child} refines {each.parent}: predictions do not contradict it", soft_wrap=True)


def print_left_out(left_out: Mapping[str, Mapping[str, int]]) -> None:
    """Says how many labels of each characteristic were too rare to be trained."""
    if left_out:
        counts = ", ".join(f"{name} {len(labels)}" for name, labels in left_out.items())
        log.print(f"labels with too few products to be trained (listed in the report): {counts}", soft_wrap=True)


def print_counts(title: str, counts: Mapping[str, int]) -> None:
    """Prints reasons and how often each occurred; nothing if there are none."""
    if counts:
        log.print(f"{title}: " + ", ".join(f"{reason} {count}" for reason, count in counts.items()), soft_wrap=True)


def print_findings(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Prints how often each kind of finding occurred in each characteristic."""
    from product_classificator.audit import KIND_TITLES

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("findings")
    for kind in counts:
        table.add_column(KIND_TITLES[kind], justify="right")
    for name in sorted({name for found in counts.values() for name in found}):
        cells = (str(found.get(name, "")) for found in counts.values())
        table.add_row(name or "the whole product", *cells)
    out.print(table)


def print_encoders() -> None:
    """Lists what `--encoder` takes, and the options that may follow."""
    for name, description in {**ENCODERS, **OPTIONS}.items():
        out.print(Text.assemble((name, "bold"), f"  {description}"), soft_wrap=True)


def print_next(report: Path, run: Path, table: Path, images: Path | None) -> None:
    """Says where the report of a run is, and with which command to go on."""
    photos = f" --images {shlex.quote(str(images))}" if images else ""
    log.print(
        f"report: {report}\n"
        f"next:   product-classificator predict {shlex.quote(str(run))} {shlex.quote(str(table))}{photos} "
        "--out predictions.parquet",
        soft_wrap=True,
    )


def print_run(folder: Path) -> None:
    """Describes a run."""
    from product_classificator.heads import HeadBundle
    from product_classificator.runs import Run

    run = Run.load(folder)
    precision = f" in {run.facts['precision']}" if run.facts.get("precision") else ""
    out.print(f"Run {folder}, made {run.facts['created']} with the encoder {run.encoder}{precision}")
    out.print(f"id {run.columns.id}; text {', '.join(run.columns.text) or 'none'}; report {run.report}")
    bundle = HeadBundle.load(run.bundle)
    for name, labels in bundle.labels.items():
        shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        kind = ", any number a product" if name in bundle.decision_thresholds else ""
        out.print(Text.assemble("  ", (name, "bold"), f" ({len(labels)} labels{kind}): {shown}"), soft_wrap=True)


def print_store(folder: Path) -> None:
    """Describes a store of embeddings."""
    import pyarrow.parquet as pq

    from product_classificator.embeddings.store import read_store_facts

    facts = read_store_facts(folder)
    parts = list((folder / "parts").glob("*.parquet"))
    products = sum(pq.read_metadata(part).num_rows for part in parts)
    out.print(f"Store {folder}: {products} products in {len(parts)} parts, encoder {facts['encoder']}")
    out.print(f"image part {facts['image_dim']}-d, text part {facts['text_dim']}-d, fingerprint {facts['fingerprint']}")
