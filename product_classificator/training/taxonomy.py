"""Find which characteristic refines which, as sub_category refines category: learned from labels, or read from a table.

Labels of real catalogs are partly wrong, so purity is not required. A characteristic is a parent if knowing the child
avoids four in five errors of always guessing the most common parent label (lambda of Goodman and Kruskal, 1954), and if
a label of the child has, on average, nine in ten of its products under one parent label.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import csr_matrix

from product_classificator.catalog.labels import read_labels
from product_classificator.catalog.table import open_table
from product_classificator.errors import DataError, culprits
from product_classificator.heads.hierarchy import Hierarchy, Refinement
from product_classificator.training.targets import Target
from product_classificator.types import Rows, Truth, is_multi_label

logger = logging.getLogger(__name__)

Taxonomy: TypeAlias = str | Path | pd.DataFrame
_MIN_AVOIDED_ERRORS = 0.8
_MIN_PURITY = 0.9
_MAX_PARENT_SHARE = 0.95
_MAX_OTHER = 0.2


def learn_hierarchy(targets: Sequence[Target], rows: Rows) -> Hierarchy:
    """Return which characteristic refines which; the finest of several possible parents is taken.

    A parent has fewer labels than the child, and none that nearly all products have: that would be a property, not a
    level. A parent that a single product decides is not learned. Multi-label characteristics take no part, nor does a
    child of which a fifth of the products have a label that is not learned: what is predicted for these is wrong, and
    would make the parent wrong too.
    """
    single, refinements = [target for target in targets if not target.is_multi_label], []
    for child in single:
        if child.has_other[rows].sum() > _MAX_OTHER * (child.is_known | child.has_other)[rows].sum():
            continue
        coarser = [target for target in single if len(target.labels) < len(child.labels)]
        for parent in sorted(coarser, key=lambda target: -len(target.labels)):
            parent_ids = _parent_ids((child.indicators[rows].T @ parent.indicators[rows]).astype(np.int64))
            if parent_ids is not None:
                pairs = zip(child.labels, parent_ids.tolist(), strict=True)
                parents = {label: parent.labels[parent_id] for label, parent_id in pairs if parent_id >= 0}
                refinements.append(Refinement(child.name, parent.name, parents))
                break
    return tuple(refinements)


def _parent_ids(counts: csr_matrix) -> Rows | None:
    """Return the (child labels,) parent label ids, -1 where unclear, by the (child labels, parent labels) counts."""
    n, per_parent, per_child = counts.sum(), counts.sum(0).A1, counts.sum(1).A1
    if not n or per_parent.max() > _MAX_PARENT_SHARE * n:
        return None
    # A parent label is clear if more than half of the child's products have it, whichever single product is left out.
    majority = counts.max(1).toarray()[:, 0]
    is_clear = 2 * majority > per_child + 1
    avoided = 1 - (n - majority[is_clear].sum()) / (n - per_parent.max())
    purity = majority[per_child > 0] / per_child[per_child > 0]
    if avoided < _MIN_AVOIDED_ERRORS or purity.mean() < _MIN_PURITY:
        return None
    return np.where(is_clear, counts.argmax(1).A1, -1)


def read_taxonomy(source: Taxonomy, truth: Truth) -> Hierarchy:
    """Read a taxonomy: a table whose columns are named like characteristics, the finest first.

    Labels that only table or catalog (`truth`) has, and products that contradict the taxonomy, are logged as warnings.

    Raises:
        DataError: the table cannot be read, its columns are no characteristics or one is multi-label, a label has two
            parents, or the catalog has none of the pairs of labels.
    """
    table = open_table(source)
    columns = list(table.columns)
    single = [name for name, labels in truth.items() if not is_multi_label(labels)]
    if multi_label := [name for name in columns if name in truth and name not in single]:
        raise DataError(
            f"a multi-label characteristic cannot be part of a hierarchy: leave out {culprits(multi_label)}"
        )
    if len(columns) < 2 or not set(columns) <= set(single):
        raise DataError(
            f"the columns of a taxonomy must be named like characteristics ({', '.join(single)}), the finest first: "
            f"{table.name} has {', '.join(columns)}"
        )
    batches = list(table.batches(columns))
    cells = {name: pa.chunked_array([batch.column(name) for batch in batches], pa.string()) for name in columns}
    labels = [read_labels(array, name) for name, array in cells.items()]
    return tuple(
        _refinement(child, parent, dict.fromkeys(zip(of_child, of_parent, strict=True)), truth)
        for (child, of_child), (parent, of_parent) in pairwise(zip(columns, labels, strict=True))
    )


def _refinement(child: str, parent: str, pairs: Iterable[tuple[str | None, str | None]], truth: Truth) -> Refinement:
    """Return the refinement of distinct pairs of labels, and warn of disagreements with the products."""
    parents: dict[str, str] = {}
    unmatched, repeated = [], []
    fine, coarse = set(truth[child]), set(truth[parent])
    for label, above in pairs:
        if label is None or above is None:
            continue
        if label not in fine or above not in coarse:
            unmatched.append(f"{label} < {above}")
        elif parents.setdefault(label, above) != above:
            repeated.append(f"{label} < {parents[label]} and {above}")
    if repeated:
        raise DataError(f"a label of a taxonomy may have one parent: {culprits(repeated)}; keep one of them")
    if not parents:
        raise DataError(
            "a taxonomy must contain labels of the catalog, which has no such pair: "
            f"{culprits(unmatched)}; check the spelling"
        )
    if unmatched:
        logger.warning("rows of the taxonomy without products: %s", culprits(unmatched))
    if missing := sorted(fine - parents.keys() - {None}):
        logger.warning("labels of %s without a parent in the taxonomy: %s", child, culprits(missing))
    contradictions = Counter(
        f"{label} < {labelled} ({parents[label]} in the taxonomy)"
        for label, labelled in zip(truth[child], truth[parent], strict=True)
        if label in parents and labelled is not None and labelled != parents[label]
    )
    if contradictions:
        shown = culprits(f"{pair}: {n}" for pair, n in contradictions.most_common())
        logger.warning("%d products contradict the taxonomy in %s: %s", contradictions.total(), parent, shown)
    return Refinement(child, parent, parents)
