from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from product_classificator.encoders import Encoder
from product_classificator.heads import HeadBundle
from product_classificator.training import FittedHeads, HeadSettings, LabelledProducts, fit_heads
from product_classificator.types import Floats
from tests.fakes import TinyImages, TinyTexts
from tests.tiny_catalog import KINDS, rows_of

AXES = dict(zip(KINDS, np.eye(6, dtype=np.float32), strict=False))


class Names(TinyTexts):
    """Names of kinds lie where the texts of their products lie, other names nowhere near."""

    def encode(self, texts: Sequence[str]) -> Floats:
        far = np.eye(6, dtype=np.float32)[5]
        return np.stack([next((AXES[kind] for kind in KINDS if kind in text), far) for text in texts])


def few(products: LabelledProducts, n: int) -> LabelledProducts:
    """Return the products with the kind of only n training products per label known."""
    kind = products.truth["kind"].copy()
    train = np.flatnonzero(products.split.names != "test")
    for label in KINDS:
        kind[train[kind[train] == label][n:]] = None
    return replace(products, truth={**products.truth, "kind": kind})


def fit(products: LabelledProducts, settings: HeadSettings, *, start: bool, shares_space: bool = False) -> FittedHeads:
    encoder = Encoder("tiny", TinyImages(), Names(), shares_space)
    return fit_heads(products, settings, encoder=encoder if start else None, refit=False)


def score(fitted: FittedHeads, products: LabelledProducts) -> float:
    rows = products.split.rows("test")
    best = fitted.bundle.predict(*rows_of(products, "test")).best("kind")
    return float(f1_score(list(products.truth["kind"][rows]), list(best), average="macro"))


def start_of(fitted: FittedHeads) -> Floats | None:
    return fitted.bundle.network.weights.get("label_embeddings")


@pytest.fixture
def barely(quick: HeadSettings) -> HeadSettings:
    return replace(quick, epochs=1, min_products_per_label=1, learning_rate=1e-4)


def test_training_starts_from_the_names_where_a_label_has_few_products(
    products: LabelledProducts, barely: HeadSettings
) -> None:
    silent = replace(products.embeddings, has_image=np.zeros(len(products.texts), dtype=bool))
    scarce = few(replace(products, embeddings=silent), 1)
    assert score(fit(scarce, barely, start=True), scarce) > 0.95
    assert score(fit(scarce, barely, start=False), scarce) < 0.8


def test_other_characteristics_do_not_start_from_names(products: LabelledProducts, barely: HeadSettings) -> None:
    fitted = fit(few(products, 3), barely, start=True)
    by_label = start_of(fitted)
    assert by_label is not None
    spans = dict(zip(fitted.bundle.labels, fitted.bundle.network.shape.columns, strict=True))
    assert by_label[spans["kind"]].any(1).all()
    assert not by_label[spans["colour"]].any()


def test_without_a_rare_label_the_names_change_nothing_to_the_last_bit(
    products: LabelledProducts, quick: HeadSettings
) -> None:
    common = replace(products, truth={name: products.truth[name] for name in ("kind", "colour")})
    one, two = (fit(common, replace(quick, epochs=2), start=start) for start in (True, False))
    assert start_of(one) is None
    assert one.bundle.network.shape == two.bundle.network.shape
    assert one.bundle.digest == two.bundle.digest


def test_photos_without_texts_start_from_names_only_in_one_space(
    products: LabelledProducts, barely: HeadSettings
) -> None:
    nothing = np.zeros(len(products.embeddings), dtype=bool)
    silent = replace(products.embeddings, image=products.embeddings.text, text=0 * products.embeddings.text)
    scarce = replace(few(products, 3), embeddings=replace(silent, has_text=nothing))
    assert score(fit(scarce, barely, start=True, shares_space=True), scarce) > 0.95
    assert fit(scarce, barely, start=True).bundle.network.shape.label_dim == 0


def test_heads_that_started_from_names_predict_the_same_when_they_are_loaded(
    products: LabelledProducts, barely: HeadSettings, tmp_path: Path
) -> None:
    bundle = fit(few(products, 3), barely, start=True).bundle
    bundle.save(tmp_path / "heads")
    loaded = HeadBundle.load(tmp_path / "heads")
    one, two = (heads.predict(*rows_of(products, "test")).probabilities for heads in (bundle, loaded))
    assert all(np.array_equal(one[name], two[name]) for name in one)
