"""Turns texts into sparse rows of weighted words: what the words branch of the heads reads.

A row is the tf-idf of the words, neighbouring word pairs and beginnings of words of a text (1 + log of the count,
times the rarity of the word among the training texts), of unit length. Beginnings join the forms of one word, of which
Russian has many, and reach forms that training has not seen; all character n-grams told little more and cost 2.4 times
as much (60,000 titles). Words seen in fewer than two training texts cannot tell products apart and are dropped; so are
the rarest beyond a limit, which bounds the memory of the heads.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import TypeAlias

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from product_classificator.text import words_of
from product_classificator.types import Floats, Rows

WordRows: TypeAlias = csr_matrix
"""(n, words) float32 sparse rows of unit length; a row without known words is empty."""


_BEGINNINGS = range(3, 7)


def grams_of(text: str) -> list[str]:
    """Returns the words of a text, its pairs of neighbours, and the beginnings of its words, 3 to 6 letters long.

    >>> grams_of("Чашка, 0.3 л")
    ['чашка', '0.3', 'л', 'чашка 0.3', '0.3 л', 'чаш*', 'чашк*']
    """
    words = words_of(text)
    pairs = (f"{left} {right}" for left, right in pairwise(words))
    return [*words, *pairs, *chain.from_iterable(map(_beginnings_of, words))]


@lru_cache(maxsize=2**17)
def _beginnings_of(word: str) -> tuple[str, ...]:
    if not word.isalpha():
        return ()
    return tuple(f"{word[:length]}*" for length in _BEGINNINGS if length < len(word))


class WordBag:
    """The words that heads know, and how rare each is.

    Attributes:
        words: the vocabulary; its order is the order of columns.
        idf: (words,) float32 rarity of each word: log((1 + n) / (1 + n with the word)) + 1.
    """

    def __init__(self, words: Sequence[str], idf: Floats) -> None:
        self.words = tuple(words)
        self.idf = idf
        self._counter = CountVectorizer(analyzer=grams_of, vocabulary=self.words) if self.words else None

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def fit(cls, texts: Sequence[str], min_texts: int = 2, max_words: int = 100_000) -> "WordBag":
        """Learns the words of training texts.

        Args:
            texts: training texts only: those of validation and test must stay unseen.
            min_texts: words of fewer texts are dropped.
            max_words: of the rest, at most so many are kept, those of most texts first.
        """
        return cls.fit_rows(texts, np.arange(len(texts)), min_texts, max_words)[0]

    @classmethod
    def fit_rows(
        cls, texts: Sequence[str], train: Rows, min_texts: int = 2, max_words: int = 100_000
    ) -> tuple["WordBag", WordRows]:
        """Learns the words of the training texts among `texts`, and returns the rows of all: each text is read once.

        Args:
            texts: (n,) of all products.
            train: numbers of those to learn from; what others say leaves no trace in the bag.
            min_texts: as for `fit`.
            max_words: as for `fit`.
        """
        if not max_words or not any(words_of(texts[row]) for row in train.tolist()):
            return cls((), np.empty(0, dtype=np.float32)), csr_matrix((len(texts), 0), dtype=np.float32)
        counter = CountVectorizer(analyzer=grams_of, dtype=np.int32)
        counts = counter.fit_transform(texts)
        n_texts = np.bincount(counts[train].indices, minlength=counts.shape[1])
        common = np.flatnonzero(n_texts >= min_texts)
        kept = np.sort(common[np.argsort(-n_texts[common], kind="stable")[:max_words]])
        idf = np.log((1 + len(train)) / (1 + n_texts[kept])) + 1
        bag = cls(counter.get_feature_names_out()[kept].tolist(), idf.astype(np.float32))
        return bag, bag._weighted(counts[:, kept])

    def rows(self, texts: Sequence[str]) -> WordRows:
        """Returns the (n, words) sparse float32 rows of texts."""
        if self._counter is None:
            return csr_matrix((len(texts), 0), dtype=np.float32)
        return self._weighted(self._counter.transform(texts))

    def _weighted(self, counts: csr_matrix) -> WordRows:
        weights = ((1 + np.log(counts.data)) * self.idf[counts.indices]).astype(np.float32)
        return normalize(csr_matrix((weights, counts.indices, counts.indptr), shape=counts.shape), copy=False)
