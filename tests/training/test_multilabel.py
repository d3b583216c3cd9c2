"""A product bears any number of labels: the colour of the text, and the kind of the photo, in one characteristic."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import f1_score

from product_classificator.errors import ArtifactError
from product_classificator.heads import HeadBundle
from product_classificator.training import FittedHeads, HeadSettings, LabelledProducts, fit_heads
from product_classificator.training.epochs import log_odds, multi_label_loss
from product_classificator.training.targets import Target
from product_classificator.training.thresholds import calibrate, fit_decision_thresholds, fit_multi_label_temperature
from product_classificator.types import Split, Strings, strings
from tests.heads.test_bundle import change_characteristic, change_manifest
from tests.tiny_catalog import COLOURS, KINDS, rows_of


def sets_of(products: LabelledProducts) -> Strings:
    """Return colour and kind as sets; every tenth product bears none, every eleventh is unknown, one label is rare."""
    sets = [frozenset(pair) for pair in zip(products.truth["kind"], products.truth["colour"], strict=True)]
    sets[::10] = [frozenset()] * len(sets[::10])
    sets[::11] = [None] * len(sets[::11])
    sets[1] = sets[1] | {"rare"}
    return strings(sets)


@pytest.fixture(scope="module")
def marked(products: LabelledProducts) -> LabelledProducts:
    return replace(products, truth={**products.truth, "marks": sets_of(products)})


@pytest.fixture(scope="module")
def heads(marked: LabelledProducts, quick: HeadSettings) -> FittedHeads:
    return fit_heads(marked, quick, refit=False)


def test_each_label_is_learned_by_itself(heads: FittedHeads, marked: LabelledProducts) -> None:
    bundle = heads.bundle
    embeddings, texts = rows_of(marked, "test")
    predictions = bundle.predict(embeddings, texts)
    assert bundle.labels["marks"] == tuple(sorted((*KINDS, *COLOURS)))
    kinds = [{label for label in item if label in KINDS} for item in predictions.best("marks")]
    true = marked.truth["kind"][marked.split.rows("test")]
    empty = [item == frozenset() for item in marked.truth["marks"][marked.split.rows("test")]]
    right = [kind == {expected} for kind, expected, none in zip(kinds, true, empty, strict=True) if not none]
    assert np.mean(right) > 0.8
    assert not np.allclose(predictions.probabilities["marks"].sum(1), 1)


def test_a_rare_label_is_left_out_and_the_product_is_learned_from_all_the_same(heads: FittedHeads) -> None:
    assert heads.left_out["marks"] == {"rare": 1}
    assert "rare" not in heads.bundle.labels["marks"]


def test_a_characteristic_of_one_label_may_be_multi_label(marked: LabelledProducts, quick: HeadSettings) -> None:
    marks = strings([None if item is None else item & {"red"} for item in marked.truth["marks"]])
    bundle = fit_heads(replace(marked, truth={"marks": marks}), quick, refit=False).bundle
    assert bundle.labels == {"marks": ("red",)}
    embeddings, texts = rows_of(marked, "test")
    predicted = [item == {"red"} for item in bundle.predict(embeddings, texts).best("marks")]
    assert np.corrcoef(predicted, ["red" in text for text in texts])[0, 1] > 0.5


def test_a_multi_label_characteristic_refines_none_and_is_refined_by_none(
    products: LabelledProducts, quick: HeadSettings
) -> None:
    finer = strings([f"{kind} {i % 2}" for i, kind in enumerate(products.truth["kind"])])
    sets = strings([frozenset([kind]) for kind in products.truth["kind"]])
    for coarse, n_refinements in ((products.truth["kind"], 1), (sets, 0)):
        truth = {"coarse": coarse, "fine": finer}
        bundle = fit_heads(replace(products, truth=truth), replace(quick, epochs=1)).bundle
        assert len(bundle.hierarchy) == n_refinements


def test_a_bundle_keeps_its_decision_thresholds(heads: FittedHeads, marked: LabelledProducts, tmp_path: Path) -> None:
    heads.bundle.save(tmp_path / "heads")
    loaded = HeadBundle.load(tmp_path / "heads")
    assert loaded["marks"].decision_thresholds == heads.bundle["marks"].decision_thresholds
    assert loaded.digest == heads.bundle.digest
    embeddings, texts = rows_of(marked, "test")
    before, after = (bundle.predict(embeddings, texts) for bundle in (heads.bundle, loaded))
    assert before.best("marks").tolist() == after.best("marks").tolist()
    changed = [
        replace(item, decision_thresholds=(0.1,) * 5) if item.name == "marks" else item
        for item in loaded.characteristics
    ]
    assert replace(loaded, characteristics=tuple(changed)).digest != loaded.digest


@pytest.mark.parametrize("thresholds", [[0.5], [2.0] * 5])
def test_decision_thresholds_that_make_no_sense_are_refused(
    heads: FittedHeads, tmp_path: Path, thresholds: list[float]
) -> None:
    heads.bundle.save(tmp_path / "heads")
    change_characteristic(tmp_path / "heads", "marks", decision_thresholds=thresholds)
    with pytest.raises(ArtifactError, match="marks needs a decision threshold from 0 to 1 for each of its labels"):
        HeadBundle.load(tmp_path / "heads")


def test_a_hierarchy_of_multi_label_characteristics_is_refused(heads: FittedHeads, tmp_path: Path) -> None:
    heads.bundle.save(tmp_path / "heads")
    hierarchy = [{"child": "marks", "parent": "kind", "parents": {"red": "mug"}}]
    change_manifest(tmp_path / "heads", hierarchy=hierarchy)
    with pytest.raises(ArtifactError, match="a multi-label characteristic refines none and is refined by none"):
        HeadBundle.load(tmp_path / "heads")


def test_the_most_probable_label_is_explained_against_its_absence(heads: FittedHeads, marked: LabelledProducts) -> None:
    embeddings, texts = rows_of(marked, "test")
    predictions = heads.bundle.predict(embeddings, texts)
    why = predictions.explain(3)["marks"]
    [(label, probability)] = predictions.top("marks", 1)[3]
    assert (why.label, why.runner_up) == (label, None)
    assert why.base + why.photo + why.text == pytest.approx(np.log(probability / (1 - probability)), abs=1e-3)
    assert set(why.words) <= set(heads.bundle.vocabulary.words)


def test_a_set_is_accepted_if_its_confidence_keeps_the_promise(heads: FittedHeads, marked: LabelledProducts) -> None:
    embeddings, texts = rows_of(marked, "test")
    predictions = heads.bundle.predict(embeddings, texts)
    decided = heads.bundle.with_decisions(predictions, embeddings, texts, 0.5)
    assert decided.decisions is not None
    accepted = decided.decisions.accepted["marks"]
    right = predictions.best("marks") == marked.truth["marks"][marked.split.rows("test")]
    has_label = np.array([item is not None for item in marked.truth["marks"][marked.split.rows("test")]])
    assert accepted.any()
    assert right[accepted & has_label].mean() > 0.5
    assert (
        predictions.confidence("marks")[accepted].min() > predictions.confidence("marks")[~accepted].max(initial=0) - 1
    )


def indicators(matrix: list[list[int]]) -> csr_matrix:
    return csr_matrix(np.array(matrix, np.float32))


def test_the_loss_is_the_negative_log_likelihood_of_what_is_known() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0], [9.0, 9.0]])
    loss = multi_label_loss(logits, indicators([[1, 0], [0, 1], [0, 0]]), torch.tensor([True, True, False]))
    p = torch.sigmoid(logits)
    likelihood = p[0, 0] * (1 - p[0, 1]) * (1 - p[1, 0]) * p[1, 1]
    assert float(loss) == pytest.approx(float(-likelihood.log()), abs=1e-5)


def test_biases_start_at_the_log_odds() -> None:
    assert log_odds(np.array([2, 0]), 3) == pytest.approx(np.log([2.5 / 1.5, 0.5 / 3.5]), abs=1e-5)


def test_logits_that_are_twice_too_large_are_halved() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (2000, 4))
    drawn = csr_matrix((random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32))
    double = (2 * logits).astype(np.float32)
    assert fit_multi_label_temperature(double, drawn) == pytest.approx(2, abs=0.15)
    assert fit_multi_label_temperature(double[:0], drawn[:0]) == 1
    marks = calibrate(Target("marks", tuple("abcd"), drawn, np.ones(2000, bool), np.zeros(2000, bool), True), double)
    assert (round(marks.temperature, 1), marks.temperature_exponent, marks.is_multi_label) == (2.0, 0.0, True)


def test_decision_thresholds_find_the_best_f1_where_products_are_many() -> None:
    random = np.random.default_rng(0)
    p = random.beta(1, 6, (20_000, 2)).astype(np.float32)
    true = csr_matrix((random.random(p.shape) < p).astype(np.float32))
    reached = f1_score(true, csr_matrix(p >= fit_decision_thresholds(p, true)), average="macro")
    best = max(f1_score(true, csr_matrix(p >= cut), average="macro") for cut in np.linspace(0.05, 0.6, 50))
    assert reached > best - 0.005
    assert f1_score(true, csr_matrix(p >= 0.5), average="macro") < best - 0.1


def test_one_lucky_product_hardly_moves_a_decision_threshold() -> None:
    p = np.random.default_rng(0).beta(1, 6, (500, 1)).astype(np.float32)
    lucky = np.zeros((500, 1), np.float32)
    lucky[p[:, 0].argmax()] = 1
    nothing = np.zeros((500, 1), np.float32)
    assert (
        abs(fit_decision_thresholds(p, csr_matrix(lucky)) - fit_decision_thresholds(p, csr_matrix(nothing)))[0] < 0.02
    )
    assert fit_decision_thresholds(p, csr_matrix(nothing))[0] <= 0.5


def test_without_products_decision_thresholds_are_a_half() -> None:
    assert fit_decision_thresholds(np.empty((0, 2), np.float32), csr_matrix((0, 2), dtype=np.float32)).tolist() == [
        0.5,
        0.5,
    ]


def test_what_is_assigned_out_of_fold_is_what_the_thresholds_of_the_other_folds_say(
    marked: LabelledProducts, quick: HeadSettings
) -> None:
    """Thresholds of the folds differ from the delivered ones: probabilities are moved, so that both assign the same."""
    split = Split(marked.split.ids, strings([str(1 + row % 3) for row in range(240)]))
    crossed = fit_heads(replace(marked, split=split, truth={"marks": marked.truth["marks"]}), replace(quick, epochs=5))
    predictions = crossed.bundle.judged(crossed.out_of_fold, marked.split.ids)
    assert predictions.decision_thresholds == {"marks": crossed.bundle["marks"].decision_thresholds}
    shares = predictions.probabilities["marks"]
    assert ((shares >= 0) & (shares <= 1)).all()
    known = np.array([item is not None for item in marked.truth["marks"]])
    found, truth = predictions.best("marks")[known], marked.truth["marks"][known]
    labels = crossed.bundle.labels["marks"]
    assigned, expected = (np.array([[label in item for label in labels] for item in sets]) for sets in (found, truth))
    assert f1_score(expected, assigned, average="macro") > 0.85
    assert predictions.decisions is not None
    assert (crossed.out_of_fold.promises["marks"] > 0).any()
