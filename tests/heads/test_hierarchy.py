from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from product_classificator.errors import ArtifactError, DataError
from product_classificator.evaluation import evaluate
from product_classificator.heads import HeadBundle, Refinement
from product_classificator.heads import hierarchy as hierarchies
from product_classificator.heads.hierarchy import check_hierarchy, reconcile, restrict_hierarchy, with_relatives
from product_classificator.training import FittedHeads, HeadSettings, LabelledProducts, fit_heads
from product_classificator.types import Predictions, strings
from tests.heads.test_bundle import change_manifest

LABELS = {"sub": ("cup", "plate", "boot", "shoe"), "top": ("dishes", "footwear"), "color": ("blue", "green", "red")}
SUB_TOP = Refinement("sub", "top", {"cup": "dishes", "plate": "dishes", "boot": "footwear", "shoe": "footwear"})
PARENT = np.array([0, 0, 1, 1])


def shares(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_the_likeliest_pair_wins_where_the_best_labels_contradict_each_other() -> None:
    given = {
        "sub": shares([0.4, 0.0, 0.35, 0.25], [0.9, 0.0, 0.05, 0.05]),
        "top": shares([0.2, 0.8], [0.4, 0.6]),
    }
    consistent = reconcile(given, LABELS, (SUB_TOP,))
    assert consistent["sub"].argmax(1).tolist() == [2, 0]
    assert consistent["top"].argmax(1).tolist() == [1, 0]
    assert all(np.allclose(matrix.sum(1), 1) for matrix in consistent.values())


def test_nothing_is_changed_where_the_best_labels_agree() -> None:
    given = {"sub": shares([0.4, 0.1, 0.3, 0.2]), "top": shares([0.7, 0.3]), "color": shares([0.2, 0.3, 0.5])}
    consistent = reconcile(given, LABELS, (SUB_TOP,))
    assert all(consistent[name] is given[name] for name in given)


def test_certain_heads_that_contradict_each_other_and_ties_leave_no_contradiction() -> None:
    given = {
        "sub": shares([1, 0, 0, 0], [0, 0, 0, 1], [0.25] * 4, [0, 0.5, 0.5, 0]),
        "top": shares([0, 1], [1, 0], [0.5 - 1e-7, 0.5 + 1e-7], [0.5, 0.5]),
    }
    consistent = reconcile(given, LABELS, (SUB_TOP,))
    assert (PARENT[consistent["sub"].argmax(1)] == consistent["top"].argmax(1)).all()


def test_chains_and_branches_agree_on_every_level() -> None:
    draw = np.random.default_rng(1)
    sizes = {"a": 12, "b": 6, "c": 3, "d": 9}
    labels = {name: tuple(f"{name}{i}" for i in range(k)) for name, k in sizes.items()}
    steps = [("a", "b", 2), ("b", "c", 2), ("d", "c", 3)]
    hierarchy = tuple(Refinement(x, y, {f"{x}{i}": f"{y}{i // s}" for i in range(sizes[x])}) for x, y, s in steps)
    given = {name: draw.dirichlet(np.full(k, 0.3), 500).astype(np.float32) for name, k in sizes.items()}
    best = {name: matrix.argmax(1) for name, matrix in reconcile(given, labels, hierarchy).items()}
    assert all((best[x] // s == best[y]).all() for x, y, s in steps)
    assert with_relatives(["d"], hierarchy) == ("d", "a", "b", "c")


def test_three_levels_are_as_likely_as_their_best_assignments() -> None:
    draw = np.random.default_rng(2)
    sizes = {"c": 2, "b": 4, "a": 8}  # from the coarsest to the finest
    labels = {name: tuple(f"{name}{i}" for i in range(k)) for name, k in sizes.items()}
    hierarchy = tuple(
        Refinement(x, y, {f"{x}{i}": f"{y}{i // 2}" for i in range(sizes[x])}) for x, y in (("b", "c"), ("a", "b"))
    )
    given = {name: draw.dirichlet(np.full(k, 0.3), 200).astype(np.float32) for name, k in sizes.items()}
    is_wrong = given["a"].argmax(1) // 2 != given["b"].argmax(1)
    is_wrong |= given["b"].argmax(1) // 2 != given["c"].argmax(1)
    consistent = reconcile(given, labels, hierarchy)
    weigh = {"c": 1.0, "b": 0.5, "a": 0.5**2}
    log = {name: weigh[name] * np.log(np.maximum(matrix, 1e-12).astype(np.float64)) for name, matrix in given.items()}
    leaf = np.arange(8)
    scores = log["a"] + log["b"][:, leaf // 2] + log["c"][:, leaf // 4]  # of every assignment: a leaf decides all
    for name, step in (("a", 1), ("b", 2), ("c", 4)):
        best = scores.reshape(len(scores), -1, step).max(2)
        assert np.allclose(consistent[name][is_wrong], softmax(best, axis=1)[is_wrong], atol=2e-5)
    assert is_wrong.sum() > 100


def test_a_parent_without_known_children_is_predicted_and_its_child_is_not() -> None:
    labels = {**LABELS, "top": ("dishes", "footwear", "makeup")}
    given = {
        "sub": shares([0.6, 0.2, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1]),
        "top": shares([0.1, 0.1, 0.8], [0.9, 0.0, 0.1]),
    }
    consistent = reconcile(given, labels, (SUB_TOP,))
    assert consistent["top"].argmax(1).tolist() == [2, 0]
    assert np.isnan(consistent["sub"][0]).all()
    assert consistent["sub"][1].argmax() == 0
    ids, both = strings(["1", "2"]), {name: labels[name] for name in consistent}
    predictions = Predictions(ids, both, consistent, np.ones(2, bool))
    assert predictions.best("sub").tolist() == [None, "cup"]
    assert predictions.best("top").tolist() == ["makeup", "dishes"]
    assert predictions.top("sub", k=1)[0] == []
    scores = evaluate(predictions, {"sub": strings(["cup", "cup"])}).characteristics["sub"]
    assert (scores.n, scores.accuracy, scores.macro_f1) == (2, 0.5, pytest.approx(2 / 3))
    assert scores.confusions == ()


@pytest.mark.parametrize("top", [[0.40, 0.19, 0.41], [0.19, 0.40, 0.41]])
def test_a_parent_without_known_children_gains_nothing_from_a_child_that_contradicts_it(top: list[float]) -> None:
    labels = {**LABELS, "top": ("dishes", "footwear", "makeup")}
    consistent = reconcile({"sub": shares([0.99, 0.004, 0.003, 0.003]), "top": shares(top)}, labels, (SUB_TOP,))
    assert (consistent["sub"].argmax(), consistent["top"].argmax()) == (0, 0)


def test_two_parents_and_cycles_are_refused() -> None:
    with pytest.raises(DataError, match=r"may refine one other: sub refines top, color \(2 in all\); leave one out"):
        check_hierarchy([SUB_TOP, Refinement("sub", "color", {})])
    with pytest.raises(DataError, match="found the cycle sub -> top -> sub: break it"):
        check_hierarchy([SUB_TOP, Refinement("top", "sub", {})])


def test_labels_that_the_heads_do_not_know_bind_nothing() -> None:
    few = {"sub": ("cup", "boot"), "top": ("dishes", "toys")}
    assert restrict_hierarchy((SUB_TOP,), few) == (Refinement("sub", "top", {"cup": "dishes"}),)
    assert restrict_hierarchy((SUB_TOP,), {"sub": ("cup", "boot")}) == ()


@pytest.fixture(scope="module")
def refined(products: LabelledProducts, quick: HeadSettings) -> FittedHeads:
    """Heads of a characteristic `thing`, which is kind and colour together, beside the kind."""
    thing = strings([f"{colour} {kind}" for kind, colour in zip(*list(products.truth.values())[:2], strict=True)])
    truth = {"thing": thing, "kind": products.truth["kind"]}
    return fit_heads(replace(products, truth=truth), replace(quick, epochs=1))


def test_predictions_of_fitted_heads_do_not_contradict_what_was_learned(
    refined: FittedHeads, products: LabelledProducts
) -> None:
    (refinement,) = refined.bundle.hierarchy
    assert (refinement.child, refinement.parent) == ("thing", "kind")
    mixed = replace(products.embeddings, image=products.embeddings.image[::-1].copy())

    def contradictions(bundle: HeadBundle) -> int:
        given = bundle.predict(mixed, products.texts)
        pairs = zip(given.best("thing"), given.best("kind"), strict=True)
        return sum(refinement.parents[thing] != kind for thing, kind in pairs)

    assert contradictions(replace(refined.bundle, hierarchy=())) > 0
    assert contradictions(refined.bundle) == 0


def test_a_characteristic_is_predicted_alike_alone_and_with_its_parent(
    refined: FittedHeads, products: LabelledProducts
) -> None:
    both = refined.bundle.predict(products.embeddings, products.texts)
    for name in ("thing", "kind"):
        alone = refined.bundle.predict(products.embeddings, products.texts, [name])
        assert alone.characteristics == (name,)
        assert np.array_equal(alone.probabilities[name], both.probabilities[name])


def test_a_given_hierarchy_is_used_instead(products: LabelledProducts, quick: HeadSettings) -> None:
    few = replace(quick, epochs=1)
    given = (Refinement("kind", "colour", {"mug": "red", "shoe": "green"}),)
    hierarchy = fit_heads(products, few, hierarchy=given).bundle.hierarchy
    assert hierarchy == (Refinement("kind", "colour", {"mug": "red"}),)


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
    assert np.array_equal(hierarchies.softmax(scores), softmax(scores, axis=1))
