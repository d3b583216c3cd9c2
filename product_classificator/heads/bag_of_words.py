"""Turns texts into sparse rows of weighted words: what the words branch of the heads reads.

A row is the tf-idf of the words, neighbouring word pairs and beginnings of words of a text (1 + log of the count,
times the rarity of the word among the training texts), of unit length. Where texts have a title, their first line, it
weighs as much as all that follows: among 300 words of a description the five that name the product would hardly count
(fashion goods with title and description, validation macro-F1 of two splits: .882, now .921; of colours .71, now .85).
Where titles open with the kind of the product, as Russian ones do ("Чехол для ..."), the first word, and the first two
together, count once more as words of their own (60,000 titles: .763, now .772); `openings` tells where.
Beginnings join the forms of one word, of which Russian has many, and reach forms that training has not seen; all
character n-grams told little more and cost 2.4 times as much (60,000 titles). Words seen in fewer than two training
texts cannot tell products apart and are dropped; so are the rarest beyond a limit, which bounds the memory of heads.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from product_classificator.text import words_of
from product_classificator.types import Bools, Floats, Rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BagOfWords: TypeAlias = "csr_matrix"
"""(n, words) float32 sparse rows of unit length; a row without known words is empty."""

Numbers: TypeAlias = npt.NDArray[np.int32]


class WeightedWords(NamedTuple):
    """The known words of n texts: what `BagOfWords` are made of, without SciPy.

    Attributes:
        weights: (k,) float32, text after text.
        numbers: (k,) of the words, ascending in each text.
        starts: (n + 1,): the words of text i lie from starts[i] to before starts[i + 1].
    """

    weights: Floats
    numbers: Numbers
    starts: Numbers

    @classmethod
    def of(cls, rows: BagOfWords) -> "WeightedWords":
        """Returns the words of rows."""
        return cls(rows.data, rows.indices, rows.indptr)

    def add_to(self, logits: Floats, word_weights: Floats, has_text: Bools) -> None:
        """Adds what the words say of n products.

        Args:
            logits: (n, all labels); it is changed.
            word_weights: (words, all labels) what each word says.
            has_text: (n,) products that are said to have no text get nothing.
        """
        starts = self.starts.tolist()
        for row in np.flatnonzero(has_text).tolist():
            own = slice(starts[row], starts[row + 1])
            logits[row] += self.weights[own] @ word_weights.take(self.numbers[own], axis=0)


OPENING = "^"
"""Stands before what a text opens with."""

_BEGINNINGS = range(3, 7)
_TEXTS_PER_BLOCK = 4096


def grams_of(text: str, *, has_leading_words: bool = False) -> list[str]:
    """Returns the words of a text, its pairs of neighbours, and the beginnings of its words, 3 to 6 letters long.

    With `has_leading_words`, its first word and its first pair stand there once more as what they are.

    >>> grams_of("Чашка, 0.3 л", has_leading_words=True)
    ['чашка', '0.3', 'л', 'чашка 0.3', '0.3 л', 'чаш*', 'чашк*', '^чашка', '^чашка 0.3']
    """
    words = words_of(text)
    pairs = [f"{left} {right}" for left, right in pairwise(words)]
    openings = [f"{OPENING}{gram}" for gram in (*words[:1], *pairs[:1])] if has_leading_words else []
    return [*words, *pairs, *chain.from_iterable(map(_beginnings_of, words)), *openings]


@lru_cache(maxsize=2**17)
def _beginnings_of(word: str) -> tuple[str, ...]:
    if not word.isalpha():
        return ()
    return tuple(f"{word[:length]}*" for length in _BEGINNINGS if length < len(word))


class Vocabulary:
    """The words that heads know, and how rare each is.

    Attributes:
        words: the vocabulary; its order is the order of columns.
        idf: (words,) float32 rarity of each word: log((1 + n) / (1 + n with the word)) + 1.
        has_title: whether the first line of a text weighs as much as all that follows.
        has_leading_words: whether the first word of a text, and its first two, count as words of their own too.
    """

    def __init__(
        self, words: Sequence[str], idf: Floats, *, has_title: bool = False, has_leading_words: bool = False
    ) -> None:
        self.words = tuple(words)
        self.idf = idf
        self.has_title = has_title
        self.has_leading_words = has_leading_words
        self._numbers = {word: number for number, word in enumerate(self.words)}
        if len(self._numbers) < len(self.words):
            raise ValueError(f"every word has one column, found {len(self.words) - len(self._numbers)} words repeated")

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._numbers

    @classmethod
    def fit(cls, texts: Sequence[str], min_texts: int = 2, max_words: int = 100_000) -> "Vocabulary":
        """Learns the words of training texts.

        Args:
            texts: training texts only: those of validation and test must stay unseen.
            min_texts: words of fewer texts are dropped.
            max_words: of the rest, at most so many are kept, those of most texts first.
        """
        return cls.fit_rows(texts, np.arange(len(texts)), min_texts, max_words)[0]

    @classmethod
    def fit_rows(
        cls,
        texts: Sequence[str],
        train: Rows,
        min_texts: int = 2,
        max_words: int = 100_000,
        *,
        has_title: bool = False,
        has_leading_words: bool = False,
    ) -> tuple["Vocabulary", "BagOfWords"]:
        """Learns the words of the training texts among `texts`, and returns the rows of all: each text is read once.

        Args:
            texts: (n,) of all products.
            train: numbers of those to learn from; what others say leaves no trace in the vocabulary.
            min_texts: as for `fit`.
            max_words: as for `fit`.
            has_title: whether the first line of each is a title.
            has_leading_words: whether they open with what their product is.
        """
        if not max_words or not any(words_of(texts[row]) for row in train.tolist()):
            vocabulary = cls((), np.empty(0, dtype=np.float32))
            return vocabulary, vocabulary.rows([""] * len(texts))
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import CountVectorizer  # a second to import, and use does without it

        counter = CountVectorizer(analyzer=list, dtype=np.int32)
        counts = counter.fit_transform(_grams_of_parts(texts, has_title, has_leading_words))
        whole = counts[0::2] + counts[1::2] if has_title else counts
        n_texts = np.bincount(whole[train].indices, minlength=counts.shape[1])
        common = np.flatnonzero(n_texts >= min_texts)
        kept = np.sort(common[np.argsort(-n_texts[common], kind="stable")[:max_words]])
        idf = np.log((1 + len(train)) / (1 + n_texts[kept])) + 1
        names = counter.get_feature_names_out()[kept].tolist()
        vocabulary = cls(names, idf.astype(np.float32), has_title=has_title, has_leading_words=has_leading_words)
        known = counts[:, kept].sorted_indices()
        weighed = vocabulary._weights(known.data, known.indices, known.indptr)
        return vocabulary, csr_matrix(weighed, shape=(len(texts), len(vocabulary)))

    def rows(self, texts: Sequence[str]) -> BagOfWords:
        """Returns the (n, words) sparse float32 rows of texts."""
        from scipy.sparse import csr_matrix  # use without training does without SciPy

        return csr_matrix(self.weigh(texts), shape=(len(texts), len(self)))

    def weigh(self, texts: Sequence[str]) -> WeightedWords:
        """Returns the known words of texts."""
        numbers, counts, starts = array("i"), array("i"), array("i", [0])
        for grams in _grams_of_parts(texts, self.has_title, self.has_leading_words):
            known = Counter(self._numbers[gram] for gram in grams if gram in self._numbers)
            numbers.extend(sorted(known))
            counts.extend(known[number] for number in sorted(known))
            starts.append(len(numbers))
        return self._weights(np.asarray(counts), np.asarray(numbers), np.asarray(starts))

    def _weights(self, counts: Numbers, numbers: Numbers, starts: Numbers) -> WeightedWords:
        """Returns what `weigh` does, of words that occur `counts` times in the parts of texts, one after the other."""
        parts = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        weights = _unit((1 + np.log(counts)) * self.idf[numbers], parts, len(starts) - 1)
        if not self.has_title:
            return WeightedWords(weights.astype(np.float32), numbers, starts)
        blocks = range(0, len(starts) - 1, 2 * _TEXTS_PER_BLOCK)
        joined = []
        for first in blocks:
            last = min(first + 2 * _TEXTS_PER_BLOCK, len(starts) - 1)
            here = slice(starts[first], starts[last])
            joined.append(self._joined(weights[here], numbers[here], parts[here] - first, (last - first) // 2))
        none = np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.int64)
        found, words, lengths = (np.concatenate(each) for each in zip(none, *joined, strict=True))
        return WeightedWords(found, words, np.append(0, np.cumsum(lengths)).astype(np.int32))

    def _joined(
        self, weights: npt.NDArray[np.float64], numbers: Numbers, parts: Rows, n: int
    ) -> tuple[Floats, Numbers, Rows]:
        """Returns weights and numbers of the words of n texts, a word of both parts once, and how many each has."""
        places, places_of = np.unique(parts // 2 * len(self) + numbers, return_inverse=True)
        texts, words = np.divmod(places, max(len(self), 1))
        summed: npt.NDArray[np.float64] = np.zeros(len(places))
        np.add.at(summed, places_of, weights)
        return _unit(summed, texts, n).astype(np.float32), words.astype(np.int32), np.bincount(texts, minlength=n)


def _grams_of_parts(texts: Iterable[str], has_title: bool, has_leading_words: bool) -> Iterator[list[str]]:
    """Yields the grams of texts, or of each text those of its first line and those of what follows."""
    for text in texts:
        if has_title:
            title, _, rest = text.partition("\n")
            yield grams_of(title, has_leading_words=has_leading_words)
            yield grams_of(rest)
        else:
            yield grams_of(text, has_leading_words=has_leading_words)


def _unit(weights: npt.NDArray[np.float64], owners: Rows, n: int) -> npt.NDArray[np.float64]:
    """Returns weights over the length of those that belong to one of n owners together."""
    lengths = np.sqrt(np.bincount(owners, weights * weights, n))
    unit: npt.NDArray[np.float64] = weights / lengths[owners]
    return unit
