import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from product_classificator.embeddings.products import thumbnail
from product_classificator.training.near_duplicates import (
    MAX_SHARED,
    Signatures,
    is_near_duplicate,
    near_duplicate_groups,
    photo_keys,
)

LONG = "a warm woollen winter coat with a hood and pockets"
NO_PHOTO = np.zeros(192, np.uint8)


def photo(seed):
    """Return a picture of a few ellipses."""
    rng, image = np.random.default_rng(seed), Image.new("RGB", (320, 320), "white")
    for _ in range(6):
        x, y = rng.integers(0, 240, 2).tolist()
        ImageDraw.Draw(image).ellipse([x, y, x + 90, y + 60], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def photos(n):
    return np.stack([thumbnail(photo(seed)) for seed in range(n)])


def n_groups(texts, thumbnails, **options):
    return len(set(near_duplicate_groups(Signatures.of(texts, thumbnails), **options)))


def reencoded(image, size, quality):
    file = io.BytesIO()
    image.resize(size).save(file, "JPEG", quality=quality)
    return Image.open(file)


def test_texts_that_differ_in_case_and_punctuation_share_a_key():
    first, second, other, nothing = Signatures.of(["Чашка, синяя!", "чашка  СИНЯЯ", "чашка", " -- "], photos(4)).text
    assert first == second != other
    assert nothing == 0


@given(st.text())
def test_keys_of_texts_ignore_case_and_spacing(text):
    text = text.upper().lower()
    same, spaced = Signatures.of([text, f"  {text} !"], np.zeros((2, 192), np.uint8)).text
    assert same == spaced


@pytest.mark.parametrize(("size", "quality"), [((320, 320), 60), ((240, 240), 80), ((500, 500), 90)])
def test_a_photo_is_recognised_when_it_is_encoded_again_or_resized(size, quality):
    thumbnails = np.concatenate([photos(20), [thumbnail(reencoded(photo(3), size, quality))]])
    keys = photo_keys(thumbnails)
    assert keys[20] == keys[3]
    assert len(set(keys)) == 20


def test_products_without_photo_and_text_have_no_near_duplicates():
    assert n_groups([""] * 5, np.tile(NO_PHOTO, (5, 1))) == 5


def test_plain_colours_are_different_photos_unless_they_are_equal():
    red, green = (thumbnail(Image.new("RGB", (64, 64), colour)) for colour in ("red", "green"))
    assert n_groups(["a", "b", "c"], np.stack([red, green, red])) == 2


def test_one_photo_of_products_with_different_texts_is_enough():
    assert n_groups(["red dress", "red dress, size 40"], np.repeat(photos(1), 2, axis=0)) == 1


def test_a_long_text_is_enough_and_a_short_one_is_not():
    assert n_groups([LONG, LONG.upper()], photos(2)) == 1
    assert n_groups(["Coat", "coat"], photos(2)) == 2
    assert n_groups([LONG, LONG], photos(2), across_photos=False) == 2


def test_without_photos_a_text_of_three_words_is_enough_and_a_word_is_not():
    assert n_groups(["iPhone 13 black"] * 3, np.tile(NO_PHOTO, (3, 1))) == 1
    assert n_groups(["dress"] * 3, np.tile(NO_PHOTO, (3, 1))) == 3
    assert n_groups(["iPhone 13 black"] * 2, np.stack([NO_PHOTO, photos(1)[0]])) == 1


def test_words_and_boilerplate_that_many_products_share_link_nothing():
    n = 2 * (MAX_SHARED + 1)
    for text in ("Dress", "red summer dress", LONG):
        assert n_groups([text] * n, photos(n)) == n
    assert n_groups(["red summer dress"] * n, np.tile(NO_PHOTO, (n, 1))) == n


def test_copies_of_a_long_text_without_photos_are_one_group_however_many():
    n = 2 * (MAX_SHARED + 1)
    assert n_groups([LONG] * n, np.tile(NO_PHOTO, (n, 1))) == 1
    products = Signatures.of([LONG, "iPhone 13 black"] * MAX_SHARED, np.tile(NO_PHOTO, (2 * MAX_SHARED, 1)))
    assert is_near_duplicate(products, products).all()


def test_small_things_on_white_are_different_photos():
    thumbnails = []
    for seed in range(60):
        rng, image = np.random.default_rng(seed), Image.new("RGB", (400, 400), "white")
        x, y = rng.integers(0, 350, 2).tolist()
        colour = tuple(rng.integers(0, 200, 3).tolist())
        ImageDraw.Draw(image).ellipse([x, y, x + 40, y + 40], outline=colour, width=4)
        thumbnails.append(thumbnail(image))
    assert len(set(photo_keys(np.stack(thumbnails)))) == 60


def test_a_placeholder_photo_links_nothing():
    n = MAX_SHARED + 1
    assert n_groups([f"dress {i}" for i in range(n)], np.repeat(photos(1), n, axis=0)) == n
    assert n_groups([""] * n, np.repeat(photos(1), n, axis=0)) == n


def test_an_advertisement_that_is_repeated_often_is_one_group():
    assert n_groups(["Coat"] * 50, np.repeat(photos(1), 50, axis=0)) == 1


def test_products_are_grouped_through_chains():
    a, b = photos(2)
    assert n_groups([LONG, LONG, "another"], np.stack([a, b, b])) == 1


def test_new_products_are_near_duplicates_of_learned_ones_by_photo_or_long_text():
    learned = Signatures.of([LONG, "coat", "dress"], photos(3))
    new = Signatures.of([LONG, "new words", "dress", "coat"], np.stack([NO_PHOTO, *photos(9)[[1, 7, 8]]]))
    assert is_near_duplicate(new, learned).tolist() == [True, True, False, False]


def test_a_placeholder_of_learned_products_is_one_for_new_ones_too():
    n = MAX_SHARED + 1
    learned = Signatures.of([f"dress {i}" for i in range(n)], np.repeat(photos(1), n, axis=0))
    assert not is_near_duplicate(Signatures.of(["a coat"], photos(1)), learned).any()


def test_signatures_survive_a_table():
    signatures = Signatures.of([LONG, "", "coat"], np.stack([NO_PHOTO, *photos(2)]))
    read = Signatures.from_table(pa.table(signatures.columns()))
    assert (read.text == signatures.text).all()
    assert (read.n_words == [10, 0, 1]).all()
    assert (read.thumbnails == signatures.thumbnails).all()
