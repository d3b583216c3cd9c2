import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from product_classificator.encoders import RUCLIP_MODELS, load_encoder
from product_classificator.encoders.checkpoint import FILES
from product_classificator.encoders.ruclip import converted, delete_model, fetch, load, read_marker
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


def test_a_checkpoint_is_converted_once_beside_itself_and_again_when_it_changes(folder):
    with converted(folder) as (ready, marker):
        assert ready == folder / "converted"
        names = {path.name for path in ready.iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json", "ruclip.json"}
        assert marker.size_px == 32
    made = (ready / "ruclip.json").stat().st_mtime_ns
    with converted(folder):
        assert (ready / "ruclip.json").stat().st_mtime_ns == made
    torch.save(weights(seed=1), folder / "pytorch_model.bin")
    with converted(folder) as (_, changed):
        assert changed.sha256 != marker.sha256
    assert {path.name for path in folder.iterdir()} - {".converted.lock", "converted"} == set(FILES)


def test_a_conversion_opens_in_transformers(folder):
    with converted(folder) as (ready, _):
        model = CLIPModel.from_pretrained(ready)
    assert model.config.text_config.eos_token_id == 3
    assert model.config.vision_config.hidden_act == "quick_gelu"


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"broken"), "model.safetensors (1 in all) of"),
        (lambda f: rewrite(f / "config.json", initializer_factor=2), "config.json (1 in all) of"),
        (lambda f: (f / "config.json").unlink(), "is not a converted ruCLIP checkpoint"),
        (lambda f: rewrite(f / "ruclip.json", sha256={}), "(3 in all) of"),
        (lambda f: rewrite(f / "ruclip.json", std=[0, 1, 1]), "is not a converted ruCLIP checkpoint"),
    ],
)
def test_a_damaged_conversion_is_made_again(folder, damage, message, caplog):
    with converted(folder) as (ready, marker):
        pass
    damage(ready)
    with converted(folder) as (_, again):
        assert again.sha256 == marker.sha256
    assert "is converted again" in caplog.text
    assert message in caplog.text


def test_a_damaged_conversion_without_its_checkpoint_is_refused(folder, tmp_path):
    with converted(folder) as (ready, _):
        shutil.copytree(ready, tmp_path / "alone")
    rewrite(tmp_path / "alone/config.json", initializer_factor=2)
    with pytest.raises(ArtifactError, match=r"config.json \(1 in all\) of .* was changed after it was written"):
        load_encoder(str(tmp_path / "alone"))
    (tmp_path / "alone/config.json").unlink()
    with pytest.raises(ArtifactError, match="is not a converted ruCLIP checkpoint"):
        load_encoder(str(tmp_path / "alone"))


def test_a_folder_that_cannot_be_written_to_is_converted_elsewhere(folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with converted(folder) as (ready, _):
        assert (ready / "model.safetensors").is_file()
    assert not ready.exists()
    assert not (folder / "converted").exists()


def test_the_conversion_alone_is_an_encoder(folder, tmp_path):
    whole = load_encoder(str(folder))
    shutil.copytree(folder / "converted", tmp_path / "alone")
    assert load_encoder(str(tmp_path / "alone")).fingerprint == whole.fingerprint


def test_weights_of_half_precision_are_read_in_full(folder):
    torch.save({name: weight.half() for name, weight in weights().items()}, folder / "pytorch_model.bin")
    with converted(folder) as (ready, _):
        assert CLIPModel.from_pretrained(ready).dtype == torch.float32


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "is not the configuration of a ruCLIP model"),
        (lambda f: (f / "config.json").write_text("no json"), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, vision_width=100), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, vision_layers=10**9), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, transformer_heads=3), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, vision_layers=3), r"must have the shapes its config.json calls for: .*missing"),
        (lambda f: change(f, embed_dim=8), r"must have the shapes its config.json calls for: .*\(16, "),
        (lambda f: change(f, transformer_layers=1), "is too many"),
        (lambda f: change(f, vocab_size=20), "do not belong together: bpe.model has ids up to .* 20 tokens"),
        (lambda f: (f / "bpe.model").write_text("1 0\n97 150\n1 0 2 3\n"), "ids up to 150, config.json 150 tokens"),
        (lambda f: change(f, std=[0, 1, 1]), "is not the configuration of a ruCLIP model"),
        (lambda f: change(f, mean=[float("nan"), 1, 1]), "is not the configuration of a ruCLIP model"),
        (lambda f: (f / "bpe.model").write_text("1"), "must be a bpe.model"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "is damaged, or holds more than weights"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"x" * 999), "is damaged, or holds more than weights"),
        (lambda f: cut(f / "pytorch_model.bin"), "is damaged, or holds more than weights"),
        (lambda f: torch.save([1, 2], f / "pytorch_model.bin"), "must hold named weights and nothing else"),
        (lambda f: torch.save({"a": 1}, f / "pytorch_model.bin"), "must hold named weights and nothing else"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_says_what_is_wrong(folder, damage, message):
    damage(folder)
    with pytest.raises(ArtifactError, match=message):
        load_encoder(str(folder))
    assert not (folder / "converted").exists()


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
    message = rf"must have names, and be dense, real and finite, .* otherwise: {name} \(1 in all\): fetch it again"
    with pytest.raises(ArtifactError, match=message):
        load_encoder(str(folder))
    assert not (folder / "converted").exists()


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
    assert (folder / "converted/ruclip.json").is_file()
    assert load_encoder(folder.name, cache_dir=folder.parent).name == str(folder.resolve())
    delete_model(folder.name, folder.parent)
    assert not folder.exists()
    delete_model(folder.name, folder.parent)


@pytest.mark.usefixtures("offline")
def test_without_a_network_one_sentence_tells_the_two_ways_out(tmp_path):
    sentence = r"cannot be fetched from the hub .*: name a folder that holds its files instead, or use .* 'lite'"
    for cache_dir in (None, tmp_path / "models"):
        with pytest.raises(ArtifactError, match=sentence):
            load_encoder("ruclip-vit-base-patch32-224", cache_dir=cache_dir)
    delete_model("ruclip-vit-base-patch32-224")


@pytest.mark.usefixtures("offline")
def test_a_model_fetched_in_part_is_not_on_this_machine(folder, tmp_path):
    cached = tmp_path / "hub/models--ai-forever--ruclip-vit-base-patch32-224"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    part = Path(shutil.copytree(folder, cached / "snapshots" / ("0" * 40)))
    assert fetch(folder.name) == part
    (part / "pytorch_model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"is not on this machine .* missing: pytorch_model.bin \(1 in all\)"):
        load_encoder(folder.name)


def test_a_name_that_is_none_of_the_six_names_the_nearest():
    with pytest.raises(DataError, match="did you mean 'ruclip-vit-base-patch32-224'"):
        fetch("ruclip-vit-base-patch32-225")
    assert len(set(RUCLIP_MODELS)) == 6


def test_a_marker_of_a_newer_version_is_refused(folder):
    with converted(folder) as (ready, marker):
        pass
    (ready / "ruclip.json").write_text(marker.model_copy(update={"format": 99}).model_dump_json())
    with pytest.raises(ArtifactError, match="has format 99, this version reads 1: upgrade"):
        read_marker(ready)
    with pytest.raises(ArtifactError, match="is not a converted ruCLIP checkpoint"):
        read_marker(folder)


def test_threads_that_convert_at_once_all_get_the_encoder(folder):
    found, errors = [], []

    def run():
        try:
            found.append(load_encoder(str(folder)).fingerprint)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set(found)) == 1
