from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from product_classificator.audit.out_of_fold import DEALS, predict_out_of_fold

from product_classificator.catalog.split import stratify
from product_classificator.training import HeadSettings, fit_heads
from product_classificator.types import strings
from tests.tiny_catalog import products  # noqa: F401

SETTINGS = HeadSettings(epochs=3, hidden=16, learning_rate=5e-3)


def predict(products, usable):  # noqa: F811
    groups = np.arange(len(products.texts)) // 2
    deals = stratify(groups, products.truth, usable, [1 / DEALS] * DEALS, seed=0)
    return predict_out_of_fold(products, deals, lambda split: fit_heads(split, SETTINGS))


@pytest.fixture(scope="module")
def usable(products):  # noqa: F811
    return np.arange(len(products.texts)) >= 5


@pytest.fixture(scope="module")
def truth(products):  # noqa: F811
    truth = {"kind": products.truth["kind"].copy(), "size": products.truth["size"]}
    truth["kind"][7] = "seen once"
    return truth


@pytest.fixture(scope="module")
def out_of_fold(products, truth, usable):  # noqa: F811
    return predict(replace(products, truth=truth), usable)


def test_every_learned_label_of_a_usable_product_is_judged_once_and_nothing_else(truth, usable, out_of_fold):
    for name, frame in out_of_fold.items():
        is_learned = pd.notna(truth[name]) & (truth[name] != "seen once")
        assert frame.index.tolist() == np.flatnonzero(is_learned & usable).tolist()
        assert frame.notna().all(axis=None)
        assert (frame.probability > 0).all()


def test_the_other_label_is_never_that_of_the_table(truth, out_of_fold):
    for name, frame in out_of_fold.items():
        assert (frame.other != truth[name][frame.index]).all()
        assert (frame.probability + frame.other_probability <= 1 + 1e-5).all()


def test_a_characteristic_that_cannot_be_learned_has_no_predictions(products, usable):  # noqa: F811
    truth = {**products.truth, "rare": strings(["once", *[None] * (len(usable) - 1)])}
    assert predict(replace(products, truth=truth), usable)["rare"].empty


def test_heads_never_predict_products_they_have_learned_from(products, usable):  # noqa: F811
    """Random labels can be memorised, but not predicted out of fold."""
    rng = np.random.default_rng(1)
    truth = {"noise": strings(rng.choice(["a", "b"], len(products.texts)).tolist())}
    frame = predict(replace(products, truth=truth), usable)["noise"]
    assert abs((frame.probability > 0.5).mean() - 0.5) < 0.12
