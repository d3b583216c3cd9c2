"""Draw an evaluation and the history of a training.

Figures are made through matplotlib's object API: nothing global is touched, so threads may draw. Names come from the
user: they are shortened in the middle (catalog labels differ at both ends), never parsed as mathematics, and characters
that the font lacks are replaced.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter

from product_classificator.evaluation.metrics import CharacteristicScore, Evaluation
from product_classificator.text import clean

MAX_LABELS = 20
MAX_NAME_CHARS = 24
OTHERS = "(all others)"
DPI = 130

_COLORS = mpl.colormaps["Blues"]
_DARK, _MIDDLE = _COLORS(0.95), _COLORS(0.6)
_GREY = "0.45"
_DASHED: dict[str, Any] = {"color": _GREY, "linestyle": (0, (3, 3)), "linewidth": 1}
_TAIL_CHARS = 9
_LINE_STYLES = ("-", "--", ":", "-.")
_QUARTERS = (0, 0.25, 0.5, 0.75, 1)


def shorten(name: str) -> str:
    """Return a name of at most 24 drawable characters.

    >>> shorten("Кроссовки для бега по пересечённой местности")
    'Кроссовки для…местности'
    """
    return cut("".join(char if ord(char) in _drawable() else "?" for char in clean(name)) or "?")


def cut(name: str) -> str:
    """Return a name of at most 24 characters, which keeps both its ends."""
    if len(name) <= MAX_NAME_CHARS:
        return name
    return f"{name[: MAX_NAME_CHARS - _TAIL_CHARS - 1].rstrip()}…{name[-_TAIL_CHARS:].lstrip()}"


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG; unlike `Figure.savefig` this lays it out and draws it once, in half the time."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # matplotlib's own has no types
    return buffer.getvalue()


def draw_overview(evaluation: Evaluation) -> Figure:
    """Draw the macro-F1 of every characteristic as a bar with its 95 % interval and its number of products."""
    scores = evaluation.characteristics
    figure, axes = _figure(8, 1.2 + 0.42 * max(len(scores), 1))
    axes.barh(range(len(scores)), [score.macro_f1 or 0.0 for score in scores.values()], color=_MIDDLE, height=0.62)
    for y, score in enumerate(scores.values()):
        if score.interval is not None:
            axes.plot(score.interval, (y, y), color=_DARK, linewidth=1.6, marker="|", markersize=8)
        text = "no scored product" if score.macro_f1 is None else f"{score.macro_f1:.3f}"
        end = max(score.macro_f1 or 0.0, score.interval[1] if score.interval else 0.0)
        axes.text(end + 0.015, y, text, va="center", fontsize=9, color=_DARK)
        counts = f"products: {score.n:,}, labels: {len(score.labels):,}"
        axes.text(1.13, y, counts, va="center", fontsize=8, color=_GREY)
    _name_bars(axes, [shorten(name) for name in scores])
    axes.set_xlim(0, 1.45)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("macro-F1 (line: 95 % interval)", fontsize=9, loc="left")
    return figure


def draw_learning_curves(history: Sequence[Mapping[str, Any]], best_epoch: int) -> Figure:
    """Draw losses, recall and macro-F1 over the epochs of a fine-tuning; the weights of `best_epoch` were kept.

    Per epoch `history` holds `epoch`, `train_loss`, `valid_loss`, `recall_at_1`, `valid_macro_f1` (mean), of which
    `None` is skipped, and `characteristics` (name -> macro-F1).
    """
    epochs, by_name = [row["epoch"] for row in history], [row["characteristics"] for row in history]
    names = dict.fromkeys(name for row in by_name for name in row)
    panels = {
        "Loss": {"train": _values(history, "train_loss"), "valid": _values(history, "valid_loss")},
        "Recall@1 in batches, valid": {"recall@1": _values(history, "recall_at_1")},
        "Macro-F1, valid": {"mean": _values(history, "valid_macro_f1"), **{n: _values(by_name, n) for n in names}},
    }
    figure = Figure(figsize=(5 * len(panels), 4), dpi=DPI, layout="constrained")
    for i, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), i)
        lines = [_plot_curve(axes, j, epochs, values, marker=".") for j, values in enumerate(curves.values())]
        if "mean" in curves:
            lines[0].set(color="black", linewidth=2.4)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"epoch (dashed: the best, {best_epoch})", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _strip(axes)
        axes.axvline(best_epoch, **_DASHED)
        if len(lines) > 1:
            add_legend(axes, lines[: MAX_LABELS + 1], list(curves)[: MAX_LABELS + 1])
    return figure


def add_legend(axes: Axes, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Add a legend for lines, or for other drawn things, right of the axes."""
    # Texts are set afterwards: a legend leaves out a name that begins with "_".
    legend = axes.legend(lines, [str(i) for i in range(len(lines))], fontsize=8, frameon=False, loc="center left")
    legend.set_bbox_to_anchor((1.01, 0.5))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(shorten(name))


def shown_labels(score: CharacteristicScore) -> dict[str, list[str]]:
    """Return why labels are drawn -> at most 20; the most confused follow each other, if not all labels are drawn."""
    largest = [label.label for label in score.labels[:MAX_LABELS]]
    confused = dict.fromkeys(label for pair in score.confusions for label in (pair.true, pair.predicted))
    shown = {"largest": largest, "most confused": list(confused)[: MAX_LABELS * (len(score.labels) > MAX_LABELS)]}
    return {why: labels for why, labels in shown.items() if labels}


def draw_confusion(score: CharacteristicScore, labels: Sequence[str], title: str) -> Figure:
    """Draw which of `labels` (1 to 20) were predicted as which: counts, coloured by their share of the row.

    The last column holds all other labels, so each row holds all products of its label.
    """
    support = {scored.label: scored.support for scored in score.labels}
    labels, counts = count_confusions(score, labels)
    rows, columns = counts.shape
    names = [shorten(label) for label in labels]
    figure, axes = _figure(2.9 + 0.44 * columns, 2.9 + 0.36 * rows)
    shares = counts / np.maximum([[support[label]] for label in labels], 1)
    axes.pcolormesh(shares, cmap=_COLORS, vmin=0, vmax=1, edgecolors="0.88", linewidth=0.6)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.55 else _DARK
        text = axes.text(column + 0.5, row + 0.5, f"{counts[row, column]}", fontsize=7, color=color)
        text.set(ha="center", va="center")
    axes.set_xticks(np.arange(columns) + 0.5, labels=[*names, OTHERS][:columns], rotation=90, parse_math=False)
    row_names = [f"{name} ({support[label]:,})" for name, label in zip(names, labels, strict=True)]
    axes.set_yticks(np.arange(rows) + 0.5, labels=row_names, parse_math=False)
    axes.set_ylim(rows, 0)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("predicted (colour: share of the row)", fontsize=9)
    axes.set_ylabel("true (products)", fontsize=9)
    axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def count_confusions(score: CharacteristicScore, labels: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return those of `labels` that are scored, r of them, and (r, r) numbers of products, true by predicted.

    A last column, if any product needs it, counts those predicted as other labels.
    """
    scored = {label.label: label.correct for label in score.labels}
    labels = [label for label in labels if label in scored]  # rare labels are scored apart
    index = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for label, i in index.items():
        counts[i, i] = scored[label]
    for pair in score.confusions:
        if pair.true in index:
            counts[index[pair.true], index.get(pair.predicted, -1)] += pair.count
    return labels, counts if counts[:, -1].any() else counts[:, :-1]


def draw_labels(score: CharacteristicScore, labels: Sequence[str], title: str) -> Figure:
    """Draw F1, precision and recall of each of `labels` (1 to 20) of a multi-label characteristic."""
    shown = [label for label in score.labels if label.label in labels]
    figure, axes = _figure(8, 1.6 + 0.3 * len(shown))
    y = np.arange(len(shown))
    bars = axes.barh(y, [label.f1 for label in shown], color=_COLORS(0.35), height=0.62)
    dots = axes.plot([label.precision for label in shown], y, "o", color=_DARK, markersize=4)
    dots += axes.plot([label.recall for label in shown], y, "|", color=_DARK, markersize=9, markeredgewidth=2)
    _name_bars(axes, [f"{shorten(label.label)} ({label.support:,})" for label in shown])
    axes.set_xlim(0, 1.02)
    axes.set_ylabel("label (products with it)", fontsize=9)
    add_legend(axes, [bars, *dots], ["F1", "precision", "recall"])
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def draw_reliability(evaluation: Evaluation) -> Figure:
    """Draw accuracy over confidence for each characteristic; calibrated probabilities lie on the diagonal."""
    panels = {name: score.reliability for name, score in evaluation.characteristics.items() if score.reliability}
    columns = min(max(len(panels), 1), 4)
    rows = -(-max(len(panels), 1) // columns)
    figure = Figure(figsize=(0.4 + 2.7 * columns, 0.4 + 2.9 * rows), dpi=DPI, layout="constrained")
    for i, (name, reliability) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, i)
        confidence, accuracy = np.array([(b.confidence, b.accuracy) for b in reliability.bins]).T
        axes.plot((0, 1), (0, 1), **_DASHED)
        low, high = reliability.chance()
        axes.vlines(confidence, low, high, color=_COLORS(0.3), linewidth=4)
        axes.plot(confidence, accuracy, color=_DARK, linewidth=1.2, marker="o", markersize=3.5)
        axes.set_title(f"{shorten(name)}: ECE {reliability.error:.3f}", fontsize=9, parse_math=False)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=_QUARTERS, yticks=_QUARTERS)
        _strip(axes)
    figure.supxlabel("confidence, mean of a bin (bars: range of 9 in 10 calibrated bins)", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return figure


def draw_precision_by_coverage(evaluation: Evaluation) -> Figure:
    """Draw the precision of the most confident share of the products; a dot marks the accepted share."""
    figure, axes = _figure(9, 4.2)
    selective, lines, lowest = evaluation.selective, [], 1.0
    scored = {name: score for name, score in evaluation.characteristics.items() if score.precision_by_coverage}
    for i, (name, score) in enumerate(scored.items()):
        coverage, precision = zip(*score.precision_by_coverage, strict=True)
        lines.append(_plot_curve(axes, i, coverage, precision))
        accepted = selective.characteristics[name] if selective else None
        if accepted is not None and accepted.precision is not None:
            dot = {"color": lines[-1].get_color(), "markeredgecolor": "white"}
            axes.plot(accepted.share, accepted.precision, "o", **dot)
        lowest = min(lowest, precision[-1])
    if selective:
        axes.axhline(selective.min_precision, **_DASHED)
    axes.set(xlim=(0, 1.01), ylim=(max(0.0, lowest - 0.05), 1.005))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("most confident share of the labelled products", fontsize=9)
    axes.set_ylabel("precision", fontsize=9)
    _strip(axes)
    add_legend(axes, lines[:MAX_LABELS], list(scored)[:MAX_LABELS])
    return figure


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[np.float64]:
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)


def _plot_curve(axes: Axes, i: int, x: Sequence[float], y: Any, **style: Any) -> Any:
    """Draw the i-th of several curves: ten colours, then other dashes."""
    color = mpl.colormaps["tab10"](i % 10)
    (line,) = axes.plot(x, y, _LINE_STYLES[i // 10 % len(_LINE_STYLES)], color=color, linewidth=1.5, **style)
    return line


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), labels=names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    _strip(axes)
    axes.grid(visible=False, axis="y")


def _strip(axes: Axes) -> None:
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
