"""Turn texts into sparse rows of weighted words (tf-idf): the input of the heads' words branch.

A row holds the words of a text, its pairs of neighbouring words and the beginnings of its words, weighted by
(1 + log count) x idf, of unit length. Beginnings join the many forms of Russian words and reach forms that training has
not seen. A title (first line) weighs as much as everything after it (validation macro-F1 .882 -> .921). Where titles
start with the kind of product ("Чехол для ..."), leading words count once more (.763 -> .772).
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from product_classificator.text import words_of
from product_classificator.types import Bools, Floats, Rows

Ints: TypeAlias = npt.NDArray[np.int32]

LEADING = "^"
"""Marks a leading word."""

_PREFIX_LENGTHS = range(3, 7)
_TEXTS_PER_BLOCK = 4096


class WeightedWords(NamedTuple):
    """The known words of n texts, in CSR layout without SciPy.

    Attributes:
        weights: (k,) float32, text after text.
        columns: (k,) numbers of the words, ascending within each text.
        starts: (n + 1,) the words of text i are those from starts[i] to before starts[i + 1].
    """

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
    return [*words, *pairs, *chain.from_iterable(map(_prefixes, words)), *leading]


@lru_cache(maxsize=2**17)
def _prefixes(word: str) -> tuple[str, ...]:
    if not word.isalpha():
        return ()
    return tuple(f"{word[:length]}*" for length in _PREFIX_LENGTHS if length < len(word))


class Vocabulary:
    """The words that heads know, and how rare each of them is.

    Attributes:
        words: in the order of columns.
        idf: (words,) float32, log((1 + n) / (1 + n with the word)) + 1.
        has_title: whether the first line of a text weighs as much as everything after it.
        has_leading_words: whether the first word and the first pair of a text count as words of their own too.

    Raises:
        ValueError: a word is repeated, or idf and words differ in length.
    """

    def __init__(
        self, words: Sequence[str], idf: Floats, *, has_title: bool = False, has_leading_words: bool = False
    ) -> None:
        self.words = tuple(words)
        self.idf = idf
        self.has_title = has_title
        self.has_leading_words = has_leading_words
        self._columns = {word: column for column, word in enumerate(self.words)}
        if len(self._columns) < len(self.words):
            raise ValueError(f"every word has one column, found {len(self.words) - len(self._columns)} words repeated")
        if len(idf) != len(self.words):
            raise ValueError(f"every word has one idf: {len(self.words)} words, {len(idf)} idf values")

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._columns

    @classmethod
    def empty(cls) -> "Vocabulary":
        """Return a vocabulary without words."""
        return cls((), np.empty(0, dtype=np.float32))

    def weigh(self, texts: Sequence[str]) -> WeightedWords:
        """Return the weighted known words of texts."""
        columns, counts, starts = array("i"), array("i"), array("i", [0])
        for grams in self.grams_of_segments(texts):
            counter = Counter(self._columns[gram] for gram in grams if gram in self._columns)
            columns.extend(sorted(counter))
            counts.extend(counter[column] for column in sorted(counter))
            starts.append(len(columns))
        return self.weigh_counts(np.asarray(counts), np.asarray(columns), np.asarray(starts))

    def grams_of_segments(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """Yield the grams of each text; if texts have titles, first those of the title, then those of the rest."""
        for text in texts:
            title, _, rest = text.partition("\n") if self.has_title else (text, "", "")
            yield grams_of(title, has_leading_words=self.has_leading_words)
            if self.has_title:
                yield grams_of(rest)

    def weigh_counts(self, counts: Ints, columns: Ints, starts: Ints) -> WeightedWords:
        """Return the weighted words of texts whose segments hold `counts` times the words of `columns`."""
        n_segments = len(starts) - 1
        segments = np.repeat(np.arange(n_segments), np.diff(starts))
        weights = _normalize((1 + np.log(counts)) * self.idf[columns], segments, n_segments)
        if not self.has_title:
            return WeightedWords(weights.astype(np.float32), columns, starts)
        merged = []
        for first in range(0, n_segments, 2 * _TEXTS_PER_BLOCK):  # blocks bound the memory of sorting
            last = min(first + 2 * _TEXTS_PER_BLOCK, n_segments)
            block, n = slice(starts[first], starts[last]), (last - first) // 2
            merged.append(self._merge_titles(weights[block], columns[block], segments[block] - first, n))
        nothing = np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.int64)
        all_weights, all_columns, lengths = (np.concatenate(arrays) for arrays in zip(nothing, *merged, strict=True))
        return WeightedWords(all_weights, all_columns, np.append(0, np.cumsum(lengths)).astype(np.int32))

    def _merge_titles(
        self, weights: npt.NDArray[np.float64], columns: Ints, segments: Rows, n: int
    ) -> tuple[Floats, Ints, Rows]:
        """Return weights, columns and word counts of n texts: a word of both title and rest gets the sum of both."""
        cells, cell_of_word = np.unique(segments // 2 * len(self) + columns, return_inverse=True)
        texts, words = np.divmod(cells, max(len(self), 1))
        summed = np.bincount(cell_of_word, weights, len(cells)).astype(np.float64)  # NumPy types counts as integers
        return _normalize(summed, texts, n).astype(np.float32), words.astype(np.int32), np.bincount(texts, minlength=n)


def _normalize(weights: npt.NDArray[np.float64], owners: Rows, n: int) -> npt.NDArray[np.float64]:
    """Return weights divided by the Euclidean length of all weights of their owner."""
    lengths = np.sqrt(np.bincount(owners, weights * weights, n))
    unit: npt.NDArray[np.float64] = weights / lengths[owners]
    return unit
