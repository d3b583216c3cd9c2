import numpy as np
import pytest
from PIL import Image

from product_classificator.encoders import load_encoder
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
    return load_encoder(str(folder / "clip"))


@pytest.fixture(scope="module")
def pair(folder):
    pytest.importorskip("sentence_transformers")
    return load_encoder(f"{folder / 'clip'}+st:{folder / 'bert'}")


def test_a_pair_reads_photos_with_one_encoder_and_texts_with_the_other(clip, pair):
    photos = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    assert (pair.image.dim, pair.text.dim) == (24, 32)
    assert not pair.shares_space
    assert np.array_equal(pair.image.encode(photos), clip.image.encode(photos))
    assert pair.text.encode(["red", ""]).shape == (2, 32)
    assert pair.image.prepare(photos[0]).size == (32, 32)


def test_a_pair_has_one_fingerprint_of_both(folder, clip, pair):
    assert pair.fingerprint.startswith("pair-")
    assert load_encoder(pair.name).fingerprint == pair.fingerprint
    cropped = load_encoder(f"{folder / 'clip'}+letterbox+st:{folder / 'bert'}")
    assert len({clip.fingerprint, pair.fingerprint, cropped.fingerprint}) == 3


def test_any_encoder_can_be_paired(folder, pair):
    lite = load_encoder(f"lite+st:{folder / 'bert'}")
    assert (lite.image.dim, lite.text.dim) == (1872, 32)
    assert lite.name == f"lite+st:{folder / 'bert'}"
    assert lite.fingerprint != pair.fingerprint
    assert np.array_equal(lite.text.encode(["red"]), pair.text.encode(["red"]))


def test_cleaning_changes_the_vectors_of_noisy_texts_and_the_fingerprint(folder, clip):
    cleaning = load_encoder(f"{folder / 'clip'}+clean")
    assert cleaning.shares_space
    assert cleaning.name == f"{folder / 'clip'}+clean"
    assert cleaning.fingerprint == load_encoder(cleaning.name).fingerprint != clip.fingerprint
    assert not np.allclose(cleaning.text.encode([NOISY]), clip.text.encode([NOISY]), atol=1e-3)
    assert np.array_equal(cleaning.text.encode([NOISY]), clip.text.encode([clean_published(NOISY)]))
    photo = Image.new("RGB", (40, 30), "red")
    assert np.array_equal(cleaning.image.encode([photo]), clip.image.encode([cleaning.image.prepare(photo)]))
    assert (cleaning.image.dim, cleaning.text.dim) == (clip.image.dim, clip.text.dim)


def test_a_pair_can_clean_as_well(folder, pair):
    cleaning = load_encoder(f"{folder / 'clip'}+clean+st:{folder / 'bert'}")
    assert cleaning.fingerprint not in (pair.fingerprint, load_encoder(f"{folder / 'clip'}+clean").fingerprint)
    assert not cleaning.shares_space
    assert np.array_equal(cleaning.text.encode([NOISY]), pair.text.encode([clean_published(NOISY)]))
