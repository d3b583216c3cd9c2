import numpy as np
import pandas as pd
import pytest

from product_classificator.audit.out_of_fold import DEALS, predict_out_of_fold
from product_classificator.catalog.split import stratify
from product_classificator.training import HeadSettings, LabelledProducts, fit_heads
from product_classificator.types import strings
from tests.tiny_catalog import products  # noqa: F401

SETTINGS = HeadSettings(max_epochs=3, hidden=16, learning_rate=5e-3)


def predict(embeddings, texts, truth, usable):
    groups = np.arange(len(texts)) // 2
    deals = stratify(groups, truth, usable, [1 / DEALS] * DEALS, seed=0)

    def fit(_, split):
        return fit_heads(LabelledProducts(embeddings, texts, truth, split), SETTINGS).bundle

    return predict_out_of_fold(embeddings, texts, truth, deals, fit)


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
    return predict(products.embeddings, products.texts, truth, usable)


def test_every_label_of_a_usable_product_is_predicted_once_and_nothing_else(truth, usable, out_of_fold):
    for name, predicted in out_of_fold.items():
        has_label = pd.notna(truth[name])
        assert (~np.isnan(predicted.probability) == (has_label & usable)).all()
        assert (pd.notna(predicted.other) == ~np.isnan(predicted.probability)).all()


def test_the_other_label_is_never_that_of_the_table(truth, out_of_fold):
    for name, predicted in out_of_fold.items():
        compared = ~np.isnan(predicted.probability)
        assert (predicted.other[compared] != truth[name][compared]).all()
        assert (predicted.probability[compared] + predicted.other_probability[compared] <= 1 + 1e-5).all()


def test_a_label_that_was_not_learned_has_no_probability(out_of_fold):
    assert out_of_fold["kind"].probability[7] == 0
    assert out_of_fold["kind"].other_probability[7] > 0


def test_heads_never_predict_products_they_have_learned_from(products, usable):  # noqa: F811
    """Random labels can be memorised, but not predicted out of fold."""
    rng = np.random.default_rng(1)
    truth = {"noise": strings(rng.choice(["a", "b"], len(products.texts)).tolist())}
    predicted = predict(products.embeddings, products.texts, truth, usable)["noise"]
    assert abs(np.nanmean(predicted.probability > 0.5) - 0.5) < 0.12
