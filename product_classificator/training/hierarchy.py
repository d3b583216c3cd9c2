"""Learn from labels which characteristic refines which, as sub_category refines category.

Labels of real catalogs are partly wrong, so purity is not required. A characteristic is a parent if knowing the child
avoids four in five errors of always guessing the most common parent label (lambda of Goodman and Kruskal, 1954), and if
a label of the child has, on average, nine in ten of its products under one parent label. Fashion goods: sub_category ->
category 1.00 and 1.00; age_restrictions -> sex .97 and .85, rejected.
"""

from collections.abc import Sequence

import numpy as np

from product_classificator.heads.hierarchy import Hierarchy, Refinement
from product_classificator.training.targets import Target
from product_classificator.types import Rows

_MIN_AVOIDED_ERRORS = 0.8
_MIN_PURITY = 0.9
_MAX_PARENT_SHARE = 0.95


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
