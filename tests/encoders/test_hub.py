import json
import shutil
import tracemalloc
from logging.handlers import BufferingHandler
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, ByT5Tokenizer
from transformers.utils import logging as transformers_logging

from product_classificator.encoders import load_encoder
from product_classificator.errors import ArtifactError, DataError
from tests.encoders.tiny_models import FAMILIES, save_bert, save_siglip, tiny_hub

LONG = "ваза стеклянная высокая для цветов " * 40
TEXTS = ["red shoe", "Ваза, 30 см", "", LONG]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Family -> folder of a tiny random model."""
    return {family: save(tmp_path_factory.mktemp(family)) for family, save in FAMILIES.items()}


@pytest.fixture(scope="module")
def loaded(saved):
    """Family -> encoder."""
    return {family: load_encoder(f"hf:{folder}") for family, folder in saved.items()}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(saved, tmp_path):
    """A CLIP of one's own, to damage."""
    return shutil.copytree(saved["clip"], tmp_path / "clip")


def photo(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def photos(n):
    return [photo(40 + i, 60 - i) for i in range(n)]


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def unit(features):
    return (features / features.norm(dim=1, keepdim=True)).numpy()


def test_vectors_are_those_of_auto_processor_and_auto_model(family, saved, loaded):
    images = [photo(60, 40), photo(50, 90), photo(32, 32), photo(7, 5), photo(60, 40).convert("L").convert("RGB")]
    processor, model = AutoProcessor.from_pretrained(saved[family]), AutoModel.from_pretrained(saved[family])
    limit = {"clip": 20, "siglip": 16, "siglip2": 64, "chinese_clip": 24, "altclip": 24}[family]
    padding = "max_length" if "siglip" in family else True
    with torch.inference_mode():
        pixels = processor(images=images, return_tensors="pt")
        tokens = processor(text=TEXTS, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        of_images, of_texts = (
            model.get_image_features(**pixels).pooler_output,
            model.get_text_features(**tokens).pooler_output,
        )
    assert np.allclose(loaded[family].image.encode(images), unit(of_images), atol=1e-5)
    assert np.allclose(loaded[family].text.encode(TEXTS), unit(of_texts), atol=1e-5)


def test_a_model_keeps_the_promises_of_an_encoder(family, loaded):
    encoder = loaded[family]
    assert encoder.shares_space
    for vectors in (encoder.image.encode(photos(3)), encoder.text.encode(["чашка", "", "\ud800 hat"])):
        assert vectors.shape == (3, encoder.image.dim) == (3, encoder.text.dim)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoder.image.encode([]).shape == encoder.text.encode([]).shape == (0, encoder.text.dim)


def test_the_order_is_kept_and_batches_do_not_matter(family, loaded):
    images, texts = photos(33), [f"т{i} " + "a" * (i % 7) for i in range(70)]
    encoder = loaded[family]
    assert np.allclose(encoder.image.encode(images)[[32, 3]], encoder.image.encode([images[32], images[3]]), atol=1e-5)
    assert np.allclose(encoder.text.encode(texts)[[69, 3]], encoder.text.encode([texts[69], texts[3]]), atol=1e-5)
    assert np.allclose(encoder.text.encode(texts)[[0]], encoder.text.encode([texts[0]]), atol=1e-5)


def test_preparing_twice_changes_nothing(family, loaded):
    encoder = loaded[family]
    for image in [photo(60, 40), photo(3, 200), photo(1, 1), photo(2, 1), photo(60, 40).convert("RGBA")]:
        once = encoder.image.prepare(image)
        assert once.mode == "RGB"
        assert np.array_equal(np.asarray(encoder.image.prepare(once)), np.asarray(once))
        assert np.allclose(encoder.image.encode([image]), encoder.image.encode([once]), atol=1e-6)


def test_a_photo_that_is_a_line_does_not_fill_the_memory(loaded):
    line, red = Image.new("RGB", (60_000, 1), "red"), Image.new("RGB", (50, 50), "red")
    tracemalloc.start()
    assert np.allclose(loaded["clip"].image.encode([line]), loaded["clip"].image.encode([red]), atol=1e-5)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_photos_that_are_enlarged_before_they_are_cropped_are_prepared_once(folder):
    changed = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    edit(folder / "processor_config.json", image_processor={**changed, "size": {"shortest_edge": 48}})
    processor, model = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        known = unit(model.get_image_features(**processor(images=photos(3), return_tensors="pt")).pooler_output)
    encoder = load_encoder(f"hf:{folder}")
    assert np.allclose(encoder.image.encode([encoder.image.prepare(image) for image in photos(3)]), known, atol=1e-5)


def test_names_of_special_tokens_are_plain_text(family, saved, loaded):
    tokenizer = AutoProcessor.from_pretrained(saved[family]).tokenizer
    names = set(tokenizer.all_special_tokens) - {"<unk>", "[UNK]"}
    plain, named = (
        loaded[family].text.preparation.windows([text])[0][0] for text in ("red", " ".join(["red", *sorted(names)]))
    )
    special = set(tokenizer.all_special_ids)
    assert len(named) > len(plain)
    assert [token for token in named if token in special] == [token for token in plain if token in special]


def test_a_short_text_is_one_window_and_a_long_one_the_average_of_several(family, saved, loaded):
    windowed = load_encoder(f"{saved[family]}+windows")
    assert np.allclose(windowed.text.encode(["red"]), loaded[family].text.encode(["red"]), atol=1e-6)
    long = "abc " * 25 if family != "siglip2" else "abc " * 60
    windows, owners = windowed.text.preparation.windows([long, "red", LONG * 9])
    counts = np.bincount(owners)
    assert 1 < counts[0] < 9
    assert list(counts[1:]) == [1, 8]
    parts = windowed.text.network.features("text", windowed.text.preparation.inputs(windows[: counts[0]]))
    mean = (parts / np.linalg.norm(parts, axis=1, keepdims=True)).mean(0)
    assert np.allclose(windowed.text.encode([long])[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_the_fingerprint_names_weights_and_preparation(saved, loaded, folder):
    known = loaded["clip"].fingerprint
    assert known.startswith("hub-")
    (folder / "README.md").write_text("of no account, nor where the folder lies or what computes")
    (folder / "pytorch_model.bin").write_text("not read, since there are safetensors")
    assert load_encoder(str(folder), dtype="bfloat16").fingerprint == known
    others = {load_encoder(f"hf:{folder}{option}").fingerprint for option in ("+windows", "+letterbox")}
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] += 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    others.add(load_encoder(f"hf:{folder}").fingerprint)
    assert len(others | {known}) == 4


@pytest.mark.parametrize("is_safe", [True, False])
def test_the_fingerprint_names_the_weights_of_every_file_of_an_index(folder, is_safe):
    kind, save = ("model.safetensors", save_shard) if is_safe else ("pytorch_model.bin", torch.save)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {f"part-{number}.{kind.split('.')[1]}": names[number::2] for number in (0, 1)}
    index = {name: part for part, own in parts.items() for name in own}
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    found = set()
    for _ in range(2):
        for part, own in parts.items():
            save({name: weights[name] for name in own}, folder / part)
        found.add(load_encoder(f"hf:{folder}").fingerprint)
        weights["logit_scale"] += 0.01
    assert len(found) == 2


def save_shard(weights, path):
    save_file(weights, path, metadata={"format": "pt"})


def test_the_name_can_be_given_back_from_anywhere(saved, loaded, monkeypatch):
    monkeypatch.chdir(saved["altclip"].parent)
    encoder = load_encoder(f"hf:{saved['altclip'].name}+windows")
    monkeypatch.chdir("/")
    assert encoder.name == f"hf:{saved['altclip']}+windows"
    assert load_encoder(encoder.name).fingerprint == encoder.fingerprint


def test_half_precision_answers_nearly_the_same(family, saved, loaded):
    half = load_encoder(f"hf:{saved[family]}", dtype="bfloat16")
    assert half.text.encode(TEXTS).dtype == np.float32
    assert (half.text.encode(TEXTS) * loaded[family].text.encode(TEXTS)).sum(1).min() > 0.99
    assert (half.image.encode(photos(2)) * loaded[family].image.encode(photos(2))).sum(1).min() > 0.99


def test_letterbox_keeps_the_whole_photo(saved):
    encoder = load_encoder(f"hf:{saved['clip']}+letterbox")
    once = encoder.image.prepare(Image.new("RGB", (90, 30)))
    assert once.size == (32, 32)
    assert np.asarray(once)[0].min() == 255
    assert np.asarray(once)[16].max() == 0


def test_letterbox_is_refused_where_photos_keep_their_shape(saved):
    with pytest.raises(DataError, match="this one reads photos in a shape near their own: leave it out"):
        load_encoder(f"hf:{saved['siglip2']}+letterbox")


def test_loading_and_encoding_print_nothing(family, saved, capfd):
    log = BufferingHandler(1000)
    transformers_logging.add_handler(log)
    transformers_logging.warning_once.cache_clear()
    encoder = load_encoder(f"hf:{saved[family]}+windows")
    encoder.text.encode([LONG * 9])
    encoder.image.encode(photos(1))
    transformers_logging.remove_handler(log)
    assert log.buffer == []
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_a_fast_variant_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    with pytest.raises(ArtifactError, match=r"must hold a CLIP-like model of transformers, .* backend tokenizer"):
        load_encoder(f"hf:{folder}")


def test_the_tokenizer_of_siglip_needs_no_sentencepiece(saved, loaded, tmp_path):
    folder = shutil.copytree(saved["siglip"], tmp_path / "siglip")
    edit(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    encoder = load_encoder(f"hf:{folder}")
    assert np.allclose(encoder.text.encode(TEXTS), loaded["siglip"].text.encode(TEXTS), atol=1e-6)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The cache of the hub; the hub itself cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_repository_is_found_in_the_cache_of_the_hub(hub, saved, loaded):
    cached = hub / "models--shop--clip"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved["clip"], cached / "snapshots" / ("0" * 40))
    encoder = load_encoder("hf:shop/clip")
    assert encoder.name == "hf:shop/clip"
    assert encoder.fingerprint == loaded["clip"].fingerprint


def test_what_is_fetched_suffices_and_is_not_more(family, saved, loaded, monkeypatch, tmp_path):
    source = Path(shutil.copytree(saved[family], tmp_path / "source"))
    for name in ("README.md", "pytorch_model.bin", "model.onnx", "code.py"):
        (source / name).write_text("not needed")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", tiny_hub(source, tmp_path / "cache"))
    assert load_encoder("hf:shop/model").fingerprint == loaded[family].fingerprint
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {path.name for path in saved[family].iterdir()}


def test_weights_in_the_older_format_are_fetched_where_there_are_no_others(folder, loaded, monkeypatch, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", tiny_hub(folder, tmp_path / "cache"))
    encoder = load_encoder("hf:shop/model")
    assert np.allclose(encoder.text.encode(TEXTS), loaded["clip"].text.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("name", ["shop/unknown", "/no/such/folder", "not a name"])
def test_a_repository_that_cannot_be_fetched_is_named(hub, name):
    with pytest.raises(ArtifactError, match=f"{name} is not on this machine and cannot be fetched"):
        load_encoder(f"hf:{name}")


def test_a_name_needs_a_repository():
    with pytest.raises(DataError, match="hf: is followed by a repository of the hub or a folder, got 'hf:\\+windows'"):
        load_encoder("hf:+windows")


def test_missing_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"do not hold text_projection.weight \(1 in all\): fetch or save it again"):
        load_encoder(f"hf:{folder}")


def test_weights_of_another_shape_are_not_made_up(folder):
    edit(folder / "config.json", projection_dim=25)
    with pytest.raises(ArtifactError, match=r"in the shape that its config.json calls for, .* \(2 in all\)"):
        load_encoder(f"hf:{folder}")


def test_a_model_for_texts_alone_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"has an image tower and a text tower, .* holds a BertModel"):
        load_encoder(f"hf:{save_bert(tmp_path)}")


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "reading it failed .*: fetch or save it again"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "reading it failed"),
        (lambda folder: (folder / "processor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer has no vocabulary"),
        (lambda folder: edit(folder / "config.json", model_type="other"), "reading it failed"),
    ],
    ids=["cut", "weights", "config", "json", "processor", "tokenizer", "type"],
)
def test_a_damaged_folder_is_refused(folder, damage, reason):
    damage(folder)
    with pytest.raises(ArtifactError, match=reason):
        load_encoder(f"hf:{folder}")


def test_code_of_a_model_is_never_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('run')")
    edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.A", "AutoModel": "evil.B"})
    with pytest.raises(ArtifactError, match="without code of its own; reading it failed"):
        load_encoder(f"hf:{folder}")


def test_weights_that_hold_objects_are_refused(folder):
    torch.save({"text_projection.weight": object}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="its weights hold more than numbers"):
        load_encoder(f"hf:{folder}")


def test_a_processor_that_does_not_fit_the_network_is_refused(folder):
    edit(folder / "processor_config.json", image_processor={"image_processor_type": "CLIPImageProcessor", "size": 64})
    with pytest.raises(ArtifactError, match="doesn't match model"):
        load_encoder(f"hf:{folder}")


def test_towers_of_unlike_widths_are_refused(tmp_path):
    folder = save_siglip(tmp_path, hidden_size=64)
    with pytest.raises(ArtifactError, match=r"found shapes \(2, 64\) for photos and \(2, 32\) for texts"):
        load_encoder(f"hf:{folder}")
