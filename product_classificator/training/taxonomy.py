"""Find which characteristic refines which, as sub_category refines category: learned from labels, or read from a table.

Labels of real catalogs are partly wrong, so purity is not required. A characteristic is a parent if knowing the child
avoids four in five errors of always guessing the most common parent label (lambda of Goodman and Kruskal, 1954), and if
a label of the child has, on average, nine in ten of its products under one parent label. Fashion goods: sub_category ->
category 1.00 and 1.00; age_restrictions -> sex .97 and .85, rejected.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from product_classificator.catalog.labels import read_labels
from product_classificator.catalog.table import open_table
from product_classificator.errors import DataError, culprits
from product_classificator.heads.hierarchy import Hierarchy, Refinement, check_hierarchy
from product_classificator.training.targets import Target
from product_classificator.types import Rows, Truth, is_multi_label

logger = logging.getLogger(__name__)

Taxonomy: TypeAlias = str | Path | pd.DataFrame
_MIN_AVOIDED_ERRORS = 0.8
_MIN_PURITY = 0.9
_MAX_PARENT_SHARE = 0.95
_COLUMNS = ("label", "parent")
_READ_ROWS = 16_384
_Pair: TypeAlias = tuple[str, str]


def learn_hierarchy(targets: Sequence[Target], rows: Rows) -> Hierarchy:
    """Return which characteristic refines which; the finest of several possible parents is taken.

    A parent has fewer labels than the child, and none that nearly all products have: that would be a property, not a
    level. A parent that a single product decides is not learned. Multi-label characteristics take no part.
    """
    single, refinements = [target for target in targets if target.indicators is None], []
    for child in single:
        coarser = [target for target in single if len(target.labels) < len(child.labels)]
        for parent in sorted(coarser, key=lambda target: -len(target.labels)):
            both = parent.known(child.known(rows))
            counts = np.zeros((len(child.labels), len(parent.labels)), dtype=np.int64)
            np.add.at(counts, (child.label_ids[both], parent.label_ids[both]), 1)
            parent_ids = _parent_ids(counts)
            if parent_ids is not None:
                pairs = zip(child.labels, parent_ids.tolist(), strict=True)
                parents = {label: parent.labels[parent_id] for label, parent_id in pairs if parent_id >= 0}
                refinements.append(Refinement(child.name, parent.name, parents))
                break
    return tuple(refinements)


def _parent_ids(counts: Rows) -> Rows | None:
    """Return the (child labels,) parent label ids, -1 where unclear, by the (child labels, parent labels) counts."""
    n, per_parent = counts.sum(), counts.sum(0)
    if not n or per_parent.max() > _MAX_PARENT_SHARE * n:
        return None
    # A parent label is clear if more than half of the child's products have it, whichever single product is left out.
    majority, per_child = counts.max(1), counts.sum(1)
    is_clear = 2 * majority > per_child + 1
    avoided = 1 - (n - majority[is_clear].sum()) / (n - per_parent.max())
    purity = majority[per_child > 0] / per_child[per_child > 0]
    if avoided < _MIN_AVOIDED_ERRORS or purity.mean() < _MIN_PURITY:
        return None
    return np.where(is_clear, counts.argmax(1), -1)


def read_taxonomy(source: Taxonomy, truth: Truth) -> Hierarchy:
    """Read a taxonomy and check it against the labels of a catalog.

    Labels that only one of the two has, and products whose labels contradict the taxonomy, are logged as warnings.

    Args:
        source: a table with two columns named like characteristics, the finer one first; or with the columns `label`
            and `parent`, whose labels are looked up in the catalog: each must belong to one characteristic. A label
            without a parent is a root.
        truth: characteristic -> labels of all products.

    Raises:
        DataError: the table cannot be read, a label has two parents or belongs to several characteristics, none of
            the labels is in the catalog, the characteristics form a cycle, or one of them is multi-label.
    """
    multi_label = [name for name, labels in truth.items() if is_multi_label(labels)]
    truth = {name: labels for name, labels in truth.items() if name not in multi_label}
    table = open_table(source)
    columns: _Pair = _COLUMNS if set(_COLUMNS) <= set(table.columns) else tuple(table.columns)  # type: ignore[assignment]
    if columns != _COLUMNS and set(columns) & set(multi_label):
        raise DataError(
            f"a multi-label characteristic cannot be part of a hierarchy: leave out {culprits(multi_label)}"
        )
    if columns != _COLUMNS and (len(columns) != 2 or not set(columns) <= truth.keys()):
        raise DataError(
            "a taxonomy needs the columns label and parent, or two that are named like characteristics "
            f"({', '.join(truth)}): {table.name} has {', '.join(table.columns)}"
        )
    batches = list(table.batches(list(columns), _READ_ROWS))
    labels, parents = (
        read_labels(pa.chunked_array([batch.column(name) for batch in batches], pa.string()), name) for name in columns
    )
    rows = list(dict.fromkeys((a, b) for a, b in zip(labels, parents, strict=True) if a is not None and b is not None))
    by_pair, unmatched = _by_characteristics(rows, columns, truth)
    if not by_pair:
        shown = culprits(f"{label} < {parent}" for label, parent in rows)
        raise DataError(
            f"a taxonomy must contain labels of the catalog, which has no such pair: {shown}; check the spelling"
        )
    hierarchy = tuple(Refinement(child, parent, _parents(pairs)) for (child, parent), pairs in by_pair.items())
    check_hierarchy(hierarchy)
    if unmatched:
        logger.warning("rows of the taxonomy without products: %s", culprits(" < ".join(row) for row in unmatched))
    for refinement in hierarchy:
        _compare(refinement, truth)
    return hierarchy


def _by_characteristics(
    rows: Iterable[_Pair], columns: _Pair, truth: Truth
) -> tuple[dict[_Pair, list[_Pair]], list[_Pair]]:
    """Return the rows of each (child, parent) pair of characteristics, and the rows that match none."""
    labels = {name: set(known) for name, known in truth.items()}
    candidates = [tuple(truth)] * 2 if columns == _COLUMNS else [(name,) for name in columns]
    by_pair: dict[_Pair, list[_Pair]] = {}
    unmatched: list[_Pair] = []
    for row in rows:
        owners = [[n for n in names if label in labels[n]] for label, names in zip(row, candidates, strict=True)]
        if not all(owners):
            unmatched.append(row)
            continue
        for label, names in zip(row, owners, strict=True):
            if len(names) > 1:
                raise DataError(
                    f"a label in the columns label and parent must belong to one characteristic, {label!r} is one of "
                    f"{' and '.join(names)}: name the columns like the characteristics instead"
                )
        by_pair.setdefault((owners[0][0], owners[1][0]), []).append(row)
    return by_pair, unmatched


def _parents(rows: Iterable[_Pair]) -> dict[str, str]:
    by_label: dict[str, list[str]] = {}
    for label, parent in rows:
        by_label.setdefault(label, []).append(parent)
    repeated = [f"{label} < {' and '.join(parents)}" for label, parents in by_label.items() if len(parents) > 1]
    if repeated:
        raise DataError(f"a label of a taxonomy may have one parent: {culprits(repeated)}; keep one of them")
    return {label: parents[0] for label, parents in by_label.items()}


def _compare(refinement: Refinement, truth: Truth) -> None:
    """Warn of disagreements between taxonomy and products."""
    child, parent, parents = refinement.child, refinement.parent, refinement.parents
    missing = sorted(set(truth[child]) - parents.keys() - {None})
    if missing:
        logger.warning("labels of %s without a parent in the taxonomy: %s", child, culprits(missing))
    contradictions = Counter(
        f"{label} < {labelled} ({parents[label]} in the taxonomy)"
        for label, labelled in zip(truth[child], truth[parent], strict=True)
        if label in parents and labelled is not None and labelled != parents[label]
    )
    if contradictions:
        shown = culprits(f"{pair}: {n}" for pair, n in contradictions.most_common())
        logger.warning("%d products contradict the taxonomy in %s: %s", contradictions.total(), parent, shown)
