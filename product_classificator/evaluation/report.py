"""Write an evaluation as a folder: report.html (for people), report.json (complete), report.md and plots/*.png.

JSON holds `null` where there is no number, never NaN. Each file is written whole or not at all, the plots first, so a
report that exists is complete. Names and labels come from the user's table: the template escapes every value unless it
is marked as Markdown.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from product_classificator.evaluation import plots
from product_classificator.evaluation.metrics import Evaluation
from product_classificator.evaluation.page import CURVES, FILTERS, ProductError, draw_report, of_all
from product_classificator.files import write_bytes, write_text
from product_classificator.text import clean

FORMAT = 1
_MARKDOWN_SIGNS = re.compile(r"([\\`*{}\[\]<>|$~#&!]|(?<![^\W_])_|_(?![^\W_]))")


@dataclass(frozen=True)
class RunFacts:
    """What a report shows besides the scores; plain values, empty where they do not apply.

    Products are counted by split, rows set aside and rows with warnings by reason, labels too rare to train by
    characteristic. `judged` says which heads predicted the products, `by_fold` maps a characteristic to the macro-F1 of
    each fold, `by_distance` to the accuracy of each third by distance to what was learned, `refines` to the one that
    its predictions never contradict; `history` is that of a fine-tuning, as `plots.draw_learning_curves` takes it, or
    that of the network that was fitted last.
    """

    title: str
    encoder: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    judged: str = ""
    by_fold: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    by_distance: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    products: Mapping[str, int] = field(default_factory=dict)
    set_aside: Mapping[str, int] = field(default_factory=dict)
    row_warnings: Mapping[str, int] = field(default_factory=dict)
    left_out_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    refines: Mapping[str, str] = field(default_factory=dict)
    duration_s: float | None = None
    history: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""


class _Markdown(str):
    """Text that is Markdown already and must not be escaped."""

    __slots__ = ()


def write_report(
    folder: Path,
    evaluation: Evaluation,
    facts: RunFacts,
    errors: Mapping[str, Sequence[ProductError]] = MappingProxyType({}),
) -> None:
    """Write report.html, report.json, report.md and plots/*.png into `folder`, created if needed; old files go.

    `errors` are shown by report.html alone, see `page.worst_errors`.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    captions: dict[str | int, list[tuple[str, str]]] = {}
    for section, path, caption, figure in _figures(evaluation, facts):
        write_bytes(folder / path, plots.to_png(figure))
        captions.setdefault(section, []).append((path, caption))
    document = {"format": FORMAT, "evaluation": evaluation_json(evaluation), "facts": _plain(facts)}
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    # A lone surrogate is not valid UTF-8; with a backslash it is its own JSON escape.
    write_bytes(folder / "report.json", text.encode("utf-8", "backslashreplace"))
    rare = {name: score for name, score in evaluation.characteristics.items() if score.rare.labels}
    values = {"evaluation": evaluation, "rare": rare, "facts": facts, "captions": captions, "of_all": of_all}
    markdown = _TEMPLATES.get_template("report.md.jinja").render(values)
    write_bytes(folder / "report.md", markdown.encode("utf-8", "replace"))
    write_bytes(folder / "report.html", draw_report(evaluation, facts, errors).encode("utf-8", "replace"))


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the whole evaluation as plain values for JSON; `None` where there is no number."""
    document: dict[str, Any] = _plain(evaluation)
    document["bootstrap"] = {name: document.pop(name) for name in ("seed", "resamples", "groups")}
    for score in document["characteristics"].values():
        score["macro_f1_low"], score["macro_f1_high"] = score.pop("interval") or (None, None)
    return document


def escape_markdown(value: object) -> str:
    r"""Return a value as one line of text that Markdown shows literally, also in a table.

    >>> print(escape_markdown("a|b *c* sub_category _d_"))
    a\|b \*c\* sub_category \_d\_
    """
    return _MARKDOWN_SIGNS.sub(r"\\\1", clean(str(value)))


# S701 asks for HTML escaping; this is Markdown, and `finalize` escapes each value for it.
_TEMPLATES = Environment(  # noqa: S701
    loader=PackageLoader("product_classificator.evaluation", ""),
    finalize=lambda value: value if isinstance(value, _Markdown) else escape_markdown(value),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
_TEMPLATES.filters |= {**FILTERS, "markdown": _Markdown}


def write_learning_curves(folder: Path, history: Sequence[Mapping[str, Any]], best_epoch: int) -> None:
    """Write curves.csv and curves.png of the epochs of a fine-tuning so far, see `plots.draw_learning_curves`."""
    rows = [{**{name: row[name] for name in CURVES}, **row["characteristics"]} for row in history]
    table = pd.DataFrame(rows)
    write_text(folder / "curves.csv", table.to_csv(index=False, lineterminator="\n"))
    write_bytes(folder / "curves.png", plots.to_png(plots.draw_learning_curves(history, best_epoch)))


def write_comparison(folder: Path, untuned: Evaluation, best: Evaluation, history: Sequence[Mapping[str, Any]]) -> None:
    """Write tuning.md and tuning.json: the test scores before and after fine-tuning, and its epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    page = _TEMPLATES.get_template("tuning.md.jinja").render(untuned=untuned, best=best, history=history)
    write_text(folder / "tuning.md", page)
    document = {"untuned": evaluation_json(untuned), "best": evaluation_json(best), "history": list(history)}
    write_text(folder / "tuning.json", json.dumps(document, ensure_ascii=False, indent=1))


def _figures(evaluation: Evaluation, facts: RunFacts) -> Iterator[tuple[str | int, str, str, Figure]]:
    """Yield section, path in the folder, caption and figure; a characteristic's section is its number, from 1."""
    yield "overview", "plots/overview.png", "Macro-F1 by characteristic", plots.draw_overview(evaluation)
    if facts.best_epoch is not None:
        curves = plots.draw_learning_curves(facts.history, facts.best_epoch)
        yield "learning", "plots/learning-curves.png", "Learning curves", curves
    if any(score.reliability for score in evaluation.characteristics.values()):
        diagram, curves = plots.draw_reliability(evaluation), plots.draw_precision_by_coverage(evaluation)
        yield "calibration", "plots/reliability.png", "Reliability diagram", diagram
        yield "calibration", "plots/precision-by-coverage.png", "Precision by coverage", curves
    for i, (name, score) in enumerate(evaluation.characteristics.items(), start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        stem = f"plots/{i:02d}-{slug}".rstrip("-")
        n, draw = len(score.labels), plots.draw_labels if score.is_multi_label else plots.draw_confusion
        for why, labels in plots.shown_labels(score).items():
            caption = "all labels" if n == len(labels) else f"the {len(labels)} {why} of {n} labels"
            figure = draw(score, labels, f"{plots.shorten(name)}: {caption}")
            yield i, f"{stem}-{why.split()[-1]}.png", caption, figure


def _plain(value: object) -> Any:
    """Return what JSON can hold: NaN and infinities become `None`, unknown types their text."""
    return json.loads(json.dumps(value, default=_unpack), parse_constant=lambda _: None)


def _unpack(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return vars(value) if is_dataclass(value) else str(value)
