"""Every product is judged by heads that never saw it: what may reach its out-of-fold prediction, and what may not."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from product_classificator.errors import DataError
from product_classificator.heads import Characteristic, HeadBundle
from product_classificator.training import Callbacks, FittedHeads, HeadSettings, LabelledProducts, fit_heads
from product_classificator.training.cross_fit import _moved
from product_classificator.training.fit import (
    Average,
    Task,
    dims_to_read,
    labels_to_learn,
    linear_inputs,
    with_linear,
)
from product_classificator.training.inputs import CountedTexts
from product_classificator.training.targets import Target
from product_classificator.training.thresholds import Blend
from product_classificator.types import Floats, OutOfFold, Predictions, Split, Strings, strings

FOLDS = 3


def folded(products: LabelledProducts, **truth: Strings) -> LabelledProducts:
    """Return the products in folds, near-identical in pairs."""
    n = len(products.texts)
    split = Split(products.split.ids, strings([str(1 + row % FOLDS) for row in range(n)]))
    groups = np.arange(n) % FOLDS + FOLDS * (np.arange(n) // (2 * FOLDS))
    return replace(products, split=split, groups=groups, truth=truth or products.truth)


def judged(fitted: FittedHeads, products: LabelledProducts) -> Predictions:
    return fitted.bundle.judged(fitted.out_of_fold, products.split.ids[fitted.out_of_fold.rows])


def scores(bundle: HeadBundle, out_of_fold: OutOfFold) -> Mapping[str, Floats]:
    """Return what decides which labels are predicted."""
    favoured = {name: matrix * bundle[name].decision_weights for name, matrix in out_of_fold.probabilities.items()}
    return {name: matrix / matrix.sum(1, keepdims=True) for name, matrix in favoured.items()}


def renamed(labels: Strings, rows: np.ndarray) -> Strings:
    """Return labels of which those of some rows are nonsense: each is another one."""
    names = sorted({label for label in labels if label is not None})
    others = dict(zip(names, [*names[1:], names[0]], strict=True))
    changed = labels.copy()
    changed[rows] = [others.get(label) for label in labels[rows]]
    return changed


@pytest.fixture(scope="module")
def brief(quick: HeadSettings) -> HeadSettings:
    return replace(quick, epochs=5)


@pytest.fixture(scope="module")
def crossed(products: LabelledProducts, brief: HeadSettings) -> FittedHeads:
    return fit_heads(folded(products), brief)


def test_every_product_has_an_out_of_fold_prediction_and_most_are_right(
    crossed: FittedHeads, products: LabelledProducts
) -> None:
    assert crossed.out_of_fold.rows.tolist() == list(range(len(products.texts)))
    predictions = judged(crossed, products)
    for name in ("kind", "colour"):
        assert (predictions.best(name) == products.truth[name]).mean() > 0.95
        assert np.allclose(predictions.probabilities[name].sum(1), 1, atol=1e-5)
    assert crossed.bundle.facts["products"] == {"1": 80, "2": 80, "3": 80}


def test_stages_name_the_folds_and_the_last_fit(products: LabelledProducts, brief: HeadSettings) -> None:
    stages: list[str] = []
    kind = folded(products, kind=products.truth["kind"])
    fit_heads(kind, replace(brief, epochs=1), callbacks=Callbacks(on_stage=stages.append))
    numbered = [f"Fitting heads without fold {number} of 3, and predicting it" for number in (1, 2, 3)]
    assert stages == [*numbered, "Fitting the heads to all products"]


def test_labels_that_are_nonsense_in_one_fold_do_not_reach_its_predictions(
    products: LabelledProducts, brief: HeadSettings
) -> None:
    everything = folded(products, colour=products.truth["colour"])
    rows = everything.split.rows("2")
    wrong = replace(everything, truth={"colour": renamed(everything.truth["colour"], rows)})
    best = judged(fit_heads(wrong, brief), wrong).best("colour")[rows]
    assert (best == products.truth["colour"][rows]).mean() > 0.95


def test_in_a_held_out_fold_a_label_changes_no_prediction_of_its_own_half(
    products: LabelledProducts, brief: HeadSettings
) -> None:
    """What calibrates a half of the fold follows from the other half alone, to the last bit."""
    test = products.split.rows("test")
    half = test[::2]
    truth = {name: products.truth[name] for name in ("kind", "colour")}
    wrong = {name: renamed(column, half) for name, column in truth.items()}
    before, after = (
        fit_heads(replace(products, truth=labels), replace(brief, epochs=2), refit=False) for labels in (truth, wrong)
    )
    mine = np.isin(test, half)
    for name in truth:
        one, two = (scores(fitted.bundle, fitted.out_of_fold)[name] for fitted in (before, after))
        assert np.allclose(one[mine], two[mine], atol=1e-6)
        assert not np.allclose(one[~mine], two[~mine], atol=1e-3)
        one, two = (fitted.out_of_fold.promises[name] for fitted in (before, after))
        assert np.array_equal(one[mine], two[mine])


def test_a_word_of_one_fold_alone_changes_nothing_of_what_is_said_there(
    products: LabelledProducts, brief: HeadSettings
) -> None:
    """The word gives the label away, which would help heads that had read it."""
    is_test = products.split.names == "test"
    told = [f"{text} secret{kind}" for text, kind in zip(products.texts, products.truth["kind"], strict=True)]
    texts = [told[row] if is_test[row] else text for row, text in enumerate(products.texts)]
    kind = replace(products, truth={"kind": products.truth["kind"]})
    settings = replace(brief, epochs=2)
    one, two = (fit_heads(replace(kind, texts=shown), settings) for shown in (texts, products.texts))
    assert np.array_equal(one.out_of_fold.probabilities["kind"], two.out_of_fold.probabilities["kind"])
    assert any("secret" in word for word in one.bundle.vocabulary.words)  # the delivered heads have learned it


def test_without_a_refit_the_delivered_heads_are_those_that_were_judged(
    fitted: FittedHeads, products: LabelledProducts
) -> None:
    rows = products.split.rows("test")
    assert np.array_equal(fitted.out_of_fold.rows, rows)
    delivered = fitted.bundle.predict(products.embeddings.take(rows), [products.texts[row] for row in rows])
    for name in ("kind", "colour"):
        assert (delivered.best(name) == judged(fitted, products).best(name)).mean() > 0.95


def test_a_refit_learns_from_the_fold_too_and_is_judged_by_the_same_predictions(
    products: LabelledProducts, brief: HeadSettings
) -> None:
    settings = replace(brief, epochs=2)
    one, two = (fit_heads(products, settings, refit=refit) for refit in (True, False))
    for name, probabilities in one.out_of_fold.probabilities.items():
        assert np.array_equal(probabilities, two.out_of_fold.probabilities[name])
    assert one.bundle.characteristics == two.bundle.characteristics
    assert one.bundle.digest != two.bundle.digest


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("has_words", [True, False])
def test_the_average_adds_up_the_networks_of_all_parts_whatever_is_missing_and_a_linear_model(
    products: LabelledProducts, brief: HeadSettings, parts: int, has_words: bool
) -> None:
    """Only words that a part does not know change how much its words weigh."""
    n, draw = len(products.texts), np.random.default_rng(0)
    has_image, has_text = draw.random((2, n)) < 0.7
    embeddings = replace(products.embeddings, has_image=has_image, has_text=has_text)
    gappy = replace(products, embeddings=embeddings)
    labels, _ = labels_to_learn(products.truth, np.ones(n, dtype=bool), 3)
    targets = tuple(Target.of(name, names, products.truth[name]) for name, names in labels.items())
    dims, counts = dims_to_read(embeddings, np.arange(n)), CountedTexts.of(products.texts if has_words else [""] * n)
    task = Task(gappy, targets, counts, brief, dims, None, None, has_linear=True)
    of_parts = [task.fit(np.flatnonzero(np.arange(n) % 4 != part)) for part in range(parts)]
    inputs = task.inputs(np.arange(n)) if parts > 1 else of_parts[0].inputs
    assert has_words == (len(inputs.vocabulary) > inputs.vocabulary.n_whole)
    average = Average(inputs)
    for models in of_parts:
        average.add(models)
    blends = [
        Blend(*draw.uniform(0.5, 2, 2).tolist(), draw.normal(size=len(target.labels)).astype(np.float32))
        for target in targets
    ]
    network = average.network(blends)
    whole = task.fit_linear(network, inputs)
    assert whole is not None
    network = with_linear(network, whole, blends)
    logits = network.logits(embeddings, inputs.vocabulary.weigh(products.texts))
    joint = np.mean([models.logits(gappy, np.arange(n))[0] for models in of_parts], axis=0)
    bags = inputs.vocabulary.weigh(products.texts)
    linear = whole.logits(*linear_inputs(network, embeddings, csr_matrix(bags, shape=(n, len(inputs.vocabulary)))))
    for blend, of_target in zip(blends, network.shape.columns, strict=True):
        expected = blend.logits(joint[:, of_target], linear[:, of_target])
        errors = np.abs(logits[:, of_target] - expected)
        is_exact = np.full(n, parts == 1 or not has_words)
        assert (errors[is_exact] < 1e-4).all()
        assert errors.max() < 0.1 * expected.std()


def test_heads_of_many_folds_are_not_fitted_once_more(products: LabelledProducts, brief: HeadSettings) -> None:
    stages: list[str] = []
    n = len(products.texts)
    split = Split(products.split.ids, strings([str(row % 4) for row in range(n)]))
    fitted = fit_heads(replace(products, split=split), brief, callbacks=Callbacks(on_stage=stages.append))
    assert len(stages) == 4
    assert fitted.bundle.network.shape.hidden == 4 * brief.hidden
    best = fitted.bundle.predict(products.embeddings, products.texts).best("kind")
    assert (best == products.truth["kind"]).mean() > 0.98


def test_a_label_of_one_fold_alone_is_learned_though_nobody_could_predict_it_there(
    products: LabelledProducts, brief: HeadSettings
) -> None:
    everything = folded(products)
    kind = products.truth["kind"].copy()
    rows = np.flatnonzero((everything.split.names == "1") & (kind == "shoe"))
    kind[rows] = "boot"
    moved = replace(everything, truth={"kind": kind, "colour": products.truth["colour"]})
    fitted = fit_heads(moved, brief)
    assert fitted.bundle.labels["kind"] == ("boot", "mug", "shoe", "сумка")
    best = judged(fitted, moved).best("kind")
    assert "boot" not in set(best[rows])
    assert np.isfinite(fitted.out_of_fold.probabilities["kind"]).all()


def test_a_fold_without_any_product_of_a_characteristic_gets_its_predictions_all_the_same(
    products: LabelledProducts, brief: HeadSettings
) -> None:
    everything = folded(products)
    only_first, none_in_first = everything.truth["colour"].copy(), everything.truth["colour"].copy()
    only_first[everything.split.names != "1"] = None
    none_in_first[everything.split.names == "1"] = None
    mixed = replace(everything, truth={**products.truth, "only": only_first, "rest": none_in_first})
    fitted = fit_heads(mixed, replace(brief, epochs=2))
    best = judged(fitted, mixed).best("rest")
    assert (best == products.truth["colour"]).mean() > 0.9
    for name in ("only", "rest"):
        assert np.isfinite(fitted.out_of_fold.probabilities[name]).all()
    delivered = fitted.bundle.logits(products.embeddings, products.texts)["only"]
    assert np.abs(delivered).max() < 1000


def test_what_the_parts_decide_stays_decided_when_probabilities_are_those_of_the_delivered_heads() -> None:
    """Otherwise predictions of two characteristics could contradict the hierarchy that they were made to suit."""
    draw = np.random.default_rng(0)
    labels, shares = ("a", "b", "c"), draw.dirichlet(np.ones(3), 500).astype(np.float32)
    own, delivered = (Characteristic("x", labels, log_priors=tuple(draw.normal(0, 1, 3).tolist())) for _ in range(2))
    shares[0] = np.nan  # a child that is not predicted
    moved = _moved(own.with_priors(shares), own, delivered)
    favoured = moved * delivered.decision_weights
    assert np.allclose(favoured / favoured.sum(1, keepdims=True), shares, atol=1e-6, equal_nan=True)
    assert np.allclose(moved[1:].sum(1), 1, atol=1e-6)
    own, delivered = (
        Characteristic("x", labels, decision_thresholds=values) for values in ((0.2, 0.3, 0.5), (0.4,) * 3)
    )
    moved = _moved(shares[1:], own, delivered)
    assert np.array_equal(moved >= 0.4, shares[1:] >= np.array([0.2, 0.3, 0.5], np.float32))
    assert (np.argsort(moved, axis=0) == np.argsort(shares[1:], axis=0)).all()


def test_without_a_refit_several_folds_are_refused(products: LabelledProducts, brief: HeadSettings) -> None:
    with pytest.raises(DataError, match="without refit, one fold must be held out, found 1, 2, 3"):
        fit_heads(folded(products), brief, refit=False)


def test_a_fold_that_holds_all_known_labels_is_refused(products: LabelledProducts, brief: HeadSettings) -> None:
    alone = Split(products.split.ids, strings(["1"] * len(products.texts)))
    with pytest.raises(DataError, match="one fold holds all products with a known label"):
        fit_heads(replace(products, split=alone), brief)


def test_nothing_is_promised_where_nothing_is_predicted(products: LabelledProducts, brief: HeadSettings) -> None:
    kind, colour = products.truth["kind"], products.truth["colour"]
    sort = [None if k == "сумка" else f"{c} {k}" for k, c in zip(kind, colour, strict=True)]
    everything = folded(products, kind=kind, sort=strings(sort))
    out_of_fold = fit_heads(everything, brief).out_of_fold
    is_missing = np.isnan(out_of_fold.probabilities["sort"]).any(1)
    assert is_missing.sum() > 60
    assert not out_of_fold.promises["sort"][is_missing].any()
    assert (out_of_fold.promises["sort"][~is_missing] > 0.9).mean() > 0.9
