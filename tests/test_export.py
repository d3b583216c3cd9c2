"""An export answers like the original, without torch, and damaged or hostile folders are refused."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from product_classificator import Classificator, load_encoder
from product_classificator.errors import ArtifactError, DataError, MissingExtraError
from product_classificator.export import export_classificator
from product_classificator.files import sha256_of
from tests.encoders.tiny_models import save_siglip
from tests.encoders.tiny_ruclip import write_checkpoint
from tests.fakes import jpeg
from tests.fixtures import RUCLIP_OPTIONS, SHOWN_LABELS

BLOCKED = (
    "torch",
    "transformers",
    "accelerate",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "onnx",
    "cyclopts",
)
ALWAYS_REQUIRED = {"lazy-loader", "numpy", "onnxruntime", "pillow", "pydantic", "safetensors"}
LONG = "A nice cup number 7 for you, кружка стеклянная для дома " * 40
TEXTS = ["A nice hat", "", None, LONG, "Sock, 30 x 40 см, 100 %", "фвапр", "cup 😀 \ud800", "hat"]


def images():
    noise = np.random.default_rng(0).integers(0, 256, (700, 60, 3), dtype=np.uint8)
    return [
        jpeg("red"),
        jpeg("blue"),
        Image.fromarray(noise),
        jpeg("red", (1200, 900)),
        None,
        noise,
        jpeg("green"),
        None,
    ]


@pytest.fixture(scope="module")
def lite(lite_run):
    return Classificator.from_run(lite_run[0])


@pytest.fixture(scope="module")
def exported_folder(lite_export):
    return lite_export[0]


@pytest.fixture(scope="module")
def exported(exported_folder):
    return Classificator(heads_ver=exported_folder)


@pytest.fixture
def folder(exported_folder, tmp_path):
    return shutil.copytree(exported_folder, tmp_path / "exported")


@pytest.fixture(scope="module")
def ruclip_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def change(folder, **values):
    path = folder / "export.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def assert_same(expected, actual):
    """Compare predictions: equal labels, probabilities equal but for rounding."""
    assert expected.characteristics == actual.characteristics
    for name in expected.characteristics:
        assert expected.best(name).tolist() == actual.best(name).tolist()
        assert np.allclose(expected.probabilities[name], actual.probabilities[name], rtol=0, atol=1e-3, equal_nan=True)


def test_heads_name_and_fingerprint_of_an_export_are_those_of_the_original(lite, exported):
    assert exported.bundle.digest == lite.bundle.digest  # so are labels, calibration, hierarchy, thresholds
    assert (exported.model_name, exported.encoder.fingerprint) == (lite.model_name, lite.encoder.fingerprint)
    assert exported.channels == lite.channels
    assert exported.run is None


def test_lite_answers_the_same_with_any_part_missing(lite, exported):
    texts = ["", None, *TEXTS[2:]]
    given = [*images()[:4], *images()[:1], *images()[5:7], jpeg("blue")]
    assert_same(lite.predict(texts, given), exported.predict(texts, given))
    assert_same(lite.predict("A nice hat"), exported.predict("A nice hat"))
    assert_same(lite.predict(images=jpeg("blue")), exported.predict(images=jpeg("blue")))


def test_decisions_are_those_of_the_original(lite, exported):
    texts = ["A nice hat number 3 for you", "фвапр джлорп", *["A nice cup number 5 for you"] * 3]
    expected, actual = (each.predict(texts, min_precision=0.5).decisions for each in (lite, exported))
    assert expected.is_out_of_distribution.tolist() == actual.is_out_of_distribution.tolist()
    assert expected["kind"].tolist() == actual["kind"].tolist()
    assert "auto" in actual["kind"]


def assert_answers_the_same(encoder, folder):
    texts, given = TEXTS[:1] + TEXTS[3:], images()[2:]
    exported = Classificator(heads_ver=folder)
    assert exported.encoder.fingerprint == encoder.fingerprint
    original = Classificator.zero_shot(SHOWN_LABELS, ["{}"], encoder=encoder)
    assert_same(original.predict(texts, given), exported.predict(texts, given))


def required(folder):
    """The packages that an export needs beyond those that every export needs."""
    return set(json.loads((folder / "export.json").read_text())["requires"]) - ALWAYS_REQUIRED


def test_ruclip_answers_the_same_under_every_option(ruclip_export):
    encoder = load_encoder(f"{ruclip_export / 'model'}{RUCLIP_OPTIONS}", dtype="float32")
    assert_answers_the_same(encoder, ruclip_export / "export")
    assert required(ruclip_export / "export") == {"tokenizers"}


@pytest.mark.slow
def test_ruclip_of_several_layers_answers_the_same_without_options(ruclip_folder, tmp_path):
    encoder = load_encoder(str(ruclip_folder), dtype="float32")
    export_classificator(Classificator.zero_shot(SHOWN_LABELS, ["{}"], encoder=encoder), tmp_path / "exported")
    assert_answers_the_same(encoder, tmp_path / "exported")


@pytest.fixture(scope="module")
def siglip(once):
    """A model of transformers, and the folder of its export."""

    def export(folder):
        encoder = load_encoder(f"hf:{save_siglip(folder / 'model', layers=1)}+windows", dtype="float32")
        export_classificator(Classificator.zero_shot(SHOWN_LABELS, ["{}"], encoder=encoder), folder / "export")

    folder, _ = once("siglip", export)
    return load_encoder(f"hf:{folder / 'model'}+windows", dtype="float32"), folder / "export"


@pytest.mark.slow
def test_a_model_of_transformers_answers_the_same(siglip):
    assert_answers_the_same(*siglip)


@pytest.mark.slow
def test_an_exported_model_of_transformers_needs_no_torch(siglip):
    encoder, folder = siglip
    assert required(folder) == {"tokenizers", "transformers"}
    code = f"""
import json, sys
sys.modules["torch"] = None
from PIL import Image
from product_classificator import load_encoder
encoder = load_encoder({str(folder / "encoder")!r})
image, text = encoder.image.encode([Image.new("RGB", (40, 60), "red")]), encoder.text.encode(["hat"])
print(json.dumps([image.tolist(), text.tolist()]))
"""
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    image, text = json.loads(completed.stdout.splitlines()[-1])
    assert np.allclose(image, encoder.image.encode([Image.new("RGB", (40, 60), "red")]), atol=1e-4)
    assert np.allclose(text, encoder.text.encode(["hat"]), atol=1e-4)


def test_an_export_replaces_an_older_one_and_nothing_else(lite, exported_folder, tmp_path):
    shutil.copytree(exported_folder, tmp_path / "exported")
    export_classificator(lite, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    (tmp_path / "exported/notes.txt").touch()
    with pytest.raises(ArtifactError, match=r"needs a folder of its own, but .* holds other files: name another"):
        export_classificator(lite, tmp_path / "exported")


def test_files_that_desktops_leave_in_an_export_do_no_harm(lite, folder):
    for name in (".DS_Store", "Thumbs.db", "encoder/desktop.ini"):
        (folder / name).touch()
    assert Classificator(heads_ver=folder).bundle.digest == lite.bundle.digest
    export_classificator(lite, folder)
    assert not (folder / "Thumbs.db").exists()


def test_an_export_that_answers_differently_is_not_kept(lite, tmp_path, monkeypatch):
    original = Classificator.from_parts(lite.encoder, lite.bundle)

    def predict(*arguments, **options):
        predictions = Classificator.predict(original, *arguments, **options)
        predictions.probabilities["kind"][:] += 0.01
        return predictions

    monkeypatch.setattr(original, "predict", predict)
    with pytest.raises(
        ArtifactError, match=r"must be within 0.001 of the original ones; .* kind \(1 in all\): nothing"
    ):
        export_classificator(original, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_encoders_that_do_not_compute_in_float32_are_refused(ruclip_folder, tmp_path):
    rounded = Classificator.zero_shot(SHOWN_LABELS, encoder=load_encoder(str(ruclip_folder), dtype="bfloat16"))
    with pytest.raises(DataError, match="computes in bfloat16: load it with dtype='float32'"):
        export_classificator(rounded, tmp_path / "exported")


def test_the_onnx_exporter_is_an_extra(ruclip_folder, tmp_path, monkeypatch):
    original = Classificator.zero_shot(SHOWN_LABELS, encoder=load_encoder(str(ruclip_folder), dtype="float32"))
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "onnxscript" else find_spec(name)
    )
    with pytest.raises(MissingExtraError, match=r"product_classificator\[onnx-export\]"):
        export_classificator(original, tmp_path / "exported")


@pytest.mark.parametrize(
    "name", ["manifest.json", "weights.safetensors", "words.json", "encoder/image.onnx", "encoder/encoder.json"]
)
def test_a_file_that_was_changed_or_is_missing_is_refused(folder, name):
    path = folder / name
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-1] + b"!"), path.unlink):
        damage()
        with pytest.raises(
            ArtifactError, match=rf"missing, changed or unknown in .*: {name} \(1 in all\): copy it again"
        ):
            Classificator(heads_ver=folder)


def test_files_that_export_json_does_not_list_or_that_lie_elsewhere_are_refused(folder):
    digests = json.loads((folder / "export.json").read_text())["sha256"]
    change(folder, sha256={**digests, "../run.json": "0"})
    with pytest.raises(ArtifactError, match=r"missing, changed or unknown in .*: ../run.json \(1 in all\)"):
        Classificator(heads_ver=folder)
    change(folder, sha256={name: digest for name, digest in digests.items() if name != "words.json"})
    with pytest.raises(ArtifactError, match=r"missing, changed or unknown in .*: words.json \(1 in all\)"):
        Classificator(heads_ver=folder)


def test_an_export_json_that_is_newer_or_damaged_is_refused(folder):
    change(folder, format=99)
    with pytest.raises(ArtifactError, match=r"exported has format 99, this version reads 1: export again"):
        Classificator(heads_ver=folder)
    for damage in ({"format": 1, "channels": "cmyk"}, {"channels": "rgb", "sha256": 3}, {"sha256": {}, "more": 1}):
        change(folder, **damage)
        with pytest.raises(ArtifactError, match=r"(?s)does not describe an export .*: export again"):
            Classificator(heads_ver=folder)
    (folder / "export.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=r"(?s)does not describe an export .*: export again"):
        Classificator(heads_ver=folder)


def test_an_encoder_that_the_heads_were_not_trained_on_is_refused(folder):
    facts = json.loads((folder / "encoder/encoder.json").read_text())
    towers = {tower: {**facts[tower], "fingerprint": "another"} for tower in ("image", "text")}
    (folder / "encoder/encoder.json").write_text(json.dumps({**facts, **towers}))
    digests = json.loads((folder / "export.json").read_text())["sha256"]
    change(folder, sha256={**digests, "encoder/encoder.json": sha256_of(folder / "encoder/encoder.json")})
    with pytest.raises(ArtifactError, match=r"heads fit one encoder: .* got 'lite' \(another"):
        Classificator(heads_ver=folder)


def test_packages_that_are_not_installed_are_named(folder):
    change(folder, requires={"numpy": "2", "unheard-of": "1"})
    with pytest.raises(
        ArtifactError, match=r"not installed: unheard-of \(1 in all\): pip install -r .*requirements.txt"
    ):
        Classificator(heads_ver=folder)
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert f"onnxruntime=={onnxruntime.__version__}" in lines


def test_without_torch_and_its_like_the_answers_are_the_same(exported, exported_folder, tmp_path):
    """The packages that a slim container lacks cannot be imported, as if they were not installed."""
    texts, given = ["A nice hat number 5", "", "A nice cup"], [jpeg("red"), jpeg("blue"), b"no photo"]
    (tmp_path / "blue.jpg").write_bytes(given[1])
    code = f"""
import json, sys
sys.modules |= dict.fromkeys({BLOCKED})
from product_classificator import Classificator
images = [bytes.fromhex({given[0].hex()!r}), {str(tmp_path / "blue.jpg")!r}, b"no photo"]
exported = Classificator(heads_ver={str(exported_folder)!r})
answers = exported.predict({texts!r}, images, min_precision=0.5, errors="status")
print(json.dumps([answers.predicted("kind"), answers.status.tolist(), answers.decisions["kind"].tolist()]))
"""
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    expected = exported.predict(texts, given, min_precision=0.5, errors="status")
    assert json.loads(completed.stdout) == [
        expected.predicted("kind"),
        expected.status.tolist(),
        expected.decisions["kind"].tolist(),
    ]
