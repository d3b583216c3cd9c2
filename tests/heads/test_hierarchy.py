from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from product_classificator.errors import ArtifactError, DataError
from product_classificator.evaluation import evaluate
from product_classificator.heads import HeadBundle, Refinement
from product_classificator.heads import hierarchy as hierarchies
from product_classificator.heads.hierarchy import check_hierarchy, known_to, learn_hierarchy, reconcile, with_relatives
from product_classificator.training import FittedHeads, HeadSettings, fit_heads
from product_classificator.types import Predictions, strings
from tests.heads.test_bundle import change_manifest
from tests.tiny_catalog import Material

LABELS = {"sub": ("cup", "plate", "boot", "shoe"), "top": ("dishes", "footwear"), "color": ("blue", "green", "red")}
SUB_TOP = Refinement("sub", "top", {"cup": "dishes", "plate": "dishes", "boot": "footwear", "shoe": "footwear"})
PARENT = np.array([0, 0, 1, 1])


def drawn(n: int = 400, wrong: float = 0.0, seed: int = 0) -> np.ndarray:
    """Returns label_ids of sub, top and colour, of which top follows from sub but for a share of wrong labels."""
    draw = np.random.default_rng(seed)
    sub = draw.integers(0, 4, n)
    top = np.where(draw.random(n) < wrong, 1 - PARENT[sub], PARENT[sub])
    return np.stack([sub, top, draw.integers(0, 3, n)], 1)


def shares(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


@pytest.mark.parametrize("wrong", [0.0, 0.05])
def test_what_refines_what_is_learned_from_labels_of_which_some_are_wrong(wrong: float) -> None:
    assert learn_hierarchy(drawn(wrong=wrong), LABELS) == (SUB_TOP,)


def test_characteristics_that_are_independent_refine_nothing() -> None:
    label_ids = drawn(wrong=0.5)
    assert learn_hierarchy(label_ids, LABELS) == ()


def test_a_label_per_product_refines_nothing() -> None:
    label_ids = np.stack([np.arange(100), np.arange(100) % 2], 1)
    labels = {"model": tuple(f"m{i}" for i in range(100)), "kind": ("a", "b")}
    assert learn_hierarchy(label_ids, labels) == ()


def test_a_property_that_nearly_no_product_has_is_no_parent() -> None:
    label_ids = np.stack([np.repeat([0, 1, 2], [60, 38, 2]), np.repeat([0, 1], [98, 2])], 1)
    labels = {"sub": ("a", "b", "c"), "hazmat": ("false", "true")}
    assert learn_hierarchy(label_ids, labels) == ()


def test_unknown_labels_say_nothing_and_may_be_all_there_is() -> None:
    label_ids = drawn()
    label_ids[::2, 0] = label_ids[1::3, 1] = -1
    assert learn_hierarchy(label_ids, LABELS) == (SUB_TOP,)
    assert learn_hierarchy(np.full_like(label_ids, -1), LABELS) == ()


def test_of_several_parents_the_finest_is_one_so_that_levels_make_a_chain() -> None:
    leaf = np.random.default_rng(0).integers(0, 8, 400)
    labels = {"c": ("x", "y"), "a": tuple("abcdefgh"), "b": tuple("ijkl")}
    found = learn_hierarchy(np.stack([leaf // 4, leaf, leaf // 2], 1), labels)
    assert [(each.child, each.parent) for each in found] == [("a", "b"), ("b", "c")]


def test_a_label_without_a_clear_parent_goes_with_every_one() -> None:
    label_ids = drawn()
    rare = np.array([[4, 0, 0], [4, 0, 0], [4, 1, 0]])
    found = learn_hierarchy(np.concatenate([label_ids, rare]), {**LABELS, "sub": (*LABELS["sub"], "set")})
    assert found == (SUB_TOP,)
    assert found[0].numbers({**LABELS, "sub": (*LABELS["sub"], "set")}).tolist() == [0, 0, 1, 1, -1]


def test_the_likeliest_pair_wins_where_the_best_labels_contradict_each_other() -> None:
    told = {
        "sub": shares([0.4, 0.0, 0.35, 0.25], [0.9, 0.0, 0.05, 0.05]),
        "top": shares([0.2, 0.8], [0.4, 0.6]),
    }
    found = reconcile(told, LABELS, (SUB_TOP,))
    assert found["sub"].argmax(1).tolist() == [2, 0]
    assert found["top"].argmax(1).tolist() == [1, 0]
    assert all(np.allclose(matrix.sum(1), 1) for matrix in found.values())


def test_nothing_is_changed_where_the_best_labels_agree() -> None:
    told = {"sub": shares([0.4, 0.1, 0.3, 0.2]), "top": shares([0.7, 0.3]), "color": shares([0.2, 0.3, 0.5])}
    found = reconcile(told, LABELS, (SUB_TOP,))
    assert all(found[name] is told[name] for name in told)


def test_certain_heads_that_contradict_each_other_and_ties_leave_no_contradiction() -> None:
    told = {
        "sub": shares([1, 0, 0, 0], [0, 0, 0, 1], [0.25] * 4, [0, 0.5, 0.5, 0]),
        "top": shares([0, 1], [1, 0], [0.5 - 1e-7, 0.5 + 1e-7], [0.5, 0.5]),
    }
    found = reconcile(told, LABELS, (SUB_TOP,))
    assert (PARENT[found["sub"].argmax(1)] == found["top"].argmax(1)).all()


def test_chains_and_branches_agree_on_every_level() -> None:
    draw = np.random.default_rng(1)
    sizes = {"a": 12, "b": 6, "c": 3, "d": 9}
    labels = {name: tuple(f"{name}{i}" for i in range(k)) for name, k in sizes.items()}
    steps = [("a", "b", 2), ("b", "c", 2), ("d", "c", 3)]
    hierarchy = tuple(Refinement(x, y, {f"{x}{i}": f"{y}{i // s}" for i in range(sizes[x])}) for x, y, s in steps)
    told = {name: draw.dirichlet(np.full(k, 0.3), 500).astype(np.float32) for name, k in sizes.items()}
    best = {name: matrix.argmax(1) for name, matrix in reconcile(told, labels, hierarchy).items()}
    assert all((best[x] // s == best[y]).all() for x, y, s in steps)
    assert with_relatives(["d"], hierarchy) == ("d", "a", "b", "c")


def test_three_levels_are_told_as_likely_as_their_best_assignments() -> None:
    draw = np.random.default_rng(2)
    sizes = {"c": 2, "b": 4, "a": 8}  # from the coarsest to the finest
    labels = {name: tuple(f"{name}{i}" for i in range(k)) for name, k in sizes.items()}
    hierarchy = tuple(
        Refinement(x, y, {f"{x}{i}": f"{y}{i // 2}" for i in range(sizes[x])}) for x, y in (("b", "c"), ("a", "b"))
    )
    told = {name: draw.dirichlet(np.full(k, 0.3), 200).astype(np.float32) for name, k in sizes.items()}
    is_wrong = told["a"].argmax(1) // 2 != told["b"].argmax(1)
    is_wrong |= told["b"].argmax(1) // 2 != told["c"].argmax(1)
    found = reconcile(told, labels, hierarchy)
    weigh = {"c": 1.0, "b": 0.7, "a": 0.7**2}
    log = {name: weigh[name] * np.log(np.maximum(matrix, 1e-12).astype(np.float64)) for name, matrix in told.items()}
    leaf = np.arange(8)
    scores = log["a"] + log["b"][:, leaf // 2] + log["c"][:, leaf // 4]  # of every assignment: a leaf decides all
    for name, step in (("a", 1), ("b", 2), ("c", 4)):
        best = scores.reshape(len(scores), -1, step).max(2)
        assert np.allclose(found[name][is_wrong], softmax(best, axis=1)[is_wrong], atol=2e-5)
    assert is_wrong.sum() > 100


def test_a_parent_whose_refinements_are_unknown_is_told_and_nothing_of_the_child() -> None:
    labels = {**LABELS, "top": ("dishes", "footwear", "makeup")}
    told = {"sub": shares([0.6, 0.2, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1]), "top": shares([0.1, 0.1, 0.8], [0.9, 0.0, 0.1])}
    found = reconcile(told, labels, (SUB_TOP,))
    assert found["top"].argmax(1).tolist() == [2, 0]
    assert np.isnan(found["sub"][0]).all()
    assert found["sub"][1].argmax() == 0
    ids, both = strings(["1", "2"]), {name: labels[name] for name in found}
    predictions = Predictions(ids, both, found, np.ones(2, bool))
    assert predictions.best("sub").tolist() == [None, "cup"]
    assert predictions.best("top").tolist() == ["makeup", "dishes"]
    assert predictions.top("sub", k=1)[0] == []
    scores = evaluate(predictions, {"sub": strings(["cup", "cup"])}).characteristics["sub"]
    assert (scores.n, scores.accuracy, scores.macro_f1) == (2, 0.5, pytest.approx(2 / 3))
    assert scores.confusions == ()


def test_two_parents_and_circles_are_refused() -> None:
    with pytest.raises(DataError, match=r"may refine one other: sub refines top, color \(2 in all\); leave one away"):
        check_hierarchy([SUB_TOP, Refinement("sub", "color", {})])
    with pytest.raises(DataError, match="found the circle sub -> top -> sub; open it"):
        check_hierarchy([SUB_TOP, Refinement("top", "sub", {})])


def test_labels_that_the_heads_do_not_know_bind_nothing() -> None:
    few = {"sub": ("cup", "boot"), "top": ("dishes", "toys")}
    assert known_to((SUB_TOP,), few) == (Refinement("sub", "top", {"cup": "dishes"}),)
    assert known_to((SUB_TOP,), {"sub": ("cup", "boot")}) == ()


@pytest.fixture(scope="module")
def refined(material: Material, quick: HeadSettings) -> FittedHeads:
    """Heads of a characteristic `thing`, which is kind and colour together, beside the kind."""
    thing = strings([f"{colour} {kind}" for kind, colour in zip(*list(material.truth.values())[:2], strict=True)])
    truth = {"thing": thing, "kind": material.truth["kind"]}
    return fit_heads(material.embeddings, material.texts, truth, material.split, replace(quick, max_epochs=1))


def test_predictions_of_fitted_heads_do_not_contradict_what_was_learned(
    refined: FittedHeads, material: Material
) -> None:
    (found,) = refined.bundle.hierarchy
    assert (found.child, found.parent) == ("thing", "kind")
    mixed = replace(material.embeddings, image=material.embeddings.image[::-1].copy())

    def contradictions(bundle: HeadBundle) -> int:
        told = bundle.predict(mixed, material.texts)
        pairs = zip(told.best("thing"), told.best("kind"), strict=True)
        return sum(found.parents[thing] != kind for thing, kind in pairs)

    assert contradictions(replace(refined.bundle, hierarchy=())) > 0
    assert contradictions(refined.bundle) == 0


def test_a_characteristic_is_told_alike_alone_and_with_its_parent(refined: FittedHeads, material: Material) -> None:
    both = refined.bundle.predict(material.embeddings, material.texts)
    for name in ("thing", "kind"):
        alone = refined.bundle.predict(material.embeddings, material.texts, [name])
        assert alone.characteristics == (name,)
        assert np.array_equal(alone.probabilities[name], both.probabilities[name])


def test_a_given_hierarchy_is_taken_instead_and_the_recipe_of_2024_learns_none(
    material: Material, quick: HeadSettings
) -> None:
    few = replace(quick, max_epochs=1)
    given = (Refinement("kind", "colour", {"mug": "red", "shoe": "green"}),)
    inputs = material.embeddings, material.texts, material.truth, material.split
    found = fit_heads(*inputs, few, hierarchy=given).bundle.hierarchy
    assert found == (Refinement("kind", "colour", {"mug": "red"}),)
    assert fit_heads(*inputs, replace(few, recipe="published")).bundle.hierarchy == ()


def test_a_bundle_keeps_its_hierarchy_and_its_digest_names_it(refined: FittedHeads, tmp_path: Path) -> None:
    refined.bundle.save(tmp_path / "heads")
    loaded = HeadBundle.load(tmp_path / "heads")
    assert loaded.hierarchy == refined.bundle.hierarchy
    assert loaded.digest == refined.bundle.digest != replace(loaded, hierarchy=()).digest


@pytest.mark.parametrize(
    ("hierarchy", "message"),
    [
        ([{"child": "thing", "parent": "kind", "parents": {"x": "y"}}], "names labels that the heads do not know"),
        ([{"child": "thing", "parent": "thing", "parents": {}}], "no characteristic may refine itself"),
        ([{"child": "thing"}], "is not the manifest"),
    ],
)
def test_a_damaged_hierarchy_is_refused(refined: FittedHeads, tmp_path: Path, hierarchy: object, message: str) -> None:
    refined.bundle.save(tmp_path / "heads")
    change_manifest(tmp_path / "heads", hierarchy=hierarchy)
    with pytest.raises(ArtifactError, match=message):
        HeadBundle.load(tmp_path / "heads")


def test_shares_are_the_softmax_of_scipy_to_the_last_bit():
    scores = np.random.default_rng(0).normal(0, 30, (200, 7))
    chosen = scores.argmax(1)
    raised = scores.copy()
    raised[np.arange(len(scores)), chosen] += hierarchies._TIE
    assert np.array_equal(hierarchies._shares(scores, chosen), softmax(raised, axis=1).astype(np.float32))
