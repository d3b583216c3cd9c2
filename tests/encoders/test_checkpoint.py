import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from product_classificator.encoders import RUCLIP_MODELS, load_encoder
from product_classificator.encoders.ruclip import RUCLIP_FILES, delete_ruclip, fetch_ruclip, load
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import ArtifactError, DataError
from tests.encoders.tiny_ruclip import CONFIG, weights, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "ruclip-vit-base-patch32-224")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without a network whose hub cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_nothing_is_written_beside_a_checkpoint_and_its_fingerprint_names_its_files(folder):
    first = load_encoder(str(folder)).fingerprint
    assert {path.name for path in folder.iterdir()} == set(RUCLIP_FILES)
    torch.save(weights(seed=1), folder / "pytorch_model.bin")
    assert load_encoder(str(folder)).fingerprint != first


def test_a_checkpoint_becomes_the_clip_model_of_transformers(folder):
    model = torch_network_of(load_encoder(str(folder))).model
    assert isinstance(model, CLIPModel)
    assert model.config.text_config.eos_token_id == 3
    assert model.config.vision_config.hidden_act == "quick_gelu"
    assert model.config.architectures == ["CLIPModel"]


def test_weights_of_half_precision_are_read_in_full(folder):
    halved = {name: weight.half() for name, weight in weights().items()}
    torch.save(halved, folder / "pytorch_model.bin")
    read = torch_network_of(load_encoder(str(folder))).model.state_dict()
    assert {weight.dtype for weight in read.values()} == {torch.float32}
    assert torch.equal(read["text_model.final_layer_norm.bias"], halved["ln_final.bias"].float())


def test_weights_in_the_format_of_older_versions_of_torch_are_read(folder):
    known = load_encoder(str(folder)).text.encode(["ваза"])
    torch.save(weights(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert np.array_equal(load_encoder(str(folder)).text.encode(["ваза"]), known)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "is not the configuration of a ruCLIP model"),
        (lambda f: (f / "config.json").write_text("no json"), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, vision_width=100), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, vision_layers=10**9), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, transformer_heads=3), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, vision_layers=3), r"must have the shapes its config.json calls for: .*Missing key"),
        (lambda f: change(f, embed_dim=8), r"must have the shapes its config.json calls for: .*size mismatch"),
        (
            lambda f: change(f, transformer_layers=1),
            r"must have the shapes its config.json calls for: .*Unexpected key",
        ),
        (lambda f: change(f, vocab_size=20), "do not belong together: bpe.model has ids up to .* 20 tokens"),
        (lambda f: (f / "bpe.model").write_text("1 0\n97 150\n1 0 2 3\n"), "ids up to 150, config.json 150 tokens"),
        (lambda f: change(f, std=[0, 1, 1]), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, mean=[float("nan"), 1, 1]), "is not the configuration of a ruCLIP model"),
        (lambda f: (f / "bpe.model").write_text("1"), "must be a bpe.model"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "is damaged, or holds more than weights"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"x" * 999), "is damaged, or holds more than weights"),
        (lambda f: cut(f / "pytorch_model.bin"), "is damaged, or holds more than weights"),
        (
            lambda f: torch.save([1, 2], f / "pytorch_model.bin"),
            "must hold named weights, all dense, real and finite, and nothing else",
        ),
        (
            lambda f: torch.save({"a": 1}, f / "pytorch_model.bin"),
            "must hold named weights, all dense, real and finite, and nothing else",
        ),
    ],
)
def test_a_damaged_or_foreign_checkpoint_says_what_is_wrong(folder, damage, message):
    damage(folder)
    with pytest.raises(ArtifactError, match=message):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        (7, torch.zeros(32)),
        ("ln_final.bias", torch.zeros(32, device="meta")),
        ("ln_final.bias", torch.zeros(32).to_sparse()),
        ("ln_final.bias", torch.zeros(32, dtype=torch.complex64)),
        ("ln_final.bias", torch.zeros(32, dtype=torch.int64)),
        ("ln_final.bias", torch.full((32,), torch.nan)),
        ("ln_final.bias", torch.full((32,), 1e300, dtype=torch.float64)),
        ("ln_final.bias", torch.zeros(1).expand(32)),
    ],
    ids=["name", "meta", "sparse", "complex", "integer", "nan", "beyond float32", "repeated"],
)
def test_weights_that_are_no_plain_numbers_are_refused(folder, name, weight):
    torch.save({**weights(), name: weight}, folder / "pytorch_model.bin")
    message = rf"must hold named weights, all dense, real and finite, .* found {name} \(1 in all\): fetch it again"
    with pytest.raises(ArtifactError, match=message):
        load_encoder(str(folder))


def change(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


def test_code_in_the_weights_is_not_executed(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for dump in (torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2))):
        dump({"a": Hostile()}, folder / "pytorch_model.bin")
        with pytest.raises(ArtifactError, match="holds more than weights"):
            load_encoder(str(folder))
    assert not (tmp_path / "pwned").exists()


def test_a_model_in_the_cache_folder_is_used_as_it_is(folder):
    assert load(folder.name, cache_dir=folder.parent) == folder
    assert load_encoder(folder.name, cache_dir=folder.parent).name == str(folder.resolve())
    delete_ruclip(folder.name, folder.parent)
    assert not folder.exists()
    delete_ruclip(folder.name, folder.parent)


@pytest.mark.usefixtures("offline")
def test_without_a_network_one_sentence_names_the_way_out(tmp_path):
    sentence = r"cannot be fetched from the hub .*: name a folder that holds its files instead$"
    for cache_dir in (None, tmp_path / "models"):
        with pytest.raises(ArtifactError, match=sentence):
            load_encoder("ruclip-vit-base-patch32-224", cache_dir=cache_dir)
    delete_ruclip("ruclip-vit-base-patch32-224")


@pytest.mark.usefixtures("offline")
def test_a_model_fetched_in_part_is_not_on_this_machine(folder, tmp_path):
    cached = tmp_path / "hub/models--ai-forever--ruclip-vit-base-patch32-224"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    part = Path(shutil.copytree(folder, cached / "snapshots" / ("0" * 40)))
    assert fetch_ruclip(folder.name) == part
    (part / "pytorch_model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"is not on this machine .* missing: pytorch_model.bin \(1 in all\)"):
        load_encoder(folder.name)


def test_a_name_that_is_none_of_the_six_names_the_nearest():
    with pytest.raises(DataError, match="did you mean 'ruclip-vit-base-patch32-224'"):
        fetch_ruclip("ruclip-vit-base-patch32-225")
    assert len(set(RUCLIP_MODELS)) == 6
