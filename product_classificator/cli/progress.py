"""Progress bars over products."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from product_classificator import console
from product_classificator.embeddings.embed import EmbeddedChunk


class ProductProgress:
    """A progress bar over products: rate, time left, rows with warnings or from the store, idle time of the encoder."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._with_warnings = self._from_store = 0
        self._first_row: int | None = None
        self._task = progress.add_task("products", total=total, notes="")

    def on_chunk(self, chunk: EmbeddedChunk) -> None:
        """Add a chunk."""
        n = len(chunk.embeddings)
        self._with_warnings += int((chunk.status != "ok").sum())
        self._from_store += n - chunk.encoded
        if self._first_row is None:  # above 0 when an interrupted call is resumed
            self._first_row = chunk.first_row
        done = chunk.first_row + n
        rate = (done - self._first_row) / max(self._progress.tasks[0].elapsed or 0.0, 1e-3)
        notes = [f"{rate:.0f}/s"]
        notes += [f"{self._from_store} already embedded"] if self._from_store else []
        notes += [f"{self._with_warnings} with warnings"] if self._with_warnings else []
        notes += [] if chunk.idle_share is None else [f"encoder idle {chunk.idle_share:.0%}"]
        self._progress.update(self._task, completed=done, notes=", ".join(notes))


def bars() -> Progress:
    """Return empty progress bars on stderr; a task has the field `notes`."""
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(2 * console.BAR_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[notes]}"),
        console=console.log,
    )


@contextmanager
def product_progress(total: int) -> Iterator[ProductProgress]:
    """Show a progress bar over products while the block runs."""
    with bars() as progress:
        yield ProductProgress(progress, total)
