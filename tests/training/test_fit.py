import logging
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import f1_score

from product_classificator.errors import DataError
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.training import EpochFacts, FittedHeads, HeadSettings, epochs, fit_heads
from product_classificator.training.targets import words_of_names
from product_classificator.training.torch_network import make_network
from product_classificator.types import Embeddings, Split, strings
from tests.tiny_catalog import COLOURS, KINDS, Material


def fit(material: Material, settings: HeadSettings) -> FittedHeads:
    return fit_heads(material.embeddings, material.texts, material.truth, material.split, settings)


def judged(fitted: FittedHeads, material: Material, characteristic: str) -> float:
    rows = material.split.rows("test")
    best = fitted.bundle.predict(*material.rows("test")).best(characteristic)
    return float(f1_score(list(material.truth[characteristic][rows]), list(best), average="macro"))


def without(embeddings: Embeddings, *, image: bool = False, text: bool = False) -> Embeddings:
    """Returns the embeddings as they are without any photo, or any text."""
    none = np.zeros(len(embeddings), dtype=bool)
    if image:
        embeddings = replace(embeddings, image=np.zeros_like(embeddings.image), has_image=none)
    if text:
        embeddings = replace(embeddings, text=np.zeros_like(embeddings.text), has_text=none)
    return embeddings


def test_heads_learn_what_the_vectors_know(fitted: FittedHeads, material: Material) -> None:
    assert judged(fitted, material, "kind") > 0.95


def test_heads_learn_what_only_the_words_know(fitted: FittedHeads, material: Material) -> None:
    assert judged(fitted, material, "colour") > 0.95


def test_a_template_that_all_texts_share_does_not_drown_the_telling_words(
    material: Material, quick: HeadSettings
) -> None:
    texts = [f"buy our {text} with free delivery all over the country today only" for text in material.texts]
    wordy = replace(material, texts=texts)
    fitted = fit(wordy, quick)
    assert judged(fitted, wordy, "kind") > 0.95
    assert judged(fitted, wordy, "colour") > 0.95


def test_without_words_the_colour_stays_unknown(material: Material, quick: HeadSettings) -> None:
    assert judged(fit(material, replace(quick, max_words=0)), material, "colour") < 0.7


def test_labels_stand_in_order_and_may_be_any_unicode(fitted: FittedHeads) -> None:
    assert fitted.bundle.labels == {"kind": KINDS, "colour": COLOURS, "size": ("L", "S")}


def test_unknown_labels_are_masked(fitted: FittedHeads, material: Material, quick: HeadSettings) -> None:
    hidden = material.truth["kind"].copy()
    hidden[material.split.names == "train"] = None
    known = np.flatnonzero(material.split.names == "train")[:40]
    hidden[known] = material.truth["kind"][known]
    few = fit(replace(material, truth={**material.truth, "kind": hidden}), replace(quick, max_epochs=12))
    assert judged(few, material, "colour") > 0.95
    assert judged(few, material, "kind") > 0.75


def test_rare_labels_are_left_out_with_their_counts(material: Material, quick: HeadSettings) -> None:
    kind = material.truth["kind"].copy()
    kind[:4] = "vase"
    fitted = fit(replace(material, truth={"kind": kind}), replace(quick, max_epochs=1))
    assert fitted.left_out == {"kind": {"vase": 4}}
    assert "vase" not in fitted.bundle.labels["kind"]


def test_a_label_that_training_never_sees_is_left_out(material: Material, quick: HeadSettings) -> None:
    kind = material.truth["kind"].copy()
    kind[material.split.rows("test")[:12]] = "vase"
    fitted = fit(replace(material, truth={"kind": kind}), replace(quick, max_epochs=1))
    assert fitted.left_out == {"kind": {"vase": 12}}


def test_products_that_were_set_aside_count_for_nothing(material: Material, quick: HeadSettings) -> None:
    part = material.split.names.copy()
    part[material.truth["kind"] == "mug"] = ""
    fitted = fit(replace(material, split=Split(material.split.ids, part)), replace(quick, max_epochs=1))
    assert fitted.bundle.labels["kind"] == ("shoe", "сумка")


def test_a_characteristic_with_one_label_is_left_out_with_a_warning(
    material: Material, quick: HeadSettings, caplog: pytest.LogCaptureFixture
) -> None:
    same = strings(["yes"] * len(material.texts))
    with caplog.at_level(logging.WARNING):
        fitted = fit(replace(material, truth={**material.truth, "fragile": same}), replace(quick, max_epochs=1))
    assert "fragile" not in fitted.bundle.labels
    assert fitted.left_out["fragile"] == {"yes": 240}
    assert "fragile is left out: it has 1 label(s)" in caplog.text


@pytest.mark.parametrize("recipe", ["joint", "published"])
def test_the_same_seed_gives_the_same_weights_to_the_last_bit(material: Material, recipe: str) -> None:
    base = HeadSettings.published(seed=3) if recipe == "published" else HeadSettings(seed=3)
    settings = replace(base, max_epochs=2, hidden=16)
    one, two = (fit(material, settings).bundle.network.weights for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_fitting_leaves_the_global_random_state_as_it_was(material: Material, quick: HeadSettings) -> None:
    before = torch.get_rng_state()
    fit(material, replace(quick, max_epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def test_the_weights_of_the_best_epoch_are_kept_not_those_of_the_last(
    material: Material, quick: HeadSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_epochs, judge = count(1), epochs._valid_macro_f1

    def good_at_first(*known: Any) -> dict[str, float]:
        scores = judge(*known)
        return scores if next(judged_epochs) <= 3 else dict.fromkeys(scores, 0.0)

    monkeypatch.setattr(epochs, "_valid_macro_f1", good_at_first)
    fitted = fit(material, replace(quick, max_epochs=6, patience=6))
    means = [epoch.mean_valid_macro_f1 for epoch in fitted.history]
    assert fitted.best_epoch == int(np.argmax(means)) + 1 < len(means)
    valid = material.split.rows("valid")
    predictions = fitted.bundle.predict(*material.rows("valid"))
    for name, expected in fitted.history[fitted.best_epoch - 1].valid_macro_f1.items():
        known = np.flatnonzero([label is not None for label in material.truth[name][valid]])
        truth, best = material.truth[name][valid][known], predictions.best(name)[known]
        assert f1_score(list(truth), list(best), average="macro") == pytest.approx(expected)


def test_fitting_stops_when_patience_ends(material: Material, quick: HeadSettings) -> None:
    fitted = fit(material, replace(quick, max_epochs=50, patience=2))
    assert len(fitted.history) == fitted.best_epoch + 2 < 50


def test_every_epoch_is_told(material: Material, quick: HeadSettings) -> None:
    told: list[EpochFacts] = []
    settings = replace(quick, max_epochs=2)
    fitted = fit_heads(
        material.embeddings, material.texts, material.truth, material.split, settings, on_epoch=told.append
    )
    assert tuple(told) == fitted.history
    assert [epoch.epoch for epoch in told] == [1, 2]


def test_validation_and_test_texts_do_not_reach_the_vocabulary(material: Material, quick: HeadSettings) -> None:
    pairs = zip(material.texts, material.split.names, strict=True)
    texts = [text if part == "train" else "secret secret" for text, part in pairs]
    fitted = fit(replace(material, texts=texts), replace(quick, max_epochs=1))
    assert not any("secret" in word for word in fitted.bundle.vocabulary.words)


def test_a_catalog_without_photos_makes_heads_without_an_image_part(material: Material, quick: HeadSettings) -> None:
    fitted = fit(replace(material, embeddings=without(material.embeddings, image=True)), quick)
    assert fitted.bundle.image_dim == 0
    assert judged(fitted, replace(material, embeddings=without(material.embeddings, image=True)), "kind") > 0.95


def test_a_catalog_without_texts_makes_heads_without_text_and_words(material: Material, quick: HeadSettings) -> None:
    silent = replace(material, embeddings=without(material.embeddings, text=True), texts=[""] * len(material.texts))
    fitted = fit(silent, quick)
    assert (fitted.bundle.text_dim, len(fitted.bundle.vocabulary)) == (0, 0)
    assert judged(fitted, silent, "kind") > 0.95


def test_the_published_recipe_is_one_small_network_per_characteristic(material: Material) -> None:
    fitted = fit(material, replace(HeadSettings.published(), max_epochs=2))
    weights = fitted.bundle.network.weights
    assert {name: weights[f"heads.0.{name}"].shape for name in ("0.weight", "3.weight")} == {
        "0.weight": (1024, 14),
        "3.weight": (3, 1024),
    }
    heads = make_network(fitted.bundle.network.shape).heads
    assert len(heads) == 3
    assert [str(layer) for layer in heads[0]] == [
        "Linear(in_features=14, out_features=1024, bias=True)",
        "ReLU()",
        "Dropout(p=0.2, inplace=False)",
        "Linear(in_features=1024, out_features=3, bias=True)",
        "Dropout(p=0.2, inplace=False)",
    ]
    assert len(fitted.bundle.vocabulary) == 0


def test_the_published_recipe_learns(material: Material) -> None:
    assert judged(fit(material, HeadSettings.published()), material, "kind") > 0.95


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "jiont"}, r"recipe must be one of .*'joint'.*got 'jiont'"),
        ({"recipe": "zero-shot"}, r"recipe must be one of .*got 'zero-shot'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0}, "learning_rate must be positive and finite, got 0"),
        ({"dropout": 1.0}, "dropout must be a share from 0 to below 1, got 1.0"),
        ({"weight_decay": -1}, "weight_decay must be 0 or more, finite, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HeadSettings(**wrong)  # type: ignore[arg-type]


def test_too_few_texts_are_refused(material: Material) -> None:
    with pytest.raises(DataError, match=r"one row per product: there are 240 embeddings, but \{'texts': 3\}"):
        fit_heads(material.embeddings, ["a", "b", "c"], material.truth, material.split)


def test_a_split_of_other_products_is_refused(material: Material) -> None:
    other = Split(material.split.ids[::-1], material.split.names)
    with pytest.raises(DataError, match="same products in the same order"):
        fit_heads(material.embeddings, material.texts, material.truth, other)


def test_nothing_to_learn_is_refused(material: Material) -> None:
    with pytest.raises(DataError, match=r"two labels with at least 1000 products each, found none among .*kind"):
        fit(material, HeadSettings(min_products_per_label=1000))


def test_a_validation_part_without_labels_is_refused(material: Material, quick: HeadSettings) -> None:
    kind = material.truth["kind"].copy()
    kind[material.split.rows("valid")] = None
    with pytest.raises(DataError, match="the valid part has no product with a known label"):
        fit(replace(material, truth={"kind": kind}), quick)


def test_names_weigh_what_training_products_speak_for_and_less_where_there_are_many() -> None:
    texts = ["red mug", "blue mug", "red cup", "blue cup"] * 50
    vocabulary, words = Vocabulary.fit_rows(texts, np.arange(200))
    many = tuple(f"label {number}" for number in range(199))
    labels = {"colour": ("blue", "red"), "wrong": ("blue", "red"), "kind": (*many, "mug"), "marks": ("blue", "old")}
    colour = np.array([1, 0, 1, 0] * 50)
    kind = np.where([text.endswith("mug") for text in texts], 199, 0)
    label_ids = np.stack([colour, 1 - colour, kind, np.zeros(200, dtype=np.int64)], 1)
    rows = words_of_names(labels, {3: csr_matrix((200, 2), dtype=bool)}, vocabulary, words, label_ids)
    lengths = np.sqrt(rows.multiply(rows).sum(1)).ravel().tolist()[0]
    assert np.allclose([lengths[0], lengths[1], lengths[203], lengths[204]], [30, 30, 15, 60], atol=1)
    assert np.allclose(lengths[2:4], 0, atol=1)
    assert lengths[4:203] == [0] * 199


def test_labels_are_found_by_their_names_before_anything_is_learned(material: Material, quick: HeadSettings) -> None:
    draw = np.random.default_rng(0)
    named = strings([KINDS[draw.integers(0, 3)] for _ in material.texts])
    texts = [f"{text} {name}" for text, name in zip(material.texts, named, strict=True)]
    lazy = replace(quick, learning_rate=1e-6, words_learning_rate=1e-6, max_epochs=1)
    told = replace(material, texts=texts, truth={"named": named})
    assert judged(fit(told, lazy), told, "named") == 1
