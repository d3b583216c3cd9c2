"""Turns an evaluation and the history of a training into pictures.

Decisions: figures are made through matplotlib's object API, so nothing global is touched and threads may draw. Names
come from the user: they are shortened in the middle (labels of a catalog differ at both ends), never read as
mathematics, and characters that the font lacks are replaced. A confusion matrix shows at most 20 labels; what went to
a label outside is summed in the last column, so that each row is the whole of its products.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.stats import binom

from product_classificator.evaluation.metrics import CharacteristicScore, Evaluation
from product_classificator.text import clean

MAX_LABELS = 20
MAX_NAME_CHARS = 24
DPI = 130

_COLORS = mpl.colormaps["Blues"]
_DARK, _MIDDLE, _PALE = _COLORS(0.95), _COLORS(0.6), _COLORS(0.08)
_GREY = "0.45"
_TAIL_CHARS = 9
_LINE_STYLES = ("-", "--", ":", "-.")
OTHERS = "(all others)"
_PANEL_COLUMNS = 4
_QUARTERS = (0, 0.25, 0.5, 0.75, 1)


def shorten(name: str) -> str:
    """Returns a name of at most 24 drawable characters.

    >>> shorten("Кроссовки для бега по пересечённой местности")
    'Кроссовки для…местности'
    """
    name = "".join(char if ord(char) in _drawable() else "?" for char in clean(name)) or "?"
    if len(name) <= MAX_NAME_CHARS:
        return name
    return f"{name[: MAX_NAME_CHARS - _TAIL_CHARS - 1].rstrip()}…{name[-_TAIL_CHARS:].lstrip()}"


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def draw_overview(evaluation: Evaluation) -> Figure:
    """Draws macro-F1 of every characteristic as a bar with its 95 % interval and its number of products."""
    scores = evaluation.characteristics
    figure = Figure(figsize=(8, 1.2 + 0.42 * max(len(scores), 1)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    values = [score.macro_f1 or 0.0 for score in scores.values()]
    places = np.arange(len(scores))
    axes.barh(places, values, color=_MIDDLE, height=0.62)
    for place, score in enumerate(scores.values()):
        if score.interval is not None:
            axes.plot(score.interval, (place, place), color=_DARK, linewidth=1.6, marker="|", markersize=8)
        text = "no scored product" if score.macro_f1 is None else f"{score.macro_f1:.3f}"
        end = max(score.macro_f1 or 0.0, score.interval[1] if score.interval else 0.0)
        axes.text(end + 0.015, place, text, va="center", fontsize=9, color=_DARK)
        counts = f"products: {score.n:,}, labels: {len(score.labels):,}"
        axes.text(1.13, place, counts, va="center", fontsize=8, color=_GREY)
    axes.set_yticks(places, labels=[shorten(name) for name in scores], parse_math=False)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_xlim(0, 1.45)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("macro-F1 (line: 95 % interval)", fontsize=9, loc="left")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    _strip(axes)
    return figure


def draw_learning_curves(history: Sequence[Mapping[str, Any]], best_epoch: int | None) -> Figure:
    """Draws the train loss, and the macro-F1 of the valid part, over the epochs.

    Args:
        history: per epoch `epoch`, `train_loss`, `valid_macro_f1` (the mean) and `characteristics` (name ->
            macro-F1); what is absent or `None` is left out.
        best_epoch: the epoch whose weights were kept.
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(10.5, 4), dpi=DPI, layout="constrained")
    loss_axes, f1_axes = figure.subplots(1, 2, width_ratios=(1, 1.25))
    loss_axes.plot(epochs, [_number(row.get("train_loss")) for row in history], color=_DARK, marker=".")
    loss_axes.set_title("Loss on the train part", fontsize=10)
    loss_axes.set_ylim(bottom=0)
    by_name = [row.get("characteristics") or {} for row in history]
    names = list(dict.fromkeys(name for row in by_name for name in row))
    curves = {name: [_number(row.get(name)) for row in by_name] for name in names}
    curves = {name: curve for name, curve in curves.items() if not np.isnan(curve).all()}
    palette = mpl.colormaps["tab10"]
    mean = [_number(row.get("valid_macro_f1")) for row in history]
    lines = f1_axes.plot(epochs, mean, color="black", linewidth=2.4, marker=".")
    for i, curve in enumerate(curves.values()):
        style = _LINE_STYLES[i // 10 % len(_LINE_STYLES)]
        lines += f1_axes.plot(epochs, curve, style, color=palette(i % 10), linewidth=1.3, marker=".")
    f1_axes.set_title("Macro-F1 on the valid part", fontsize=10)
    for axes in (loss_axes, f1_axes):
        axes.set_xlabel("epoch" if best_epoch is None else f"epoch (dashed: the best, {best_epoch})", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="0.92")
        _strip(axes)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=_GREY, linestyle=(0, (3, 3)), linewidth=1)
    add_legend(f1_axes, lines[: MAX_LABELS + 1], ["mean", *curves][: MAX_LABELS + 1])
    return figure


def add_legend(axes: Axes, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Adds a legend of lines, or of other things that are drawn, by their names."""
    # Texts are set afterwards: a legend leaves out a name that begins with "_".
    legend = axes.legend(lines, [str(i) for i in range(len(lines))], fontsize=8, frameon=False, loc="center left")
    legend.set_bbox_to_anchor((1.01, 0.5))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(shorten(name))


def largest_labels(score: CharacteristicScore) -> list[str]:
    """Returns at most 20 labels: those with most products."""
    return [label.label for label in score.labels[:MAX_LABELS]]


def most_confused_labels(score: CharacteristicScore) -> list[str]:
    """Returns at most 20 labels: those of the most frequent confusions, so that confused labels stand together."""
    labels = dict.fromkeys(label for pair in score.confusions for label in (pair.true, pair.predicted))
    return list(labels)[:MAX_LABELS]


def draw_confusion(score: CharacteristicScore, labels: Sequence[str], title: str) -> Figure:
    """Draws which of `labels` were taken for which: counts, coloured by their share of the row.

    Args:
        score: of the characteristic.
        labels: at most 20 of its labels, at least one.
        title: heads the picture.
    """
    counts = _confusion_counts(score, labels)
    support = {label.label: label.support for label in score.labels}
    if not counts[:, -1].any():
        counts = counts[:, :-1]
    rows, columns = counts.shape
    names = [shorten(label) for label in labels]
    figure = Figure(figsize=(3.4 + 0.44 * columns, 2.9 + 0.36 * rows), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum([[support[label]] for label in labels], 1)
    image = axes.imshow(shares, cmap=_COLORS, vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.55 else _DARK
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7, color=color)
    column_names = [*names, OTHERS][:columns]
    axes.set_xticks(range(columns), labels=column_names, rotation=90, fontsize=8, parse_math=False)
    row_names = [f"{name} ({support[label]:,})" for name, label in zip(names, labels, strict=True)]
    axes.set_yticks(range(rows), labels=row_names, fontsize=8, parse_math=False)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true (products)", fontsize=9)
    figure.suptitle(title, fontsize=10, parse_math=False)
    bar = figure.colorbar(image, ax=axes, format="{x:.0%}", fraction=0.05, shrink=0.8)
    bar.set_label("share of the row", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def draw_labels(score: CharacteristicScore, labels: Sequence[str], title: str) -> Figure:
    """Draws F1, precision and recall of each of `labels`, where a product bears any number of them.

    Args:
        score: of the characteristic.
        labels: at most 20 of its labels, at least one.
        title: heads the picture.
    """
    shown = [label for label in score.labels if label.label in labels]
    figure = Figure(figsize=(8, 1.6 + 0.3 * len(shown)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    bars = axes.barh(places, [label.f1 for label in shown], color=_COLORS(0.35), height=0.62)
    dots = axes.plot([label.precision for label in shown], places, "o", color=_DARK, markersize=4)
    dots += axes.plot([label.recall for label in shown], places, "|", color=_DARK, markersize=9, markeredgewidth=2)
    names = [f"{shorten(label.label)} ({label.support:,})" for label in shown]
    axes.set_yticks(places, labels=names, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.set_ylabel("label (products that bear it)", fontsize=9)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    _strip(axes)
    add_legend(axes, [bars, *dots], ["F1", "precision", "recall"])
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _confusion_counts(score: CharacteristicScore, labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """Returns counts[i, j], products of label i taken for label j; the last column is all other labels."""
    places = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for label in score.labels:
        if label.label in places:
            counts[places[label.label], places[label.label]] = label.correct
    for pair in score.confusions:
        if pair.true in places:
            counts[places[pair.true], places.get(pair.predicted, len(labels))] += pair.count
    return counts


def draw_reliability(evaluation: Evaluation) -> Figure:
    """Draws for each characteristic how often products of a probability are right; on the diagonal it means that."""
    found = {name: score.reliability for name, score in evaluation.characteristics.items() if score.reliability}
    columns = min(max(len(found), 1), _PANEL_COLUMNS)
    lines = -(-max(len(found), 1) // columns)
    figure = Figure(figsize=(0.4 + 2.7 * columns, 0.4 + 2.9 * lines), dpi=DPI, layout="constrained")
    for i, (name, reliability) in enumerate(found.items()):
        axes = figure.add_subplot(lines, columns, i + 1)
        sure, right, n = np.array([(each.confidence, each.accuracy, each.n) for each in reliability.bins]).T
        axes.plot((0, 1), (0, 1), color=_GREY, linestyle=(0, (3, 3)), linewidth=1)
        # Where nine in ten such bins would lie if the probability were right.
        low, high = (binom.ppf(level, n, sure) / n for level in (0.05, 0.95))
        axes.vlines(sure, low, high, color=_COLORS(0.3), linewidth=4)
        axes.plot(sure, right, color=_DARK, linewidth=1.2, marker="o", markersize=3.5)
        axes.set_title(f"{shorten(name)}: ECE {reliability.error:.3f}", fontsize=9, parse_math=False)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=_QUARTERS, yticks=_QUARTERS)
        axes.grid(color="0.92")
        _strip(axes)
    figure.supxlabel(
        "probability of the label that is told, mean of a bin (bars: where 9 in 10 are by chance)", fontsize=9
    )
    figure.supylabel("share that is right", fontsize=9)
    return figure


def draw_precision_by_coverage(evaluation: Evaluation) -> Figure:
    """Draws how precise the surest share of the products is; a dot marks what was decided without a person."""
    figure = Figure(figsize=(9, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    palette, curves, lowest = mpl.colormaps["tab10"], [], 1.0
    names = [name for name, score in evaluation.characteristics.items() if score.precision_by_coverage]
    for i, name in enumerate(names):
        coverage, precision = zip(*evaluation.characteristics[name].precision_by_coverage, strict=True)
        style = _LINE_STYLES[i // 10 % len(_LINE_STYLES)]
        curves += axes.plot(coverage, precision, style, color=palette(i % 10), linewidth=1.5)
        decided = evaluation.review.characteristics[name] if evaluation.review else None
        if decided is not None and decided.precision is not None:
            axes.plot(decided.share, decided.precision, "o", color=palette(i % 10), markeredgecolor="white")
        lowest = min(lowest, precision[-1])
    if evaluation.review:
        axes.axhline(evaluation.review.min_precision, color=_GREY, linestyle=(0, (3, 3)), linewidth=1)
    axes.set(xlim=(0, 1.01), ylim=(max(0.0, lowest - 0.05), 1.005))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("the surest share of the products", fontsize=9)
    axes.set_ylabel("precision", fontsize=9)
    axes.grid(color="0.92")
    _strip(axes)
    add_legend(axes, curves[:MAX_LABELS], names[:MAX_LABELS])
    return figure


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float | np.number) else float("nan")


def _strip(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
