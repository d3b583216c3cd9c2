"""Turn an evaluation into one HTML file that loads nothing else: for a browser, a mail, the printer.

Names, labels, ids and texts come from the user's table: the templates escape every value, and the pages forbid
themselves to load or to send anything.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from product_classificator.evaluation import plots
from product_classificator.evaluation.metrics import CharacteristicScore, Evaluation
from product_classificator.text import clean
from product_classificator.types import Predictions, Rows, Truth, as_text

NO_NUMBER = "—"
CURVES = ("epoch", "train_loss", "valid_loss", "recall_at_1", "valid_macro_f1")
_MOST_ERRORS, _ERRORS_OF_ONE = 120, (2, 12)
_FIRST_SHARE = 0.05  # of fewer products, a precision is noise
_MOST_ROWS, _ROWS_OF_ONE = 4000, (20, 400)


@dataclass(frozen=True)
class ProductError:
    """A wrong prediction: row and id of the product, labels as text, a text and a thumbnail to show (`previews`)."""

    row: int
    id: str
    true: str
    predicted: str
    confidence: float
    preview: tuple[str, str] = ("", "")


def worst_errors(predictions: Predictions, truth: Truth, rows: Rows) -> dict[str, list[ProductError]]:
    """Return characteristic -> its most confident errors, the worst first: 2 to 12, about 120 in all.

    Args:
        predictions: of n products.
        truth: characteristic -> (n,) true labels. What was not learned cannot be predicted, and is no error here.
        rows: (n,) rows of the products in their table.
    """
    limit, errors = _share(_MOST_ERRORS, len(predictions.labels), _ERRORS_OF_ONE), {}
    for name, labels in predictions.labels.items():
        true, best, confidence = truth[name], predictions.best(name), predictions.confidence(name)
        learned = frozenset(labels)
        can_be_right = np.array([isinstance(label, frozenset) or label in learned for label in true], dtype=bool)
        is_wrong = can_be_right & np.array([label is not None for label in best], dtype=bool) & (best != true)
        wrong = np.flatnonzero(is_wrong)
        worst = wrong[np.argsort(-confidence[wrong], kind="stable")[:limit]]
        columns = predictions.ids[worst], as_text(true[worst]), as_text(best[worst]), confidence[worst].tolist()
        errors[name] = [ProductError(*values) for values in zip(rows[worst].tolist(), *columns, strict=True)]
    return errors


def draw_report(evaluation: Evaluation, facts: Any, errors: Mapping[str, Sequence[ProductError]]) -> str:
    """Return the page of an evaluation; `facts` are `RunFacts`, `errors` what `worst_errors` found."""
    scores = evaluation.characteristics
    bounds = [bound for score in scores.values() for bound in (score.macro_f1, *(score.interval or ()))]
    bounds += [score for folds in facts.by_fold.values() for score in folds.values()]
    curves = {name: score.precision_by_coverage for name, score in scores.items() if score.precision_by_coverage}
    return render_page(
        "evaluation/report.html.jinja",
        evaluation=evaluation,
        facts=facts,
        errors=errors,
        curves=curves,
        zero=_floor([0.8, *(bound for bound in bounds if bound is not None)], 10),
        lowest=_floor([0.9, *(y for curve in curves.values() for share, y in curve if share > _FIRST_SHARE)], 20),
        history=[{key: row.get(key) for key in CURVES} for row in facts.history],
        matrices={name: _matrix(score) for name, score in scores.items()},
        supports={name: {label.label: label.support for label in score.labels} for name, score in scores.items()},
        limit=_share(_MOST_ROWS, len(scores), _ROWS_OF_ONE),
    )


def render_page(template: str, **values: Any) -> str:
    """Return a page; `template` is the path of a template in the package."""
    return _environment().get_template(template).render(values)


def of_all(n: int, all_: int) -> str:
    """Return how many of all there are.

    >>> of_all(12, 642), of_all(1000, 1000)
    ('12 of 642', '1,000')
    """
    return f"{n:,}" if n == all_ else f"{n:,} of {all_:,}"


def duration(seconds: float) -> str:
    """Return seconds in readable units.

    >>> duration(3725), duration(4.2)
    ('1 h 2 min', '4.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


FILTERS: dict[str, Callable[..., str]] = {
    "score": lambda value: NO_NUMBER if value is None else f"{value:.3f}",
    "interval": lambda interval: "{:.3f}–{:.3f}".format(*interval) if interval else NO_NUMBER,
    "percent": lambda share: f"{100 * share:.1f} %",
    "thousands": "{:,}".format,
    "duration": duration,
    "cut": plots.cut,
}
"""Filters of all templates, also those of Markdown."""


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("product_classificator", ""),
        autoescape=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {**FILTERS, "points": _points}
    environment.globals["of_all"] = of_all
    return environment


def _points(values: Iterable[tuple[float, float | None]], width: float, height: float, low: float = 0.0) -> str:
    """Return points of an SVG polyline: x from 0 to 1, y from `low` at the bottom to 1 at the top."""
    shown = ((x * width, height * (1 - max(y, low)) / (1 - low)) for x, y in values if y is not None)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)


def _floor(values: Iterable[float], steps: int) -> float:
    """Return where an axis begins: the lowest value, rounded down to one of so many steps from 0 to 1."""
    return int(min(values) * steps) / steps


def _matrix(score: CharacteristicScore) -> tuple[list[str], list[list[int]]]:
    """Return the largest labels and how often each was predicted as which; see `plots.count_confusions`."""
    if score.is_multi_label or not score.labels:
        return [], []
    labels, counts = plots.count_confusions(score, plots.shown_labels(score)["largest"])
    return labels, counts.tolist()


def _share(total: int, parts: int, bounds: tuple[int, int]) -> int:
    return min(max(total // max(parts, 1), bounds[0]), bounds[1])
