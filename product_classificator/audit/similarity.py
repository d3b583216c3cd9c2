"""Find near-duplicates and outliers among products by their embeddings.

Near-duplicates have the same photo file, the same text and photo, or a cosine of at least `NEAR` between joined photo
and text vectors, like a re-encoded photo with the same text. The same text alone is not enough: product families share
it across colours (in 8,889 fashion goods 388 groups of one text would contradict each other in colour, against 6 here).

Vectors are compared within cells of about `_CELL_PRODUCTS` products, each nearest to one of a few random products: time
and memory grow linearly, and larger catalogs miss the few pairs on either side of a border.
"""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from product_classificator.catalog.split import Keys, near_duplicate_groups, near_duplicate_keys
from product_classificator.types import Bools, Embeddings, Floats, Rows

NEAR = 0.99
_NEIGHBOURS = 10
_CELL_PRODUCTS = 10_000
_ROWS_PER_STEP = 8192

FENCE = 1.5
_SAMPLE = 10_000
_RANK = 5
_MIN_SPREAD = 0.01


def group_near_duplicates(embeddings: Embeddings, text_keys: Keys, image_keys: Keys, seed: int = 0) -> Rows:
    """Return the (n,) group of each product; keys are (n,), equal for the same words or the same bytes of an image."""
    pairs = [np.empty((2, 0), dtype=np.int64)]
    for cell in _cells(embeddings, seed):
        vectors = _joined(embeddings.take(cell))
        k = min(_NEIGHBOURS + 1, len(cell))
        distances, neighbours = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors).kneighbors(vectors)
        row, rank = np.nonzero(distances**2 <= 2 - 2 * NEAR)  # of unit vectors
        pairs.append(np.stack([cell[row], cell[neighbours[row, rank]]]))
    left, right = np.concatenate(pairs, 1)
    n = len(embeddings)
    graph = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n, n))
    vector_keys: Keys = connected_components(graph, directed=False)[1].astype(np.uint64) + np.uint64(1)
    keys = near_duplicate_keys(text_keys, image_keys)
    return near_duplicate_groups([keys["image_key"], keys["both_key"], vector_keys])


def _cells(embeddings: Embeddings, seed: int) -> list[Rows]:
    """Return the rows of products with an image or a text, those that are near one another together."""
    rows = np.flatnonzero(embeddings.has_image | embeddings.has_text)
    n_cells = -(-len(rows) // _CELL_PRODUCTS)
    if n_cells < 2:
        return [rows] * n_cells
    centres = _joined(embeddings.take(np.random.default_rng(seed).choice(rows, n_cells, replace=False)))
    steps = (rows[start : start + _ROWS_PER_STEP] for start in range(0, len(rows), _ROWS_PER_STEP))
    nearest = np.concatenate([(_joined(embeddings.take(step)) @ centres.T).argmax(1) for step in steps])
    return [rows[nearest == cell] for cell in range(n_cells)]


def _joined(embeddings: Embeddings) -> Floats:
    """Return both parts next to each other: (n, image_dim + text_dim), unit rows; zeros where both are missing."""
    both = np.concatenate([embeddings.image, embeddings.text], 1)
    length = np.linalg.norm(both, axis=1, keepdims=True)
    unit: Floats = np.divide(both, length, out=both, where=length > 0)
    return unit


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
