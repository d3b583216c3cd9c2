"""Group products that are near-duplicates: the same photo, or the same text where the text identifies a product.

- The same photo: thumbnails of 8 x 8 pixels that differ by at most `MAX_DIFFERENCE`, so also re-encoded or resized; by
  less where they have little contrast.
- The same words in the same order: at least `LONG_WORDS` of them; or at least `SHORT_WORDS` where one of the products
  with that text has no photo to compare.
- A text shared by more than `MAX_SHARED` products with different photos, or a photo shared by more than that many
  products with different texts, is generic ("dress", "no photo yet") and identifies none. A missing text differs
  from every other, and so does a missing photo unless the text is long.

What this finds in real catalogs: `docs/design/decisions.md`.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from product_classificator.embeddings.products import THUMBNAIL_BYTES, Thumbnails
from product_classificator.text import words_of
from product_classificator.types import Bools, Rows, Strings

MAX_DIFFERENCE = 2.0
"""Root mean square over the pixels of two thumbnails, in levels of 255."""
MAX_RELATIVE_DIFFERENCE = 0.05
"""Of the standard deviation of a thumbnail's pixels."""
LONG_WORDS, SHORT_WORDS, MAX_SHARED = 8, 3, 20
_NEIGHBOURS = 16

Keys = npt.NDArray[np.uint64]
"""(n,) numbers that are equal for near-duplicates; 0 where there is nothing to compare."""


@dataclass(frozen=True)
class Signatures:
    """What near-duplicates are recognised by; a run keeps it of the products that it was trained on.

    Attributes:
        text: (n,) uint64, equal for texts with the same words in the same order; 0 without words.
        n_words: (n,) number of words.
        thumbnails: (n, 192) uint8; all 0 without an image.
    """

    text: Keys
    n_words: Rows
    thumbnails: Thumbnails

    def __len__(self) -> int:
        return len(self.text)

    @classmethod
    def of(cls, texts: Iterable[str], thumbnails: Thumbnails) -> "Signatures":
        """Return the signatures of n products with these raw texts."""
        digests, n_words = bytearray(), array("q")
        for words in map(words_of, texts):
            digests += blake2b(" ".join(words).encode(), digest_size=8).digest() if words else bytes(8)
            n_words.append(len(words))
        return cls(np.frombuffer(digests, "<u8").astype(np.uint64), np.array(n_words, dtype=np.int64), thumbnails)

    def __add__(self, other: "Signatures") -> "Signatures":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Signatures(*(np.concatenate(pair) for pair in pairs))

    def take(self, rows: Rows | Bools) -> "Signatures":
        """Return those of `rows`."""
        return Signatures(self.text[rows], self.n_words[rows], self.thumbnails[rows])

    def is_same(self, other: "Signatures") -> Bools:
        """Return (n,) whether each product has the text and the photo of that of the same row."""
        squares = (self.thumbnails.astype(np.int32) - other.thumbnails) ** 2
        is_same: Bools = (self.text == other.text) & (squares.mean(1) <= MAX_DIFFERENCE**2)
        return is_same

    def columns(self) -> dict[str, pa.Array]:
        """Return the signatures as columns of a table; `from_table` reads them."""
        pixels = pa.array(self.thumbnails.ravel())
        return {
            "text_key": pa.array(self.text),
            "n_words": pa.array(self.n_words),
            "thumbnail": pa.FixedSizeListArray.from_arrays(pixels, THUMBNAIL_BYTES),
        }

    @classmethod
    def from_table(cls, table: pa.Table) -> "Signatures":
        """Read the columns of a table; a `KeyError` names a missing one."""
        pixels = [chunk.flatten().to_numpy() for chunk in table["thumbnail"].chunks]
        thumbnails = np.concatenate([np.empty(0, np.uint8), *pixels]).reshape(-1, THUMBNAIL_BYTES)
        return cls(table["text_key"].to_numpy(), table["n_words"].to_numpy(), thumbnails)


def near_duplicate_groups(
    signatures: Signatures, *, across_photos: bool = True, together: Strings | None = None
) -> Rows:
    """Return the (n,) group of each product: near-duplicates share a group, directly or in a chain.

    So do products with the same name in `together`, (n,) names of series or sellers, `None` where unknown. Without
    `across_photos`, a text alone is not enough if all have photos: families share it across colours.
    """
    photo, long_text, text_without_photo = near_duplicate_keys(signatures)
    keys = [photo, text_without_photo, *([long_text] if across_photos else [])]
    if together is not None:
        numbers: dict[str, int] = {}
        named = [0 if name is None else numbers.setdefault(name, len(numbers) + 1) for name in together]
        keys.append(np.array(named, dtype=np.uint64))
    return _components(len(signatures), [_links(column) for column in keys])


def is_near_duplicate(products: Signatures, of: Signatures) -> Bools:
    """Return (n,) which products are near-duplicates of any of others; what is generic among either identifies none."""
    n, matches = len(products), np.zeros(len(products), dtype=bool)
    for keys in near_duplicate_keys(products + of, np.arange(n + len(of)) >= n):
        others = keys[n:]
        matches |= np.isin(keys[:n], others[others != 0])
    return matches


def near_duplicate_keys(signatures: Signatures, table: Bools | None = None) -> tuple[Keys, Keys, Keys]:
    """Return keys of photos, long texts and texts without a photo: any that is equal and not 0 is enough.

    `table` is (n,): of which of two tables a product is; what is generic is counted in each. `None`: there is one.
    """
    n = len(signatures)
    in_table = np.zeros(n, dtype=bool) if table is None else table
    text, photo = signatures.text, photo_keys(signatures.thumbnails)
    is_long, is_short = signatures.n_words >= LONG_WORDS, signatures.n_words >= SHORT_WORDS
    # A missing text differs from every other, and so does a missing photo, but not of a text that is long.
    own = np.arange(n, dtype=np.uint64)
    photo = _identifying(photo, np.where(text == 0, own, text), in_table)
    text = _identifying(text, np.where((photo == 0) & ~is_long, own, photo), in_table)
    lacks_photo = np.isin(text, text[photo == 0])
    return photo, text * is_long, text * (lacks_photo & is_short)


def photo_keys(thumbnails: Thumbnails) -> Keys:
    """Return equal keys for the same photo, also re-encoded or resized; 0 without one.

    Candidates are the nearest in a k-d tree of thumbnails averaged to 4 x 4 pixels, which cannot enlarge the root mean
    square. Thumbnails with little contrast, like a ring on white, must agree all the more.
    """
    rows = np.flatnonzero(thumbnails.any(1))
    different, inverse = np.unique(thumbnails[rows], axis=0, return_inverse=True)
    coarse = different.reshape(-1, 4, 2, 4, 2, 3).mean((2, 4), dtype=np.float32).reshape(-1, 48)
    blocks = np.array_split(different.reshape(-1, 64, 3), len(different) // 8192 + 1)
    contrast = np.concatenate([block.std(1).max(1) for block in blocks])
    limit = np.minimum(MAX_DIFFERENCE, MAX_RELATIVE_DIFFERENCE * contrast)
    links = [np.empty((2, 0), dtype=np.int64)]
    tree = KDTree(coarse.reshape(-1, 48))
    for start in range(0, len(different), 8192):
        step = coarse[start : start + 8192]
        nearest = tree.query(step, _NEIGHBOURS, distance_upper_bound=MAX_DIFFERENCE * 48**0.5)[1]
        left, rank = np.nonzero(nearest < len(different))
        left, right = left + start, nearest[left, rank]
        squares = (different[left].astype(np.int32) - different[right]) ** 2
        links.append(np.stack([left, right])[:, squares.mean(1) <= np.minimum(limit[left], limit[right]) ** 2])
    keys = np.zeros(len(thumbnails), dtype=np.uint64)
    keys[rows] = _components(len(different), links)[inverse.ravel()] + 1
    return keys


def _identifying(keys: Keys, partners: Keys, in_table: Bools) -> Keys:
    """Return the keys, 0 for those with more than `MAX_SHARED` different partners in one of the tables."""
    different = np.unique(np.stack([keys, partners, in_table.astype(np.uint64)]), axis=1)
    pairs, counts = np.unique(different[[0, 2]], axis=1, return_counts=True)
    return np.where(np.isin(keys, pairs[0, counts > MAX_SHARED]), 0, keys).astype(np.uint64)


def _links(keys: Keys) -> npt.NDArray[np.int64]:
    """Return (2, m) rows: each product with a key, and the first product with the same key."""
    rows = np.flatnonzero(keys)
    _, first, inverse = np.unique(keys[rows], return_index=True, return_inverse=True)
    return np.stack([rows, rows[first][inverse]])


def _components(n: int, links: Sequence[npt.NDArray[np.int64]]) -> Rows:
    left, right = np.concatenate(links, axis=1)
    graph = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n, n))
    groups: Rows = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups
