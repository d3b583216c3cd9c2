"""Turn texts into sparse rows of weighted words (tf-idf): the input of the heads' words branch.

A row holds the words of a text, its pairs of neighbouring words and the beginnings of its words (which join the many
forms of Russian words), and apart from these pieces from within its first words, which name the product; weighted by
(1 + log count) x idf, words and pieces of unit length each. Measured: `docs/design/decisions.md`.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import _lru_cache_wrapper, cached_property, lru_cache
from itertools import chain, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from product_classificator.text import words_of
from product_classificator.types import Bools, Floats, Rows

Ints: TypeAlias = npt.NDArray[np.int32]

LEADING = "^"
"""Marks a leading word."""

PIECE = "*"
"""Marks a piece from within a word."""

_PREFIX_LENGTHS, _PIECE_LENGTHS, _WORDS_WITH_PIECES, _MAX_KEPT = range(3, 7), range(3, 6), 8, 32


class WeightedWords(NamedTuple):
    """The known words of n texts as a CSR matrix, without SciPy: (k,) data, (k,) indices and (n + 1,) indptr."""

    weights: Floats
    columns: Ints
    starts: Ints

    def add_to(self, logits: Floats, word_weights: Floats, has_text: Bools) -> None:
        """Add the contribution of the words, by (words, all labels) weights, to (n, all labels) logits in place."""
        starts = self.starts.tolist()
        for row in np.flatnonzero(has_text).tolist():
            words = slice(starts[row], starts[row + 1])
            logits[row] += self.weights[words] @ word_weights.take(self.columns[words], axis=0)


def grams_of(text: str, *, has_leading_words: bool = False) -> list[str]:
    """Return the words of a text, its pairs of neighbours, and the beginnings of its words, 3 to 6 letters long.

    With `has_leading_words`, the first word and the first pair come once more, marked as such.

    >>> grams_of("Чашка, 0.3 л", has_leading_words=True)
    ['чашка', '0.3', 'л', 'чашка 0.3', '0.3 л', 'чаш*', 'чашк*', '^чашка', '^чашка 0.3']
    """
    words = words_of(text)
    pairs = [f"{left} {right}" for left, right in pairwise(words)]
    leading = [f"{LEADING}{gram}" for gram in (*words[:1], *pairs[:1])] if has_leading_words else []
    return [*words, *pairs, *_from_words(_prefixes, words), *leading]


def _from_words(grams: "_lru_cache_wrapper[tuple[str, ...]]", words: Iterable[str]) -> Iterator[str]:
    """Yield the grams of words; those of overlong words are not kept, or texts sent to a service fill its memory."""
    return chain.from_iterable((grams if len(word) <= _MAX_KEPT else grams.__wrapped__)(word) for word in words)


@lru_cache(maxsize=2**17)
def _prefixes(word: str) -> tuple[str, ...]:
    if not word.isalpha():
        return ()
    return tuple(f"{word[:length]}*" for length in _PREFIX_LENGTHS if length < len(word))


def pieces_of(text: str) -> list[str]:
    """Return the pieces of the first 8 words of a text, 3 to 5 letters long: word ends and what is between the ends.

    >>> pieces_of("Чашка")
    ['*шка', '*ашка', '*ашк*']
    """
    return list(_from_words(_pieces, words_of(text)[:_WORDS_WITH_PIECES]))


@lru_cache(maxsize=2**15)
def _pieces(word: str) -> tuple[str, ...]:
    ends = [f"{PIECE}{word[-length:]}" for length in _PIECE_LENGTHS if length < len(word)]
    starts = ((start, length) for length in _PIECE_LENGTHS for start in range(1, len(word) - length))
    return (*ends, *(f"{PIECE}{word[start : start + length]}*" for start, length in starts))


@dataclass(frozen=True, eq=False)  # arrays cannot be compared with one ==
class Vocabulary:
    """The words that heads know, none by default, and how rare each of them is.

    Attributes:
        words: in the order of columns, pieces of words last.
        idf: (words,) float32, log((1 + n) / (1 + n with the word)) + 1.
        has_title: whether the first line of a text weighs as much as everything after it.
        has_leading_words: whether the first word and the first pair of a text count as words of their own too, for
            titles that start with the kind of product ("Чехол для ...").
    """

    words: tuple[str, ...] = ()
    idf: Floats = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    has_title: bool = False
    has_leading_words: bool = False

    def __post_init__(self) -> None:
        if n_repeated := len(self.words) - len(self._columns):
            raise ValueError(f"every word has one column, found {n_repeated} words repeated")
        if len(self.idf) != len(self.words):
            raise ValueError(f"every word has one idf: {len(self.words)} words, {len(self.idf)} idf values")

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {word: column for column, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._columns

    @cached_property
    def n_whole(self) -> int:
        """Number of words that are not pieces."""
        return sum(not word.startswith(PIECE) for word in self.words)

    def weigh(self, texts: Sequence[str]) -> WeightedWords:
        """Return the weighted known words of texts."""
        columns, counts, starts = array("i"), array("i"), array("i", [0])
        for grams in self.grams_of_segments(texts, has_pieces=self.n_whole < len(self)):
            counter = Counter(self._columns[gram] for gram in grams if gram in self._columns)
            columns.extend(sorted(counter))
            counts.extend(counter[column] for column in sorted(counter))
            starts.append(len(columns))
        return self.weigh_counts(np.asarray(counts), np.asarray(columns), np.asarray(starts))

    @property
    def n_segments(self) -> int:
        """Number of segments of a text."""
        return 3 if self.has_title else 2

    def grams_of_segments(self, texts: Iterable[str], *, has_pieces: bool) -> Iterator[list[str]]:
        """Yield the words of each text and then its pieces; if texts have titles, those of the title, then the rest."""
        for text in texts:
            title, _, rest = text.partition("\n") if self.has_title else (text, "", "")
            yield grams_of(title, has_leading_words=self.has_leading_words)
            if self.has_title:
                yield grams_of(rest)
            yield pieces_of(text) if has_pieces else []

    def weigh_counts(self, counts: Ints, columns: Ints, starts: Ints) -> WeightedWords:
        """Return the weighted words of texts whose segments hold `counts` times the words of `columns`."""
        n_segments = len(starts) - 1
        segments = np.repeat(np.arange(n_segments), np.diff(starts))
        weights = _normalize((1 + np.log(counts)) * self.idf[columns], segments, n_segments)
        # A word of both title and rest gets the sum of both.
        cells, cell_of_word = np.unique(segments // self.n_segments * len(self) + columns, return_inverse=True)
        texts, words = np.divmod(cells, max(len(self), 1))
        summed = np.bincount(cell_of_word, weights, len(cells)).astype(np.float64)  # NumPy types counts as integers
        n = n_segments // self.n_segments
        unit = _normalize(summed, 2 * texts + (words >= self.n_whole), 2 * n).astype(np.float32)
        ends = np.cumsum(np.bincount(texts, minlength=n))
        return WeightedWords(unit, words.astype(np.int32), np.append(0, ends).astype(np.int32))


def _normalize(weights: npt.NDArray[np.float64], owners: Rows, n: int) -> npt.NDArray[np.float64]:
    """Return weights divided by the Euclidean length of all weights of their owner."""
    lengths = np.sqrt(np.bincount(owners, weights * weights, n))
    unit: npt.NDArray[np.float64] = weights / lengths[owners]
    return unit
