import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from product_classificator.encoders import load_encoder, torch_clip
from product_classificator.encoders.clip import dtype_of
from product_classificator.encoders.torch_clip import computing, fastest_dtype, torch_network_of
from product_classificator.errors import DataError
from tests.encoders.tiny_ruclip import write_checkpoint

IMAGES = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "navy", "white")]
TEXTS = ["красное платье", "vase", "кружка 300 мл", "шапка"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def exact(model):
    return load_encoder(model, dtype="float32")


@pytest.fixture
def amx(monkeypatch):
    """A CPU that is fastest in bfloat16, and networks that are worth it."""
    monkeypatch.setattr(torch_clip, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(torch_clip, "fastest_dtype", lambda: "bfloat16")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("avx2 avx512_vnni amx_bf16", "bfloat16"),
        ("fpu avx2 avx_vnni", "int8"),
        ("fpu avx2", "int8"),
        ("sse4_2", "float32"),
        ("", "float32"),
    ],
)
def test_the_instruction_set_decides_the_number_format(tmp_path, flags, dtype):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert fastest_dtype(cpuinfo) == dtype
    assert fastest_dtype(tmp_path / "none") == "float32"


def test_a_faster_format_that_agrees_is_kept_and_float32_dropped(model, exact, amx):
    encoder = load_encoder(f"{model}+clean")
    network = encoder.image.network
    vectors = encoder.image.encode(IMAGES)
    assert (exact.image.encode(IMAGES) * vectors).sum(1).min() > 0.99
    assert not np.array_equal(vectors, exact.image.encode(IMAGES))
    assert network._exact is not None  # the text tower is still to be compared
    encoder.text.encode(TEXTS)
    assert network._exact is None
    assert dtype_of(encoder) == "bfloat16"
    assert network.model.dtype == torch.bfloat16


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_format_whose_first_vectors_differ_gives_way_to_float32(model, exact, amx, tower, monkeypatch, caplog):
    monkeypatch.setattr(torch_clip, "MIN_COSINE", 2)
    encoder = load_encoder(model)
    with caplog.at_level(logging.WARNING):
        vectors = encoder.image.encode(IMAGES) if tower == "image" else encoder.text.encode(TEXTS)
    assert "computing in float32: bfloat16 gave a vector with cosine" in caplog.text
    expected = exact.image.encode(IMAGES) if tower == "image" else exact.text.encode(TEXTS)
    assert np.allclose(vectors, expected, atol=1e-6)
    assert dtype_of(encoder) == "float32"
    assert encoder.image.network._exact is None


def test_tiny_networks_compute_in_float32_on_every_cpu(model, amx, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch_clip, "fastest_dtype", lambda: "bfloat16")
    assert dtype_of(load_encoder(model)) == "float32"


def test_a_format_that_was_named_stays(model, exact, amx):
    named = load_encoder(model, dtype="int8")
    assert dtype_of(named) == "int8"
    assert named.image.network._exact is None
    assert dtype_of(exact) == "float32"
    assert dtype_of(load_encoder("lite")) is None
    assert (exact.text.encode(TEXTS) * named.text.encode(TEXTS)).sum(1).min() > 0.98
    with pytest.raises(DataError, match="int8 weights can be neither exported nor fine-tuned"):
        torch_network_of(named)
    with pytest.raises(DataError, match="int8 is for the CPU, got device 'meta'"):
        load_encoder(model, dtype="int8", device="meta")


def test_calls_of_several_threads_take_turns_and_leave_the_number_of_threads_as_it_was():
    usual = torch.get_num_threads()
    torch.set_num_threads(2)

    def infer(threads):
        with computing(threads):
            return torch.get_num_threads() == threads, torch.is_inference_mode_enabled()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(infer, [1, 2, 3] * 10)) == {(True, True)}
        assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 2
    torch.set_num_threads(usual)
