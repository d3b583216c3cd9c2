"""Turn out-of-fold predictions, near-duplicates, outlier scores and statuses into findings, the worst first."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.neighbors import NearestNeighbors

from product_classificator.types import Bools, Floats, Predictions, Rows, Strings, Truth, as_text, strings

KIND_TITLES = {
    "wrong_label": "likely wrong labels",
    "contradiction": "contradictions",
    "outlier": "outliers",
    "broken": "broken rows",
}

MIN_ODDS = 2.0
"""A label is listed if another one is so many times as probable."""

FENCE = 1.5
"""Outlier scores above it are listed (Tukey 1977)."""
_COLUMNS = ("probability", "other", "other_probability")
_TINY = np.finfo(np.float32).tiny
_SAMPLE, _RANK, _MIN_SPREAD, _ROWS_PER_STEP = 10_000, 5, 0.01, 8192

SCHEMA = pa.schema(
    [("row", pa.int64())]
    + [(name, pa.string()) for name in ("kind", "characteristic", "label", "suggested")]
    + [(name, pa.float32()) for name in ("probability", "suggested_probability", "score")]
    + [("group", pa.int64()), ("reason", pa.string())]
)
"""Columns of the findings, null where they do not apply; `row` counts the rows of the table from 0."""


def compare_labels(predictions: Predictions, truth: Truth, rows: Rows) -> dict[str, pd.DataFrame]:
    """Compare the labels of all products with predictions, by heads that never saw them, of the (m,) `rows`.

    Returns characteristic -> frame, by row, of the products whose label was learned: `probability` of the label, the
    most probable `other` label, `other_probability`. For a multi-label characteristic the most doubtful label, present
    or not, is compared: `probability` is that of it being right, `other` the label set, as text, without or with it.
    """
    frames = {}
    for name in predictions.characteristics:
        true, labels = truth[name][rows], predictions.labels[name]
        is_multi = name in predictions.decision_thresholds
        is_learned = pd.notna(true) if is_multi else np.isin(true, np.array(labels, dtype=object))
        judged = np.flatnonzero(predictions.is_predicted(name) & is_learned)
        compare = _compare_label_sets if is_multi else _compare_single
        columns = compare(labels, predictions.probabilities[name][judged], true[judged])
        frames[name] = pd.DataFrame(dict(zip(_COLUMNS, columns, strict=True)), index=rows[judged]).sort_index()
    return frames


def _compare_single(labels: Sequence[str], probabilities: Floats, true: Strings) -> tuple[Floats, Strings, Floats]:
    cells = np.arange(len(true)), pd.Index(labels).get_indexer(true)
    probability, others = np.maximum(probabilities[cells], _TINY), probabilities.copy()
    others[cells] = -1
    return probability, strings(labels)[others.argmax(1)], others.max(1)


def _compare_label_sets(labels: Sequence[str], probabilities: Floats, true: Strings) -> tuple[Floats, Strings, Floats]:
    has_label = np.array([[label in label_set for label in labels] for label_set in true], bool)
    is_right = np.where(has_label.reshape(probabilities.shape), probabilities, 1 - probabilities)
    other = as_text(strings([old ^ {labels[worst]} for old, worst in zip(true, is_right.argmin(1), strict=True)]))
    lowest = is_right.min(1)
    return np.maximum(lowest, _TINY), other, 1 - lowest


def wrong_labels(truth: Truth, out_of_fold: Mapping[str, pd.DataFrame]) -> pa.Table:
    """Return the labels that contradict the out-of-fold predictions, over all characteristics.

    The log odds of the other label rank them: that finds more changed labels over all characteristics than
    self-confidence or normalised margin (Northcutt et al. 2021), see `benchmarks/audit.py`.
    """
    tables = []
    for name, frame in out_of_fold.items():
        odds = frame.other_probability / frame.probability
        listed = frame.assign(label=truth[name][frame.index], score=np.log(odds))[odds >= MIN_ODDS]
        listed["reason"] = [
            f"heads fitted without it: {row.other_probability:.0%} {row.other!r}, {row.probability:.0%} {row.label!r}"
            for row in listed.itertuples()
        ]
        columns = listed.rename(columns={"other": "suggested", "other_probability": "suggested_probability"})
        tables.append(_table("wrong_label", listed.index, characteristic=name, **columns))
    return _by_score(tables)


def contradictions(truth: Truth, groups: Rows) -> pa.Table:
    """Return the products whose near-duplicates have another label, group by group.

    The label of most products in the group is suggested, if there is one; the score is the share with another label.
    """
    tables, group_ids = [SCHEMA.empty_table()], np.unique(groups, return_inverse=True)[1]
    for name, labels in truth.items():
        frame = pd.DataFrame({"row": range(len(labels)), "group": group_ids, "label": labels}).dropna(subset="label")
        frame = frame[frame.groupby("group").label.transform("nunique") > 1].sort_values(["group", "row"])
        scores, suggested, reasons = [], [], []
        for _, members in frame.groupby("group").label:
            counts = Counter(members)
            (most, n_most), (_, n_second), *_ = counts.most_common()
            listed = ", ".join(f"{n} x {label!r}" for label, n in counts.most_common())
            scores += [1 - counts[label] / len(members) for label in members]
            suggested += [most if n_most > n_second and label != most else None for label in members]
            reasons += [f"{len(members)} near-duplicates: {listed}"] * len(members)
        frame = frame.assign(suggested=suggested, score=scores, reason=reasons)
        tables.append(_table("contradiction", frame.pop("row"), characteristic=name, **frame))
    return pa.concat_tables(tables)


def outlier_scores(vectors: Floats, is_present: Bools) -> Floats:
    """Return how unlike all others each of n products is, by its (n, d) image or text vectors, unit rows if present.

    The score is the distance to the 5th nearest of at most 10,000 random products (Sugiyama and Borgwardt 2013), above
    the upper quartile and in units of the interquartile range: outliers lie above `FENCE` (Tukey 1977). It is NaN where
    nothing is present, or if there are too few products.
    """
    scores = np.full(len(vectors), np.nan, np.float32)
    rows = np.flatnonzero(is_present)
    sample = np.random.default_rng(0).permutation(rows)[:_SAMPLE]
    if len(sample) <= _RANK:
        return scores
    model = NearestNeighbors(n_neighbors=_RANK + 1, algorithm="brute").fit(vectors[sample].astype(np.float32))
    rank = _RANK - 1 + np.isin(rows, sample)  # a product of the sample is its own nearest
    for start in range(0, len(rows), _ROWS_PER_STEP):
        step = slice(start, start + _ROWS_PER_STEP)
        distances = model.kneighbors(vectors[rows[step]].astype(np.float32))[0]
        scores[rows[step]] = distances[np.arange(len(distances)), rank[step]]
    low, high = np.quantile(scores[rows], [0.25, 0.75])
    fenced: Floats = (scores - high) / max(high - low, _MIN_SPREAD)
    return fenced


def outliers(scores: Mapping[str, Floats]) -> pa.Table:
    """Return the products that are unlike all others; "photo" or "text" -> (n,) outlier scores."""
    tables = []
    for side, values in scores.items():
        rows = np.flatnonzero(values > FENCE)  # false for NaN
        reason = f"its {side} is unlike that of any other product"
        tables.append(_table("outlier", rows, score=values[rows], reason=reason))
    return _by_score(tables)


def broken_rows(*statuses: Strings) -> pa.Table:
    """Return every problem of the rows once; a status is "ok" or several problems joined by commas."""
    statuses_by_row = ((row, status) for column in statuses for row, status in enumerate(column) if status != "ok")
    problems = sorted({(row, reason) for row, status in statuses_by_row for reason in status.split(",")})
    frame = pd.DataFrame(problems, columns=["row", "reason"])
    return _table("broken", frame.row, reason=frame.reason)


def count_findings(findings: pa.Table) -> dict[str, dict[str, int]]:
    """Return kind -> characteristic ("" where a finding concerns the whole product) -> products with such findings."""
    counts: dict[str, dict[str, int]] = {}
    grouped = findings.group_by(["kind", "characteristic"], use_threads=False).aggregate([("row", "count_distinct")])
    for row in grouped.to_pylist():
        counts.setdefault(row["kind"], {})[row["characteristic"] or ""] = row["row_count_distinct"]
    return counts


def _table(kind: str, rows: Rows, **columns: str | Sequence[object] | np.ndarray | pd.Series) -> pa.Table:
    # One value fills a column; missing columns are null.
    frame = pd.DataFrame({"row": rows, "kind": kind, **columns}).reindex(columns=SCHEMA.names)
    return pa.Table.from_pandas(frame, SCHEMA, preserve_index=False)


def _by_score(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by([("score", "descending")])
