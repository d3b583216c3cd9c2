"""Turns the course of a tuning into curves, and the evaluations before and after it into a comparison."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from product_classificator.evaluation.metrics import CharacteristicScore, Evaluation
from product_classificator.evaluation.plots import DPI
from product_classificator.evaluation.report import escape_markdown, evaluation_json
from product_classificator.files import write_bytes, write_text

_PANELS = (
    ("Contrastive loss", {"train_loss": "train", "valid_loss": "valid"}),
    ("Recall@1 within batches, valid", {"recall_at_1": "recall@1"}),
    ("Macro-F1 of the heads, valid", {"valid_macro_f1": "mean"}),
)
_COLUMNS = ("epoch", "train_loss", "valid_loss", "recall_at_1", "valid_macro_f1")


def write_curves(folder: Path, history: Sequence[Mapping[str, Any]], best_epoch: int) -> None:
    """Writes curves.csv and curves.png of the epochs so far.

    Args:
        folder: where to.
        history: per epoch `epoch`, `train_loss` (`None` for epoch 0), `valid_loss`, `recall_at_1`, `valid_macro_f1`
            and `characteristics` (name -> macro-F1).
        best_epoch: is marked.
    """
    names = list(history[0]["characteristics"])
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*_COLUMNS, *names])
    for row in history:
        writer.writerow([*(row[column] for column in _COLUMNS), *(row["characteristics"].get(name) for name in names)])
    write_text(folder / "curves.csv", lines.getvalue())
    picture = io.BytesIO()
    draw_curves(history, best_epoch).savefig(picture, format="png")
    write_bytes(folder / "curves.png", picture.getvalue())


def draw_curves(history: Sequence[Mapping[str, Any]], best_epoch: int) -> Figure:
    """Draws losses, recall and macro-F1 over the epochs, the best one dashed."""
    figure = Figure(figsize=(12, 3.4), dpi=DPI, layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, (title, curves) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for column, name in curves.items():
            values = np.array([np.nan if row[column] is None else row[column] for row in history], dtype=float)
            axes.plot(epochs, values, marker=".", label=name)
        axes.axvline(best_epoch, color="0.5", linestyle=(0, (3, 3)), linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"epoch (0: untuned; dashed: the best, {best_epoch})", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axes.legend(fontsize=8, frameon=False)
    return figure


def write_comparison(folder: Path, untuned: Evaluation, best: Evaluation, history: Sequence[Mapping[str, Any]]) -> None:
    """Writes tuning.md and tuning.json: what tuning has brought on the test part, and the course of it."""
    rows = [
        f"| {escape_markdown(name)} | {_score(score)} | {_score(best.characteristics[name])} |"
        for name, score in untuned.characteristics.items()
        if name in best.characteristics
    ]
    course = [
        f"| {row['epoch']} | {_number(row['train_loss'])} | {_number(row['valid_loss'])} "
        f"| {_number(row['recall_at_1'])} | {_number(row['valid_macro_f1'])} |"
        for row in history
    ]
    lines = [
        "# What tuning has brought",
        "",
        "Macro-F1 on the test part with 95 % intervals. The epoch was chosen on the valid part; epoch 0, the untuned",
        "encoder, competed.",
        "",
        "| characteristic | untuned | best epoch |",
        "|---|---:|---:|",
        *rows,
        f"| **mean** | **{_number(untuned.mean_macro_f1)}** | **{_number(best.mean_macro_f1)}** |",
        "",
        "## Epochs",
        "",
        "![Losses, recall and macro-F1 over the epochs](../curves.png)",
        "",
        "| epoch | loss, train | loss, valid | recall@1, valid | macro-F1 of the heads, valid |",
        "|---:|---:|---:|---:|---:|",
        *course,
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tuning.md", "\n".join(lines))
    found = {"untuned": evaluation_json(untuned), "best": evaluation_json(best), "history": list(history)}
    write_text(folder / "tuning.json", json.dumps(found, ensure_ascii=False, indent=1))


def _score(score: CharacteristicScore) -> str:
    interval = "" if score.interval is None else f" ({score.interval[0]:.3f}–{score.interval[1]:.3f})"
    return _number(score.macro_f1) + interval


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"
