"""What the command line shows: tables, bars of probabilities, sentences."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from product_classificator.embeddings.progress import log as log
from product_classificator.types import Explanation, Predictions

out = Console(highlight=False, markup=False, emoji=False)
"""Results (stdout). Labels and paths are printed as they are, with "[bold]" and ":car:"."""

BAR_WIDTH = 20


def result_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table with these columns, those of `right` aligned to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def print_counts(title: str, counts: Mapping[str, int]) -> None:
    """Print names with their counts after a title; nothing if there are none."""
    if counts:
        log.print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def print_products(predictions: Predictions, titles: Sequence[str] = (), top_k: int = 3) -> None:
    """Print the labels of each product by probability, with bars, of sets the predicted ones first; others are dim."""
    block = "#" if out.options.ascii_only else "█"
    for row in range(len(predictions)):
        if titles:
            out.print(titles[row], style="bold", soft_wrap=True)
        table = Table(box=None, show_header=False, pad_edge=False)
        for name in predictions.characteristics:
            predicted = predictions.labels_of(name)[row] or []
            decision = _decision(predictions, name, row)
            ranked = sorted(predictions.top(name, max(top_k, len(predicted)))[row], key=lambda pair: -pair[1])
            if name in predictions.decision_thresholds:  # thresholds differ by label: those predicted come first
                ranked.sort(key=lambda pair: pair[0] not in predicted)
                if ranked and not predicted:
                    table.add_row(name, "(none)", "", decision)
            for rank, (label, probability) in enumerate(ranked):
                bar = f"{block * round(probability * BAR_WIDTH):<{BAR_WIDTH}} {probability:4.0%}"
                first_cell = name if not rank and predicted else ""
                # A rare label may be predicted without being the most probable one.
                note = (decision or "predicted" * bool(rank)) if label in predicted[:1] else ""
                table.add_row(first_cell, label, bar, note, style="dim" * (label not in predicted))
        out.print(table)
        out.print()


def _decision(predictions: Predictions, name: str, row: int) -> str:
    """Return "auto", or "review" with the reason; nothing if nothing was decided."""
    decisions = predictions.decisions
    if decisions is None or decisions.accepted[name][row]:
        return "auto" if decisions else ""
    is_novel = decisions.is_out_of_distribution[row]
    return f"review ({'unlike what was learned' if is_novel else f'too unsure for {decisions.min_precision:g}'})"


def predictions_json(predictions: Predictions, top_k: int) -> dict[str, Any]:
    """Return the predictions of one product as plain values: characteristic -> its best labels, or its label list."""
    values: dict[str, Any] = {}
    for name in predictions.characteristics:
        labels = predictions.labels_of(name)[0]
        ranked = predictions.top(name, max(top_k, len(labels or ())))[0]
        shares = [{"label": label, "probability": round(share, 6)} for label, share in ranked]
        decision = {"decision": predictions.decisions[name][0]} if predictions.decisions else {}
        if name in predictions.decision_thresholds:
            values[name] = {"labels": labels, **decision, "probabilities": shares}
        else:
            values[name] = [{**share, **(decision if not rank else {})} for rank, share in enumerate(shares)]
    return values


def print_explanations(explanations: Mapping[str, Explanation]) -> None:
    """Print what drove each prediction of one product."""
    nearest = next(iter(explanations.values())).nearest
    columns = ["why", "rather than", "photo", "text", "strongest words", *["nearest are"] * bool(nearest)]
    table = result_table(*columns, right=("photo", "text"))
    for name, explanation in explanations.items():
        strongest = ", ".join(f"{word} {weight:+.1f}" for word, weight in list(explanation.words.items())[:4])
        neighbours = (neighbour.label for neighbour in explanation.nearest)
        labels = Counter((" + ".join(x) or "(none)") if isinstance(x, tuple) else x or "unknown" for x in neighbours)
        table.add_row(
            f"{name}: {explanation.label}",
            explanation.runner_up or "its absence",
            f"{explanation.photo:+.1f}",
            f"{explanation.text:+.1f}",
            strongest or "-",
            *[", ".join(f"{n} x {label}" for label, n in labels.most_common())] * bool(nearest),
        )
    out.print(table)
    out.print("\nWeights are log-odds of the label against the runner-up: +0.7 doubles the odds.", style="dim")
    if nearest:
        products = ", ".join(f"{neighbour.id} ({neighbour.similarity:.2f})" for neighbour in nearest)
        out.print(f"Nearest training products, by similarity: {products}", style="dim", soft_wrap=True)
