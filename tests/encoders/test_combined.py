import numpy as np
import pytest
from PIL import Image

from product_classificator.encoders import Encoder, load_encoder
from product_classificator.text import clean_published
from tests.encoders.tiny_models import save_bert, save_clip

NOISY = "Ваза <br> стеклянная!!! https://shop.example/vase"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a tiny random CLIP, and a network for texts."""
    folder = tmp_path_factory.mktemp("combined")
    save_clip(folder / "clip")
    save_bert(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return load_encoder(str(folder / "clip"), threads=1)


@pytest.fixture(scope="module")
def pair(folder):
    pytest.importorskip("sentence_transformers")
    return load_encoder(f"{folder / 'clip'}+st:{folder / 'bert'}", threads=1)


def test_a_pair_reads_photos_with_one_encoder_and_texts_with_the_other(clip, pair):
    photos = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    assert isinstance(pair, Encoder)
    assert (pair.image_dim, pair.text_dim) == (24, 32)
    assert not pair.shares_space
    assert np.array_equal(pair.encode_images(photos), clip.encode_images(photos))
    assert pair.encode_texts(["red", ""]).shape == (2, 32)
    assert pair.prepare_image(photos[0]).size == (32, 32)


def test_a_pair_has_one_fingerprint_of_both(folder, clip, pair):
    assert pair.fingerprint.startswith("pair-")
    assert load_encoder(pair.name).fingerprint == pair.fingerprint
    cropped = load_encoder(f"{folder / 'clip'}+letterbox+st:{folder / 'bert'}")
    assert len({clip.fingerprint, pair.fingerprint, cropped.fingerprint}) == 3


def test_any_encoder_can_be_paired(folder, pair):
    lite = load_encoder(f"lite+st:{folder / 'bert'}", threads=1)
    assert (lite.image_dim, lite.text_dim) == (1872, 32)
    assert lite.name == f"lite+st:{folder / 'bert'}"
    assert lite.fingerprint != pair.fingerprint
    assert np.array_equal(lite.encode_texts(["red"]), pair.encode_texts(["red"]))


def test_cleaning_changes_the_vectors_of_noisy_texts_and_the_fingerprint(folder, clip):
    cleaning = load_encoder(f"{folder / 'clip'}+clean", threads=1)
    assert isinstance(cleaning, Encoder)
    assert cleaning.shares_space
    assert cleaning.name == f"{folder / 'clip'}+clean"
    assert cleaning.fingerprint == f"{clip.fingerprint}-clean" == load_encoder(cleaning.name).fingerprint
    assert not np.allclose(cleaning.encode_texts([NOISY]), clip.encode_texts([NOISY]), atol=1e-3)
    assert np.array_equal(cleaning.encode_texts([NOISY]), clip.encode_texts([clean_published(NOISY)]))
    photo = Image.new("RGB", (40, 30), "red")
    assert np.array_equal(cleaning.encode_images([photo]), clip.encode_images([cleaning.prepare_image(photo)]))
    assert (cleaning.image_dim, cleaning.text_dim) == (clip.image_dim, clip.text_dim)


def test_a_pair_can_clean_as_well(folder, pair):
    cleaning = load_encoder(f"{folder / 'clip'}+clean+st:{folder / 'bert'}", threads=1)
    assert cleaning.fingerprint == f"{pair.fingerprint}-clean"
    assert not cleaning.shares_space
    assert np.array_equal(cleaning.encode_texts([NOISY]), pair.encode_texts([clean_published(NOISY)]))
