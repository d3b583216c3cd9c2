import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from product_classificator.encoders.huggingface import load_sentence_texts
from product_classificator.errors import ArtifactError, DataError, MissingExtraError
from tests.encoders.tiny_models import save_bert, save_clip, tiny_hub

SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny random model of sentence-transformers, of 512 tokens."""
    folder = tmp_path_factory.mktemp("sentence")
    SentenceTransformer(str(save_bert(folder / "bert")), device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def encoder(saved):
    return load_sentence_texts(str(saved))


@pytest.fixture
def folder(saved, tmp_path):
    """A model of one's own, to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(path, name, **edits):
    weights = load_file(path)
    weights[name] = edits["to"] if "to" in edits else weights[name] + 0.1
    save_file({key: weight for key, weight in weights.items() if weight is not None}, path, metadata={"format": "pt"})


def test_vectors_are_those_of_the_library(saved, encoder):
    texts = ["Ваза стеклянная", "red shoe", "abc " * 400]
    known = SentenceTransformer(str(saved), device="cpu").encode(texts, normalize_embeddings=True)
    assert encoder.dim == 32
    assert np.allclose(encoder.encode(texts), known, atol=1e-5)


def test_every_text_gets_a_vector_of_unit_length(encoder):
    vectors = encoder.encode(["", "\ud800", " \n", "чашка"])
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, 32)


def test_the_order_is_kept_and_batches_do_not_matter(encoder):
    texts = [f"товар {i} " + "abc " * (i % 7) for i in range(70)]
    assert np.allclose(encoder.encode(texts)[[69, 3]], encoder.encode([texts[69], texts[3]]), atol=1e-5)


def test_the_500th_token_of_a_text_still_counts(encoder):
    one, other = encoder.encode(["a " * 500 + "b", "a " * 500 + "z"])
    assert np.abs(one - other).max() > 1e-5


def test_the_fingerprint_names_the_files_wherever_they_lie(encoder, folder):
    assert encoder.fingerprint.startswith("st-")
    assert load_sentence_texts(str(folder), dtype="bfloat16").fingerprint == encoder.fingerprint
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "cls"}))
    pooled = load_sentence_texts(str(folder)).fingerprint
    change(folder / "model.safetensors", "embeddings.LayerNorm.bias")
    assert len({encoder.fingerprint, pooled, load_sentence_texts(str(folder)).fingerprint}) == 3


def test_a_bare_network_is_averaged_over_its_tokens_with_a_warning(saved, encoder, caplog):
    bare = load_sentence_texts(str(saved.parent / "bert"))
    assert "has no modules.json: the vectors of its tokens are averaged" in caplog.text
    assert np.allclose(bare.encode(["red"]), encoder.encode(["red"]), atol=1e-6)


def test_a_text_stays_a_text_where_the_model_could_read_photos(tmp_path, monkeypatch):
    folder = save_clip(tmp_path / "clip")
    (tmp_path / "red.png").write_text("no photo")
    monkeypatch.chdir(tmp_path)
    encoder = load_sentence_texts(str(folder))
    texts = ["red.png", "https://localhost/red.png", "data:image/png;base64,AAAA"]
    assert np.allclose(np.linalg.norm(encoder.encode(texts), axis=1), 1, atol=1e-5)


def test_loading_and_encoding_print_nothing(saved, capfd):
    load_sentence_texts(str(saved)).encode(["red"])
    assert capfd.readouterr() == ("", "")


def test_a_missing_pooler_does_not_matter_but_other_missing_weights_do(folder):
    change(folder / "model.safetensors", "pooler.dense.weight", to=None)
    load_sentence_texts(str(folder))
    change(folder / "model.safetensors", "embeddings.LayerNorm.bias", to=None)
    with pytest.raises(ArtifactError, match=r"do not hold embeddings.LayerNorm.bias \(1 in all\)"):
        load_sentence_texts(str(folder))


def evil(folder):
    (folder / "evil.py").write_text("raise SystemExit('run')")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Thing"}]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "modules.json").write_text("["),
        lambda folder: [path.unlink() for path in folder.rglob("*.json")],
        evil,
    ],
    ids=["cut", "weights", "json", "empty", "code"],
)
def test_a_damaged_or_foreign_folder_is_refused(folder, damage):
    damage(folder)
    with pytest.raises(ArtifactError, match=r"must hold a model of sentence-transformers, with .* reading it failed"):
        load_sentence_texts(str(folder))


def test_what_is_fetched_suffices_and_is_not_more(folder, encoder, monkeypatch, tmp_path):
    for name in ("README.md", "pytorch_model.bin", "model.onnx", "code.py"):
        (folder / name).write_text("not needed")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", tiny_hub(folder, tmp_path / "cache"))
    assert load_sentence_texts("shop/model").fingerprint == encoder.fingerprint
    assert not {"README.md", "pytorch_model.bin", "model.onnx", "code.py"} & {
        path.name for path in (tmp_path / "cache").iterdir()
    }


def test_a_root_in_the_older_format_is_fetched_beside_a_part_in_the_newer(folder, monkeypatch, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Dense

    model = SentenceTransformer(str(folder), device="cpu")
    model.append(Dense(in_features=32, out_features=8))
    source = tmp_path / "dense"
    model.save(str(source))
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    assert (source / "2_Dense/model.safetensors").is_file()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", tiny_hub(source, tmp_path / "cache"))
    fetched = load_sentence_texts("shop/model")
    assert fetched.dim == 8
    assert fetched.fingerprint == load_sentence_texts(str(source)).fingerprint


def test_a_repository_that_cannot_be_fetched_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArtifactError, match="shop/unknown is not on this machine and cannot be fetched"):
        load_sentence_texts("shop/unknown")


def test_an_unknown_device_is_named(saved):
    with pytest.raises(DataError, match="there is no device 'quantum'"):
        load_sentence_texts(str(saved), device="quantum")


def test_the_missing_extra_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs an extra .* 'product_classificator\[sentence-transformers\]'"):
        load_sentence_texts(str(saved))
