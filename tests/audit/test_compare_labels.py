from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from product_classificator.audit.findings import compare_labels
from product_classificator.training import HeadSettings, fit_heads
from product_classificator.types import Split, strings
from tests.tiny_catalog import products  # noqa: F401

SETTINGS = HeadSettings(epochs=3, hidden=16, learning_rate=5e-3)


def compare(products, usable):  # noqa: F811
    """Compare the labels of pairs of products, dealt into five folds."""
    folds = strings([str(row // 2 % 5 + 1) if is_usable else "" for row, is_usable in enumerate(usable)])
    products = replace(products, split=Split(products.split.ids, folds))
    judged = fit_heads(products, SETTINGS)
    rows = judged.out_of_fold.rows
    return compare_labels(judged.bundle.judged(judged.out_of_fold, products.split.ids[rows]), products.truth, rows)


@pytest.fixture(scope="module")
def usable(products):  # noqa: F811
    return np.arange(len(products.texts)) >= 5


@pytest.fixture(scope="module")
def truth(products):  # noqa: F811
    rare = strings(["once", *[None] * (len(products.texts) - 1)])
    truth = {"kind": products.truth["kind"].copy(), "size": products.truth["size"], "rare": rare}
    truth["kind"][7] = "seen once"
    return truth


@pytest.fixture(scope="module")
def compared(products, truth, usable):  # noqa: F811
    return compare(replace(products, truth=truth), usable)


def test_every_learned_label_of_a_usable_product_is_judged_once_and_nothing_else(truth, usable, compared):
    assert list(compared) == ["kind", "size"]  # "rare" cannot be learned
    for name, frame in compared.items():
        is_learned = pd.notna(truth[name]) & (truth[name] != "seen once")
        assert frame.index.tolist() == np.flatnonzero(is_learned & usable).tolist()
        assert frame.notna().all(axis=None)
        assert (frame.probability > 0).all()


def test_the_other_label_is_never_that_of_the_table(truth, compared):
    for name, frame in compared.items():
        assert (frame.other != truth[name][frame.index]).all()
        assert (frame.probability + frame.other_probability <= 1 + 1e-5).all()


def test_heads_never_predict_products_they_have_learned_from(products, usable):  # noqa: F811
    """Random labels can be memorised, but not predicted out of fold."""
    rng = np.random.default_rng(1)
    truth = {"noise": strings(rng.choice(["a", "b"], len(products.texts)).tolist())}
    frame = compare(replace(products, truth=truth), usable)["noise"]
    assert abs((frame.probability > 0.5).mean() - 0.5) < 0.12
