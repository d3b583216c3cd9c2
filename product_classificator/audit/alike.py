"""Finds products that are nearly the same, and products that are like no other, by their vectors.

Near-identical means: the same bytes of the photo, the same text and photo, or a cosine of `NEAR` or more between
photo and text side by side, which a photo saved anew under the same text has. The same text under different photos is
not enough: it is often that of a family of products, whose colours and sizes differ (in 8,889 fashion goods 388 groups
of one text would contradict one another in colour, against 6 found here).

Vectors are compared with one another within cells of about `_CELL_PRODUCTS` products, those nearest to the same of a
few random products, so time and memory grow with the number of products and not with its square; of larger catalogs
the few pairs that a border parts are missed.
"""

from collections.abc import Iterator

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
_LEAST_SPREAD = 0.01


def near_identical(embeddings: Embeddings, texts: Keys, photos: Keys, seed: int = 0) -> Rows:
    """Returns the (n,) group of each product.

    Args:
        embeddings: of n products.
        texts: (n,) keys of their texts, equal for the same words.
        photos: (n,) keys of their photos, equal for the same bytes.
        seed: of the cells.
    """
    keys = near_duplicate_keys(texts, photos)
    return near_duplicate_groups([keys["image_key"], keys["both_key"], _vector_keys(embeddings, seed)])


def _vector_keys(embeddings: Embeddings, seed: int) -> Keys:
    """Returns (n,) keys that are equal for products with nearly the same vectors."""
    pairs = []
    for cell in _cells(embeddings, seed):
        joined = embeddings.take(cell).joined()
        k = min(_NEIGHBOURS + 1, len(cell))
        distances, found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(joined).kneighbors(joined)
        place, rank = np.nonzero(distances**2 <= 2 - 2 * NEAR)
        pairs.append(np.stack([cell[place], cell[found[place, rank]]]))
    n = len(embeddings)
    left, right = np.concatenate(pairs, 1) if pairs else np.empty((2, 0), dtype=np.int64)
    graph = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n, n))
    keys: Keys = connected_components(graph, directed=False)[1].astype(np.uint64) + np.uint64(1)
    return keys


def _cells(embeddings: Embeddings, seed: int) -> Iterator[Rows]:
    """Yields the rows of products that have a photo or a text, those that are near one another together."""
    rows = np.flatnonzero(embeddings.has_image | embeddings.has_text)
    n_cells = -(-len(rows) // _CELL_PRODUCTS)
    if n_cells < 2:
        yield from [rows] * n_cells
        return
    centres = embeddings.take(np.random.default_rng(seed).choice(rows, n_cells, replace=False)).joined()
    steps = (rows[start : start + _ROWS_PER_STEP] for start in range(0, len(rows), _ROWS_PER_STEP))
    nearest = np.concatenate([(embeddings.take(step).joined() @ centres.T).argmax(1) for step in steps])
    for cell in range(n_cells):
        yield rows[nearest == cell]


def strangeness(vectors: Floats, has: Bools, seed: int = 0) -> Floats:
    """Tells how unlike the others products are by one part of their vectors.

    What counts is the distance to the 5th nearest of at most 10,000 random products (Sugiyama and Borgwardt 2013), as
    seen from the upper quartile in distances between the quartiles: above `FENCE` lie outliers (Tukey 1977).

    Args:
        vectors: (n, d) unit rows where `has` is true.
        has: (n,) which products have this part.
        seed: of the sample.

    Returns:
        (n,), NaN where `has` is false or products are too few.
    """
    found = np.full(len(vectors), np.nan, np.float32)
    rows = np.flatnonzero(has)
    sample = np.random.default_rng(seed).permutation(rows)[:_SAMPLE]
    if len(sample) <= _RANK:
        return found
    model = NearestNeighbors(n_neighbors=_RANK + 1, algorithm="brute").fit(vectors[sample])
    # A product of the sample is its own nearest.
    rank = _RANK - 1 + np.isin(rows, sample)
    for start in range(0, len(rows), _ROWS_PER_STEP):
        here = slice(start, start + _ROWS_PER_STEP)
        distances = model.kneighbors(vectors[rows[here]])[0]
        found[rows[here]] = distances[np.arange(len(distances)), rank[here]]
    low, high = np.quantile(found[rows], [0.25, 0.75])
    strange: Floats = (found - high) / max(high - low, _LEAST_SPREAD)
    return strange
