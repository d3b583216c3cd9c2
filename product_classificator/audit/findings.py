"""Turns opinions, groups, distances and statuses into findings: one row each, the worst of its kind first."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from product_classificator.audit.alike import FENCE
from product_classificator.audit.folds import Opinions
from product_classificator.types import Floats, Rows, Strings, Truth

WRONG_LABEL, CONTRADICTION, OUTLIER, BROKEN = "wrong_label", "contradiction", "outlier", "broken"
KIND_TITLES = {
    WRONG_LABEL: "likely wrong label",
    CONTRADICTION: "contradiction",
    OUTLIER: "outlier",
    BROKEN: "broken row",
}

LIKELIER = 2.0
"""A label is listed when another one is so many times as probable: on fashion with 5 % of the labels flipped these are
13 % of the labels and hold 96 % of the flipped ones."""
_UNLEARNED = 0.05
"""What the probability of a label that is too rare to be learned is taken for: that alone says little against it."""

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("kind", pa.string()),
        ("characteristic", pa.string()),
        ("label", pa.string()),
        ("suggested", pa.string()),
        ("probability", pa.float32()),
        ("suggested_probability", pa.float32()),
        ("score", pa.float32()),
        ("group", pa.int64()),
        ("reason", pa.string()),
    ]
)
"""Columns of the findings; null where they do not apply. `row` counts the rows of the table from 0."""


def wrong_labels(truth: Truth, opinions: Mapping[str, Opinions]) -> pa.Table:
    """Returns the labels that heads which have not seen the product hold for wrong, over all characteristics.

    They are ranked by the log of how many times as probable the other label is, which finds more changed labels over
    all characteristics than self-confidence or normalised margin (Northcutt et al. 2021): `benchmarks/audit.py`.
    """
    tables = []
    for name, found in opinions.items():
        given = np.where(found.given == 0, _UNLEARNED, found.given)
        odds = found.other_probability / given
        rows = np.flatnonzero(odds >= LIKELIER)  # false for NaN
        labels, others = truth[name][rows], found.other[rows]
        reasons = [
            f"judged by the others: {p_other:.0%} {other!r}, "
            + (f"{p:.0%} {label!r}" if p else f"while {label!r} is too rare to be learned")
            for label, other, p, p_other in zip(
                labels, others, found.given[rows], found.other_probability[rows], strict=True
            )
        ]
        tables.append(
            _table(
                WRONG_LABEL,
                rows,
                characteristic=[name] * len(rows),
                label=labels,
                suggested=others,
                probability=found.given[rows],
                suggested_probability=found.other_probability[rows],
                score=np.log(odds[rows]),
                reason=reasons,
            )
        )
    return _sorted(tables)


def contradictions(truth: Truth, groups: Rows) -> pa.Table:
    """Returns the products of all groups whose near-identical members bear different labels, group by group.

    The label of most members is suggested, if there is one; the score is the share of members with another label.
    """
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(sizes[number] > 1)
    return pa.concat_tables([_empty(), *(_contradictions(name, truth[name], shared, number) for name in truth)])


def _contradictions(name: str, labels: Strings, shared: Rows, number: Rows) -> pa.Table:
    known = shared[[labels[row] is not None for row in shared.tolist()]]
    frame = pd.DataFrame({"row": known, "group": number[known], "label": labels[known]})
    frame = frame[frame.groupby("group").label.transform("nunique") > 1].sort_values(["group", "row"])
    share, most, reason = [], [], []
    for _, members in frame.groupby("group").label:
        counts = Counter(members).most_common()
        winner = counts[0][0] if counts[0][1] > counts[1][1] else None
        told = ", ".join(f"{n} x {label!r}" for label, n in counts)
        share += [1 - dict(counts)[label] / len(members) for label in members]
        most += [winner if winner != label else None for label in members]
        reason += [f"{len(members)} near-identical products: {told}"] * len(members)
    return _table(
        CONTRADICTION,
        frame.row.to_numpy(),
        characteristic=[name] * len(frame),
        label=frame.label,
        suggested=most,
        score=share,
        group=frame.group,
        reason=reason,
    )


def outliers(strangeness: Mapping[str, Floats]) -> pa.Table:
    """Returns the products that are unlike all others by a part: "photo" or "text" -> (n,) strangeness."""
    tables = []
    for part, strange in strangeness.items():
        rows = np.flatnonzero(strange > FENCE)  # false for NaN
        reason = f"its {part} is unlike those of all other products"
        tables.append(_table(OUTLIER, rows, score=strange[rows], reason=[reason] * len(rows)))
    return _sorted(tables)


def broken_rows(*statuses: Strings) -> pa.Table:
    """Returns every flaw of the rows; a status is "ok" or flaws joined by commas, and several may tell the same."""
    flaws = dict.fromkeys(
        (row, reason)
        for status in statuses
        for row in np.flatnonzero(status != "ok").tolist()
        for reason in status[row].split(",")
    )
    rows, reasons = zip(*sorted(flaws), strict=True) if flaws else ((), ())
    return _table(BROKEN, np.array(rows, dtype=np.int64), reason=reasons)


def count_findings(found: pa.Table) -> dict[str, dict[str, int]]:
    """Returns kind -> characteristic, "" where a finding is of the whole product -> number of findings."""
    counts: dict[str, dict[str, int]] = {}
    grouped = found.group_by(["kind", "characteristic"], use_threads=False).aggregate([([], "count_all")])
    for row in grouped.to_pylist():
        counts.setdefault(row["kind"], {})[row["characteristic"] or ""] = row["count_all"]
    return counts


def _table(kind: str, rows: Rows, **columns: Sequence[object] | np.ndarray | pd.Series) -> pa.Table:
    """Returns findings of one kind without ids; columns that are not given are null."""
    n = len(rows)
    given = {"row": rows, "kind": [kind] * n, **columns}
    return pa.table(
        {field.name: pa.array(given.get(field.name, [None] * n), field.type, from_pandas=True) for field in SCHEMA},
        schema=SCHEMA,
    )


def _sorted(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([_empty(), *tables]).sort_by([("score", "descending")])


def _empty() -> pa.Table:
    return SCHEMA.empty_table()
