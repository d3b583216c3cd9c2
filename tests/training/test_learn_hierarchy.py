import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from product_classificator.heads import Hierarchy
from product_classificator.training.targets import Target
from product_classificator.training.taxonomy import learn_hierarchy
from product_classificator.types import strings
from tests.heads.test_hierarchy import LABELS, PARENT, SUB_TOP


def learn(label_ids: np.ndarray, labels: dict[str, Sequence[str]]) -> Hierarchy:
    """Return what is learned from (n, characteristics) label ids."""
    pairs = zip(labels.items(), label_ids.T, strict=True)
    targets = [Target.of(name, tuple(names), strings([*names, None])[column]) for (name, names), column in pairs]
    return learn_hierarchy(targets, np.arange(len(label_ids)))


def drawn(n: int = 400, wrong: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return label_ids of sub, top and colour, of which top follows from sub but for a share of wrong labels."""
    draw = np.random.default_rng(seed)
    sub = draw.integers(0, 4, n)
    top = np.where(draw.random(n) < wrong, 1 - PARENT[sub], PARENT[sub])
    return np.stack([sub, top, draw.integers(0, 3, n)], 1)


@pytest.mark.parametrize("wrong", [0.0, 0.05])
def test_what_refines_what_is_learned_from_labels_of_which_some_are_wrong(wrong: float) -> None:
    assert learn(drawn(wrong=wrong), LABELS) == (SUB_TOP,)


def test_characteristics_that_are_independent_refine_nothing() -> None:
    label_ids = drawn(wrong=0.5)
    assert learn(label_ids, LABELS) == ()


def test_a_label_per_product_refines_nothing() -> None:
    label_ids = np.stack([np.arange(100), np.arange(100) % 2], 1)
    labels = {"model": tuple(f"m{i}" for i in range(100)), "kind": ("a", "b")}
    assert learn(label_ids, labels) == ()


def test_a_property_that_nearly_no_product_has_is_no_parent() -> None:
    label_ids = np.stack([np.repeat([0, 1, 2], [60, 38, 2]), np.repeat([0, 1], [98, 2])], 1)
    labels = {"sub": ("a", "b", "c"), "hazmat": ("false", "true")}
    assert learn(label_ids, labels) == ()


def test_unknown_labels_change_nothing_and_may_be_all_there_is() -> None:
    label_ids = drawn()
    label_ids[::2, 0] = label_ids[1::3, 1] = -1
    assert learn(label_ids, LABELS) == (SUB_TOP,)
    assert learn(np.full_like(label_ids, -1), LABELS) == ()


def test_of_several_parents_the_finest_is_one_so_that_levels_make_a_chain() -> None:
    leaf = np.random.default_rng(0).integers(0, 8, 400)
    labels = {"c": ("x", "y"), "a": tuple("abcdefgh"), "b": tuple("ijkl")}
    hierarchy = learn(np.stack([leaf // 4, leaf, leaf // 2], 1), labels)
    assert [(refinement.child, refinement.parent) for refinement in hierarchy] == [("a", "b"), ("b", "c")]


def test_a_label_without_a_clear_parent_goes_with_every_one() -> None:
    label_ids = drawn()
    rare = np.array([[4, 0, 0], [4, 0, 0], [4, 1, 0]])
    hierarchy = learn(np.concatenate([label_ids, rare]), {**LABELS, "sub": (*LABELS["sub"], "set")})
    assert hierarchy == (SUB_TOP,)
    assert hierarchy[0].parent_ids({**LABELS, "sub": (*LABELS["sub"], "set")}).tolist() == [0, 0, 1, 1, -1]


def test_thousands_of_labels_take_no_table_of_all_pairs() -> None:
    draw, k = np.random.default_rng(0), (5000, 4000)
    names = [tuple(map(str, range(n))) for n in k]
    targets = [Target.of(f"{len(n)}", n, strings(n)[draw.integers(0, len(n), 20_000)]) for n in names]
    tracemalloc.start()
    learn_hierarchy(targets, np.arange(20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 160 MB if every pair is counted


def test_a_child_with_many_labels_that_are_not_learned_refines_nothing() -> None:
    parent = strings(["ab", "cd"] * 50)
    fine = strings([("a", "c")[i % 2] if i < 70 else f"rare {i}" for i in range(100)])
    targets = [Target.of("fine", ("a", "c", "x"), fine), Target.of("coarse", ("ab", "cd"), parent)]
    rows = np.arange(100)
    assert targets[0].has_other.sum() == 30
    assert learn_hierarchy(targets, rows) == ()
    assert [pair.child for pair in learn_hierarchy(targets, rows[:85])] == ["fine"]
