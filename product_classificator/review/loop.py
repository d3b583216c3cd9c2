"""The loop: how far a review is, what is accepted automatically, and training again with what people decided."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from product_classificator.catalog import Catalog
from product_classificator.catalog.columns import ROW_NUMBER
from product_classificator.files import write_text
from product_classificator.heads import HeadBundle
from product_classificator.review.history import History
from product_classificator.review.products import Products
from product_classificator.review.queue import Queue, View
from product_classificator.review.suggestions import judged_rows
from product_classificator.runs import Run

_Z90 = 1.2816
"""One-sided 90 %, as the promise of the thresholds has it."""
_RECENT, _ACTIVE_S, _MAX_SAMPLE = 200, 900, 5000


def progress_of(products: Products, queue: Queue, history: History, target: float) -> dict[str, Any]:
    """Return products and seconds left, people, their agreement, and the progress of each characteristic.

    `is_kept`: every characteristic with accepted labels has the target precision, with 90 % probability.
    """
    recent = history.rows(
        "SELECT person, at, seconds, (SELECT COUNT(DISTINCT product) FROM decisions d WHERE d.action = a.id) AS n "
        "FROM actions a WHERE seconds IS NOT NULL ORDER BY id DESC LIMIT ?",
        _RECENT,
    )
    paces = [row["seconds"] / max(row["n"], 1) for row in recent]
    people = {row["person"] for row in recent if row["at"] > recent[0]["at"] - _ACTIVE_S}
    left, answers = queue.count(View()), [a for a in history.answers() if a["characteristic"] in products.names]
    items = [_of(products, queue, [a for a in answers if a["characteristic"] == n], n, target) for n in products.names]
    twice = [len({*answer["given"].values()}) == 1 for answer in answers if len(answer["given"]) > 1]
    accepting = [item["is_kept"] for item in items if item["accepted"]]
    return {
        "rows": items,
        "is_kept": bool(accepting) and all(accepting),
        "target": target,
        "left": left,
        "seconds_left": left * median(paces) / max(len(people), 1) if paces else None,
        "people": len(people),
        "seen_twice": len(twice),
        "agreement": sum(twice) / len(twice) if twice else None,
        "disagreements": sorted((a for a in answers if a["label"] is None), key=lambda a: -a["at"]),
    }


def _of(products: Products, queue: Queue, answers: Sequence[Any], name: str, target: float) -> dict[str, Any]:
    """Return the progress of one characteristic.

    What is accepted is known to be right or wrong where the table has a label, or people saw a random sample of it;
    other decisions were sought for being doubtful.
    """
    corrections = [answer for answer in answers if answer["label"] is not None]
    column = products[name]
    auto, has_label, is_right = column.auto, column.has_label, column.agrees.copy()
    is_known = auto & has_label
    rows = products.rows_of([answer["product"] for answer in corrections]).tolist()
    for row, answer in zip(rows, corrections, strict=True):
        if row >= 0 and (has_label[row] or answer["kind"] == "check"):
            is_known[row], is_right[row] = auto[row], answer["label"] == answer["suggested"]
    n, right = int(is_known.sum()), int((is_right & is_known).sum())
    lowest = lower_bound(right, n)
    sizes = np.unique(np.geomspace(max(n, 1), max(_MAX_SAMPLE, n), 200).astype(int)).tolist()
    return {
        "name": name,
        "left": queue.count(View(characteristic=name)),
        "decided": len(corrections),
        "accepted": int(auto.sum()),
        "known": n,
        "precision": right / n if n else None,
        "lowest": lowest,
        "is_kept": lowest >= target,
        "more": next((size - n for size in sizes if lower_bound(size - n + right, size) >= target), None),
    }


def lower_bound(right: int, n: int) -> float:
    """Return what a share is at least with 90 % probability (Wilson 1927).

    >>> round(lower_bound(97, 100), 3), lower_bound(0, 0)
    (0.939, 0.0)
    """
    if not n:
        return 0.0
    share = right / n
    spread = _Z90 * math.sqrt(share * (1 - share) / n + _Z90**2 / (4 * n * n))
    return (share + _Z90**2 / (2 * n) - spread) / (1 + _Z90**2 / n)


@dataclass
class Retraining:
    """One training at a time; `state` is "", "running", "done" or "failed".

    Attributes:
        folder: of the review; runs are made there.
        command: the arguments of `train` for the table.
        on_done: takes the new run.
        stage: what it is doing, or why it failed.
        scores: characteristic -> macro-F1 before and after, see `compare`.
        is_possible: whether the table has labels to train on.
    """

    folder: Path
    command: Sequence[str]
    catalog: Catalog
    on_done: Callable[[Run], None]
    state: str = ""
    stage: str = ""
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    run: Path | None = None
    is_possible: bool = True
    _process: Any = None

    def start(self, before: Run) -> None:
        """Begin, unless one is running."""
        if self.is_possible and self.state != "running":
            self.state, self.stage, self.scores = "running", "", {}
            threading.Thread(target=self._train, args=(before,), daemon=True).start()

    def _train(self, before: Run) -> None:
        try:
            numbers = [int(path.name[4:]) for path in self.folder.glob("run-*") if path.name[4:].isdigit()]
            out, config = self.folder / f"run-{max(numbers, default=0) + 1}", self.folder / "train.toml"
            write_text(config, settings_toml(before.settings))
            command = [sys.executable, "-m", "product_classificator", "train", *self.command, "--config", str(config)]
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            with subprocess.Popen([*command, "--out", str(out)], **pipes) as self._process:  # noqa: S603
                for line in self._process.stdout:
                    self.stage = line.strip() or self.stage
            if self._process.returncode == 0:
                self.run, after = out, Run.load(out)
                self.scores = compare(before, after, self.catalog)
                self.on_done(after)
            self.state = "failed" if self._process.returncode else "done"
        except Exception as error:  # the page says what happened, and the review goes on
            self.state, self.stage = "failed", f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """End the training."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def settings_toml(settings: Mapping[str, Any]) -> str:
    """Return the settings of a run as a TOML file for `train --config`.

    >>> print(settings_toml({"encoder": "lite", "taxonomy": None, "heads": {"epochs": 8, "seed": 0}}))
    encoder = "lite"
    [heads]
    epochs = 8
    """
    lines, tables = [], {name: value for name, value in settings.items() if isinstance(value, dict)}
    for title, table in {"": settings, **tables}.items():
        lines += [f"[{title}]"] * bool(title)
        for name, value in table.items():
            if value is not None and not isinstance(value, dict) and (title, name) != ("heads", "seed"):
                lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines)


def train_options(run: Run, table: Path, products: Any) -> list[str]:
    """Return the arguments of `train` for a table and how it is read (`ProductOptions`), as the run was made."""
    columns, options = run.columns, vars(run.columns) | {"channels": run.channels}
    levels = {f"{columns.path}_{level}" for level in range(20)}
    options["id"] = None if columns.id == ROW_NUMBER else columns.id
    options["characteristics"] = [
        name for name in columns.characteristics if name not in {*levels, *columns.multi_label}
    ]
    if isinstance(columns.label_separator, dict):
        separators = set(columns.label_separator.values())
        options["label_separator"] = separators.pop() if len(separators) == 1 else None
    options |= {name: value for name, value in vars(products).items() if value}
    arguments = [str(table)]
    for name, value in options.items():
        if value is not None:
            texts = [] if value is True else [",".join(value) if isinstance(value, list | tuple) else str(value)]
            arguments += [f"--{name.replace('_', '-')}", *texts]
    return arguments


def compare(before: Run, after: Run, catalog: Catalog) -> dict[str, tuple[float, float]]:
    """Return characteristic -> macro-F1 of both runs on the products that both judged and the table labels.

    Corrected products are not judged by the new run: the doubtful ones are gone from its own score, which is therefore
    higher than that of the old run, whatever it learned.
    """
    from sklearn.metrics import f1_score  # of fitting; the page opens without it

    (old_rows, old), (new_rows, new) = (judged_rows(run, pa.array(catalog.ids, pa.string())) for run in (before, after))
    rows, of_old, of_new = np.intersect1d(old_rows, new_rows, return_indices=True)
    judged = (before, old.take(of_old)), (after, new.take(of_new))
    predictions = [HeadBundle.load(run.bundle).judged(part, catalog.ids[rows]) for run, part in judged]
    scores = {}
    for name, labels in sorted(catalog.truth().items()):
        is_one = np.array([isinstance(label, str) for label in labels[rows]], dtype=bool)
        if is_one.any() and all(name in part.labels for part in predictions):
            truth = labels[rows][is_one].astype(str)
            labelled = (part.best(name)[is_one].astype(str) for part in predictions)
            first, second = (float(f1_score(truth, best, average="macro", zero_division=0)) for best in labelled)
            scores[name] = first, second
    return scores
