import math
from dataclasses import replace

import numpy as np
import pytest

from product_classificator.errors import DataError
from product_classificator.training import fit_heads
from product_classificator.types import Embeddings, Predictions
from tests.tiny_catalog import COLOURS


@pytest.fixture
def predictions(fitted, products) -> Predictions:
    return fitted.bundle.predict(products.embeddings, products.texts)


def two_best(predictions, name, row):
    return [float(p) for _, p in predictions.top(name, 2)[row]]


def test_base_photo_and_text_add_up_to_the_odds_against_the_runner_up(predictions):
    for row in range(20):
        for name, why in predictions.explain(row).items():
            best, second = two_best(predictions, name, row)
            assert why.base + why.photo + why.text == pytest.approx(math.log(best / second), abs=1e-3)
            assert [(why.label, why.probability), (why.runner_up, pytest.approx(second, abs=1e-5))] == [
                (label, pytest.approx(p, abs=1e-5)) for label, p in predictions.top(name, 2)[row]
            ]


def test_credit_goes_to_the_part_that_decides(tiny_training, catalog):
    """The photo tells the colour, the text tells the kind."""
    made = tiny_training.fitted.bundle.predict(tiny_training.embeddings, catalog.texts())
    both = np.flatnonzero(tiny_training.embeddings.has_image & tiny_training.embeddings.has_text)[:40].tolist()
    whys = [made.explain(row) for row in both]
    assert np.mean([why["colour"].photo for why in whys]) > 3 * abs(np.mean([why["colour"].text for why in whys]))
    assert np.mean([why["kind"].text for why in whys]) > 3 * abs(np.mean([why["kind"].photo for why in whys]))


def test_the_word_that_decides_is_the_strongest_and_favours_the_label(predictions, products):
    for row in range(20):
        words = predictions.explain(row)["colour"].words
        strongest, weight = next(iter(words.items()))
        assert any(colour in strongest or strongest.strip("*") in colour for colour in COLOURS)
        assert weight > 0
        assert list(map(abs, words.values())) == sorted(map(abs, words.values()), reverse=True)
        assert all(word.strip("*") in products.texts[row] for word in words)


def test_hiding_the_words_changes_the_logits_by_their_weights(fitted, products):
    """The weights of words are exact: a text whose vector stays and whose words go loses just these."""
    row = products.embeddings.take(np.array([3]))
    why = fitted.bundle.predict(row, [products.texts[3]]).explain(0)["colour"]
    label, runner_up = (fitted.bundle.labels["colour"].index(name) for name in (why.label, why.runner_up))
    with_words = fitted.bundle.logits(row, [products.texts[3]])["colour"]
    temperature = fitted.bundle["colour"].temperatures(with_words)
    lost = (with_words - fitted.bundle.logits(row, ["?"])["colour"])[0]
    predicted = sum(why.words.values()) * float(temperature[0])
    assert predicted == pytest.approx(float(lost[label] - lost[runner_up]), abs=1e-4)


def test_what_a_product_lacks_has_no_credit(fitted, products):
    few = products.embeddings.take(np.arange(2))
    few.has_image[0], few.image[0], few.has_text[1], few.text[1] = False, 0, False, 0
    predictions = fitted.bundle.predict(few, [products.texts[0], ""])
    assert predictions.explain(0)["kind"].photo == pytest.approx(0, abs=1e-5)
    assert predictions.explain(1)["kind"].text == pytest.approx(0, abs=1e-5)
    assert predictions.explain(1)["kind"].words == {}


def test_only_the_asked_characteristics_are_explained(fitted, products):
    predictions = fitted.bundle.predict(products.embeddings, products.texts, ["size", "kind"])
    assert list(predictions.explain(0)) == ["size", "kind"]


def test_heads_without_a_branch_for_words_explain_photo_and_text(products, quick):
    bundle = fit_heads(products, replace(quick, epochs=2, max_words=0)).bundle
    predictions = bundle.predict(products.embeddings, products.texts)
    why = predictions.explain(0)["kind"]
    best, second = two_best(predictions, "kind", 0)
    assert why.words == {}
    assert why.base + why.photo + why.text == pytest.approx(math.log(best / second), abs=1e-3)


def test_what_cannot_be_explained_is_said(fitted, products, predictions):
    with pytest.raises(DataError, match="a row to explain must be one of 240, counted from 0, got -1"):
        predictions.explain(-1)
    with pytest.raises(DataError, match="only predictions that heads have just made can be explained"):
        replace(predictions, explainer=None).explain(0)
    nothing = products.embeddings.take(np.arange(1))
    bare = Embeddings(
        nothing.ids, nothing.image * 0, nothing.text * 0, ~nothing.has_image, ~nothing.has_text, nothing.fingerprint
    )
    with pytest.raises(DataError, match="row 0 has neither photo nor text that the heads use"):
        fitted.bundle.predict(bare, [""]).explain(0)
