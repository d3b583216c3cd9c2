"""Show the progress over products on stderr, for the command line and for Python."""

import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from product_classificator.embeddings.products import EmbeddedProducts

_LINE_S = 30.0
_BAR_WIDTH, _WIDTH_OF_LOGS = 20, 160  # what is no terminal has room for all notes
_IS_RICH = False if "ipykernel" in sys.modules and not find_spec("ipywidgets") else None  # without widgets: lines

log = Console(
    stderr=True,
    highlight=False,
    markup=False,
    emoji=False,
    soft_wrap=True,
    force_jupyter=_IS_RICH,
    force_terminal=_IS_RICH,
)
"""Progress, sentences and errors (stderr)."""
if not (log.is_terminal or log.is_jupyter):
    log.width = _WIDTH_OF_LOGS


class _Bars(Progress):
    """Bars that move; in a file or a notebook without widgets, a line of them every half minute."""

    _printed_at = 0.0

    def update(self, *args: Any, **fields: Any) -> None:
        super().update(*args, **fields)
        self._print_line()

    def advance(self, *args: Any) -> None:
        super().advance(*args)
        self._print_line()

    def _print_line(self) -> None:
        started = self.tasks[0].start_time or 0.0
        if not (log.is_terminal or log.is_jupyter) and self.get_time() > max(self._printed_at, started) + _LINE_S:
            self._printed_at = self.get_time()
            log.print(self.get_renderable())


def bars() -> Progress:
    """Return empty progress bars; a task has the field `notes`, which gives way where the terminal is narrow."""
    columns = [TextColumn("  {task.description}"), BarColumn(_BAR_WIDTH, table_column=Column(no_wrap=True))]
    counts = (MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn)
    columns += [column(table_column=Column(no_wrap=True)) for column in counts]
    notes = TextColumn("{task.fields[notes]}", table_column=Column(overflow="ellipsis"))
    return _Bars(*columns[:4], TextColumn("left"), columns[4], notes, console=log)


def product_bar(progress: Progress, total: int) -> Callable[[EmbeddedProducts], None]:
    """Add a bar over products, and return what moves it on by a chunk."""
    task, counts = progress.add_task("products", total=total, notes=""), Counter[str]()

    def on_chunk(chunk: EmbeddedProducts) -> None:
        counts.update(rows=len(chunk.embeddings), encoded=chunk.encoded, warnings=int((chunk.status != "ok").sum()))
        notes = [f"{counts['rows'] / max(progress.tasks[0].elapsed or 0.0, 1e-3):.0f}/s"]
        if from_store := counts["rows"] - counts["encoded"]:
            notes.append(f"{from_store} already embedded")
        if counts["warnings"]:
            notes.append(f"{counts['warnings']} with warnings")
        if chunk.idle_share is not None:
            notes.append(f"encoder idle {chunk.idle_share:.0%}")
        progress.update(task, completed=chunk.first_row + len(chunk.embeddings), notes=", ".join(notes))

    return on_chunk
