from dataclasses import replace

import numpy as np
import pytest

from product_classificator.heads.familiarity import Familiarity
from product_classificator.heads.words import WordBag
from product_classificator.types import Embeddings, strings
from tests.heads.conftest import unit

N = 1200


@pytest.fixture(scope="module")
def shop() -> tuple[Embeddings, list[str], WordBag]:
    """Returns products whose vectors point more or less one way, and whose texts are of ten words."""
    draw = np.random.default_rng(0)
    image, text = (unit(np.eye(dim)[0] + 0.2 * draw.normal(size=(N, dim))) for dim in (12, 8))
    every = np.ones(N, dtype=bool)
    words = [f"word{i}" for i in range(10)]
    texts = [" ".join(draw.choice(words, 5)) for _ in range(N)]
    return Embeddings(strings([str(i) for i in range(N)]), image, text, every, every, "e"), texts, WordBag.fit(texts)


@pytest.fixture(scope="module")
def familiarity(shop: tuple[Embeddings, list[str], WordBag]) -> Familiarity:
    embeddings, texts, bag = shop
    return Familiarity.fit(embeddings, texts, np.arange(800), np.arange(800, 1000), bag)


def test_products_like_those_of_the_training_are_familiar(shop, familiarity) -> None:
    embeddings, texts, bag = shop
    assert familiarity.strange(embeddings.take(np.arange(1000, N)), texts[1000:], bag).mean() < 0.08
    assert len(familiarity.image) == len(familiarity.text) == 256


@pytest.mark.parametrize("part", ["image", "text"])
def test_a_vector_that_points_elsewhere_is_strange(shop, familiarity, part: str) -> None:
    embeddings, texts, bag = shop
    few = embeddings.take(np.arange(3))
    familiar = familiarity.strange(few, texts[:3], bag)
    vectors = getattr(few, part).copy()
    vectors[1] = -vectors[1]
    found = familiarity.strange(replace(few, **{part: vectors}), texts[:3], bag)
    assert found.tolist() == [familiar[0], True, familiar[2]]


def test_a_missing_part_is_not_judged(shop, familiarity) -> None:
    embeddings, _, bag = shop
    one = embeddings.take(np.arange(1))
    nothing = np.zeros(1, dtype=bool)
    elsewhere = replace(one, image=-one.image, text=-one.text, has_image=nothing, has_text=nothing)
    assert not familiarity.strange(elsewhere, ["jfkdls"], bag).any()


def test_gibberish_is_strange_even_if_its_vector_is_not(shop, familiarity) -> None:
    embeddings, _, bag = shop
    few = embeddings.take(np.arange(3))
    found = familiarity.strange(replace(few, has_image=np.zeros(3, bool)), ["word1 word2", "asdf jkl", "!!!"], bag)
    assert found.tolist() == [False, True, False]


def test_heads_without_words_or_photos_judge_by_what_they_have(shop) -> None:
    embeddings, texts, _ = shop
    bare = replace(embeddings, has_image=np.zeros(N, bool))
    bag = WordBag.fit([])
    familiarity = Familiarity.fit(bare, texts, np.arange(800), np.arange(800, 1000), bag)
    few = embeddings.take(np.arange(2))
    found = familiarity.strange(replace(few, image=-few.image, text=few.text * [[1], [-1]]), ["asdf", "asdf"], bag)
    assert found.tolist() == [False, True]
    assert not len(familiarity.image)


def test_the_same_seed_gives_the_same_centres(shop, familiarity) -> None:
    embeddings, texts, bag = shop
    again = Familiarity.fit(embeddings, texts, np.arange(800), np.arange(800, 1000), bag)
    assert np.array_equal(again.image, familiarity.image)
    assert again.limits == familiarity.limits
