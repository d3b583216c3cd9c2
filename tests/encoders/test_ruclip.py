import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from product_classificator.encoders import EncoderSpec, embed_labels, load_encoder
from product_classificator.encoders.clip import batch_sizes, batches_of, clip_towers
from product_classificator.encoders.onnx_export import export_encoder
from product_classificator.encoders.preprocessing import SquarePreparation, TextPreparation
from product_classificator.encoders.ruclip import read_bpe
from product_classificator.errors import ArtifactError, DataError
from product_classificator.text import clean_published
from tests.encoders.tiny_ruclip import CONFIG, write_checkpoint
from tests.fixtures import RUCLIP_OPTIONS

GOLDEN = Path(__file__).parents[3] / "shared/fixtures/ruclip-tiny"
LONG = "кружка стеклянная для дома " * 40
TEXTS = ["Кружка", "", "   ", "Футболка женская, хлопок 100 %", LONG, "ваза " * 20, "商品 😀 \ud800"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(str(folder))


def photos(n, size=(60, 90)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(n)]


def test_ruclip_keeps_the_promises_of_an_encoder(encoder):
    for vectors, n in ((encoder.image.encode(photos(3)), 3), (encoder.text.encode(TEXTS), len(TEXTS))):
        assert vectors.shape == (n, CONFIG["embed_dim"])
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoder.image.encode([]).shape == encoder.text.encode([]).shape == (0, CONFIG["embed_dim"])


def test_the_order_is_kept_and_batches_do_not_matter(encoder):
    images, texts = photos(40), [f"кружка номер {i} " * (i % 9) for i in range(150)]
    assert np.allclose(encoder.image.encode(images)[[39, 3]], encoder.image.encode([images[39], images[3]]), atol=1e-5)
    assert np.allclose(encoder.text.encode(texts)[[149, 3]], encoder.text.encode([texts[149], texts[3]]), atol=1e-5)


def test_the_name_of_a_folder_is_its_whole_path(folder, encoder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert load_encoder("tiny").name == encoder.name == str(folder)
    assert load_encoder("tiny+windows").name == f"{folder}+windows"


def test_every_option_changes_the_fingerprint_and_the_device_does_not(folder, encoder):
    options = ["", "+letterbox", "+windows", "+clean", "+letterbox+windows+clean"]
    assert len({load_encoder(f"{folder}{option}").fingerprint for option in options}) == len(options)
    assert load_encoder(str(folder), dtype="float16", device="cpu").fingerprint == encoder.fingerprint


def test_a_crop_takes_the_square_in_the_middle_and_a_letterbox_loses_nothing():
    stripes = np.full((20, 40, 3), 200, dtype=np.uint8)
    stripes[:, :10] = 0
    for fit, edge in (("crop", 200), ("letterbox", 0)):
        preparation = SquarePreparation(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), fit)
        prepared = preparation.prepare(Image.fromarray(stripes))
        assert prepared.size == (16, 16)
        assert abs(int(np.asarray(prepared)[8, 0, 0]) - edge) < 8
        assert preparation.prepare(prepared).tobytes() == prepared.tobytes()
        assert preparation.inputs([prepared])["pixel_values"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 2)])
def test_photos_of_any_mode_and_shape_are_prepared(encoder, mode, size):
    for option in ("", "+letterbox"):
        tower = load_encoder(encoder.name + option).image
        assert tower.prepare(Image.new(mode, size)).size == (32, 32)


def test_only_the_windows_read_what_comes_late(folder, encoder):
    early, late = LONG, LONG + "куртка зимняя " * 20
    assert np.allclose(*encoder.text.encode([early, late]))
    windows = load_encoder(f"{folder}+windows")
    assert not np.allclose(*windows.text.encode([early, late]), atol=1e-3)
    assert np.allclose(windows.text.encode(["кружка"]), encoder.text.encode(["кружка"]), atol=1e-6)


def test_a_text_of_any_length_has_at_most_eight_windows(folder):
    windows, owners = load_encoder(f"{folder}+windows").text.preparation.windows(["кружка " * 5000, "ваза"])
    assert max(len(window) for window in windows) == 77
    assert owners.tolist() == [0] * 8 + [1]


def test_cleaned_texts_are_those_of_the_published_system(folder, encoder):
    cleaning = load_encoder(f"{folder}+clean")
    noisy = "Кружка для дома, 300 мл, 10х20 см!!!"
    assert np.array_equal(cleaning.text.encode([noisy]), encoder.text.encode([clean_published(noisy)]))
    assert not np.allclose(cleaning.text.encode([noisy]), encoder.text.encode([noisy]), atol=1e-3)
    assert np.array_equal(cleaning.image.encode(photos(2)), encoder.image.encode(photos(2)))


def test_names_of_special_tokens_in_a_text_are_plain_letters(encoder):
    windows, _ = encoder.text.preparation.windows(["кружка <EOS> <PAD> ваза"])
    assert windows[0].count(3) == 1
    assert 0 not in windows[0]


def test_a_text_is_lower_cased_as_a_whole(tmp_path):
    (tmp_path / "bpe.model").write_text("6 0\n9601 4\n959 5\n963 6\n962 7\n966 8\n105 9\n1 0 2 3\n")
    preparation = TextPreparation(read_bpe(tmp_path / "bpe.model"), pad_id=0, max_tokens=77, lowers=True)
    (shouted, lowered, _), _ = preparation.windows(["ΣΟΦΟΣ", "ΣΟΦΟΣ".lower(), "İΣ"])
    assert shouted == lowered == [2, 4, 6, 5, 8, 5, 7, 3]


def test_labels_are_embedded_in_sentences(encoder):
    vectors = embed_labels(encoder, ["Кружки", "Вазы"])
    assert vectors.shape == (2, CONFIG["embed_dim"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(embed_labels(encoder, ["ваза"], ["{}"]), encoder.text.encode(["ваза"]), atol=1e-6)
    for templates in (["это"], []):
        with pytest.raises(DataError, match=r"a template is a sentence with .* for the label"):
            embed_labels(encoder, ["ваза"], templates)


def test_names_of_labels_are_not_cleaned(folder, encoder):
    name = "18+, для дома!"
    assert clean_published(name) != name
    assert np.array_equal(embed_labels(load_encoder(f"{folder}+clean"), [name]), embed_labels(encoder, [name]))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([], "an empty list"),
        (["ваза", " ", None, 3], r"' ', None, 3 \(3 in all\)"),
        ([""], r"'' \(1 in all\)"),
        ("ваза", "'ваза'"),
    ],
)
def test_labels_without_a_name_are_refused(encoder, labels, found):
    with pytest.raises(DataError, match=f"each a text that is not blank, found {found}: name each label"):
        embed_labels(encoder, labels)


def test_a_name_is_taken_apart_and_put_together():
    spec = EncoderSpec.parse("hf:org/model+windows+clean+st:org/sentences+v2")
    assert spec == EncoderSpec("hf:org/model", windows=True, clean=True, text_encoder="org/sentences+v2")
    assert EncoderSpec.parse(str(spec)) == spec
    assert str(EncoderSpec.parse("a+clean+letterbox")) == "a+letterbox+clean"
    with pytest.raises(DataError, match=r"an option of an encoder is given once, found '.clean' twice"):
        EncoderSpec.parse("lite+clean+windows+clean")
    for name in ("", "+clean", "lite+st:"):
        with pytest.raises(DataError, match="an encoder is written <encoder>"):
            EncoderSpec.parse(name)


def test_what_cannot_be_computed_with_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="there is no device 'nonsense' on this machine"):
        load_encoder(str(folder), device="nonsense")
    with pytest.raises(DataError, match="dtype must be one of auto, float32, bfloat16, float16, int8, got 'int3'"):
        load_encoder(str(folder), dtype="int3")
    with pytest.raises(DataError, match=r"nor a folder of that name .*: did you mean 'ruclip-vit-base-patch16-224'"):
        load_encoder("ruclip-vit-base-patch16-22")
    with pytest.raises(ArtifactError, match="holds neither"):
        load_encoder(str(tmp_path))
    with pytest.raises(DataError, match="'lite' pads photos and reads long texts already"):
        load_encoder("lite+letterbox")


def test_lower_precision_answers_almost_the_same(folder, encoder):
    half = load_encoder(str(folder), dtype="bfloat16")
    for exact, rounded in (
        (encoder.image.encode(photos(4)), half.image.encode(photos(4))),
        (encoder.text.encode(TEXTS), half.text.encode(TEXTS)),
    ):
        assert (exact * rounded).sum(1).min() > 0.999


@pytest.fixture
def exported(ruclip_export):
    return ruclip_export / "export/encoder"


def test_onnx_answers_what_torch_answers(ruclip_export, exported):
    encoder, opened = load_encoder(f"{ruclip_export / 'model'}{RUCLIP_OPTIONS}"), load_encoder(str(exported))
    assert (opened.name, opened.fingerprint, opened.shares_space) == (encoder.name, encoder.fingerprint, True)
    texts = [*TEXTS, *("ваза " * n for n in range(1, 40))]
    assert np.abs(opened.image.encode(photos(5)) - encoder.image.encode(photos(5))).max() < 1e-4
    assert np.abs(opened.text.encode(texts) - encoder.text.encode(texts)).max() < 1e-4


def test_an_export_cannot_be_exported_again_nor_change_its_number_format(exported, tmp_path):
    with pytest.raises(DataError, match="is exported already: only models of PyTorch can be exported or fine-tuned"):
        export_encoder(load_encoder(str(exported)), tmp_path / "again")
    with pytest.raises(DataError, match="exported encoders compute in float32, got dtype 'int8'"):
        load_encoder(str(exported), dtype="int8")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("text.onnx", "broken", r"text.onnx \(1 in all\) of .* was changed since the export"),
        ("tokenizer.json", "{}", r"tokenizer.json \(1 in all\) of .* was changed"),
        ("encoder.json", "{}", "does not describe an exported encoder"),
    ],
)
def test_a_damaged_export_is_refused(exported, tmp_path, name, content, fault):
    damaged = shutil.copytree(exported, tmp_path / "damaged")
    (damaged / name).write_text(content)
    with pytest.raises(ArtifactError, match=fault):
        load_encoder(str(damaged))


def test_only_float32_is_exported(folder, tmp_path):
    with pytest.raises(DataError, match="the encoder computes in bfloat16: load it with dtype='float32'"):
        export_encoder(load_encoder(str(folder), dtype="bfloat16"), tmp_path / "onnx")


def test_an_export_refuses_a_device_that_it_cannot_use(exported, monkeypatch):
    with pytest.raises(DataError, match="this export computes on the CPU or CUDA, got 'mps': use 'cpu'"):
        load_encoder(str(exported), device="mps")
    with pytest.raises(DataError, match="ONNX Runtime finds no CUDA here, got device 'cuda:1': use 'cpu'"):
        load_encoder(str(exported), device="cuda:1")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):  # asked for, but this machine has none
        assert load_encoder(str(exported), device="auto").image.encode(photos(1)).shape == (1, CONFIG["embed_dim"])


def test_an_encoder_without_towers_cannot_be_exported():
    with pytest.raises(DataError, match="only CLIP-like encoders can be exported or fine-tuned, 'lite' is not one"):
        clip_towers(load_encoder("lite"))


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden checkpoint is not here")
def test_pixels_and_embeddings_are_those_of_the_original_code(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "tiny")
    encoder = load_encoder(str(tmp_path / "tiny"))
    names = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    golden = np.load(GOLDEN / "golden.npz")
    images = [Image.open(GOLDEN / "images" / name) for name in names["images"]]
    pixels = encoder.image.preparation.inputs(images)["pixel_values"]
    for name, found, known in zip(names["images"], pixels, golden["pixel_values"], strict=True):
        assert np.abs(found - known).max() <= (2e-2 if name.endswith(".jpg") else 1e-5), name
    of_images = encoder.image.network.features("image", {"pixel_values": golden["pixel_values"]})
    of_texts = encoder.text.network.features("text", {"input_ids": golden["input_ids"].astype(np.int64)})
    for found, known in ((of_images, golden["image_embeds_normalized"]), (of_texts, golden["text_embeds_normalized"])):
        assert np.abs(found / np.linalg.norm(found, axis=1, keepdims=True) - known).max() < 1e-5
    assert np.abs(encoder.text.encode(names["texts"]) - golden["text_embeds_normalized"]).max() < 1e-5


def test_texts_are_batched_with_others_of_about_their_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 78, 500).tolist()
    batches = list(batches_of(lengths, 512))
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    for batch in batches:
        own = [lengths[row] for row in batch]
        assert len(batch) * max(own) <= 512
        assert max(own) <= 1.25 * min(own) + 4
    assert [len(batch) for batch in batches_of([7] * 130, 450)] == [64, 64, 2]
    assert list(batches_of([9, 9], 5)) == [[0], [1]]
    assert list(batches_of([], 5)) == []


@pytest.mark.parametrize(
    ("device", "size_px", "patch_px", "photos"), [("cpu", 384, 16, 1), ("cpu", 224, 32, 12), ("cuda", 224, 32, 408)]
)
def test_batches_of_photos_fit_the_cache_of_a_cpu_and_fill_a_gpu(device, size_px, patch_px, photos) -> None:
    assert batch_sizes(device, (size_px // patch_px) ** 2)[1] == photos


def test_towers_know_how_many_photos_they_take_at_once(encoder) -> None:
    network = encoder.image.network
    vision = network.model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    assert (network.tokens_per_batch, network.images_per_batch) == batch_sizes("cpu", patches) == (600, 150)
