import numpy as np
import pytest

from product_classificator.audit import similarity
from product_classificator.audit.similarity import FENCE, group_near_duplicates, outlier_scores
from product_classificator.types import Embeddings, strings
from tests.tiny_catalog import unit


def random_products(n, seed=0):
    rng = np.random.default_rng(seed)
    present = np.ones(n, dtype=bool)
    image, text = unit(rng.normal(size=(n, 24))), unit(rng.normal(size=(n, 8)))
    return Embeddings(strings([str(row) for row in range(n)]), image, text, present, present.copy(), "tiny-1")


def groups_of(products, texts=None, images=None):
    n = len(products)
    different = np.arange(1, n + 1, dtype=np.uint64)
    return group_near_duplicates(
        products, different if texts is None else texts, different + np.uint64(n) if images is None else images
    )


def test_products_of_random_vectors_are_all_different():
    assert len(set(groups_of(random_products(200)))) == 200


def test_a_reencoded_photo_with_the_same_text_is_a_near_duplicate():
    products = random_products(50)
    products.text[1] = products.text[0]
    products.image[1] = unit(products.image[:1] + 0.01)
    groups = groups_of(products)
    assert groups[0] == groups[1]
    assert len(set(groups)) == 49


def test_one_photo_is_enough_and_one_text_is_not():
    products, keys = random_products(4), np.array([1, 1, 2, 3], dtype=np.uint64)
    assert len(set(groups_of(products, images=keys))) == 3
    assert len(set(groups_of(products, texts=keys))) == 4


def test_a_product_without_a_photo_is_not_taken_for_one_with():
    products = random_products(10)
    products.text[1] = products.text[0]
    products.image[1], products.has_image[1] = 0, False
    assert len(set(groups_of(products))) == 10


def test_products_without_photo_and_text_have_no_near_duplicates():
    products = random_products(4)
    for vectors, is_present in ((products.image, products.has_image), (products.text, products.has_text)):
        vectors[:2], is_present[:2] = 0, False
    assert len(set(groups_of(products, np.zeros(4, np.uint64), np.zeros(4, np.uint64)))) == 4


@pytest.mark.parametrize("cell", [20, 40])
def test_pairs_are_scores_in_cells_too(monkeypatch, cell):
    monkeypatch.setattr(similarity, "_CELL_PRODUCTS", cell)
    products = random_products(200)
    products.image[100:], products.text[100:] = products.image[:100], products.text[:100]
    groups = groups_of(products)
    assert (groups[:100] == groups[100:]).all()
    assert len(set(groups)) == 100


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
    assert np.isnan(outlier_scores(random_products(5).image, np.ones(5, dtype=bool))).all()
