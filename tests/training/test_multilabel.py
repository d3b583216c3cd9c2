"""A product bears any number of labels: the colour of the text, and the kind of the photo, in one characteristic."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import f1_score

from product_classificator.errors import ArtifactError
from product_classificator.heads import HeadBundle
from product_classificator.training import FittedHeads, HeadSettings, fit_heads
from product_classificator.training.calibration import fit_set_temperature, fit_temperatures
from product_classificator.training.multilabel import (
    fit_decision_thresholds,
    log_odds,
    loss_of,
    macro_f1_of,
    mean_f1,
)
from product_classificator.types import Strings, strings
from tests.heads.test_bundle import change_manifest
from tests.tiny_catalog import COLOURS, KINDS, Material


def sets_of(material: Material) -> Strings:
    """Returns colour and kind as sets; every tenth product bears none, every eleventh is unknown, one label is rare."""
    sets = [frozenset(pair) for pair in zip(material.truth["kind"], material.truth["colour"], strict=True)]
    sets[::10] = [frozenset()] * len(sets[::10])
    sets[::11] = [None] * len(sets[::11])
    sets[1] = sets[1] | {"rare"}
    return strings(sets)


@pytest.fixture(scope="module")
def marked(material: Material) -> Material:
    return replace(material, truth={**material.truth, "marks": sets_of(material)})


@pytest.fixture(scope="module")
def heads(marked: Material, quick: HeadSettings) -> FittedHeads:
    return fit_heads(marked.embeddings, marked.texts, marked.truth, marked.split, quick)


@pytest.mark.parametrize("recipe", ["joint", "published"])
def test_each_label_is_learned_by_itself(marked: Material, quick: HeadSettings, recipe: str) -> None:
    settings = quick if recipe == "joint" else replace(HeadSettings.published(), max_epochs=30, learning_rate=3e-3)
    bundle = fit_heads(marked.embeddings, marked.texts, marked.truth, marked.split, settings).bundle
    embeddings, texts = marked.rows("test")
    predictions = bundle.predict(embeddings, texts)
    assert bundle.labels["marks"] == tuple(sorted((*KINDS, *COLOURS)))
    kinds = [{label for label in item if label in KINDS} for item in predictions.best("marks")]
    true = marked.truth["kind"][marked.split.rows("test")]
    empty = [item == frozenset() for item in marked.truth["marks"][marked.split.rows("test")]]
    right = [kind == {own} for kind, own, none in zip(kinds, true, empty, strict=True) if not none]
    assert np.mean(right) > 0.8
    assert not np.allclose(predictions.probabilities["marks"].sum(1), 1)


def test_a_rare_label_is_left_out_and_the_product_is_learned_from_all_the_same(heads: FittedHeads) -> None:
    assert heads.left_out["marks"] == {"rare": 1}
    assert "marks" in heads.history[0].valid_macro_f1


def test_a_characteristic_of_one_label_may_be_multi_label(marked: Material, quick: HeadSettings) -> None:
    marks = strings([None if item is None else item & {"red"} for item in marked.truth["marks"]])
    bundle = fit_heads(marked.embeddings, marked.texts, {"marks": marks}, marked.split, quick).bundle
    assert bundle.labels == {"marks": ("red",)}
    embeddings, texts = marked.rows("test")
    told = [item == {"red"} for item in bundle.predict(embeddings, texts).best("marks")]
    assert np.corrcoef(told, ["red" in text for text in texts])[0, 1] > 0.5


def test_a_multi_label_characteristic_refines_none_and_is_refined_by_none(
    material: Material, quick: HeadSettings
) -> None:
    finer = strings([f"{kind} {i % 2}" for i, kind in enumerate(material.truth["kind"])])
    sets = strings([frozenset([kind]) for kind in material.truth["kind"]])
    for coarse, found in ((material.truth["kind"], 1), (sets, 0)):
        truth = {"coarse": coarse, "fine": finer}
        bundle = fit_heads(
            material.embeddings, material.texts, truth, material.split, replace(quick, max_epochs=1)
        ).bundle
        assert len(bundle.hierarchy) == found


def test_a_bundle_keeps_its_cuts(heads: FittedHeads, marked: Material, tmp_path: Path) -> None:
    heads.bundle.save(tmp_path / "heads")
    loaded = HeadBundle.load(tmp_path / "heads")
    assert loaded.decision_thresholds == heads.bundle.decision_thresholds
    assert loaded.digest == heads.bundle.digest
    embeddings, texts = marked.rows("test")
    before, after = (bundle.predict(embeddings, texts) for bundle in (heads.bundle, loaded))
    assert before.best("marks").tolist() == after.best("marks").tolist()
    assert replace(heads.bundle, decision_thresholds={"marks": (0.1,) * 5}).digest != loaded.digest


def test_a_bundle_from_before_is_read_with_one_label_a_product(fitted: FittedHeads, tmp_path: Path) -> None:
    fitted.bundle.save(tmp_path / "heads")
    manifest = json.loads((tmp_path / "heads/manifest.json").read_text("utf-8"))
    del manifest["decision_thresholds"]
    (tmp_path / "heads/manifest.json").write_text(json.dumps(manifest | {"format": 2}), "utf-8")
    assert HeadBundle.load(tmp_path / "heads").decision_thresholds == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decision_thresholds": {"marks": [0.5]}}, "marks needs a cut from 0 to 1 for each of its labels"),
        ({"decision_thresholds": {"marks": [2.0] * 5}}, "marks needs a cut from 0 to 1 for each of its labels"),
        ({"decision_thresholds": {"nothing": [0.5]}}, "nothing needs a cut from 0 to 1 for each of its labels"),
        (
            {"hierarchy": [{"child": "marks", "parent": "kind", "parents": {"red": "mug"}}]},
            "a multi-label characteristic refines none and is refined by none",
        ),
    ],
)
def test_cuts_that_cannot_be_are_refused(
    heads: FittedHeads, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    heads.bundle.save(tmp_path / "heads")
    change_manifest(tmp_path / "heads", **changes)
    with pytest.raises(ArtifactError, match=message):
        HeadBundle.load(tmp_path / "heads")


def test_the_most_probable_label_is_explained_against_its_absence(heads: FittedHeads, marked: Material) -> None:
    embeddings, texts = marked.rows("test")
    predictions = heads.bundle.predict(embeddings, texts)
    why = predictions.explain(3)["marks"]
    [(label, probability)] = predictions.top("marks", 1)[3]
    assert (why.label, why.runner_up) == (label, None)
    assert why.base + why.photo + why.text == pytest.approx(np.log(probability / (1 - probability)), abs=1e-3)
    assert set(why.words) <= set(heads.bundle.vocabulary.words)


def test_a_set_stands_if_its_confidence_keeps_the_promise(heads: FittedHeads, marked: Material) -> None:
    embeddings, texts = marked.rows("test")
    predictions = heads.bundle.predict(embeddings, texts)
    decided = heads.bundle.with_decisions(predictions, embeddings, texts, 0.5)
    assert decided.decisions is not None
    accepted = decided.decisions.accepted["marks"]
    right = predictions.best("marks") == marked.truth["marks"][marked.split.rows("test")]
    known = np.array([item is not None for item in marked.truth["marks"][marked.split.rows("test")]])
    assert accepted.any()
    assert right[accepted & known].mean() > 0.5
    assert (
        predictions.confidence("marks")[accepted].min() > predictions.confidence("marks")[~accepted].max(initial=0) - 1
    )


def indicators(matrix: list[list[int]]) -> csr_matrix:
    return csr_matrix(np.array(matrix, np.float32))


def test_the_loss_is_the_negative_log_likelihood_of_what_is_known() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0], [9.0, 9.0]])
    loss = loss_of(logits, indicators([[1, 0], [0, 1], [0, 0]]), torch.tensor([True, True, False]))
    p = torch.sigmoid(logits)
    likelihood = p[0, 0] * (1 - p[0, 1]) * (1 - p[1, 0]) * p[1, 1]
    assert float(loss) == pytest.approx(float(-likelihood.log()), abs=1e-5)


def test_biases_start_at_the_log_odds() -> None:
    assert log_odds(indicators([[1, 0], [1, 0], [0, 0]]), 3) == pytest.approx(np.log([2.5 / 1.5, 0.5 / 3.5]), abs=1e-5)


def test_logits_that_are_twice_too_large_are_halved() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (2000, 4))
    found = csr_matrix((random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32))
    everything = np.ones(2000, dtype=np.bool_)
    assert fit_set_temperature((2 * logits).astype(np.float32), everything, found) == pytest.approx(2, abs=0.15)
    assert fit_set_temperature(logits.astype(np.float32), ~everything, found) == 1
    temperatures, exponents = fit_temperatures(
        (2 * logits).astype(np.float32), np.zeros((2000, 1), dtype=np.int64), [slice(0, 4)], {0: found}
    )
    assert (round(temperatures[0], 1), exponents[0]) == (2.0, 0.0)


def test_cuts_find_the_best_f1_where_products_are_many() -> None:
    random = np.random.default_rng(0)
    p = random.beta(1, 6, (20_000, 2)).astype(np.float32)
    true = csr_matrix((random.random(p.shape) < p).astype(np.float32))
    found = macro_f1_of(p >= fit_decision_thresholds(p, true), true)
    best = max(macro_f1_of(p >= cut, true) for cut in np.linspace(0.05, 0.6, 50))
    assert found > best - 0.005
    assert macro_f1_of(p >= 0.5, true) < best - 0.1


def test_one_lucky_product_does_not_move_a_cut_by_much() -> None:
    p = np.random.default_rng(0).beta(1, 6, (500, 1)).astype(np.float32)
    lucky = np.zeros((500, 1), np.float32)
    lucky[p[:, 0].argmax()] = 1
    nothing = np.zeros((500, 1), np.float32)
    assert (
        abs(fit_decision_thresholds(p, csr_matrix(lucky)) - fit_decision_thresholds(p, csr_matrix(nothing)))[0] < 0.02
    )
    assert fit_decision_thresholds(p, csr_matrix(nothing))[0] <= 0.5


def test_without_products_cuts_are_a_half() -> None:
    assert fit_decision_thresholds(np.empty((0, 2), np.float32), csr_matrix((0, 2), dtype=np.float32)).tolist() == [
        0.5,
        0.5,
    ]


def test_a_label_is_told_only_if_it_is_likelier_than_its_cut() -> None:
    assert macro_f1_of(np.array([[True, False]]), indicators([[1, 0]])) == 1
    assert macro_f1_of(np.array([[True, True]]), indicators([[1, 0]])) == 0.5
    assert macro_f1_of(np.array([[False, False]]), indicators([[0, 0]])) == 0


def test_mean_f1_is_that_of_scikit_learn_also_with_labels_that_are_never_true_or_never_told():
    true, told = np.array([0, 0, 1, 1, 3, 3]), np.array([0, 1, 1, 1, 4, 0])
    counts = [np.bincount(each, minlength=6) for each in (true[true == told], true, told)]
    expected = f1_score(true, told, average="macro", zero_division=0)
    assert mean_f1(counts[0], counts[1] + counts[2]) == pytest.approx(expected)
    assert mean_f1(np.zeros(2, int), np.zeros(2, int)) == 0
