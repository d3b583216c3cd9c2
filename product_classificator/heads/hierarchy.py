"""Make predictions consistent where one characteristic refines another, as sub_category refines category.

The heads of parent and child judge a product independently. Where their best labels contradict each other, the most
probable consistent pair is returned (max-product on the forest of characteristics; Pearl 1988, "Probabilistic reasoning
in intelligent systems"); everything else stays unchanged.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from product_classificator.errors import DataError, culprits
from product_classificator.heads.calibration import softmax
from product_classificator.types import Floats, Rows

_CHILD_WEIGHT = 0.5  # of the parent's: chosen out of fold on two catalogs, where 0.3 to 1 differ little
_MIN_PROBABILITY = 1e-12
_TIE = 1e-5

Scores: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Refinement:
    """One characteristic (child) refines another (parent): each of its labels belongs to one label of the parent.

    `parents` maps a label of the child to that of the parent; a label that is absent is consistent with every one.
    """

    child: str
    parent: str
    parents: Mapping[str, str]

    def parent_ids(self, labels: Mapping[str, Sequence[str]]) -> Rows:
        """Return the (labels of the child,) label ids of the parents, -1 for a label that is consistent with all."""
        ids = {label: label_index for label_index, label in enumerate(labels[self.parent])}
        return np.array([ids.get(self.parents.get(label, ""), -1) for label in labels[self.child]], np.int64)


Hierarchy = tuple[Refinement, ...]
"""A forest: each characteristic refines at most one other, and there are no cycles."""


def check_hierarchy(hierarchy: Iterable[Refinement]) -> None:
    """Raise `DataError` if a characteristic refines two others, or there is a cycle."""
    parents: dict[str, str] = {}
    for refinement in hierarchy:
        child, parent = refinement.child, refinement.parent
        if child in parents:
            both = culprits([parents[child], parent])
            raise DataError(f"a characteristic may refine one other: {child} refines {both}; leave one out")
        parents[child] = parent
    for child in parents:
        path = [child]
        while path[-1] in parents:
            path.append(parents[path[-1]])
            if path[-1] == child:
                raise DataError(f"no characteristic may refine itself: found the cycle {' -> '.join(path)}: break it")


def restrict_hierarchy(hierarchy: Hierarchy, labels: Mapping[str, Sequence[str]]) -> Hierarchy:
    """Return the part of a hierarchy whose labels the heads know."""
    restricted = []
    for refinement in hierarchy:
        fine, coarse = set(labels.get(refinement.child, ())), set(labels.get(refinement.parent, ()))
        parents = {child: parent for child, parent in refinement.parents.items() if child in fine and parent in coarse}
        if parents:
            restricted.append(Refinement(refinement.child, refinement.parent, parents))
    return tuple(restricted)


def with_relatives(names: Iterable[str], hierarchy: Hierarchy) -> tuple[str, ...]:
    """Return characteristics together with those that consistent predictions of them depend on."""
    needed = dict.fromkeys(names)
    for tree in _trees(hierarchy):
        members = {name for refinement in tree for name in (refinement.child, refinement.parent)}
        if members & needed.keys():
            needed |= dict.fromkeys(sorted(members))
    return tuple(needed)


def reconcile(
    probabilities: Mapping[str, Floats], labels: Mapping[str, Sequence[str]], hierarchy: Hierarchy
) -> dict[str, Floats]:
    """Return probabilities whose best labels do not contradict each other; rows of NaN where nothing is predicted.

    A parent label without any child among `labels` stays possible: with it, the child is not predicted.
    `probabilities` are (n, k) per characteristic, rows sum to 1; a tree of the hierarchy is complete or absent.
    """
    consistent = dict(probabilities)
    for tree in _trees(hierarchy):
        if tree[0].child not in consistent:
            continue
        parent_ids = {refinement.child: refinement.parent_ids(labels) for refinement in tree}
        is_wrong = np.zeros(len(consistent[tree[0].child]), bool)
        for refinement in tree:
            implied = parent_ids[refinement.child][consistent[refinement.child].argmax(1)]
            is_wrong |= (implied >= 0) & (implied != consistent[refinement.parent].argmax(1))
        if is_wrong.any():
            names = (tree[0].parent, *(refinement.child for refinement in tree))
            joint = _max_marginals({name: consistent[name][is_wrong] for name in names}, tree, parent_ids)
            for name in names:
                consistent[name] = consistent[name].copy()
                consistent[name][is_wrong] = joint[name]
    return consistent


def _trees(hierarchy: Hierarchy) -> list[list[Refinement]]:
    """Return the trees of the forest, in each the refinements nearest to its root first."""
    parents = {refinement.child: refinement.parent for refinement in hierarchy}

    def path(name: str) -> list[str]:
        return [name, *path(parents[name])] if name in parents else [name]

    trees = defaultdict(list)
    for refinement in sorted(hierarchy, key=lambda refinement: len(path(refinement.child))):
        trees[path(refinement.child)[-1]].append(refinement)
    return list(trees.values())


def _max_marginals(
    probabilities: Mapping[str, Floats], tree: Sequence[Refinement], parent_ids: Mapping[str, Rows]
) -> dict[str, Floats]:
    """Return the max-marginals of a tree: how likely the best assignment with each label is, rows summing to 1."""
    below: dict[str, Scores] = {
        name: np.log(np.maximum(matrix, _MIN_PROBABILITY), dtype=np.float64) for name, matrix in probabilities.items()
    }
    # Upwards: each parent label collects the score of its best child label. Whatever child is predicted contradicts a
    # childless one, so this collects how likely the best child label is wrong.
    other = {name: np.log(np.maximum(1 - matrix.max(1), _MIN_PROBABILITY)) for name, matrix in probabilities.items()}
    messages: dict[str, Scores] = {}
    for refinement in reversed(tree):
        child, parent = refinement.child, refinement.parent
        best_child = np.repeat(other[child][:, None].astype(np.float64), probabilities[parent].shape[1], axis=1)
        for parent_id in range(best_child.shape[1]):
            fits = (parent_ids[child] < 0) | (parent_ids[child] == parent_id)
            if fits.any():
                best_child[:, parent_id] = below[child][:, fits].max(1)
        messages[child] = _CHILD_WEIGHT * best_child
        below[parent] = below[parent] + messages[child]
        other[parent] = other[parent] + _CHILD_WEIGHT * other[child]
    # Downwards: each child label adds the score of everything outside its own subtree.
    root = tree[0].parent
    scores, best, weights = {root: below[root]}, {root: below[root].argmax(1)}, {root: 1.0}
    for refinement in tree:
        child, parent = refinement.child, refinement.parent
        weights[child] = _CHILD_WEIGHT * weights[parent]
        ids, outside = parent_ids[child], scores[parent] - weights[parent] * messages[child]
        above = np.where(ids >= 0, outside[:, ids], outside.max(1, keepdims=True))
        scores[child] = weights[child] * below[child] + above
        fits = (ids < 0) | (ids == best[parent][:, None])
        best[child] = np.where(fits.any(1), np.where(fits, scores[child], -np.inf).argmax(1), -1)
    marginals: dict[str, Floats] = {}
    for name, winners in best.items():
        scores[name][np.arange(len(winners)), winners] += _TIE  # the best label wins beyond rounding
        marginals[name] = np.where(winners[:, None] < 0, np.nan, softmax(scores[name])).astype(np.float32)
    return marginals
