"""Learn what models read of products: standardised embeddings, and a vocabulary with the bags of words of all texts."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix, vstack
from scipy.special import logsumexp

from product_classificator.heads.bag_of_words import LEADING, PIECE, Vocabulary
from product_classificator.text import words_of
from product_classificator.types import Floats, Rows, Strings, strings

BagOfWords: TypeAlias = csr_matrix
"""(n, words) float32 sparse rows of unit length; a row without known words is empty."""

_LABEL_WEIGHT, _FULL_WEIGHT_LABELS, WEIGHT_SAMPLE = 30.0, 100, 5_000
_TEXTS_PER_BLOCK, _MAX_PIECE_SHARE = 4096, 0.2
_ROWS_PER_BLOCK, _MANY_TEXTS, _BUCKETS = 16_384, 100_000, 1 << 26
_MIN_TITLES, _MAX_TITLES, _MIN_GAIN = 500, 20_000, 0.05
_STANDARDIZE_SAMPLE, _COLUMNS_PER_BLOCK, _CONSTANT = 50_000, 256, 1e-6

FEW_PRODUCTS = 10
"""Fewer show too little of a part, or of a label."""


@dataclass(frozen=True)
class Inputs:
    """What models read of products, as some training products show it.

    Attributes:
        vocabulary: of their texts.
        bags: (n, words) bags of words of all products.
        mean, scale: (width,) float32 that standardise image and text; the scale of a part that too few products show is
            infinite, so it is 0.
        train: rows that are learned from.
    """

    vocabulary: Vocabulary
    bags: BagOfWords
    mean: Floats
    scale: Floats
    train: Rows


@dataclass(frozen=True)
class CountedTexts:
    """How often each gram occurs in each segment of n texts, however many vocabularies are fitted.

    Attributes:
        counts: (n x segments, grams) int32.
        grams: the columns of `counts`; of many texts without most that occur in fewer than `min_texts`.
        segments: the vocabulary without words that made the segments.
        min_texts: grams of fewer texts are not learned: 2, and above 200,000 texts one in 100,000.
    """

    counts: csr_matrix
    grams: Strings
    segments: Vocabulary
    min_texts: int

    @classmethod
    def of(cls, texts: Sequence[str], *, has_title: bool = False, has_pieces: bool = True) -> "CountedTexts":
        """Count the grams of texts, with the pieces of their words or without."""
        segments, min_texts = Vocabulary(has_title=has_title, has_leading_words=True), max(2, len(texts) // 100_000)
        columns, counts, starts, column_of = array("i"), array("i"), array("i", [0]), dict[str, int]()
        grams_of_segments = partial(segments.grams_of_segments, texts, has_pieces=has_pieces)
        # Most grams of many texts are rare, and would fill the memory: a first pass counts them by their hashes.
        buckets = _count_hashes(grams_of_segments()) if len(texts) > _MANY_TEXTS else None
        for grams in grams_of_segments():
            kept = grams if buckets is None else [g for g in grams if buckets[hash(g) % _BUCKETS] >= min_texts]
            counter = Counter(kept)
            columns.extend(column_of.setdefault(gram, len(column_of)) for gram in counter)
            counts.extend(counter.values())
            starts.append(len(columns))
        names, places = strings(sorted(column_of)), np.empty(len(column_of), dtype=np.int32)
        places[[column_of[name] for name in names]] = np.arange(len(names))
        arrays = np.asarray(counts), places[np.asarray(columns)], np.asarray(starts)
        matrix = csr_matrix(arrays, shape=(len(starts) - 1, len(names)))
        matrix.sort_indices()
        return cls(matrix, names, segments, min_texts)

    def fit_vocabulary(
        self, train: Rows, *, max_words: int = 100_000, has_leading_words: bool = False
    ) -> tuple[Vocabulary, BagOfWords]:
        """Learn the words of `train` rows, and return the bags of words of all texts.

        Kept are the `max_words` words, and half as many pieces, of most texts, which bounds the memory of heads, if
        `min_texts` have them: a word of one text cannot distinguish products. Nor can a piece of every fifth text.
        """
        n_segments, n_texts = self.segments.n_segments, np.zeros(len(self.grams), dtype=np.int64)
        for start in range(0, len(train), _TEXTS_PER_BLOCK):  # blocks bound the memory
            begins = train[start : start + _TEXTS_PER_BLOCK] * n_segments
            per_text = sum((self.counts[begins + segment] for segment in range(1, n_segments)), self.counts[begins])
            n_texts += np.bincount(per_text.indices, minlength=len(self.grams))
        first = np.array([gram[0] for gram in self.grams], dtype=object)
        is_piece, is_leading = first == PIECE, first == LEADING
        is_common = n_texts >= self.min_texts
        words = np.flatnonzero(is_common & ~is_piece & (has_leading_words | ~is_leading))
        pieces = np.flatnonzero(is_common & is_piece & (n_texts <= _MAX_PIECE_SHARE * len(train)))
        pairs = ((words, max_words), (pieces, max_words // 2))
        kept = np.concatenate([np.sort(k[np.argsort(-n_texts[k], kind="stable")[:limit]]) for k, limit in pairs])
        idf = np.log((1 + len(train)) / (1 + n_texts[kept])) + 1
        vocabulary = replace(
            self.segments,
            words=tuple(self.grams[kept].tolist()),
            idf=idf.astype(np.float32),
            has_leading_words=has_leading_words,
        )
        weighted, step = [], _TEXTS_PER_BLOCK * n_segments
        for start in range(0, self.counts.shape[0], step):
            block = self.counts[start : start + step][:, kept].sorted_indices()
            rows = vocabulary.weigh_counts(block.data, block.indices, block.indptr)
            weighted.append(csr_matrix(rows, shape=(len(rows.starts) - 1, len(vocabulary))))
        return vocabulary, vstack(weighted, format="csr")


def _count_hashes(segments: Iterable[Sequence[str]]) -> npt.NDArray[np.int32]:
    """Return how often grams with the same hash occur, which no gram exceeds."""
    buckets, remaining = np.zeros(_BUCKETS, dtype=np.int32), chain.from_iterable(segments)
    while len(hashes := np.fromiter(map(hash, islice(remaining, 1 << 20)), np.int64)):
        np.add.at(buckets, hashes % _BUCKETS, 1)
    return buckets


def varied_rows(vectors: Floats, rows: Rows) -> Rows:
    """Return which of the (m,) rows that have a part show how it varies: at most 50,000.

    A vector that most of them share is a placeholder: with it, the others would look a hundred times too far apart.
    """
    rows = thinned(rows)
    contents = [vector.tobytes() for vector in vectors[rows]]
    most_common = Counter(contents).most_common(1)
    if not most_common or 2 * most_common[0][1] <= len(rows):
        return rows
    return rows[[content != most_common[0][0] for content in contents]]


def thinned(rows: Rows, limit: int = _STANDARDIZE_SAMPLE) -> Rows:
    """Return at most `limit` of the rows, evenly spread; 50,000 are enough for means."""
    return rows[:: -(-len(rows) // limit) or 1]


def blocks_of(rows: Rows) -> list[Rows]:
    """Return (m,) rows in blocks whose vectors fit in memory with ease, one if there are none."""
    return [rows[start : start + _ROWS_PER_BLOCK] for start in range(0, max(len(rows), 1), _ROWS_PER_BLOCK)]


def has_enough(samples: Sequence[Rows]) -> list[bool]:
    """Return which parts enough rows show how they vary, all if there is none."""
    enough = [len(rows) >= FEW_PRODUCTS for rows in samples]
    return enough if any(enough) else [True] * len(enough)


def standardization(parts: Sequence[Floats], samples: Sequence[Rows]) -> tuple[Floats, Floats]:
    """Return the mean and the scale, each (width,), of (n, dim) parts, as samples of rows show them.

    Columns that hardly vary are not amplified: they would drown the others, and a part that is constant but for
    rounding would drown everything. The scale of a part that too few show, but not the other, is infinite, so it is 0.
    """
    means, scales = [], []
    for part, rows, is_read in zip(parts, samples, has_enough(samples), strict=True):
        present = part[rows] if len(rows) else np.zeros((1, part.shape[1]), np.float32)
        blocks = np.array_split(present, max(part.shape[1] // _COLUMNS_PER_BLOCK, 1), axis=1)  # which bound the memory
        read = ((block.mean(0), block.std(0)) for block in (block.astype(np.float32) for block in blocks))
        mean, deviations = map(np.concatenate, zip(*read, strict=True))
        typical = deviations.mean() if len(deviations) else 0.0
        scale = np.maximum(deviations, 0.01 * typical) if typical > _CONSTANT else np.ones_like(deviations)
        means.append(mean)
        scales.append(scale if is_read else np.full_like(scale, np.inf))
    return np.concatenate(means), np.concatenate(scales)


def bag_of_words(vocabulary: Vocabulary, texts: Sequence[str]) -> BagOfWords:
    """Return the (n, words) sparse float32 rows of texts."""
    return csr_matrix(vocabulary.weigh(texts), shape=(len(texts), len(vocabulary)))


def words_of_labels(
    vocabulary: Vocabulary, labels: Sequence[str], words: BagOfWords, label_ids: Rows | None
) -> BagOfWords:
    """Return the (k, whole words) rows of the names of labels, times the initial weight of the cosine with them.

    At most 30, less beyond 100 labels, where words mislead, and never more than makes the label ids of training
    products (-1: unknown) with these bags of words the most likely. Twice as much where there are no label ids: the
    labels of a multi-label characteristic do not compete. Measured: `docs/design/decisions.md`.
    """
    label_words = bag_of_words(vocabulary, labels)[:, : vocabulary.n_whole]
    weight = _LABEL_WEIGHT * min(1, _FULL_WEIGHT_LABELS / len(labels))
    if label_ids is None:
        label_words.data *= np.float32(2 * weight)
        return label_words
    rows = thinned(np.flatnonzero(label_ids >= 0), WEIGHT_SAMPLE)
    if len(rows) and label_words.nnz:
        cosines, true = (words[rows] @ label_words.T).toarray(), label_ids[rows]
        cosines -= cosines.mean(0)
        log_priors = np.log(np.maximum(np.bincount(true, minlength=len(labels)), 0.5) / len(true))

        def loss(weight: float) -> float:
            logits = weight * cosines + log_priors
            return float((logsumexp(logits, 1) - logits[np.arange(len(true)), true]).mean())

        weight = float(minimize_scalar(loss, bounds=(0, weight), method="bounded", options={"xatol": 0.5}).x)
    label_words.data *= np.float32(weight)
    return label_words


def start_with_their_kind(titles: Sequence[str], columns: Sequence[Rows]) -> bool:
    """Return whether first words predict labels clearly better than last words do, on average over characteristics.

    Russian titles name the product first ("Чехол для телефона"), English ones last ("Acme blue case"). Fewer than 500
    decide nothing; `columns` holds the (n,) label ids of each characteristic, -1 where unknown.
    """
    if len(titles) < _MIN_TITLES:
        return False
    words = {row: words_of(titles[row]) for row in range(0, len(titles), -(-len(titles) // _MAX_TITLES))}
    rows = np.array([row for row in words if len(words[row]) > 1], dtype=np.int64)
    gains = []
    for label_ids in columns:
        labelled = rows[label_ids[rows] >= 0]
        if len(labelled) < _MIN_TITLES:
            continue
        by_nothing, by_first, by_last = (
            _accuracy([word(words[row]) for row in labelled.tolist()], label_ids[labelled])
            for word in (lambda _: "", lambda text: text[0], lambda text: text[-1])
        )
        if max(by_first, by_last) > by_nothing + _MIN_GAIN:
            gains.append(by_first - by_last)
    return bool(gains and np.mean(gains) > _MIN_GAIN)


def _accuracy(words: Sequence[str], label_ids: Rows) -> float:
    """Return how often a word predicts the label: learned from every other product, tried on the rest."""
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for word, label_id in zip(words[::2], label_ids[::2].tolist(), strict=True):
        counts[word][label_id] += 1
    commonest = {word: counter.most_common(1)[0][0] for word, counter in counts.items()}
    default = np.bincount(label_ids[::2]).argmax()
    predicted = [commonest.get(word, default) for word in words[1::2]]
    return float(np.mean(predicted == label_ids[1::2]))
