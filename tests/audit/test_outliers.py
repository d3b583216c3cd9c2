import numpy as np

from product_classificator.audit.findings import FENCE, outlier_scores
from tests.tiny_catalog import unit


def test_a_product_far_from_all_others_is_an_outlier():
    rng = np.random.default_rng(0)
    vectors = unit(np.eye(16)[0] + 0.05 * rng.normal(size=(300, 16)))
    vectors[7] = unit(np.eye(16)[[3]])
    is_present = np.ones(300, dtype=bool)
    is_present[9] = False
    scores = outlier_scores(vectors, is_present)
    assert scores[7] == np.nanmax(scores)
    assert scores[7] > 5 * FENCE
    assert np.nansum(scores > FENCE) < 10
    assert np.isnan(scores[9])


def test_among_identical_products_two_of_another_kind_are_outliers():
    vectors = np.tile(unit(np.eye(16)[[0]]), (60, 1))
    vectors[:2] = unit(np.eye(16)[[3]])
    scores = outlier_scores(vectors, np.ones(60, dtype=bool))
    assert np.flatnonzero(scores > FENCE).tolist() == [0, 1]


def test_a_handful_of_products_has_no_outlier_scores():
    assert np.isnan(outlier_scores(unit(np.random.default_rng(0).normal(size=(5, 24))), np.ones(5, dtype=bool))).all()
