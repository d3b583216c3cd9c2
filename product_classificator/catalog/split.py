"""Turns a catalog into train, valid and test parts without leaks.

Near-identical products (same words of the text, or the same bytes of the photo) are one group and fall on one side,
also when they are linked through a third product. Groups are dealt out by iterative stratification (Sechidis,
Tsoumakas, Vlahavas 2011): the rarest label first, each time to the part that misses most of it. A text or photo
shared by more than `PLACEHOLDER_SHARE` of the catalog ("no photo yet") links products only together with the other.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from product_classificator.errors import ArtifactError, DataError
from product_classificator.files import replacing
from product_classificator.text import identity_of
from product_classificator.types import SPLITS, Bools, Rows, Split, Strings, Truth, is_multi_label, iter_labels, strings

PLACEHOLDER_SHARE = 0.02
_PLACEHOLDER_MIN_PRODUCTS = 50
_MOST_OF_RARE_LABELS = 0.05

Keys = npt.NDArray[np.uint64]
"""(n,) hashes that are equal for near-identical products; 0 where there is nothing to compare."""


def text_keys(texts: Iterable[str]) -> Keys:
    """Returns the key of each text: equal for texts with the same words in the same order; 0 without words."""
    return np.fromiter((_key(identity_of(text)) for text in texts), np.uint64)


def _key(identity: str) -> int:
    return int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "little") if identity else 0


def without_placeholders(keys: Keys) -> Keys:
    """Returns the keys with those zeroed that so many products share that they identify none."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    limit = max(PLACEHOLDER_SHARE * len(keys), _PLACEHOLDER_MIN_PRODUCTS)
    return np.where(counts[inverse] > limit, 0, keys).astype(np.uint64)


def near_duplicate_keys(texts: Keys, photos: Keys) -> dict[str, Keys]:
    """Returns the keys by which products are near-identical: any one that is equal and not 0 links them.

    Text and photo alone count unless they are a placeholder; both together always do.
    """
    both = (texts * np.uint64(0x9E3779B97F4A7C15)) ^ photos  # Fibonacci hashing keeps (a, b) and (b, a) apart
    return {"text_key": without_placeholders(texts), "image_key": without_placeholders(photos), "both_key": both}


def near_duplicate_groups(keys: Iterable[Keys]) -> Rows:
    """Returns the (n,) group of each product: products that share any key, directly or in a chain, share a group."""
    rows, columns, n, n_columns = [], [], 0, 0
    for key in keys:
        n = len(key)
        present = np.flatnonzero(key)
        _, inverse = np.unique(key[present], return_inverse=True)
        rows.append(present)
        columns.append(inverse + n_columns)
        n_columns += int(inverse.max(initial=-1)) + 1
    row, column = np.concatenate(rows), np.concatenate(columns)
    size = n + n_columns
    graph = coo_matrix((np.ones(len(row), dtype=np.int8), (row, column + n)), shape=(size, size))
    groups: Rows = connected_components(graph, directed=False)[1][:n].astype(np.int64)
    return groups


def split_products(
    ids: Strings,
    groups: Rows,
    truth: Truth,
    usable: Bools,
    *,
    valid_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
) -> Split:
    """Deals products out to train, valid and test.

    Args:
        ids: (n,) product ids.
        groups: (n,) groups that must not be torn, see `near_duplicate_groups`.
        truth: labels to stratify on, the rarest first; of a multi-label characteristic each one that is borne.
        usable: (n,) false for products that are set aside: they belong to no part.
        valid_share: share of products for validation, 0 to 1.
        test_share: share of products for the report, 0 to 1.
        seed: the order of groups with the same rarest label.

    Raises:
        DataError: the shares leave nothing for training, or fewer than three usable products are there.
    """
    if not (0 < valid_share < 1 and 0 < test_share < 1 and valid_share + test_share < 1):
        raise DataError(f"valid_share and test_share must leave a train part, got {valid_share} and {test_share}")
    if usable.sum() < len(SPLITS):
        raise DataError(f"a split needs at least {len(SPLITS)} usable products, got {int(usable.sum())}")
    shares = (1 - valid_share - test_share, valid_share, test_share)
    part = strings([*SPLITS, ""])[stratify(groups, truth, usable, shares, seed=seed)]
    return Split(ids, part)


def stratify(groups: Rows, truth: Truth, usable: Bools, shares: Sequence[float], *, seed: int) -> Rows:
    """Deals products out to parts of any number, the rarest label first.

    Args:
        groups: (n,) groups that must not be torn.
        truth: labels to stratify on.
        usable: (n,) false for products that belong to no part.
        shares: of the products, one for each part, together 1.
        seed: the order of groups with the same rarest label.

    Returns:
        (n,) the number of each product's part, -1 where it belongs to none.
    """
    rows = np.flatnonzero(usable)
    codes, counts = _label_codes(truth, rows, 1 / min(shares))
    members = _members(groups[rows])
    rarity = np.where(codes >= 0, counts[codes], np.iinfo(np.int64).max).min(1, initial=np.iinfo(np.int64).max)
    shuffled = np.random.default_rng(seed).permutation(len(members)).tolist()
    order = sorted(shuffled, key=lambda group: (rarity[members[group]].min(), -len(members[group])))
    part = np.full(len(groups), -1, dtype=np.int64)
    for rows_of_group, where in _dealt(members, order, codes, counts, np.array(shares)):
        part[rows[rows_of_group]] = where
    return part


def _label_codes(truth: Truth, rows: Rows, fewest: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers the labels of all characteristics.

    Labels of fewer products than `fewest` cannot stand in every part; they go to the largest. Where more than a
    twentieth of the products bear such labels (brands, titles), that would fill it up, and they count as unknown.

    Returns:
        (n, columns) codes, a column for each characteristic, of a multi-label one as many as a product bears labels at
        most; -1: unknown, or none. And the count of each code.
    """
    columns: list[npt.NDArray[np.int64]] = []
    counts: list[int] = []
    for labels in truth.values():
        found = labels[rows]
        tally = Counter(iter_labels(found))
        numbers = {label: len(counts) + i for i, label in enumerate(sorted(tally))}
        counts += [tally[label] for label in numbers]
        own = _columns(found, numbers)
        is_rare = np.append(np.array(counts) < fewest, False)  # the last stands for -1
        if own and np.any([is_rare[column] for column in own], axis=0).mean() > _MOST_OF_RARE_LABELS:
            own = [np.where(is_rare[column], -1, column) for column in own]
        columns += own
    codes = np.stack(columns, 1) if columns else np.empty((len(rows), 0), dtype=np.int64)
    return codes, np.array([*counts, 0], dtype=np.int64)


def _columns(labels: Strings, numbers: Mapping[str, int]) -> list[npt.NDArray[np.int64]]:
    """Returns (n,) numbers of the labels of products, as many arrays as a product bears labels at most."""
    if not is_multi_label(labels):
        return [np.array([numbers.get(label, -1) for label in labels], dtype=np.int64)]
    borne = [sorted(numbers[label] for label in item or ()) for item in labels]
    padded = zip_longest(*borne, fillvalue=-1)
    return [np.array(column, dtype=np.int64) for column in padded]


def _members(groups: Rows) -> list[Rows]:
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(order, starts)


def _dealt(
    members: list[Rows],
    order: list[int],
    codes: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    shares: npt.NDArray[np.float64],
) -> Iterable[tuple[Rows, int]]:
    """Yields for each group, rarest label first, its rows and the number of the part that misses it most."""
    # Plain lists: a million small steps are several times faster on them than on arrays.
    missing = [[share * count for count in counts.tolist()] for share in shares.tolist()]
    room = [share * len(codes) for share in shares.tolist()]
    tally = counts.tolist()
    for group in order:
        found = [code for row in codes[members[group]].tolist() for code in row if code >= 0]
        rarest = min(found, key=lambda code: (tally[code], code), default=-1)
        where = max(range(len(room)), key=lambda i: (missing[i][rarest], room[i]) if found else (room[i], 0.0))
        for code in found:
            missing[where][code] -= 1
        room[where] -= len(members[group])
        yield members[group], where


def save_split(split: Split, keys: dict[str, Keys], path: Path) -> None:
    """Writes the split as parquet: id, part, and one column per kind of key."""
    table = pa.table({"id": pa.array(split.ids, pa.string()), "part": pa.array(split.names, pa.string()), **keys})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def load_split(path: Path) -> tuple[Split, dict[str, Keys]]:
    """Reads what `save_split` wrote.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        table = pq.read_table(path)
        split = Split(strings(table["id"].to_pylist()), strings(table["part"].to_pylist()))
    except (OSError, pa.ArrowException, KeyError, DataError) as error:
        raise ArtifactError(f"a run must hold a readable split: {path} ({error}); train again") from error
    names = [name for name in table.column_names if name not in ("id", "part")]
    return split, {name: table[name].to_numpy() for name in names}
