"""Splits a catalog into train, valid and test without leaks.

Near-duplicates (the same words, or an image of the same bytes) form groups, also through a third product, and a group
is never split. Groups are dealt by iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011): the rarest label
first, each time to the split that lacks most of it. A text or image that more than `PLACEHOLDER_SHARE` of the
catalog share ("no photo yet") links two products only if they share both text and image.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from product_classificator.errors import ArtifactError, DataError
from product_classificator.files import replacing
from product_classificator.text import words_of
from product_classificator.types import SPLITS, Bools, Rows, Split, Strings, Truth, iter_labels, strings

PLACEHOLDER_SHARE = 0.02
_PLACEHOLDER_MIN_PRODUCTS = 50
_MAX_SHARE_OF_RARE_LABELS = 0.05

Keys = npt.NDArray[np.uint64]
"""(n,) hashes that are equal for near-duplicates; 0 where there is nothing to compare."""


def text_keys(texts: Iterable[str]) -> Keys:
    """Return the key of each text: equal for texts with the same words in the same order; 0 without words."""
    words = (" ".join(words_of(text)) for text in texts)
    digests = (blake2b(text.encode(), digest_size=8).digest() if text else bytes(8) for text in words)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def without_placeholders(keys: Keys) -> Keys:
    """Return the keys, with 0 for those shared by so many products that they identify none."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    limit = max(PLACEHOLDER_SHARE * len(keys), _PLACEHOLDER_MIN_PRODUCTS)
    return np.where(counts[inverse] > limit, 0, keys).astype(np.uint64)


def near_duplicate_keys(texts: Keys, images: Keys) -> dict[str, Keys]:
    """Return the keys that link near-duplicates: any one that is equal and not 0.

    A text or an image alone counts unless it is a placeholder; both together always count.
    """
    both = (texts * np.uint64(0x9E3779B97F4A7C15)) ^ images  # Fibonacci hashing keeps (a, b) and (b, a) apart
    return {"text_key": without_placeholders(texts), "image_key": without_placeholders(images), "both_key": both}


def near_duplicate_groups(keys: Iterable[Keys]) -> Rows:
    """Return the (n,) group of each product: products that share any key, directly or in a chain, share a group."""
    links, n = [], 0
    for key in keys:
        n, rows = len(key), np.flatnonzero(key)
        links.append((rows, np.unique(key[rows], return_inverse=True)[1]))
    # Union-find on arrays: the root of each product is hooked to the smallest root that shares a key with it, then
    # every product points to its root again. At least half of the roots that can be hooked go in each round.
    root = np.arange(n)
    while True:
        before = root
        for rows, key_ids in links:
            smallest = np.full(int(key_ids.max(initial=-1)) + 1, n)
            np.minimum.at(smallest, key_ids, root[rows])
            hooked = root.copy()
            np.minimum.at(hooked, root[rows], smallest[key_ids])
            while not np.array_equal(hooked, hooked[hooked]):
                hooked = hooked[hooked]
            root = hooked
        if np.array_equal(root, before):
            groups: Rows = np.unique(root, return_inverse=True)[1].astype(np.int64)
            return groups


def split_products(
    ids: Strings,
    groups: Rows,
    truth: Truth,
    usable: Bools,
    *,
    shares: tuple[float, float] = (0.15, 0.15),
    seed: int = 0,
) -> Split:
    """Split products into train, valid and test.

    Args:
        ids: (n,) product ids.
        groups: (n,) groups that must stay together, see `near_duplicate_groups`.
        truth: labels to stratify by; for a multi-label characteristic, each label of a product.
        usable: (n,) false for products that are set aside: they belong to no split.
        shares: of products for valid and test, each between 0 and 1.
        seed: determines the order of groups with the same rarest label.

    Raises:
        DataError: the shares leave nothing to train on, or there are fewer than three usable products.
    """
    valid, test = shares
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise DataError(f"shares of valid and test must leave a train split, got {valid} and {test}")
    if usable.sum() < len(SPLITS):
        raise DataError(f"a split needs at least {len(SPLITS)} usable products, got {int(usable.sum())}")
    split = stratify(groups, truth, usable, (1 - valid - test, valid, test), seed=seed)
    return Split(ids, strings([*SPLITS, ""])[split])


def stratify(groups: Rows, truth: Truth, usable: Bools, shares: Sequence[float], *, seed: int) -> Rows:
    """Deal products to any number of splits or folds by iterative stratification; arguments as in `split_products`.

    Returns:
        (n,) number of each product's split, in the order of `shares` (which sum to 1), -1 where it belongs to none.
    """
    rows = np.flatnonzero(usable)
    label_ids, counts = _label_ids(truth, rows, 1 / min(shares))
    by_group = np.argsort(groups[rows], kind="stable")
    members = np.split(by_group, np.flatnonzero(np.diff(groups[rows][by_group])) + 1)
    unlabelled = np.iinfo(np.int64).max
    rarity = np.where(label_ids >= 0, counts[label_ids], unlabelled).min(1, initial=unlabelled)
    shuffled = np.random.default_rng(seed).permutation(len(members)).tolist()
    order = sorted(shuffled, key=lambda group: (rarity[members[group]].min(), -len(members[group])))
    # Plain lists: a million small steps are several times faster on them than on arrays.
    tally = counts.tolist()
    missing = [[share * count for count in tally] for share in shares]
    room = [share * len(rows) for share in shares]
    split = np.full(len(groups), -1, dtype=np.int64)
    for group in order:
        labels = [label for row in label_ids[members[group]].tolist() for label in row if label >= 0]
        rarest = min(labels, key=lambda label: (tally[label], label), default=-1)
        needs = [(lacks[rarest] if labels else 0.0, space) for lacks, space in zip(missing, room, strict=True)]
        chosen = needs.index(max(needs))
        for label in labels:
            missing[chosen][label] -= 1
        room[chosen] -= len(members[group])
        split[rows[members[group]]] = chosen
    return split


def _label_ids(truth: Truth, rows: Rows, min_products: float) -> tuple[Rows, Rows]:
    """Number the labels of all characteristics.

    Labels with fewer products than `min_products` cannot be in every split; they go to the largest. Where more than a
    twentieth of the products have such labels (brands, titles), they would fill it up, and count as unknown.

    Returns:
        (n, columns) label ids, one column per characteristic, for a multi-label one as many as the most labels of a
        product; -1: unknown or none. And the number of products of each label id.
    """
    columns: list[Rows] = []
    counts: list[int] = []
    for labels in truth.values():
        tally = Counter(iter_labels(labels[rows]))
        ids = {label: len(counts) + i for i, label in enumerate(sorted(tally))}
        counts += [tally[label] for label in ids]
        sets = ([item] if isinstance(item, str) else item or () for item in labels[rows])
        rows_of_ids = (sorted(map(ids.__getitem__, labels_of_product)) for labels_of_product in sets)
        of_labels = [np.array(column, dtype=np.int64) for column in zip_longest(*rows_of_ids, fillvalue=-1)]
        is_rare = np.append(np.array(counts) < min_products, False)  # the last one is for -1
        if of_labels and np.any([is_rare[column] for column in of_labels], axis=0).mean() > _MAX_SHARE_OF_RARE_LABELS:
            of_labels = [np.where(is_rare[column], -1, column) for column in of_labels]
        columns += of_labels
    label_ids = np.stack(columns, 1) if columns else np.empty((len(rows), 0), dtype=np.int64)
    return label_ids, np.array([*counts, 0], dtype=np.int64)


def save_split(split: Split, keys: dict[str, Keys], path: Path) -> None:
    """Write the split as parquet: id, split, and one column per kind of key."""
    table = pa.table({"id": pa.array(split.ids, pa.string()), "split": pa.array(split.names, pa.string()), **keys})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def load_split(path: Path) -> tuple[Split, dict[str, Keys]]:
    """Read what `save_split` wrote.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        table = pq.read_table(path)
        split = Split(strings(table["id"].to_pylist()), strings(table["split"].to_pylist()))
    except (OSError, pa.ArrowException, KeyError, DataError) as error:
        raise ArtifactError(f"a run must hold a readable split: {path} ({error}); train again") from error
    names = [name for name in table.column_names if name not in ("id", "split")]
    return split, {name: table[name].to_numpy() for name in names}
