from dataclasses import replace

import numpy as np
import pytest

from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.novelty import NoveltyDetector
from product_classificator.training.thresholds import fit_centres, fit_limits
from product_classificator.types import Embeddings, strings
from tests.tiny_catalog import fit_vocabulary, unit

N = 1200


@pytest.fixture(scope="module")
def shop() -> tuple[Embeddings, list[str], Vocabulary]:
    """Return products whose vectors point more or less one way, and whose texts are of ten words."""
    draw = np.random.default_rng(0)
    image, text = (unit(np.eye(dim)[0] + 0.2 * draw.normal(size=(N, dim))) for dim in (12, 8))
    every = np.ones(N, dtype=bool)
    words = [f"word{i}" for i in range(10)]
    texts = [" ".join(draw.choice(words, 5)) for _ in range(N)]
    return (
        Embeddings(strings([str(i) for i in range(N)]), image, text, every, every, "e"),
        texts,
        fit_vocabulary(texts)[0],
    )


def fit(embeddings: Embeddings, texts: list[str], vocabulary: Vocabulary) -> NoveltyDetector:
    """Return what knows 800 products, and by 200 others what is usual."""
    centres, others = fit_centres(embeddings, np.arange(800)), np.arange(800, 1000)
    limits = fit_limits(centres.scores(embeddings.take(others), texts[800:1000], vocabulary))
    return replace(centres, limits=limits)


@pytest.fixture(scope="module")
def novelty(shop: tuple[Embeddings, list[str], Vocabulary]) -> NoveltyDetector:
    return fit(*shop)


def test_products_like_those_of_the_training_are_in_distribution(shop, novelty) -> None:
    embeddings, texts, vocabulary = shop
    assert novelty.is_out_of_distribution(embeddings.take(np.arange(1000, N)), texts[1000:], vocabulary).mean() < 0.08
    assert len(novelty.image) == len(novelty.text) == 256


@pytest.mark.parametrize("part", ["image", "text"])
def test_an_embedding_that_points_elsewhere_is_out_of_distribution(shop, novelty, part: str) -> None:
    embeddings, texts, vocabulary = shop
    few = embeddings.take(np.arange(3))
    before = novelty.is_out_of_distribution(few, texts[:3], vocabulary)
    vectors = getattr(few, part).copy()
    vectors[1] = -vectors[1]
    is_novel = novelty.is_out_of_distribution(replace(few, **{part: vectors}), texts[:3], vocabulary)
    assert is_novel.tolist() == [before[0], True, before[2]]


def test_a_missing_part_is_not_judged(shop, novelty) -> None:
    embeddings, _, vocabulary = shop
    one = embeddings.take(np.arange(1))
    nothing = np.zeros(1, dtype=bool)
    elsewhere = replace(one, image=-one.image, text=-one.text, has_image=nothing, has_text=nothing)
    assert not novelty.is_out_of_distribution(elsewhere, ["jfkdls"], vocabulary).any()


def test_gibberish_is_out_of_distribution_even_if_its_embedding_is_not(shop, novelty) -> None:
    embeddings, _, vocabulary = shop
    few = embeddings.take(np.arange(3))
    is_novel = novelty.is_out_of_distribution(
        replace(few, has_image=np.zeros(3, bool)), ["word1 word2", "asdf jkl", "!!!"], vocabulary
    )
    assert is_novel.tolist() == [False, True, False]


def test_heads_without_words_or_photos_judge_by_what_they_have(shop) -> None:
    embeddings, texts, _ = shop
    bare = replace(embeddings, has_image=np.zeros(N, bool))
    vocabulary = Vocabulary()
    novelty = fit(bare, texts, vocabulary)
    few = embeddings.take(np.arange(2))
    is_novel = novelty.is_out_of_distribution(
        replace(few, image=-few.image, text=few.text * [[1], [-1]]), ["asdf", "asdf"], vocabulary
    )
    assert is_novel.tolist() == [False, True]
    assert not len(novelty.image)


def test_the_same_seed_gives_the_same_centres(shop, novelty) -> None:
    again = fit(*shop)
    assert np.array_equal(again.image, novelty.image)
    assert again.limits == novelty.limits


def test_where_all_photos_are_one_rounding_does_not_decide(shop) -> None:
    embeddings, texts, vocabulary = shop
    one = replace(embeddings, image=np.repeat(embeddings.image[:1].astype(np.float16).astype(np.float32), N, 0))
    novelty = fit(one, texts, vocabulary)
    few = replace(one, has_text=np.zeros(N, bool)).take(np.arange(7))
    assert not novelty.is_out_of_distribution(few, [""] * 7, vocabulary).any()
    assert novelty.limits[0] >= 0.01
