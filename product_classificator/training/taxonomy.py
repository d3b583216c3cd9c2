"""Turns a table of labels and their parents into a hierarchy of characteristics, checked against a catalog.

A taxonomy does not say of which characteristic its labels are: the catalog does. A taxonomy of three levels is taken
apart into the refinements of which it consists.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import TypeAlias

import pandas as pd
import pyarrow as pa

from product_classificator.catalog.labels import read_labels
from product_classificator.catalog.table import open_table
from product_classificator.errors import DataError, culprits
from product_classificator.heads.hierarchy import Hierarchy, Refinement, check_hierarchy
from product_classificator.types import Truth, is_multi_label

logger = logging.getLogger(__name__)

Taxonomy: TypeAlias = str | Path | pd.DataFrame
_COLUMNS = ["label", "parent"]
_READ_ROWS = 16_384
_Pair: TypeAlias = tuple[str, str]


def read_taxonomy(source: Taxonomy, truth: Truth) -> Hierarchy:
    """Reads a taxonomy and checks it against the labels of a catalog.

    What does not fit but harms nobody is a warning: labels that the catalog does not have, labels of the catalog that
    the taxonomy does not have, products whose labels contradict it.

    Args:
        source: a table with the columns `label` and `parent`, or with two columns named like the characteristics, the
            finer one first. A label without a parent is a root.
        truth: characteristic -> labels of all products.

    Raises:
        DataError: the table cannot be read, a label has two parents, characteristics refine one another in a circle,
            no label is the catalog's, it cannot be told of which characteristics the labels are, or they are those of a
            multi-label one.
    """
    multi = [name for name, labels in truth.items() if is_multi_label(labels)]
    truth = {name: labels for name, labels in truth.items() if name not in multi}
    columns, rows = _read(source, truth, multi)
    known = {name: set(labels) - {None} for name, labels in truth.items()}
    if columns == _COLUMNS:
        sorted_out, rest = _sort_out(rows, known)
    else:
        pair = (columns[0], columns[1])
        is_known = [_fits(row, pair, known) for row in rows]
        sorted_out = {pair: [row for row, fits in zip(rows, is_known, strict=True) if fits]}
        rest = [row for row, fits in zip(rows, is_known, strict=True) if not fits]
    if not any(sorted_out.values()):
        shown = culprits(f"{label} < {parent}" for label, parent in rows)
        raise DataError(
            f"a taxonomy must tell of labels of the table, which has no such pair: {shown}; are they written alike?"
        )
    hierarchy = tuple(Refinement(child, parent, _parents(own)) for (child, parent), own in sorted_out.items())
    check_hierarchy(hierarchy)
    if rest:
        shown = culprits(" < ".join(row) for row in rest)
        logger.warning("rows of the taxonomy whose labels no product has: %s", shown)
    for each in hierarchy:
        _compare(each, truth)
    return hierarchy


def _read(source: Taxonomy, truth: Truth, multi: Sequence[str]) -> tuple[list[str], list[_Pair]]:
    table = open_table(source)
    columns = _COLUMNS if set(_COLUMNS) <= set(table.columns) else table.columns
    if columns != _COLUMNS and set(columns) & set(multi):
        raise DataError(
            f"a multi-label characteristic refines none and is refined by none: leave out {culprits(multi)}"
        )
    if columns != _COLUMNS and (len(columns) != 2 or not set(columns) <= truth.keys()):
        raise DataError(
            "a taxonomy needs the columns label and parent, or two that are named like characteristics "
            f"({', '.join(truth)}): {table.name} has {', '.join(table.columns)}"
        )
    batches = list(table.batches(columns, _READ_ROWS))
    both = [read_labels(pa.chunked_array([batch.column(name) for batch in batches], pa.string())) for name in columns]
    rows = [(label, parent) for label, parent in zip(*both, strict=True) if label is not None and parent is not None]
    return columns, list(dict.fromkeys(rows))


def _fits(row: _Pair, pair: _Pair, known: dict[str, set[str]]) -> bool:
    return row[0] in known[pair[0]] and row[1] in known[pair[1]]


def _sort_out(rows: Sequence[_Pair], known: dict[str, set[str]]) -> tuple[dict[_Pair, list[_Pair]], list[_Pair]]:
    """Returns the rows of each pair of characteristics, the pair that fits most rows first, and the rows of none."""
    found: dict[_Pair, list[_Pair]] = {}
    rest = list(rows)
    while rest:
        fits = {pair: [row for row in rest if _fits(row, pair, known)] for pair in permutations(known, 2)}
        best = max(fits, key=lambda pair: len(fits[pair]), default=None)
        if best is None or not fits[best]:
            break
        rivals = [pair for pair, own in fits.items() if len(own) == len(fits[best]) and set(own) & set(fits[best])]
        if len(rivals) > 1:
            raise DataError(
                "a taxonomy must tell of which characteristics its labels are; these fit equally well: "
                f"{culprits(' < '.join(pair) for pair in rivals)}; name the columns like the characteristics, not "
                "label and parent"
            )
        found[best] = fits[best]
        rest = [row for row in rest if row not in set(fits[best])]
    return found, rest


def _parents(rows: Sequence[_Pair]) -> dict[str, str]:
    count = Counter(label for label, _ in rows)
    repeated = [label for label in count if count[label] > 1]
    if repeated:
        shown = [f"{label} < {' and '.join(p for own, p in rows if own == label)}" for label in repeated]
        raise DataError(f"a label of a taxonomy may have one parent: {culprits(shown)}; leave one away")
    return dict(rows)


def _compare(refinement: Refinement, truth: Truth) -> None:
    """Warns of what taxonomy and products do not agree on."""
    child, parent, parents = refinement.child, refinement.parent, refinement.parents
    missing = sorted(set(truth[child]) - parents.keys() - {None})
    if missing:
        logger.warning("labels of %s without a parent in the taxonomy: %s", child, culprits(missing))
    wrong = Counter(
        f"{own} < {told} ({parents[own]} in the taxonomy)"
        for own, told in zip(truth[child], truth[parent], strict=True)
        if own in parents and told is not None and told != parents[own]
    )
    if wrong:
        logger.warning(
            "%d products contradict the taxonomy in %s: %s",
            wrong.total(),
            parent,
            culprits(f"{pair}: {n}" for pair, n in wrong.most_common()),
        )
