import numpy as np

from product_classificator.heads.words import WordBag


def test_a_row_has_unit_length_and_rare_words_weigh_more() -> None:
    bag = WordBag.fit(["red mug", "red shoe", "red hat", "mug"])
    row = bag.rows(["red mug"]).toarray()[0]
    weights = dict(zip(bag.words, row, strict=True))
    assert np.isclose(np.linalg.norm(row), 1)
    assert weights["mug"] > weights["red"] > 0


def test_words_of_one_training_text_are_dropped() -> None:
    assert WordBag.fit(["red mug", "red hat"]).words == ("red",)


def test_forms_of_a_word_share_their_beginnings() -> None:
    bag = WordBag.fit(["кружка синяя", "кружки красные"])
    assert bag.words == ("кру*", "круж*", "кружк*")
    assert bag.rows(["кружкой"]).nnz == 3


def test_numbers_have_no_beginnings() -> None:
    assert WordBag.fit(["123456", "123456"]).words == ("123456",)


def test_the_limit_keeps_the_words_of_most_texts() -> None:
    assert WordBag.fit(["a b", "a c", "b c", "a"], min_texts=1, max_words=1).words == ("a",)


def test_unknown_words_and_empty_texts_give_empty_rows() -> None:
    rows = WordBag.fit(["red mug", "red mug"]).rows(["green hat", "", "red"])
    assert np.diff(rows.indptr).tolist() == [0, 0, 1]


def test_texts_without_any_word_give_a_bag_without_words() -> None:
    bag = WordBag.fit(["", "!!!", "—"])
    assert len(bag) == 0
    assert bag.rows(["red"]).shape == (1, 0)


def test_a_limit_of_zero_turns_words_off() -> None:
    assert len(WordBag.fit(["red mug", "red mug"], max_words=0)) == 0
