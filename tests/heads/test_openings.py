import numpy as np
import pytest

from product_classificator.heads.openings import open_with_their_kind

KINDS, BRANDS = ("чехол", "кружка", "лампа", "сумка"), ("acme", "umbrella", "hooli")


def titles(n: int, *, kind_first: bool) -> tuple[list[str], np.ndarray]:
    """Returns titles of a kind, something else and a brand, and the numbers of the kinds as the one characteristic."""
    draw = np.random.default_rng(0)
    kinds, brands, sizes = (draw.integers(0, k, n) for k in (len(KINDS), len(BRANDS), 50))
    ends = [(KINDS[k], BRANDS[b]) for k, b in zip(kinds, brands, strict=True)]
    words = [pair if kind_first else pair[::-1] for pair in ends]
    return [f"{one} {size} {two}" for (one, two), size in zip(words, sizes, strict=True)], kinds[:, None]


@pytest.mark.parametrize("kind_first", [True, False])
def test_it_is_told_by_where_the_kind_stands(kind_first: bool) -> None:
    assert open_with_their_kind(*titles(600, kind_first=kind_first)) is kind_first


def test_few_titles_tell_nothing() -> None:
    assert not open_with_their_kind(*titles(400, kind_first=True))


@pytest.mark.parametrize("text", ["", "слово", "!!!"])
def test_texts_of_one_word_or_none_tell_nothing(text: str) -> None:
    assert not open_with_their_kind([text] * 600, np.zeros((600, 1), dtype=np.int64))


def test_unknown_labels_are_passed_over() -> None:
    texts, codes = titles(1200, kind_first=True)
    codes[::3] = -1
    assert open_with_their_kind(texts, codes)
    assert not open_with_their_kind(texts, np.full_like(codes, -1))
    assert not open_with_their_kind(texts, codes[:, :0])
