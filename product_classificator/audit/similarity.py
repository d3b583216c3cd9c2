"""Find outliers among products by their embeddings."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from product_classificator.types import Bools, Floats

_ROWS_PER_STEP = 8192
FENCE = 1.5
_SAMPLE = 10_000
_RANK = 5
_MIN_SPREAD = 0.01


def outlier_scores(vectors: Floats, is_present: Bools, seed: int = 0) -> Floats:
    """Return how unlike all others each product is, by its image or its text vectors.

    The score is the distance to the 5th nearest of at most 10,000 random products (Sugiyama and Borgwardt 2013), above
    the upper quartile and in units of the interquartile range: outliers lie above `FENCE` (Tukey 1977).

    Args:
        vectors: (n, d) unit rows where `is_present`; the score is NaN elsewhere, or if there are too few products.
        is_present: (n,)
        seed: of the sample.
    """
    scores = np.full(len(vectors), np.nan, np.float32)
    rows = np.flatnonzero(is_present)
    sample = np.random.default_rng(seed).permutation(rows)[:_SAMPLE]
    if len(sample) <= _RANK:
        return scores
    model = NearestNeighbors(n_neighbors=_RANK + 1, algorithm="brute").fit(vectors[sample])
    rank = _RANK - 1 + np.isin(rows, sample)  # a product of the sample is its own nearest
    for start in range(0, len(rows), _ROWS_PER_STEP):
        step = slice(start, start + _ROWS_PER_STEP)
        distances = model.kneighbors(vectors[rows[step]])[0]
        scores[rows[step]] = distances[np.arange(len(distances)), rank[step]]
    low, high = np.quantile(scores[rows], [0.25, 0.75])
    fenced: Floats = (scores - high) / max(high - low, _MIN_SPREAD)
    return fenced
