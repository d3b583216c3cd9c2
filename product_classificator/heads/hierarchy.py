"""Keeps predictions free of contradictions where one characteristic refines another, as sub_category refines category.

Which refines which is learned from the training products, or given. Labels of real catalogs are partly wrong, so nobody
is asked for purity. A characteristic is a parent if knowing the child spares four in five errors of always guessing the
commonest parent label (the lambda of Goodman and Kruskal, 1954), and if a label of the child has, on average, nine in
ten of its products under one parent label. For sub_category -> category both are 1.00 on 8,889 fashion goods, and .92
and .93 on a synthetic marketplace where one label in thirty is wrong. Refused are sub_category -> usage (.55 and .91)
and age_restrictions -> sex (.97 and .85: what is for boys bears Boys or Men).

The heads of parent and child judge a product independently. Where their best labels contradict each other, the pair
that is the likeliest under both is told (max-product on the forest of characteristics; Pearl 1988, "Probabilistic
reasoning in intelligent systems"); elsewhere nothing is changed. The child counts for 0.7 of the parent: chosen on
validation products, where 0.5 to 1 differ little.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from product_classificator.errors import DataError, culprits
from product_classificator.heads.sharpness import softmax
from product_classificator.types import Floats, Rows

_LEAST_SPARED_ERRORS = 0.8
_LEAST_SHARE = 0.9
_LARGEST_SHARE = 0.95
_CHILD_WEIGHT = 0.7
_LEAST_PROBABILITY = 1e-12
_TIE = 1e-5

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Refinement:
    """One characteristic refines another: a label of the child lies under one label of the parent.

    Attributes:
        child: the finer characteristic.
        parent: the coarser one.
        parents: label of the child -> label of the parent; a label that is absent goes with every one.
    """

    child: str
    parent: str
    parents: Mapping[str, str]

    def numbers(self, labels: Mapping[str, Sequence[str]]) -> Rows:
        """Returns (labels of the child,) the number of the parent label of each, -1 where it goes with every one."""
        places = {label: number for number, label in enumerate(labels[self.parent])}
        return np.array([places.get(self.parents.get(label, ""), -1) for label in labels[self.child]], np.int64)


Hierarchy = tuple[Refinement, ...]
"""A forest: each characteristic refines one other at most, and none refines itself, directly or in a circle."""


def check_hierarchy(hierarchy: Iterable[Refinement]) -> None:
    """Raises `DataError` if a characteristic refines two others, or itself in a circle."""
    parents: dict[str, str] = {}
    for each in hierarchy:
        if each.child in parents:
            both = culprits([parents[each.child], each.parent])
            raise DataError(f"a characteristic may refine one other: {each.child} refines {both}; leave one away")
        parents[each.child] = each.parent
    for child in parents:
        line = [child]
        while line[-1] in parents:
            line.append(parents[line[-1]])
            if line[-1] == child:
                raise DataError(f"no characteristic may refine itself: found the circle {' -> '.join(line)}; open it")


def learn_hierarchy(label_ids: Rows, labels: Mapping[str, Sequence[str]]) -> Hierarchy:
    """Finds out which characteristic refines which; of several possible parents the finest is one.

    A parent has fewer labels than the child, and none that nearly all products bear: that would be a property, not a
    level. What one product alone tells is not believed.

    Args:
        label_ids: (n, characteristics) numbers of the labels of the products to learn from; -1: unknown.
        labels: characteristic -> its labels.
    """
    found = []
    for i, (child, own) in enumerate(labels.items()):
        coarser = [(j, name) for j, name in enumerate(labels) if len(labels[name]) < len(own)]
        for j, parent in sorted(coarser, key=lambda each: -len(labels[each[1]])):
            numbers = _parents(_counts(label_ids[:, i], label_ids[:, j], len(own), len(labels[parent])))
            if numbers is not None:
                bound = zip(own, numbers.tolist(), strict=True)
                parents = {label: labels[parent][number] for label, number in bound if number >= 0}
                found.append(Refinement(child, parent, parents))
                break
    return tuple(found)


def _counts(fine: Rows, coarse: Rows, n_fine: int, n_coarse: int) -> Rows:
    """Returns (n_fine, n_coarse): how many products bear both labels."""
    both = (fine >= 0) & (coarse >= 0)
    pairs = np.bincount(fine[both] * n_coarse + coarse[both], minlength=n_fine * n_coarse)
    return pairs.reshape(n_fine, n_coarse).astype(np.int64)


def _parents(counts: Rows) -> Rows | None:
    """Returns (child labels,) the number of the parent label of each, -1 where it is not clear; `None`: no parent."""
    n, borne = counts.sum(), counts.sum(0)
    if not n or borne.max() > _LARGEST_SHARE * n:
        return None
    # The parent of a label is one that more than half of its other products bear, whichever product is left out.
    most, products = counts.max(1), counts.sum(1)
    is_clear = 2 * most > products + 1
    spared = 1 - (n - most[is_clear].sum()) / (n - borne.max())
    shares = most[products > 0] / products[products > 0]
    if spared < _LEAST_SPARED_ERRORS or shares.mean() < _LEAST_SHARE:
        return None
    return np.where(is_clear, counts.argmax(1), -1)


def known_to(hierarchy: Hierarchy, labels: Mapping[str, Sequence[str]]) -> Hierarchy:
    """Returns the part of a hierarchy whose labels the heads know; labels bind nothing if they do not."""
    kept = []
    for each in hierarchy:
        fine, coarse = set(labels.get(each.child, ())), set(labels.get(each.parent, ()))
        parents = {label: parent for label, parent in each.parents.items() if label in fine and parent in coarse}
        if parents:
            kept.append(Refinement(each.child, each.parent, parents))
    return tuple(kept)


def with_relatives(names: Iterable[str], hierarchy: Hierarchy) -> tuple[str, ...]:
    """Returns characteristics and those that must be known to tell them without a contradiction."""
    found = dict.fromkeys(names)
    for family in _families(hierarchy):
        members = {name for each in family for name in (each.child, each.parent)}
        if members & found.keys():
            found |= dict.fromkeys(sorted(members))
    return tuple(found)


def reconcile(
    probabilities: Mapping[str, Floats], labels: Mapping[str, Sequence[str]], hierarchy: Hierarchy
) -> dict[str, Floats]:
    """Returns probabilities whose best labels do not contradict each other.

    A parent label without any child label among `labels` stays possible: with it, nothing is said of the child.

    Args:
        probabilities: characteristic -> (n, k), rows sum to 1; a family of the hierarchy is there whole or not at all.
        labels: characteristic -> its k labels.
        hierarchy: what must not be contradicted.

    Returns:
        As `probabilities`; rows of NaN where nothing is said.
    """
    told = dict(probabilities)
    for family in _families(hierarchy):
        if family[0].child not in told:
            continue
        numbers = {each.child: each.numbers(labels) for each in family}
        is_wrong = np.zeros(len(told[family[0].child]), bool)
        for each in family:
            parent = numbers[each.child][told[each.child].argmax(1)]
            is_wrong |= (parent >= 0) & (parent != told[each.parent].argmax(1))
        if is_wrong.any():
            names = (family[0].parent, *(each.child for each in family))
            joint = _joint({name: told[name][is_wrong] for name in names}, family, numbers)
            for name in names:
                told[name] = told[name].copy()
                told[name][is_wrong] = joint[name]
    return told


def _families(hierarchy: Hierarchy) -> list[list[Refinement]]:
    """Returns the trees of the forest, in each the refinements nearest to its root first."""
    parents = {each.child: each.parent for each in hierarchy}

    def line(name: str) -> list[str]:
        return [name, *line(parents[name])] if name in parents else [name]

    families = defaultdict(list)
    for each in sorted(hierarchy, key=lambda each: len(line(each.child))):
        families[line(each.child)[-1]].append(each)
    return list(families.values())


def _joint(
    probabilities: Mapping[str, Floats], family: Sequence[Refinement], numbers: Mapping[str, Rows]
) -> dict[str, Floats]:
    """Returns the max-marginals of a tree: how likely the best assignment with each label is, rows summing to 1."""
    below: dict[str, Scores] = {
        name: np.log(np.maximum(matrix, _LEAST_PROBABILITY), dtype=np.float64) for name, matrix in probabilities.items()
    }
    messages: dict[str, Scores] = {}
    for each in reversed(family):
        n_parents = probabilities[each.parent].shape[1]
        messages[each.child] = _CHILD_WEIGHT * _best_below(below[each.child], numbers[each.child], n_parents)
        below[each.parent] = below[each.parent] + messages[each.child]
    root = family[0].parent
    scores, chosen, weights = {root: below[root]}, {root: below[root].argmax(1)}, {root: 1.0}
    for each in family:
        weights[each.child] = _CHILD_WEIGHT * weights[each.parent]
        number, outside = numbers[each.child], scores[each.parent] - weights[each.parent] * messages[each.child]
        above = np.where(number >= 0, outside[:, number], outside.max(1, keepdims=True))
        scores[each.child] = own = weights[each.child] * below[each.child] + above
        fits = (number < 0) | (number == chosen[each.parent][:, None])
        chosen[each.child] = np.where(fits.any(1), np.where(fits, own, -np.inf).argmax(1), -1)
    return {name: _shares(scores[name], chosen[name]) for name in scores}


def _best_below(scores: Scores, number: Rows, n_parents: int) -> Scores:
    """Returns (n, parents): the score of the best child of each parent; without a child, that of the best of all."""
    best = np.repeat(scores.max(1, keepdims=True), n_parents, axis=1)
    for parent in range(n_parents):
        fits = (number < 0) | (number == parent)
        if fits.any():
            best[:, parent] = scores[:, fits].max(1)
    return best


def _shares(scores: Scores, chosen: Rows) -> Floats:
    """Returns scores as probabilities in which the chosen label is the best beyond rounding; NaN where none is."""
    scores = scores.copy()
    scores[np.arange(len(scores)), chosen] += _TIE
    shares: Floats = softmax(scores).astype(np.float32)
    shares[chosen < 0] = np.nan
    return shares
