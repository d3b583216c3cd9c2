from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from product_classificator.heads import HeadBundle
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.training import HeadSettings, LabelledProducts, fit_heads, inputs
from product_classificator.training.inputs import (
    CountedTexts,
    bag_of_words,
    start_with_their_kind,
    words_of_labels,
)
from product_classificator.types import Embeddings, Split, strings
from tests.tiny_catalog import PARTS, fit_vocabulary

KINDS, BRANDS = ("чехол", "кружка", "лампа", "сумка"), ("acme", "umbrella", "hooli")


def titles(n: int, *, kind_first: bool) -> tuple[list[str], np.ndarray]:
    """Return titles of a kind, something else and a brand, and the the label ids of the kinds."""
    draw = np.random.default_rng(0)
    kinds, brands, sizes = (draw.integers(0, k, n) for k in (len(KINDS), len(BRANDS), 50))
    ends = [(KINDS[k], BRANDS[b]) for k, b in zip(kinds, brands, strict=True)]
    words = [pair if kind_first else pair[::-1] for pair in ends]
    return [f"{one} {size} {two}" for (one, two), size in zip(words, sizes, strict=True)], kinds


def fit(texts: list[str], **options: int) -> Vocabulary:
    return fit_vocabulary(texts, **options)[0]


def starts(texts: list[str], *columns: np.ndarray) -> bool:
    return start_with_their_kind(texts, columns)


@pytest.mark.parametrize("kind_first", [True, False])
def test_titles_start_with_their_kind_if_first_words_predict_it(kind_first: bool) -> None:
    assert starts(*titles(600, kind_first=kind_first)) is kind_first


def test_few_titles_decide_nothing() -> None:
    assert not starts(*titles(400, kind_first=True))


@pytest.mark.parametrize("text", ["", "слово", "!!!"])
def test_texts_of_one_word_or_none_decide_nothing(text: str) -> None:
    assert not starts([text] * 600, np.zeros(600, dtype=np.int64))


def test_unknown_labels_are_ignored() -> None:
    texts, label_ids = titles(1200, kind_first=True)
    label_ids[::3] = -1
    assert starts(texts, label_ids)
    assert not starts(texts, np.full_like(label_ids, -1))
    assert not starts(texts)


def test_characteristics_that_no_word_predicts_do_not_count() -> None:
    texts, label_ids = titles(1200, kind_first=True)
    others = np.random.default_rng(1).integers(0, 2, (9, 1200))
    assert starts(texts, *others, label_ids)
    assert not starts(texts, *others)


def test_the_order_of_the_products_does_not_matter() -> None:
    texts, label_ids = titles(30_000, kind_first=True)
    order = np.argsort(label_ids, kind="stable")
    assert starts([texts[row] for row in order.tolist()], label_ids[order])


@pytest.mark.parametrize("kind_first", [True, False])
def test_heads_keep_whether_leading_words_count(kind_first: bool, quick: HeadSettings, tmp_path: Path) -> None:
    names, label_ids = titles(1600, kind_first=kind_first)
    texts = [f"{name}\nпродаётся {name}" for name in names]
    ids = strings([f"p{row}" for row in range(len(texts))])
    none, all_of_them = np.zeros(len(texts), dtype=bool), np.ones(len(texts), dtype=bool)
    vectors = np.full((len(texts), 2), 0.5, dtype=np.float32)
    embeddings = Embeddings(ids, vectors[:, :0], vectors, none, all_of_them, "tiny-1")
    split = Split(ids, strings([PARTS[(0, 0, 1, 2)[row % 4]] for row in range(len(texts))]))
    truth = {"kind": strings(KINDS)[label_ids]}
    products = LabelledProducts(embeddings, texts, truth, split, has_title=True)
    bundle = fit_heads(products, replace(quick, epochs=1)).bundle
    assert bundle.vocabulary.has_leading_words is kind_first
    assert any(word.startswith("^") for word in bundle.vocabulary.words) is kind_first
    bundle.save(tmp_path / "heads")
    read = HeadBundle.load(tmp_path / "heads")
    assert read.digest == bundle.digest
    one, two = (heads.predict(embeddings, texts).probabilities["kind"] for heads in (bundle, read))
    assert np.array_equal(one, two)
    if kind_first:
        plain = replace(bundle, vocabulary=Vocabulary(bundle.vocabulary.words, bundle.vocabulary.idf, has_title=True))
        assert plain.digest != bundle.digest
        assert not np.array_equal(plain.predict(embeddings, texts).probabilities["kind"], one)
        words = bundle.predict(embeddings, texts).explain(0)["kind"].words
        assert names[0].split()[0] in words
        assert not any(word.startswith("^") for word in words)


def test_leading_words_may_be_switched_on_and_off(products: LabelledProducts, quick: HeadSettings) -> None:
    for leading_words in (True, False):
        settings = replace(quick, epochs=1, leading_words=leading_words)
        assert fit_heads(products, settings).bundle.vocabulary.has_leading_words is leading_words


def test_words_of_one_training_text_are_dropped() -> None:
    assert fit(["red mug", "red hat"]).words == ("red",)


def test_the_limit_keeps_the_words_of_most_texts() -> None:
    assert fit(["a b", "a c", "b c", "a"], min_texts=1, max_words=1).words == ("a",)


def test_texts_without_any_word_give_a_bag_without_words() -> None:
    vocabulary = fit(["", "!!!", "—"])
    assert len(vocabulary) == 0
    assert bag_of_words(vocabulary, ["red"]).shape == (1, 0)


def test_a_limit_of_zero_turns_words_off() -> None:
    assert len(fit(["red mug", "red mug"], max_words=0)) == 0


def test_label_names_weigh_what_training_products_support_and_less_where_there_are_many() -> None:
    texts = ["red mug", "blue mug", "red cup", "blue cup"] * 50
    vocabulary, words = fit_vocabulary(texts)
    many = tuple(f"label {number}" for number in range(199))
    colour = np.array([1, 0, 1, 0] * 50)
    kind = np.where([text.endswith("mug") for text in texts], 199, 0)
    rows = {
        "colour": words_of_labels(vocabulary, ("blue", "red"), words, colour),
        "wrong": words_of_labels(vocabulary, ("blue", "red"), words, 1 - colour),
        "kind": words_of_labels(vocabulary, (*many, "mug"), words, kind),
        "marks": words_of_labels(vocabulary, ("blue", "old"), words, None),
    }
    lengths = {name: np.sqrt(matrix.multiply(matrix).sum(1)).ravel().tolist()[0] for name, matrix in rows.items()}
    assert np.allclose(lengths["colour"], 30, atol=1)
    assert np.allclose(lengths["wrong"], 0, atol=1)
    assert lengths["kind"][:199] == [0] * 199
    assert lengths["kind"][199] == pytest.approx(15, abs=1)
    assert lengths["marks"] == [pytest.approx(60), 0]


@pytest.mark.parametrize("has_title", [False, True])
def test_words_of_training_texts_are_those_that_these_texts_alone_would_give(has_title: bool) -> None:
    names, _ = titles(60, kind_first=True)
    texts = [f"{name} товар{row % 8}\nпродаётся {name[::-1]}" for row, name in enumerate(names)]
    train = np.arange(0, 60, 3)
    alone = [texts[row] for row in train]
    found, rows = fit_vocabulary([*texts, "новое слово слово", "новое"], train, has_title=has_title)
    expected, rows_alone = fit_vocabulary(alone, has_title=has_title)
    assert (found.words, found.n_whole) == (expected.words, expected.n_whole)
    assert np.array_equal(found.idf, expected.idf)
    assert (rows[train] != rows_alone).nnz == 0
    assert (rows != bag_of_words(expected, [*texts, "новое слово слово", "новое"])).nnz == 0
    assert found.n_whole < len(found)


def test_pieces_that_every_fifth_text_has_are_dropped_and_those_of_one_text() -> None:
    texts = [f"{'кружка' if row < 3 else 'лампа' if row < 10 else f'набор{row}'} {row}" for row in range(20)]
    pieces = {word for word in fit(texts).words if word.startswith("*")}
    assert "*жка" in pieces
    assert "*мпа" not in pieces  # of 7 texts in 20
    plain, _ = CountedTexts.of(texts, has_pieces=False).fit_vocabulary(np.arange(20))
    assert plain.words == fit(texts).words[: plain.n_whole]


def test_many_texts_are_counted_in_two_passes_with_the_same_result(monkeypatch):
    texts = [*titles(300, kind_first=True)[0], "once", ""]
    vocabulary, bags = fit_vocabulary(texts)
    all_grams = CountedTexts.of(texts).grams
    monkeypatch.setattr(inputs, "_MANY_TEXTS", 0)
    again, same_bags = fit_vocabulary(texts)
    assert again.words == vocabulary.words
    assert (again.idf == vocabulary.idf).all()
    assert (bags != same_bags).nnz == 0
    assert "once" in all_grams and "once" not in CountedTexts.of(texts).grams


@pytest.mark.slow
def test_of_half_a_million_texts_words_of_five_are_learned(monkeypatch):
    monkeypatch.setattr(inputs, "_MANY_TEXTS", 10**6)  # texts of no words need no second pass
    few, many = CountedTexts.of(["a"] * 10), CountedTexts.of([""] * 500_000, has_pieces=False)
    assert (few.min_texts, many.min_texts) == (2, 5)
