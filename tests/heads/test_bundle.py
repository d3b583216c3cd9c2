import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from product_classificator.errors import ArtifactError, DataError
from product_classificator.heads import HeadBundle
from product_classificator.training import FittedHeads, HeadSettings, fit_heads
from product_classificator.types import Embeddings
from tests.tiny_catalog import Material


@pytest.fixture
def saved(fitted: FittedHeads, tmp_path: Path) -> Path:
    fitted.bundle.save(tmp_path / "heads")
    return tmp_path / "heads"


def gappy(embeddings: Embeddings) -> Embeddings:
    """Returns three products: without a photo, without a text, without both."""
    few = embeddings.take(np.arange(3))
    few.has_image[[0, 2]], few.has_text[[1, 2]] = False, False
    few.image[[0, 2]], few.text[[1, 2]] = 0, 0
    return few


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_probabilities_are_well_formed_when_a_photo_or_a_text_is_missing(
    fitted: FittedHeads, material: Material
) -> None:
    predictions = fitted.bundle.predict(gappy(material.embeddings), material.texts[:3])
    assert predictions.is_known.tolist() == [True, True, False]
    for matrix in predictions.probabilities.values():
        assert np.allclose(matrix[:2].sum(1), 1)
        assert np.isnan(matrix[2]).all()
    assert predictions.best("kind")[:2].tolist() == material.truth["kind"][:2].tolist()
    assert predictions.best("colour")[0] == material.truth["colour"][0]


def test_what_stands_in_a_missing_part_does_not_matter(fitted: FittedHeads, material: Material) -> None:
    few = gappy(material.embeddings)
    noise = few.take(np.arange(3))
    noise.image[[0, 2]], noise.text[[1, 2]] = 7, 7
    one, two = (fitted.bundle.predict(each, material.texts[:3]).probabilities for each in (few, noise))
    assert all(np.array_equal(one[name], two[name], equal_nan=True) for name in one)


def test_a_product_is_judged_alike_alone_and_among_others(fitted: FittedHeads, material: Material) -> None:
    together = fitted.bundle.predict(material.embeddings, material.texts)
    alone = fitted.bundle.predict(material.embeddings.take(np.array([5])), material.texts[5:6])
    assert np.allclose(together.probabilities["kind"][5], alone.probabilities["kind"][0], atol=1e-6)


def test_no_products_give_no_predictions(fitted: FittedHeads, material: Material) -> None:
    none = fitted.bundle.predict(material.embeddings.take(np.arange(0)), [])
    assert none.probabilities["kind"].shape == (0, 3)


def test_only_the_characteristics_asked_for_are_told(fitted: FittedHeads, material: Material) -> None:
    assert fitted.bundle.predict(*material.rows("test"), ["size", "kind"]).characteristics == ("size", "kind")


def test_an_unknown_characteristic_names_the_nearest(fitted: FittedHeads, material: Material) -> None:
    with pytest.raises(DataError, match="no characteristic 'color': did you mean 'colour'"):
        fitted.bundle.predict(material.embeddings, material.texts, ["color"])


def test_embeddings_of_another_encoder_are_refused(fitted: FittedHeads, material: Material) -> None:
    with pytest.raises(ArtifactError, match="trained on, 'tiny-1'; these were made by 'other'"):
        fitted.bundle.predict(replace(material.embeddings, fingerprint="other"), material.texts)


def test_a_text_per_product_is_needed(fitted: FittedHeads, material: Material) -> None:
    with pytest.raises(DataError, match="240 embeddings, 2 texts"):
        fitted.bundle.predict(material.embeddings, ["a", "b"])


@pytest.mark.parametrize("recipe", ["joint", "published"])
def test_a_saved_bundle_says_the_same_when_it_is_loaded(material: Material, tmp_path: Path, recipe: str) -> None:
    base = HeadSettings.published() if recipe == "published" else HeadSettings()
    settings = replace(base, max_epochs=2, hidden=16)
    bundle = fit_heads(material.embeddings, material.texts, material.truth, material.split, settings).bundle
    bundle.save(tmp_path / "heads")
    loaded = HeadBundle.load(tmp_path / "heads")
    one, two = (each.predict(material.embeddings, material.texts).probabilities for each in (bundle, loaded))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert (loaded.labels, loaded.facts, loaded.digest) == (bundle.labels, bundle.facts, bundle.digest)


def test_the_folder_holds_three_files_and_nothing_beside_it(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", "weights.safetensors", "words.json"]
    assert list(saved.parent.iterdir()) == [saved]


def test_a_bundle_replaces_an_older_one(saved: Path, fitted: FittedHeads) -> None:
    fitted.bundle.save(saved)
    assert HeadBundle.load(saved).digest == fitted.bundle.digest


def test_a_folder_of_other_things_is_not_overwritten(fitted: FittedHeads, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds other things"):
        fitted.bundle.save(tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no bundle of heads at .*: manifest\.json is missing"):
        HeadBundle.load(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "words.json"])
def test_a_changed_file_is_refused(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[-3] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is missing or was changed"):
        HeadBundle.load(saved)


def test_a_missing_file_is_refused(saved: Path) -> None:
    (saved / "words.json").unlink()
    with pytest.raises(ArtifactError, match=r"words\.json is missing or was changed"):
        HeadBundle.load(saved)


def test_a_newer_format_asks_for_an_upgrade(saved: Path) -> None:
    change_manifest(saved, format=5)
    with pytest.raises(ArtifactError, match=r"has format 5, this version reads up to 4: upgrade"):
        HeadBundle.load(saved)


@pytest.mark.parametrize("change", [{"labels": 3}, {"surprise": 1}, {"temperatures": ["hot"]}, {"format": None}])
def test_a_manifest_of_another_form_is_refused(saved: Path, change: dict[str, object]) -> None:
    change_manifest(saved, **change)
    with pytest.raises(ArtifactError, match="is not the manifest of a bundle of heads"):
        HeadBundle.load(saved)


def test_a_bundle_of_format_1_that_was_written_before_there_were_names_and_projections_is_read(
    saved: Path, fitted: FittedHeads
) -> None:
    manifest = json.loads((saved / "manifest.json").read_text("utf-8"))
    manifest["format"] = 1
    del manifest["encoder_name"]
    for field in ("projected", "name_dim", "shares_space"):
        del manifest["network"][field]
    (saved / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert HeadBundle.load(saved).digest == fitted.bundle.digest
    assert HeadBundle.load(saved).encoder_name == ""


def test_a_bundle_of_format_3_without_words_has_no_layer_straight_to_the_labels(
    saved: Path, material: Material, quick: HeadSettings
) -> None:
    known = (material.embeddings, material.texts, material.truth, material.split)
    heads = fit_heads(*known, replace(quick, max_words=0)).bundle
    heads.save(saved)
    weights = load_file(saved / "weights.safetensors")
    del weights["straight.weight"]
    save_file(weights, saved / "weights.safetensors")
    with pytest.raises(ArtifactError, match="do not fit together"):
        rewritten(saved, format=4)
    old, (embeddings, texts) = rewritten(saved, format=3), material.rows("test")
    straight = heads.network.weights["straight.weight"]
    assert straight.any()
    straight[:] = 0
    for name, matrix in heads.predict(embeddings, texts).probabilities.items():
        assert np.array_equal(old.predict(embeddings, texts).probabilities[name], matrix)


def rewritten(folder: Path, **changes: object) -> HeadBundle:
    """Returns the bundle of a folder whose weights were changed."""
    sha256 = {name: sha256_of(folder / name) for name in ("weights.safetensors", "words.json")}
    change_manifest(folder, sha256=sha256, **changes)
    return HeadBundle.load(folder)


def test_a_bundle_that_was_written_before_there_were_decisions_predicts_and_decides_nothing(
    saved: Path, material: Material
) -> None:
    weights = load_file(saved / "weights.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("seen.")}, saved / "weights.safetensors")
    manifest = json.loads((saved / "manifest.json").read_text("utf-8"))
    for name in ("exponents", "thresholds", "novelty_limits"):
        del manifest[name]
    manifest["sha256"]["weights.safetensors"] = sha256_of(saved / "weights.safetensors")
    (saved / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    old = HeadBundle.load(saved)
    assert not old.can_decide
    predictions = old.predict(material.embeddings, material.texts)
    with pytest.raises(ArtifactError, match=r"decisions need thresholds .* these heads have none: .* train again"):
        old.with_decisions(predictions, material.embeddings, material.texts)


def test_a_loaded_bundle_decides_as_the_saved_one_did(saved: Path, fitted: FittedHeads, material: Material) -> None:
    found = []
    for bundle in (fitted.bundle, HeadBundle.load(saved)):
        predictions = bundle.predict(material.embeddings, material.texts)
        found.append(bundle.with_decisions(predictions, material.embeddings, material.texts, 0.8).decisions)
    one, two = found
    assert one is not None
    assert two is not None
    assert np.array_equal(one.is_out_of_distribution, two.is_out_of_distribution)
    assert all(np.array_equal(one[name], two[name]) for name in ("kind", "colour", "size"))


def test_a_value_stands_if_it_is_sure_enough_known_and_familiar(fitted: FittedHeads, material: Material) -> None:
    products = material.embeddings.take(np.arange(240))
    products.has_image[7] = products.has_text[7] = False
    products.image[8] *= -1
    predictions = fitted.bundle.predict(products, material.texts)
    decisions = fitted.bundle.with_decisions(predictions, products, material.texts, 0.9).decisions
    assert decisions is not None
    assert set(decisions["kind"]) == {"auto", "review"}
    assert decisions["kind"][[7, 8]].tolist() == ["review", "review"]
    assert decisions.is_out_of_distribution[8]
    everything = fitted.bundle.with_decisions(predictions, products, material.texts, 0.1).decisions
    assert everything is not None
    assert np.array_equal(everything.accepted["kind"], predictions.is_known & ~decisions.is_out_of_distribution)


def test_what_cannot_be_promised_is_all_for_review(fitted: FittedHeads, material: Material) -> None:
    predictions = fitted.bundle.predict(material.embeddings, material.texts, ["size"])
    decided = fitted.bundle.with_decisions(predictions, material.embeddings, material.texts, 0.99)
    assert decided.decisions is not None
    assert set(decided.decisions["size"]) == {"review"}
    assert decided.probabilities is predictions.probabilities
    with pytest.raises(DataError, match="no characteristic 'kind': Known: size"):
        decided.decisions["kind"]


def test_a_promise_of_certainty_is_refused(fitted: FittedHeads, material: Material) -> None:
    predictions = fitted.bundle.predict(material.embeddings, material.texts)
    with pytest.raises(DataError, match="min_precision must be a share above 0 and below 1, got 1"):
        fitted.bundle.with_decisions(predictions, material.embeddings, material.texts, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "jiont"}, r"a recipe is one of .*'joint'.*, found 'jiont'"),
        ({"name_dim": 9}, r"names 9 wide cannot be compared with parts \[6\] wide"),
        ({"recipe": "zero-shot"}, r"names 0 wide cannot be compared with parts \[6\] wide"),
        (
            {"recipe": "published", "projected": 4},
            r"21 are not: of components is expected .*, found None",
        ),
    ],
)
def test_a_network_of_another_form_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    network = json.loads((saved / "manifest.json").read_text("utf-8"))["network"]
    change_manifest(saved, network={**network, **change})
    with pytest.raises(ArtifactError, match=rf"(?s)do not fit together \(.*{message}"):
        HeadBundle.load(saved)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_manifest_that_is_no_json_object_is_refused(saved: Path, content: str) -> None:
    (saved / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match="is not the manifest of a bundle of heads"):
        HeadBundle.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"kind": ["a", "b"]}},
        {"temperatures": [1.0]},
        {"temperatures": [1.0, 0.0, 1.0]},
        {"exponents": [0.1]},
        {"exponents": [float("nan")] * 3},
        {"thresholds": {"kind": [[0.9, 0.5]]}},
        {"thresholds": {"kind": [[0.9, 0.5, 0.1]], "colour": [], "size": []}},
        {"novelty_limits": [0.5]},
        {"labels": {"kind": ["a", "a", "b"], "colour": ["c", "d"], "size": ["L", "S"]}},
    ],
)
def test_files_that_do_not_fit_together_are_refused(saved: Path, change: dict[str, object]) -> None:
    change_manifest(saved, **change)
    with pytest.raises(ArtifactError, match="do not fit together"):
        HeadBundle.load(saved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels.bias", lambda weight: np.full_like(weight, np.nan), "some weights are not finite"),
        ("seen.image", lambda weight: np.full_like(weight, np.nan), "must be finite and 8 wide"),
        ("labels.bias", lambda weight: weight.astype(np.float64), r"of labels.bias is expected .*, found .*'float64'"),
        ("scale", np.zeros_like, "inputs need positive scales"),
    ],
)
def test_weights_that_cannot_be_are_refused(
    saved: Path, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    weights = load_file(saved / "weights.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, saved / "weights.safetensors")
    with pytest.raises(ArtifactError, match=rf"do not fit together \(.*{message}"):
        rewritten(saved)


@pytest.mark.parametrize("name", ["words.json", "manifest.json"])
def test_lists_in_lists_without_end_are_refused(saved: Path, name: str) -> None:
    (saved / name).write_text("[" * 200_000, "utf-8")
    with pytest.raises(ArtifactError, match="recursion"):
        HeadBundle.load(saved) if name == "manifest.json" else rewritten(saved)
