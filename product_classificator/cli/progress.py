"""Progress bars over products, on stderr."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from product_classificator.cli import console
from product_classificator.embeddings.products import EmbeddedProducts


def bars() -> Progress:
    """Return empty progress bars; a task has the field `notes`."""
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    counts = (TextColumn("  {task.description}"), BarColumn(2 * console.BAR_WIDTH), MofNCompleteColumn())
    return Progress(*counts, *times, TextColumn("{task.fields[notes]}"), console=console.log)


@contextmanager
def product_progress(total: int) -> Iterator[Callable[[EmbeddedProducts], None]]:
    """Show a progress bar over products while the block runs; what it yields adds a chunk of them."""
    counts: Counter[str] = Counter()
    with bars() as progress:
        task = progress.add_task("products", total=total, notes="")

        def on_chunk(chunk: EmbeddedProducts) -> None:
            n = len(chunk.embeddings)
            counts.update(rows=n, encoded=chunk.encoded, warnings=int((chunk.status != "ok").sum()))
            notes = [f"{counts['rows'] / max(progress.tasks[0].elapsed or 0.0, 1e-3):.0f}/s"]
            if from_store := counts["rows"] - counts["encoded"]:
                notes.append(f"{from_store} already embedded")
            if counts["warnings"]:
                notes.append(f"{counts['warnings']} with warnings")
            if chunk.idle_share is not None:
                notes.append(f"encoder idle {chunk.idle_share:.0%}")
            progress.update(task, completed=chunk.first_row + n, notes=", ".join(notes))

        yield on_chunk
