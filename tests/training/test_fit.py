import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from product_classificator.errors import DataError
from product_classificator.heads import HeadBundle
from product_classificator.training import Callbacks, EpochFacts, FittedHeads, HeadSettings, LabelledProducts, fit_heads
from product_classificator.types import Embeddings, Split, strings
from tests.tiny_catalog import COLOURS, KINDS, rows_of


def fit(products: LabelledProducts, settings: HeadSettings) -> FittedHeads:
    return fit_heads(products, settings, refit=False)


def judged(fitted: FittedHeads, products: LabelledProducts, characteristic: str) -> float:
    rows = products.split.rows("test")
    best = fitted.bundle.predict(*rows_of(products, "test")).best(characteristic)
    return float(f1_score(list(products.truth[characteristic][rows]), list(best), average="macro"))


def without(embeddings: Embeddings, *, image: bool = False, text: bool = False) -> Embeddings:
    """Return the embeddings as they are without any photo, or any text."""
    none = np.zeros(len(embeddings), dtype=bool)
    if image:
        embeddings = replace(embeddings, image=np.zeros_like(embeddings.image), has_image=none)
    if text:
        embeddings = replace(embeddings, text=np.zeros_like(embeddings.text), has_text=none)
    return embeddings


def test_heads_learn_what_the_vectors_know(fitted: FittedHeads, products: LabelledProducts) -> None:
    assert judged(fitted, products, "kind") > 0.95


def test_heads_learn_what_only_the_words_know(fitted: FittedHeads, products: LabelledProducts) -> None:
    assert judged(fitted, products, "colour") > 0.95


def test_a_template_that_all_texts_share_does_not_drown_the_words_that_decide(
    products: LabelledProducts, quick: HeadSettings
) -> None:
    texts = [f"buy our {text} with free delivery all over the country today only" for text in products.texts]
    wordy = replace(products, texts=texts)
    fitted = fit(wordy, quick)
    assert judged(fitted, wordy, "kind") > 0.95
    assert judged(fitted, wordy, "colour") > 0.95


def test_without_words_the_colour_stays_unknown(products: LabelledProducts, quick: HeadSettings) -> None:
    assert judged(fit(products, replace(quick, max_words=0)), products, "colour") < 0.7


def test_labels_are_in_order_and_may_be_any_unicode(fitted: FittedHeads) -> None:
    assert fitted.bundle.labels == {"kind": KINDS, "colour": COLOURS, "size": ("L", "S")}


def test_unknown_labels_are_masked(fitted: FittedHeads, products: LabelledProducts, quick: HeadSettings) -> None:
    hidden = products.truth["kind"].copy()
    hidden[products.split.names == "train"] = None
    rows = np.flatnonzero(products.split.names == "train")[:40]
    hidden[rows] = products.truth["kind"][rows]
    few = fit(replace(products, truth={**products.truth, "kind": hidden}), replace(quick, epochs=12))
    assert judged(few, products, "colour") > 0.95
    assert judged(few, products, "kind") > 0.75


def test_rare_labels_are_left_out_with_their_counts(products: LabelledProducts, quick: HeadSettings) -> None:
    kind = products.truth["kind"].copy()
    kind[:4] = "vase"
    fitted = fit(replace(products, truth={"kind": kind}), replace(quick, epochs=1))
    assert fitted.left_out == {"kind": {"vase": 3}}  # the fourth is in the holdout
    assert "vase" not in fitted.bundle.labels["kind"]


def test_products_that_were_set_aside_count_for_nothing(products: LabelledProducts, quick: HeadSettings) -> None:
    part = products.split.names.copy()
    part[products.truth["kind"] == "mug"] = ""
    fitted = fit(replace(products, split=Split(products.split.ids, part)), replace(quick, epochs=1))
    assert fitted.bundle.labels["kind"] == ("shoe", "сумка")


def test_a_characteristic_with_one_label_is_left_out_with_a_warning(
    products: LabelledProducts, quick: HeadSettings, caplog: pytest.LogCaptureFixture
) -> None:
    same = strings(["yes"] * len(products.texts))
    with caplog.at_level(logging.WARNING):
        fitted = fit(replace(products, truth={**products.truth, "fragile": same}), replace(quick, epochs=1))
    assert "fragile" not in fitted.bundle.labels
    assert fitted.left_out["fragile"] == {"yes": 180}
    assert "fragile is left out: it has 1 label(s)" in caplog.text


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(products: LabelledProducts) -> None:
    settings = HeadSettings(seed=3, epochs=2, hidden=16)
    one, two = (fit(products, settings).bundle.network.weights for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_vectors_as_a_store_keeps_them_give_the_heads_of_the_same_vectors_in_float32(products, quick) -> None:
    quick = replace(quick, epochs=2)
    image, text = (part.astype(np.float16) for part in (products.embeddings.image, products.embeddings.text))
    stored = replace(products, embeddings=replace(products.embeddings, image=image, text=text))
    rounded = replace(stored.embeddings, image=image.astype(np.float32), text=text.astype(np.float32))
    fitted, expected = (fit_heads(each, quick) for each in (stored, replace(products, embeddings=rounded)))
    assert fitted.bundle.digest == expected.bundle.digest
    assert (fitted.out_of_fold.distance == expected.out_of_fold.distance).all()


def test_fitting_leaves_the_global_random_state_as_it_was(products: LabelledProducts, quick: HeadSettings) -> None:
    before = torch.get_rng_state()
    fit(products, replace(quick, epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def test_every_epoch_is_reported(products: LabelledProducts, quick: HeadSettings) -> None:
    predicted: list[EpochFacts] = []
    settings = replace(quick, epochs=2)
    fitted = fit_heads(products, settings, callbacks=Callbacks(on_epoch=predicted.append))
    assert tuple(predicted) == fitted.history
    assert [epoch.epoch for epoch in predicted] == [1, 2]


def test_texts_of_a_fold_do_not_reach_the_vocabulary(products: LabelledProducts, quick: HeadSettings) -> None:
    pairs = zip(products.texts, products.split.names, strict=True)
    texts = [text if part != "test" else "secret secret" for text, part in pairs]
    fitted = fit(replace(products, texts=texts), replace(quick, epochs=1))
    assert not any("secret" in word for word in fitted.bundle.vocabulary.words)


def test_a_catalog_without_photos_makes_heads_without_an_image_part(
    products: LabelledProducts, quick: HeadSettings
) -> None:
    fitted = fit(replace(products, embeddings=without(products.embeddings, image=True)), quick)
    assert fitted.bundle.image_dim == 0
    assert judged(fitted, replace(products, embeddings=without(products.embeddings, image=True)), "kind") > 0.95


def test_a_catalog_without_texts_makes_heads_without_text_and_words(
    products: LabelledProducts, quick: HeadSettings
) -> None:
    silent = replace(products, embeddings=without(products.embeddings, text=True), texts=[""] * len(products.texts))
    fitted = fit(silent, quick)
    assert (fitted.bundle.text_dim, len(fitted.bundle.vocabulary)) == (0, 0)
    assert judged(fitted, silent, "kind") > 0.95


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0}, "learning_rate must be positive and finite, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"weight_decay": -1}, "weight_decay must be 0 or more, finite, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HeadSettings(**wrong)  # type: ignore[arg-type]


def test_too_few_texts_are_refused(products: LabelledProducts) -> None:
    with pytest.raises(DataError, match=r"one row per product: there are 240 embeddings, but \{'texts': 3\}"):
        replace(products, texts=["a", "b", "c"])


def test_a_split_of_other_products_is_refused(products: LabelledProducts) -> None:
    other = Split(products.split.ids[::-1], products.split.names)
    with pytest.raises(DataError, match="same products in the same order"):
        replace(products, split=other)


def test_nothing_to_learn_is_refused(products: LabelledProducts) -> None:
    with pytest.raises(DataError, match=r"two labels with at least 1000 products each, found none among .*kind"):
        fit(products, HeadSettings(min_products_per_label=1000))


def test_folds_without_labels_are_refused(products: LabelledProducts, quick: HeadSettings) -> None:
    kind = products.truth["kind"].copy()
    kind[products.split.rows("test")] = None
    with pytest.raises(DataError, match="no product with a known label and a photo or text can be judged: check the"):
        fit(replace(products, truth={"kind": kind}), quick)


def test_labels_are_found_by_their_names_before_anything_is_learned(
    products: LabelledProducts, quick: HeadSettings
) -> None:
    draw = np.random.default_rng(0)
    named = strings([KINDS[draw.integers(0, 3)] for _ in products.texts])
    texts = [f"{text} {name}" for text, name in zip(products.texts, named, strict=True)]
    lazy = replace(quick, learning_rate=1e-6, words_learning_rate=1e-6, epochs=1)
    predicted = replace(products, texts=texts, truth={"named": named})
    assert judged(fit(predicted, lazy), predicted, "named") == 1


@pytest.mark.parametrize("n_photos", [0, 1, 3])
def test_photos_of_a_few_products_move_no_prediction(products, quick, caplog, n_photos: int) -> None:
    """Standardised by one photo, new photos would be a million times too far apart."""
    embeddings = products.embeddings
    has_image = np.zeros(len(embeddings), bool)
    has_image[products.split.rows("train")[:n_photos]] = True
    few = replace(embeddings, has_image=has_image, image=embeddings.image * has_image[:, None])
    bundle = fit_heads(replace(products, embeddings=few), replace(quick, epochs=1)).bundle
    assert (bundle.image_dim, len(bundle.novelty.image)) == (0, 0)
    assert ("photos are left out" in caplog.text) == (n_photos > 0)
    rows = products.split.rows("test")
    texts = [products.texts[row] for row in rows]
    with_photo, without = (bundle.predict(parts.take(rows), texts) for parts in (embeddings, few))
    assert np.array_equal(with_photo.probabilities["kind"], without.probabilities["kind"])


@pytest.mark.parametrize("shared", [1.0, 0.9])
def test_a_placeholder_that_most_products_share_is_no_measure_of_photos(products, quick, shared: float) -> None:
    embeddings = products.embeddings
    image = embeddings.image.copy()
    image[np.random.default_rng(0).random(len(image)) < shared] = image[0]
    quick = replace(quick, epochs=1)
    bundle = fit_heads(replace(products, embeddings=replace(embeddings, image=image)), quick).bundle
    assert bundle.image_dim == (0 if shared == 1 else 8)
    if bundle.image_dim:
        usual = fit_heads(products, quick).bundle.network.weights["scale"][:8]
        assert np.median(bundle.network.weights["scale"][:8] / usual) > 0.7


def test_a_constant_part_is_not_amplified_where_it_is_all_there_is(products, quick) -> None:
    embeddings = products.embeddings
    alone = replace(
        embeddings, image=np.repeat(embeddings.image[:1], len(embeddings), 0), has_text=np.zeros(len(embeddings), bool)
    )
    scale = fit_heads(replace(products, embeddings=alone), replace(quick, epochs=1)).bundle.network.weights["scale"]
    assert np.array_equal(scale, np.ones(8))


def test_photos_of_products_without_a_label_give_a_bundle_that_can_be_loaded(products, quick, tmp_path) -> None:
    embeddings = products.embeddings
    has_image = np.arange(len(embeddings)) % 3 == 0
    kind = products.truth["kind"].copy()
    kind[has_image] = None
    few = replace(embeddings, has_image=has_image, image=embeddings.image * has_image[:, None])
    bundle = fit_heads(replace(products, embeddings=few, truth={"kind": kind}), replace(quick, epochs=1)).bundle
    bundle.save(tmp_path / "bundle")
    assert HeadBundle.load(tmp_path / "bundle").image_dim == 0
