"""Deal the products of a catalog into folds, or into train, valid and test, without leaks.

A group of near-duplicates is never split. Groups are dealt by iterative stratification (Sechidis, Tsoumakas, Vlahavas
2011): the rarest label first, each time to the split that lacks most of it. A label of few groups is in the first split
first, then in the last, then in the others.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from product_classificator.errors import ArtifactError, DataError, culprits
from product_classificator.files import replacing
from product_classificator.types import Bools, Rows, Split, Strings, Truth, iter_labels, strings

logger = logging.getLogger(__name__)

_MAX_SHARE_OF_RARE_LABELS = 0.05
_MAX_FOLDS = 50  # heads are fitted for each
_SAME_SPLITS = {"training": "train", "val": "valid", "validation": "valid", "dev": "valid", "testing": "test"}


def split_products(
    ids: Strings, groups: Rows, truth: Truth, usable: Bools, shares: Mapping[str, float], *, seed: int = 0
) -> Split:
    """Split products.

    Args:
        ids: (n,) product ids.
        groups: (n,) groups that must stay together.
        truth: labels to stratify by; for a multi-label characteristic, each label of a product.
        usable: (n,) false for products that are set aside: they belong to no split.
        shares: name of each split -> its share of the products, above 0; they sum to 1.
        seed: determines the order of groups with the same rarest label.

    Raises:
        DataError: fewer products are usable than there are splits.
    """
    if usable.sum() < len(shares):
        raise DataError(f"a split needs at least {len(shares)} usable products, got {int(usable.sum())}")
    split = stratify(groups, truth, usable, list(shares.values()), seed=seed)
    return Split(ids, strings([*shares, ""])[split])


def read_split(ids: Strings, names: Strings, usable: Bools, groups: Rows) -> Split:
    """Return the split that a column of the table names: "train", "valid", "test" or folds; without a name: "train"."""
    plain = [(name or "train").casefold() for name in names]
    split = Split(ids, strings([_SAME_SPLITS.get(name, name) for name in plain]))
    split.names[~usable] = ""
    is_judged = np.isin(split.names, split.folds)
    if not is_judged.any() or len(set(split.names[usable])) < 2:
        raise DataError(
            f"a column of splits must name one to learn from and one to judge, like train and test, got "
            f"{culprits(sorted(set(split.names) - {''}))}"
        )
    if len(split.folds) > _MAX_FOLDS:
        raise DataError(f"a column of splits may name {_MAX_FOLDS} folds, got {culprits(split.folds)}: name another")
    pairs = set(zip(groups[usable].tolist(), split.names[usable], strict=True))
    n_splits = Counter(group for group, _ in pairs)
    if n_shared := sum(n_splits[group] > 1 for group in groups[is_judged].tolist()):
        logger.warning("%d products of the folds are near-identical to products of another split", n_shared)
    return split


def stratify(groups: Rows, truth: Truth, usable: Bools, shares: Sequence[float], *, seed: int) -> Rows:
    """Return the (n,) number of each product's split, in the order of `shares`; -1: none. See `split_products`."""
    rows = np.flatnonzero(usable)
    min_products = 1 / min(shares)
    label_ids, counts = _label_ids(truth, rows, min_products)
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
    labels_of = [[label for row in label_ids[rows].tolist() for label in row if label >= 0] for rows in members]
    groups_left = Counter(label for labels in labels_of for label in set(labels))
    lacking = {label: [0, *range(len(shares) - 1, 0, -1)] for label in groups_left}  # splits without the label
    for group in order:
        labels = labels_of[group]
        rarest = min(labels, key=lambda label: (tally[label], label), default=-1)
        needs = [(lacks[rarest] if labels else 0.0, space) for lacks, space in zip(missing, room, strict=True)]
        chosen = needs.index(max(needs))
        # A label of few groups would fill the first split with all of them, and never be tested.
        if tally[rarest] >= min_products and groups_left[rarest] <= len(lacking[rarest]):
            chosen = lacking[rarest][0]
        for label in labels:
            missing[chosen][label] -= 1
        for label in set(labels):
            groups_left[label] -= 1
            lacking[label] = [i for i in lacking[label] if i != chosen]
        room[chosen] -= len(members[group])
        split[rows[members[group]]] = chosen
    return split


def _label_ids(truth: Truth, rows: Rows, min_products: float) -> tuple[Rows, Rows]:
    """Return (n, columns) label ids of all characteristics, -1: unknown or none, and the number of products of each.

    Labels with fewer products than `min_products` cannot be in every split; they go to the largest. Where more than a
    twentieth of the products have such labels (brands, titles), they would fill it up, and count as unknown.
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


def save_split(split: Split, columns: Mapping[str, pa.Array], path: Path) -> None:
    """Write the split as parquet: id, part ("test" for all that is judged, "" for none), split, and further columns."""
    parts = np.where(np.isin(split.names, split.folds), "test", split.names)
    names = {"id": split.ids, "part": parts, "split": split.names}
    table = pa.table({**{name: pa.array(column.tolist(), pa.string()) for name, column in names.items()}, **columns})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def load_split(path: Path) -> tuple[Split, pa.Table]:
    """Read what `save_split` wrote: the split, and the whole table."""
    try:
        table = pq.read_table(path)
        return Split(strings(table["id"].to_pylist()), strings(table["split"].to_pylist())), table
    except (OSError, pa.ArrowException, KeyError, DataError) as error:
        raise ArtifactError(f"a run must hold a readable split: {path} ({error}); train again") from error
