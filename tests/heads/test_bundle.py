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
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.training import FittedHeads, HeadSettings, LabelledProducts, fit_heads
from product_classificator.types import Embeddings
from tests.tiny_catalog import rows_of


@pytest.fixture
def saved(fitted: FittedHeads, tmp_path: Path) -> Path:
    fitted.bundle.save(tmp_path / "heads")
    return tmp_path / "heads"


def gappy(embeddings: Embeddings) -> Embeddings:
    """Return three products: without a photo, without a text, without both."""
    few = embeddings.take(np.arange(3))
    few.has_image[[0, 2]], few.has_text[[1, 2]] = False, False
    few.image[[0, 2]], few.text[[1, 2]] = 0, 0
    return few


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def change_characteristic(folder: Path, characteristic: str, **changes: object) -> None:
    characteristics = json.loads((folder / "manifest.json").read_text("utf-8"))["characteristics"]
    changed = [{**entry, **changes} if entry["name"] == characteristic else entry for entry in characteristics]
    change_manifest(folder, characteristics=changed)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_probabilities_are_well_formed_when_a_photo_or_a_text_is_missing(
    fitted: FittedHeads, products: LabelledProducts
) -> None:
    predictions = fitted.bundle.predict(gappy(products.embeddings), products.texts[:3])
    assert predictions.is_known.tolist() == [True, True, False]
    for matrix in predictions.probabilities.values():
        assert np.allclose(matrix[:2].sum(1), 1)
        assert np.isnan(matrix[2]).all()
    assert predictions.best("kind")[:2].tolist() == products.truth["kind"][:2].tolist()
    assert predictions.best("colour")[0] == products.truth["colour"][0]


def test_the_values_of_a_missing_part_do_not_matter(fitted: FittedHeads, products: LabelledProducts) -> None:
    few = gappy(products.embeddings)
    noise = few.take(np.arange(3))
    noise.image[[0, 2]], noise.text[[1, 2]] = 7, 7
    one, two = (fitted.bundle.predict(embeddings, products.texts[:3]).probabilities for embeddings in (few, noise))
    assert all(np.array_equal(one[name], two[name], equal_nan=True) for name in one)


def test_a_product_is_judged_alike_alone_and_among_others(fitted: FittedHeads, products: LabelledProducts) -> None:
    together = fitted.bundle.predict(products.embeddings, products.texts)
    alone = fitted.bundle.predict(products.embeddings.take(np.array([5])), products.texts[5:6])
    assert np.allclose(together.probabilities["kind"][5], alone.probabilities["kind"][0], atol=1e-6)


def test_no_products_give_no_predictions(fitted: FittedHeads, products: LabelledProducts) -> None:
    none = fitted.bundle.predict(products.embeddings.take(np.arange(0)), [])
    assert none.probabilities["kind"].shape == (0, 3)


def test_only_the_wanted_characteristics_are_predicted(fitted: FittedHeads, products: LabelledProducts) -> None:
    assert fitted.bundle.predict(*rows_of(products, "test"), ["size", "kind"]).characteristics == ("size", "kind")


def test_an_unknown_characteristic_names_the_nearest(fitted: FittedHeads, products: LabelledProducts) -> None:
    with pytest.raises(DataError, match="no characteristic 'color': did you mean 'colour'"):
        fitted.bundle.predict(products.embeddings, products.texts, ["color"])


def test_embeddings_of_another_encoder_are_refused(fitted: FittedHeads, products: LabelledProducts) -> None:
    with pytest.raises(ArtifactError, match="trained on, 'tiny-1'; these were made by 'other'"):
        fitted.bundle.predict(replace(products.embeddings, fingerprint="other"), products.texts)


def test_a_text_per_product_is_needed(fitted: FittedHeads, products: LabelledProducts) -> None:
    with pytest.raises(DataError, match="240 embeddings, 2 texts"):
        fitted.bundle.predict(products.embeddings, ["a", "b"])


@pytest.mark.parametrize("max_words", [0, 100])
def test_a_saved_bundle_predicts_the_same_when_it_is_loaded(
    products: LabelledProducts, quick: HeadSettings, tmp_path: Path, max_words: int
) -> None:
    bundle = fit_heads(products, replace(quick, epochs=2, max_words=max_words)).bundle
    bundle.save(tmp_path / "heads")
    loaded = HeadBundle.load(tmp_path / "heads")
    one, two = (heads.predict(products.embeddings, products.texts).probabilities for heads in (bundle, loaded))
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


def test_another_format_is_refused(saved: Path) -> None:
    change_manifest(saved, format=2, a_field_of_that_format=1)
    with pytest.raises(ArtifactError, match=r"has format 2, this version reads 1: fit the heads again"):
        HeadBundle.load(saved)


@pytest.mark.parametrize(
    "change", [{"hierarchy": 3}, {"surprise": 1}, {"characteristics": 3}, {"format": None}, {"novelty_limits": [0.5]}]
)
def test_a_manifest_of_another_form_is_refused(saved: Path, change: dict[str, object]) -> None:
    change_manifest(saved, **change)
    with pytest.raises(ArtifactError, match="is not the manifest of a bundle of heads"):
        HeadBundle.load(saved)


def rewritten(folder: Path, **changes: object) -> HeadBundle:
    """Return the bundle of a folder whose weights were changed."""
    sha256 = {name: sha256_of(folder / name) for name in ("weights.safetensors", "words.json")}
    change_manifest(folder, sha256=sha256, **changes)
    return HeadBundle.load(folder)


def test_heads_without_thresholds_predict_and_decide_nothing(saved: Path, products: LabelledProducts) -> None:
    bundle = replace(HeadBundle.load(saved), novelty=None)
    predictions = bundle.predict(products.embeddings, products.texts)
    with pytest.raises(ArtifactError, match=r"decisions need thresholds .* these heads have none: .* train heads"):
        bundle.with_decisions(predictions, products.embeddings, products.texts)


def test_a_loaded_bundle_decides_as_the_saved_one_did(
    saved: Path, fitted: FittedHeads, products: LabelledProducts
) -> None:
    decisions = []
    for bundle in (fitted.bundle, HeadBundle.load(saved)):
        predictions = bundle.predict(products.embeddings, products.texts)
        decisions.append(bundle.with_decisions(predictions, products.embeddings, products.texts, 0.8).decisions)
    one, two = decisions
    assert one is not None
    assert two is not None
    assert np.array_equal(one.is_out_of_distribution, two.is_out_of_distribution)
    assert all(np.array_equal(one[name], two[name]) for name in ("kind", "colour", "size"))


def test_a_prediction_is_accepted_if_it_is_confident_known_and_in_distribution(
    fitted: FittedHeads, products: LabelledProducts
) -> None:
    embeddings = products.embeddings.take(np.arange(240))
    embeddings.has_image[7] = embeddings.has_text[7] = False
    embeddings.image[8] *= -1
    predictions = fitted.bundle.predict(embeddings, products.texts)
    decisions = fitted.bundle.with_decisions(predictions, embeddings, products.texts, 0.9).decisions
    assert decisions is not None
    assert set(decisions["kind"]) == {"auto", "review"}
    assert decisions["kind"][[7, 8]].tolist() == ["review", "review"]
    assert decisions.is_out_of_distribution[8]
    everything = fitted.bundle.with_decisions(predictions, embeddings, products.texts, 0.1).decisions
    assert everything is not None
    assert np.array_equal(everything.accepted["kind"], predictions.is_known & ~decisions.is_out_of_distribution)


def test_what_cannot_be_promised_is_all_for_review(fitted: FittedHeads, products: LabelledProducts) -> None:
    predictions = fitted.bundle.predict(products.embeddings, products.texts, ["size"])
    decided = fitted.bundle.with_decisions(predictions, products.embeddings, products.texts, 0.99)
    assert decided.decisions is not None
    assert set(decided.decisions["size"]) == {"review"}
    assert decided.probabilities is predictions.probabilities
    with pytest.raises(DataError, match="no characteristic 'kind': Known: size"):
        decided.decisions["kind"]


def test_a_promise_of_certainty_is_refused(fitted: FittedHeads, products: LabelledProducts) -> None:
    predictions = fitted.bundle.predict(products.embeddings, products.texts)
    with pytest.raises(DataError, match="min_precision must be between 0 and 1 \\(exclusive\\), got 1"):
        fitted.bundle.with_decisions(predictions, products.embeddings, products.texts, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_dim": 9}, r"label embeddings 9 wide cannot be compared with parts \[6\] wide"),
        ({"hidden": 4}, r"4 do not: hidden.bias must be \(\(4,\), 'float32'\), found \(\(32,\), 'float32'\)"),
        ({"has_linear": False}, r"1 do not: linear.weight must be None, found .*"),
        ({"n_labels": [2, 2, 3]}, r"have \(3, 2, 2\) labels, the network \(2, 2, 3\)"),
        ({"n_words": 7}, r"do not: word_weights must be"),
    ],
)
def test_a_network_of_another_form_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    network = json.loads((saved / "manifest.json").read_text("utf-8"))["network"]
    change_manifest(saved, network={**network, **change})
    with pytest.raises(ArtifactError, match=rf"(?s)(do not fit together|is not the manifest).*{message}"):
        HeadBundle.load(saved)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_manifest_that_is_no_json_object_is_refused(saved: Path, content: str) -> None:
    (saved / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match="is not the manifest of a bundle of heads"):
        HeadBundle.load(saved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "labels.bias",
            lambda weight: np.full_like(weight, np.nan),
            r"weights must be finite, labels.bias \(1 in all\) are not",
        ),
        ("novelty.image", lambda weight: weight[:, 1:].copy(), "must be 8 wide"),
        ("labels.bias", lambda weight: weight.astype(np.float64), r"labels.bias must be .*, found .*'float64'"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "a", "b"]}, "kind needs two labels or more, each once"),
        ({"labels": ["a"]}, "kind needs two labels or more, each once"),
        ({"labels": "abc"}, "labels"),
        ({"temperature": 0.0}, "kind needs a positive temperature and a finite exponent"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature_exponent": float("nan")}, "kind needs a positive temperature and a finite exponent"),
        ({"confidence_thresholds": [[0.9, 0.5, 0.1]]}, "confidence_thresholds"),
        ({"decision_thresholds": [0.5]}, "kind needs a decision threshold from 0 to 1 for each of its labels"),
        ({"name": ""}, "a characteristic and its labels need names"),
        ({"labels": ["a", "", "b"]}, "a characteristic and its labels need names"),
        ({"confidence_thresholds": [[0.9, float("nan")]]}, "kind needs confidence thresholds from 0 to 1"),
        ({"confidence_thresholds": [[0.9, 1.5]]}, "kind needs confidence thresholds from 0 to 1"),
        ({"confidence_thresholds": [[0.9, 0.5], [0.9, 0.6]]}, "their precisions ascending"),
        ({"surprise": 1}, "surprise"),
        ({"name": "size"}, r"do not fit together \(characteristics must be distinct"),
    ],
)
def test_a_characteristic_that_makes_no_sense_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    change_characteristic(saved, "kind", **change)
    with pytest.raises(ArtifactError, match=message):
        HeadBundle.load(saved)


@pytest.mark.parametrize("limits", [[float("nan"), 0.5, 0.5], [0.5, 0.5, -1.0]])
def test_limits_of_novelty_that_decide_nothing_are_refused(saved: Path, limits: list[float]) -> None:
    change_manifest(saved, novelty_limits=limits)
    with pytest.raises(ArtifactError, match="limits of novelty must be between 0 and 2"):
        HeadBundle.load(saved)


def test_what_could_not_be_loaded_is_no_bundle(fitted: FittedHeads) -> None:
    bundle = fitted.bundle
    assert bundle.novelty is not None
    with pytest.raises(ValueError, match="centres of training products must be 8 wide"):
        replace(bundle, novelty=replace(bundle.novelty, image=bundle.novelty.image[:, 1:]))
    with pytest.raises(ValueError, match="the vocabulary 0"):
        replace(bundle, vocabulary=Vocabulary())


def test_priors_and_pieces_of_words_survive_saving(
    fitted: FittedHeads, products: LabelledProducts, tmp_path: Path
) -> None:
    texts = [f"{text} товар{row % 80}" for row, text in enumerate(products.texts)]
    settings = HeadSettings(epochs=1, hidden=8)
    bundle = fit_heads(replace(products, texts=texts), settings, refit=False).bundle
    changed = [
        replace(item, log_priors=tuple(-float(number) for number in range(len(item.labels))))
        for item in bundle.characteristics
    ]
    bundle = replace(bundle, characteristics=tuple(changed))
    bundle.save(tmp_path / "heads")
    loaded = HeadBundle.load(tmp_path / "heads")
    assert 0 < loaded.vocabulary.n_whole < len(loaded.vocabulary) == loaded.network.shape.n_words
    assert loaded["kind"].log_priors == (0, -1, -2)
    assert loaded.digest == bundle.digest
    one, two = (heads.predict(products.embeddings, texts) for heads in (bundle, loaded))
    for name in one.characteristics:
        assert np.array_equal(one.probabilities[name], two.probabilities[name])
        assert one.best(name).tolist() == two.best(name).tolist()
    plain = replace(bundle, characteristics=tuple(replace(item, log_priors=()) for item in changed))
    without = plain.predict(products.embeddings, texts)
    assert one.best("kind").tolist() == without.best("kind").tolist()  # priors decide how probable, not which
    assert one.probabilities["kind"][:, 2].mean() < without.probabilities["kind"][:, 2].mean()
    assert plain.digest != bundle.digest


@pytest.mark.parametrize("log_priors", [[0.0], [0.0, 0.0, float("inf")]])
def test_priors_that_make_no_sense_are_refused(saved: Path, log_priors: list[float]) -> None:
    change_characteristic(saved, "kind", log_priors=log_priors)
    with pytest.raises(ArtifactError, match="kind needs a finite prior for each of its labels"):
        HeadBundle.load(saved)
