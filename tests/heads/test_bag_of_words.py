import numpy as np
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from product_classificator.heads.bag_of_words import Vocabulary, _pieces, _prefixes, grams_of, pieces_of
from product_classificator.training.inputs import bag_of_words
from tests.tiny_catalog import fit_vocabulary


def fit(texts: list[str], **options: int) -> Vocabulary:
    return fit_vocabulary(texts, **options)[0]


def test_a_row_has_unit_length_and_rare_words_weigh_more() -> None:
    vocabulary = fit(["red mug", "red shoe", "red hat", "mug"])
    row = bag_of_words(vocabulary, ["red mug"]).toarray()[0]
    weights = dict(zip(vocabulary.words, row, strict=True))
    assert np.isclose(np.linalg.norm(row), 1)
    assert weights["mug"] > weights["red"] > 0


def test_forms_of_a_word_share_their_beginnings() -> None:
    vocabulary = fit(["кружка синяя", "кружки красные"])
    assert vocabulary.words == ("кру*", "круж*", "кружк*")
    assert bag_of_words(vocabulary, ["кружкой"]).nnz == 3


def test_leading_words_count_as_words_of_their_own() -> None:
    texts = ["red mug", "red mug\nblue red mug", "mug red"]
    vocabulary, rows = fit_vocabulary(texts, min_texts=1, has_title=True, has_leading_words=True)
    assert {word for word in vocabulary.words if word[0] == "^"} == {"^red", "^red mug", "^mug", "^mug red"}
    assert (bag_of_words(vocabulary, texts) != rows).nnz == 0
    plain = fit(texts, min_texts=1)
    assert not any(word.startswith("^") for word in plain.words)


def test_numbers_have_no_beginnings() -> None:
    assert fit(["123456", "123456"]).words == ("123456",)


def test_unknown_words_and_empty_texts_give_empty_rows() -> None:
    rows = bag_of_words(fit(["red mug", "red mug"]), ["green hat", "", "red"])
    assert np.diff(rows.indptr).tolist() == [0, 0, 1]


def test_rows_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    words = [f"{'abcdefgh'[number % 8]}слово{'ъ' * (number % 3)}{number}" for number in range(400)] + ["кружка", "red"]
    texts = [" ".join(rng.choice(words, rng.integers(0, 60))) for _ in range(300)]
    vocabulary = fit(texts[:200])
    n, parts = vocabulary.n_whole, []
    assert 0 < n < len(vocabulary)
    for grams, columns in ((grams_of, slice(n)), (pieces_of, slice(n, None))):
        counts = CountVectorizer(analyzer=grams, vocabulary=vocabulary.words[columns]).transform(texts)
        weights = (1 + np.log(counts.data)) * vocabulary.idf[columns][counts.indices]
        parts.append(normalize(csr_matrix((weights, counts.indices, counts.indptr), shape=counts.shape)))
    expected = hstack(parts, format="csr")
    rows = bag_of_words(vocabulary, texts)
    assert rows.dtype == np.float32
    assert np.array_equal(rows.indptr, expected.indptr)
    assert np.array_equal(rows.indices, expected.indices)
    assert np.allclose(rows.data, expected.data, rtol=1e-6)


def test_a_word_is_in_a_vocabulary_once() -> None:
    with pytest.raises(ValueError, match="every word has one column, found 1 words repeated"):
        Vocabulary(("red", "mug", "red"), np.ones(3, np.float32))


def test_a_title_weighs_as_much_as_all_that_follows() -> None:
    texts = ["red mug\nsolid cup for tea", "red hat\nsolid wool for snow", "blue mug\nsolid"]
    vocabulary, rows = fit_vocabulary(texts, min_texts=1, has_title=True)
    assert (bag_of_words(vocabulary, texts) != rows).nnz == 0
    assert np.allclose(rows.multiply(rows).sum(1), 1)
    long = bag_of_words(vocabulary, ["red mug\n" + "solid cup for tea wool snow " * 20]).toarray()[0]
    weights = dict(zip(vocabulary.words, long**2, strict=True))
    assert np.isclose(sum(weights[word] for word in ("red", "mug", "red mug")), 0.5)


def test_a_text_of_one_line_is_the_same_with_and_without_a_title() -> None:
    texts = ["red mug", "red hat", "\nred", ""]
    plain, titled = (fit_vocabulary(texts, has_title=has)[1].toarray() for has in (False, True))
    assert np.allclose(plain, titled)


def test_many_titles_are_weighed_block_by_block(monkeypatch) -> None:
    texts = [f"red mug {number % 3}\nfor tea {number % 4}" for number in range(7)]
    vocabulary, rows = fit_vocabulary(texts, has_title=True)
    monkeypatch.setattr("product_classificator.training.inputs._TEXTS_PER_BLOCK", 3)
    assert (fit_vocabulary(texts, has_title=True)[1] != rows).nnz == 0
    assert (bag_of_words(vocabulary, texts) != rows).nnz == 0
    assert bag_of_words(vocabulary, []).shape == (0, len(vocabulary))


def test_pieces_are_the_ends_of_words_and_what_is_between_the_ends() -> None:
    assert pieces_of("чашка") == ["*шка", "*ашка", "*ашк*"]
    assert pieces_of("мяч") == pieces_of("") == pieces_of("!!!") == []
    words = [f"чашка{letter}" for letter in "абвгдежз"]
    assert pieces_of(" ".join([*words, "тарелка"])) == pieces_of(" ".join(words))  # the first 8 words name the product


def test_pieces_join_words_that_differ_in_how_they_begin() -> None:
    texts = ["автокресло", "кресло", *(f"{letter}{letter}" for letter in "абвгдежзи")]
    vocabulary = fit(texts)
    assert all(word.startswith("*") for word in vocabulary.words)
    assert bag_of_words(vocabulary, ["фотокресло"]).nnz > 3
    assert np.isclose(np.linalg.norm(bag_of_words(vocabulary, ["фотокресло"]).toarray()), 1)


def test_overlong_words_are_not_kept_in_memory():
    word = "щ" * 33
    kept = _pieces.cache_info().currsize, _prefixes.cache_info().currsize
    assert grams_of(word) == [word, "щщщ*", "щщщщ*", "щщщщщ*", "щщщщщщ*"]
    assert len(pieces_of(word)) == len(_pieces.__wrapped__(word))
    assert (_pieces.cache_info().currsize, _prefixes.cache_info().currsize) == kept
