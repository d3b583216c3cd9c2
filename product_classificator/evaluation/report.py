"""Turns an evaluation and the facts of its run into a folder: report.json, report.md and plots/*.png.

Decisions: `report.json` is complete and numbered (`FORMAT`), `report.md` shows what a person asks first and decision_thresholds long
lists. JSON holds `null` where there is no number, never NaN. Every file is written under a temporary name and renamed,
the pictures first, so that a report that is there is whole. Names and labels come from the user's table: in
Markdown each value is escaped unless it is marked as Markdown, so that forgetting is safe.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from product_classificator.evaluation import plots
from product_classificator.evaluation.metrics import CharacteristicScore, Evaluation, LabelScore
from product_classificator.files import write_bytes
from product_classificator.text import clean

FORMAT = 1
_SHOWN_ROWS = 10
_SHOWN_LEFT_OUT = 20
_NOTHING = "—"
_OVERVIEW, _HISTORY, _TRUST = 0, -1, -2
_MARKDOWN_SIGNS = re.compile(r"([\\`*{}\[\]<>|$~#&!]|(?<![^\W_])_|_(?![^\W_]))")


@dataclass(frozen=True)
class RunFacts:
    """All that a report shows beside the scores; plain values, and empty where they do not apply.

    Attributes:
        title: heads the report.
        encoder: name or fingerprint of the encoder.
        recipe: setting -> value, of the training.
        seed: of the training.
        products: part ("train", "valid", "test") -> number of products.
        set_aside: reason -> number of rows that were not used.
        row_reasons: reason -> number of rows that were used although they have this flaw.
        left_out_labels: characteristic -> label -> its products; labels too rare to be trained.
        refines: characteristic -> the one that it refines, so that predictions of both do not contradict each other.
        split_on: what near-identical products, kept in one part, have in common.
        duration_s: seconds the run took.
        history: per epoch `epoch`, `train_loss`, `valid_macro_f1` (the mean), `characteristics` (name -> macro-F1).
        best_epoch: the epoch whose weights were kept.
        versions: library -> version.
        created: date and time.
    """

    title: str
    encoder: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    products: Mapping[str, int] = field(default_factory=dict)
    set_aside: Mapping[str, int] = field(default_factory=dict)
    row_reasons: Mapping[str, int] = field(default_factory=dict)
    left_out_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    refines: Mapping[str, str] = field(default_factory=dict)
    split_on: str = ""
    duration_s: float | None = None
    history: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""


class _Markdown(str):
    """Text that is Markdown already and must not be escaped."""

    __slots__ = ()


def write_report(folder: Path, evaluation: Evaluation, facts: RunFacts) -> None:
    """Writes report.json, report.md and plots/*.png into `folder`, which is made if need be.

    Files of these names are replaced; a characteristic's pictures bear its place and what of its name is ASCII.
    """
    folder = Path(folder)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    pictures: dict[int, list[tuple[str, str]]] = {}
    for about, path, caption, figure in _figures(evaluation, facts):
        write_bytes(folder / path, _png(figure))
        pictures.setdefault(about, []).append((path, caption))
    document = {"format": FORMAT, "evaluation": evaluation_json(evaluation), "facts": _plain(facts)}
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    # A lone surrogate is no UTF-8; written with a backslash it is the JSON escape of itself.
    write_bytes(folder / "report.json", text.encode("utf-8", "backslashreplace"))
    write_bytes(folder / "report.md", _report_markdown(evaluation, facts, pictures).encode("utf-8", "replace"))


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the whole evaluation as plain values for JSON; `None` where there is no number."""
    return {
        "mean_macro_f1": evaluation.mean_macro_f1,
        "products": evaluation.products,
        "review": _plain(evaluation.review),
        "bootstrap": {"seed": evaluation.seed, "resamples": evaluation.resamples},
        "characteristics": {name: _score_json(score) for name, score in evaluation.characteristics.items()},
    }


def _score_json(score: CharacteristicScore) -> dict[str, Any]:
    low, high = score.interval or (None, None)
    return {
        "macro_f1": score.macro_f1,
        "macro_f1_low": low,
        "macro_f1_high": high,
        "is_multi_label": score.is_multi_label,
        "accuracy": score.accuracy,
        "n": score.n,
        "unknown_labels": score.unknown_labels,
        "unlabelled": score.unlabelled,
        "not_predicted": score.not_predicted,
        "labels": _plain(score.labels),
        "confusions": _plain(score.confusions),
        "reliability": _plain(score.reliability),
        "precision_by_coverage": _plain(score.precision_by_coverage),
    }


def markdown_table(evaluation: Evaluation) -> str:
    """Returns the scores as a Markdown table, one characteristic a row and the mean last, without a final newline."""
    rows = [
        (
            escape_markdown(name),
            _figure(score.macro_f1),
            _NOTHING if score.interval is None else f"{score.interval[0]:.3f}–{score.interval[1]:.3f}",
            _figure(score.accuracy),
            f"{score.n:,}",
            f"{len(score.labels):,}",
        )
        for name, score in evaluation.characteristics.items()
    ]
    lines = [
        "| characteristic | macro-F1 | 95 % interval | accuracy | products | labels |",
        "|---|---:|---:|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
        f"| **mean** | **{_figure(evaluation.mean_macro_f1)}** | | | | |",
    ]
    return "\n".join(lines)


def escape_markdown(value: object) -> str:
    r"""Returns a value as one line of text that Markdown shows as it is, in a table too.

    >>> print(escape_markdown("a|b *c* sub_category _d_"))
    a\|b \*c\* sub_category \_d\_
    """
    return _MARKDOWN_SIGNS.sub(r"\\\1", clean(str(value)))


def _figures(evaluation: Evaluation, facts: RunFacts) -> Iterator[tuple[int, str, str, Figure]]:
    """Yields place, path in the folder, caption and picture; the place is a characteristic's, from 1, or of three."""
    yield _OVERVIEW, "plots/overview.png", "Macro-F1 by characteristic", plots.draw_overview(evaluation)
    if facts.history:
        curves = plots.draw_learning_curves(facts.history, facts.best_epoch)
        yield _HISTORY, "plots/learning-curves.png", "Learning curves", curves
    if any(score.reliability for score in evaluation.characteristics.values()):
        yield _TRUST, "plots/reliability.png", "Reliability of the probabilities", plots.draw_reliability(evaluation)
        curves = plots.draw_precision_by_coverage(evaluation)
        yield _TRUST, "plots/precision-by-coverage.png", "Precision of the surest share of the products", curves
    for i, (name, score) in enumerate(evaluation.characteristics.items(), start=1):
        if not score.labels:
            continue
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        stem = f"plots/{i:02d}-{slug}".rstrip("-")
        largest, confused = plots.largest_labels(score), plots.most_confused_labels(score)
        is_whole = len(score.labels) == len(largest)
        caption = "all labels" if is_whole else f"the {len(largest)} largest of {len(score.labels)} labels"
        title = f"{plots.shorten(name)}: {caption}"
        if score.is_multi_label:
            yield i, f"{stem}-largest.png", caption, plots.draw_labels(score, largest, title)
            continue
        yield i, f"{stem}-largest.png", caption, plots.draw_confusion(score, largest, title)
        if confused and not is_whole:
            caption = f"the {len(confused)} most confused of {len(score.labels)} labels"
            title = f"{plots.shorten(name)}: {caption}"
            yield i, f"{stem}-confused.png", caption, plots.draw_confusion(score, confused, title)


def _report_markdown(evaluation: Evaluation, facts: RunFacts, pictures: Mapping[int, Sequence[tuple[str, str]]]) -> str:
    # S701 asks for HTML escaping; this is Markdown, and `finalize` escapes each value for it.
    environment = Environment(  # noqa: S701
        loader=PackageLoader("product_classificator.evaluation", ""),
        finalize=lambda value: value if isinstance(value, _Markdown) else escape_markdown(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"score": _figure, "worst": _worst_labels, "duration": _duration, "line": _line}
    environment.filters["percent"] = _percent
    return environment.get_template("report.md.jinja").render(
        evaluation=evaluation,
        facts=facts,
        pictures=pictures,
        table=_Markdown(markdown_table(evaluation)),
        shown=_SHOWN_ROWS,
        shown_left_out=_SHOWN_LEFT_OUT,
    )


def _worst_labels(score: CharacteristicScore) -> list[LabelScore]:
    true_labels = [label for label in score.labels if label.support]
    return sorted(true_labels, key=lambda label: (label.f1, -label.support, label.label))[:_SHOWN_ROWS]


def _line(value: object) -> _Markdown:
    return _Markdown(clean(str(value)))


def _figure(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{share:.1%}".replace("%", " %")


def _duration(seconds: float) -> str:
    """Returns seconds for a person.

    >>> _duration(3725), _duration(4.2)
    ('1 h 2 min', '4.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _plain(value: Any) -> Any:
    """Returns what JSON can hold: NaN and infinities become `None`, anything unknown its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Sequence | set | frozenset | np.ndarray):
        return [_plain(item) for item in value]
    return str(value)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
