"""Labels of few products are learned where heads that never saw these products predict them, and only there."""

from dataclasses import replace

import numpy as np
import pytest

from product_classificator.evaluation import evaluate
from product_classificator.training import FittedHeads, HeadSettings, LabelledProducts, fit_heads
from product_classificator.training.targets import with_rare_labels
from product_classificator.types import Split, strings
from tests.tiny_catalog import KINDS, unit

RARE, N_RARE = "vase", 6


@pytest.fixture(scope="module")
def brief(quick: HeadSettings) -> HeadSettings:
    return replace(quick, epochs=4)


def with_vases(products: LabelledProducts, folds: int, *, look_alike: bool) -> LabelledProducts:
    """Return the kinds of 120 products in folds, 6 of which are vases; they look like vases, or like anything else."""
    n, draw = 120, np.random.default_rng(1)
    kind, embeddings = products.truth["kind"][:n].copy(), products.embeddings.take(np.arange(n))
    kind[:N_RARE] = RARE
    if look_alike:
        image, text = embeddings.image.copy(), embeddings.text.copy()
        image[:N_RARE] = unit(np.eye(8)[6] + 0.1 * draw.normal(size=(N_RARE, 8)))
        text[:N_RARE] = unit(np.eye(6)[4] + 0.1 * draw.normal(size=(N_RARE, 6)))
        embeddings = replace(embeddings, image=image, text=text)
    split = Split(embeddings.ids, strings([str(1 + row % folds) for row in range(n)]))
    return LabelledProducts(embeddings, products.texts[:n], {"kind": kind}, split)


def predicted(fitted: FittedHeads, products: LabelledProducts) -> list[str | None]:
    rows = np.arange(2 * N_RARE)
    embeddings, texts = products.embeddings.take(rows), [products.texts[row] for row in rows]
    return list(fitted.bundle.predict(embeddings, texts).best("kind"))


@pytest.mark.parametrize("folds", [3, 4])  # fitted once more in the end, and averaged
def test_a_rare_label_that_can_be_predicted_is_learned_and_scored_apart(
    products: LabelledProducts, brief: HeadSettings, folds: int
) -> None:
    vases = with_vases(products, folds, look_alike=True)
    fitted = fit_heads(vases, brief)
    assert fitted.bundle.labels == {"kind": ("mug", "shoe", RARE, "сумка")}
    assert predicted(fitted, vases) == list(vases.truth["kind"][: 2 * N_RARE])
    assert (fitted.rare_labels, fitted.left_out) == ({"kind": {RARE: N_RARE}}, {})
    judged = fitted.bundle.judged(fitted.out_of_fold, vases.split.ids[fitted.out_of_fold.rows])
    score = evaluate(judged, vases.truth, rare_labels=fitted.rare_labels, resamples=0).characteristics["kind"]
    assert (score.n, score.rare.n, [label.label for label in score.rare.labels]) == (114, N_RARE, [RARE])
    assert score.rare.macro_f1 == 1.0


@pytest.mark.parametrize("folds", [3, 4])
def test_a_rare_label_that_cannot_be_predicted_is_unknown(
    products: LabelledProducts, brief: HeadSettings, folds: int
) -> None:
    odd = with_vases(products, folds, look_alike=False)
    fitted = fit_heads(odd, brief)
    assert fitted.bundle.labels == {"kind": KINDS}
    assert fitted.bundle.network.shape.n_labels == (3,)
    assert fitted.out_of_fold.probabilities["kind"].shape == (120, 3)
    assert fitted.left_out == fitted.rare_labels == {"kind": {RARE: N_RARE}}
    assert predicted(fitted, odd) == list(products.truth["kind"][: 2 * N_RARE])  # the columns that are left are theirs


def test_a_setting_treats_all_rare_labels_as_unknown(products: LabelledProducts, brief: HeadSettings) -> None:
    vases = with_vases(products, 4, look_alike=True)
    fitted = fit_heads(vases, replace(brief, epochs=1, rare_labels=False))
    assert fitted.bundle.labels == {"kind": KINDS}
    assert fitted.left_out == {"kind": {RARE: N_RARE}}


def test_in_a_holdout_its_products_decide_what_is_learned(products: LabelledProducts, brief: HeadSettings) -> None:
    vases = with_vases(products, 3, look_alike=True)
    split = Split(vases.split.ids, np.where(vases.split.names == "3", "test", "train").astype(object))
    fitted = fit_heads(replace(vases, split=split), brief, refit=False)
    assert fitted.rare_labels == {"kind": {RARE: 4}}
    assert RARE in fitted.bundle.labels["kind"]


def test_a_multi_label_characteristic_learns_rare_labels_too(products: LabelledProducts, brief: HeadSettings) -> None:
    vases = with_vases(products, 3, look_alike=True)
    truth = {"kind": strings([frozenset([label]) for label in vases.truth["kind"]])}
    assert fit_heads(replace(vases, truth=truth), brief).bundle.labels["kind"] == ("mug", "shoe", RARE, "сумка")


def test_candidates_have_three_products_in_two_groups_and_a_twentieth_of_all(
    products: LabelledProducts, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, n = products.truth["kind"].copy(), len(products.texts)
    kind[:9] = [*["series"] * 3, *["three"] * 3, *["pair"] * 2, "mug"]
    kind[10:14] = "four"
    groups = np.arange(n)
    groups[:3] = 0
    rare = {"kind": {"series": 3, "three": 3, "pair": 2, "four": 4}}
    catalog, everything = replace(products, truth={"kind": kind}, groups=groups), np.ones(n, dtype=bool)
    learned = with_rare_labels({"kind": KINDS}, rare, catalog, everything, everything)
    assert learned == {"kind": KINDS}  # 7 of 240 products
    monkeypatch.setattr("product_classificator.training.targets._MIN_SHARE", 7 / n)
    learned = with_rare_labels({"kind": KINDS}, rare, catalog, everything, everything)
    assert learned == {"kind": ("four", "mug", "shoe", "three", "сумка")}
    monkeypatch.setattr("product_classificator.training.targets._MAX_LABELS", 4)
    learned = with_rare_labels({"kind": KINDS}, rare, catalog, everything, everything)
    assert learned == {"kind": ("four", "mug", "shoe", "сумка")}
