"""Turn a table and its predictions into two files beside the run, so that any of a million products opens at once.

`products.arrow` holds what is shown (id, text, names or bytes of photos) and is memory-mapped; `columns.npz` holds what
is sorted and filtered. Both are made at the first opening, and again when table, predictions or run have changed.
"""

import json
import zlib
from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from product_classificator.catalog import Catalog
from product_classificator.catalog.cells import ids_of
from product_classificator.catalog.split import load_split
from product_classificator.errors import DataError
from product_classificator.files import replacing, write_text
from product_classificator.heads import HeadBundle
from product_classificator.review.settings import ReviewSettings
from product_classificator.review.suggestions import Suggested, from_file, from_run
from product_classificator.runs import Run
from product_classificator.types import Bools, Floats, Rows, Strings, is_multi_label, iter_labels

_FORMAT, _READ_ROWS, _MAX_SAME_TEXT, _MIN_WORDS, _LABEL = 2, 16_384, 20, 8, "label."
Labels: TypeAlias = str | list[str] | None
"""One label, the sorted labels of a multi-label characteristic, or none that is known."""


@dataclass(frozen=True)
class Column(Suggested):
    """What is known of one characteristic of n products.

    Attributes:
        has_label: (n,) whether the table has a label.
        agrees: (n,) whether the table has the predicted label.
        doubt: (n,) how much is gained by a decision, about 0..1.
    """

    has_label: Bools
    agrees: Bools
    doubt: Floats

    @property
    def is_asked(self) -> Bools:
        """(n,) which labels are in doubt: not what the table says or, without a label there, not accepted."""
        return (self.top[:, 0] >= 0) & np.where(self.has_label, ~self.agrees, ~self.auto)


class Products:
    """The products of a review, row by row as in the table; of a characteristic, `products[name]` is the column.

    Attributes:
        names: the characteristics that are reviewed.
        labels: characteristic -> labels of the heads.
        shown: id, text and photo (as the table names or holds it), and labels of the table.
        table_labels: characteristic -> labels of the table.
        group, value, lot: (n,) group of near-duplicates, how much a product matters, and a number by its id.
        findings: kind of finding -> rows, the worst first.
    """

    def __init__(self, folder: Path, bundle: HeadBundle) -> None:
        facts = json.loads((folder / "products.json").read_text(encoding="utf-8"))
        self.shown = pa.ipc.open_file(pa.memory_map(str(folder / "products.arrow"))).read_all()
        with np.load(folder / "columns.npz") as file:
            arrays = dict(file)
        self.names: tuple[str, ...] = tuple(facts["names"])
        self.bundle, self.labels = bundle, {name: bundle[name].labels for name in self.names}
        self.table_labels: dict[str, list[str]] = facts["table_labels"]
        self._columns = {
            name: Column(*(arrays[f"{index}.{field.name}"] for field in fields(Column)))
            for index, name in enumerate(self.names)
        }
        self.group, self.is_novel, self.value, self.lot = (arrays[name] for name in ("group", "novel", "value", "lot"))
        self.findings: dict[str, Rows] = {kind: arrays[f"finding.{kind}"] for kind in facts["findings"]}

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __len__(self) -> int:
        return len(self.shown)

    @cached_property
    def key(self) -> str:
        """Identifies which product is in which row, so that a page of another order of the table saves nothing."""
        digest = sha256()
        for buffer in (buffer for chunk in self.shown["id"].chunks for buffer in chunk.buffers() if buffer):
            digest.update(buffer)
        return digest.hexdigest()[:16]

    @cached_property
    def group_size(self) -> Rows:
        """(n,) number of products of each group."""
        sizes: Rows = np.bincount(self.group)[self.group]
        return sizes

    def rows_of_group(self, row: int) -> list[int]:
        """Return the near-duplicates of a product, itself first."""
        others = np.flatnonzero(self.group == self.group[row]).tolist() if self.group_size[row] > 1 else []
        return [row, *(other for other in others if other != row)]

    def rows_of(self, ids: list[str]) -> Rows:
        """Return (m,) rows of products by their ids, -1 where unknown."""
        if len(ids) <= 3:  # without a hash table of all ids
            return np.array([pc.index(self.shown["id"], id_).as_py() for id_ in ids], np.int64)
        found = pc.index_in(pa.array(ids, pa.string()), value_set=self.shown["id"].combine_chunks())
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)

    def facts(self, row: int) -> dict[str, Any]:
        """Return what is shown of a product."""
        values: dict[str, Any] = self.shown.slice(row, 1).to_pylist()[0]
        return values

    def id(self, row: int) -> str:
        """Return the id of a product."""
        return str(self.shown["id"][row].as_py())

    def table_label(self, name: str, row: int) -> Labels:
        """Return what the table says."""
        label: Labels = self.shown[_LABEL + name][row].as_py() if name in self.table_labels else None
        return label

    def top(self, name: str, row: int) -> list[tuple[str, float]]:
        """Return the first labels of a product with their probabilities."""
        pairs = zip(self[name].top[row].tolist(), self[name].share[row].tolist(), strict=True)
        return [(self.labels[name][index], share) for index, share in pairs if index >= 0]

    def predicted(self, name: str, row: int) -> Labels:
        """Return the predicted label or labels of a product, `None` where nothing is predicted."""
        labels = [label for label, _ in self.top(name, row)[: self[name].n_predicted[row]]]
        if self.bundle[name].is_multi_label:
            return sorted(labels) if self[name].top[row, 0] >= 0 else None
        return labels[0] if labels else None


def open_products(run: Run, catalog: Catalog, settings: ReviewSettings, folder: Path) -> Products:
    """Open the products of a review, whose files are in a folder, and made there if they are not of these.

    Raises:
        DataError: the predictions are not those of the table, or no product has any.
        ArtifactError: the run is damaged.
    """
    path, bundle, key = folder / "products.json", HeadBundle.load(run.bundle), _key(run, catalog, settings)
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["key"] != key:
        path.unlink(missing_ok=True)
        facts = _make(run, bundle, catalog, settings, folder)
        write_text(path, json.dumps({"key": key, **facts}, ensure_ascii=False))
    return Products(folder, bundle)


def _key(run: Run, catalog: Catalog, settings: ReviewSettings) -> str:
    """Identify everything that decides the files."""
    paths = [run.folder / "run.json", *catalog.table.sources, settings.predictions, settings.findings]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path and path.exists()]
    return json.dumps([_FORMAT, stats, str(catalog.columns), catalog.read_as, settings.value, settings.min_precision])


def _make(run: Run, bundle: HeadBundle, catalog: Catalog, settings: ReviewSettings, folder: Path) -> dict[str, Any]:
    """Write the files, and return names of characteristics and findings, and the labels of the table."""
    ids, text_groups = _write_shown(catalog, folder / "products.arrow")
    if settings.predictions is None:
        suggested, is_novel = from_run(run, bundle, ids, settings.min_precision)
    else:
        suggested, is_novel = from_file(settings.predictions, bundle, catalog.columns.id, ids)
    if not any(of_name.n_predicted.any() for of_name in suggested.values()):
        rule = "a review needs predictions: the run has none of these products"
        raise DataError(f"{rule} (is {catalog.table.name} another table?): predict it, and give --predictions FILE")
    is_first = np.zeros(len(ids), dtype=bool)
    is_first[np.unique(ids.dictionary_encode().indices.to_numpy(), return_index=True)[1]] = True
    for of_name in suggested.values():  # a repeated id means no product of its own
        of_name.top[~is_first], of_name.n_predicted[~is_first], of_name.auto[~is_first] = -1, 0, False
    findings = _findings(settings.findings, ids) if settings.findings else {}
    arrays: dict[str, Any] = {f"finding.{kind}": rows for kind, rows in findings.items()}
    arrays |= {"novel": is_novel, "group": _groups(run, ids, text_groups), "value": np.ones(len(ids), np.float32)}
    arrays["lot"] = np.array([zlib.crc32(id_.encode()) for id_ in ids.to_pylist()], np.uint32)
    if settings.value is not None:
        cells = pc.cast(pa.array(catalog.column(settings.value), pa.string()), pa.float32(), safe=False)
        arrays["value"] = np.nan_to_num(cells.to_numpy(zero_copy_only=False)).clip(0)
    truth = catalog.truth()
    for index, (name, of_name) in enumerate(suggested.items()):
        column = _compared(of_name, bundle[name].labels, truth.get(name, np.full(len(ids), None)))
        arrays |= {f"{index}.{kind}": array for kind, array in vars(column).items()}
    with replacing(folder / "columns.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    table_labels = {name: [*dict.fromkeys(iter_labels(labels))] for name, labels in truth.items()}
    return {"names": [*suggested], "table_labels": table_labels, "findings": [*findings]}


def _write_shown(catalog: Catalog, path: Path) -> tuple[pa.Array, Rows]:
    """Write what is shown of every product; return the ids, and numbers that are equal for equal long texts."""
    ids, keys, writer, photo = [], list[int](), None, catalog.columns.photo
    with replacing(path) as temporary:
        for batch in catalog.rows(_READ_ROWS):
            texts, rows = catalog.texts_of(batch), slice(len(keys), len(keys) + len(batch))
            ids.append(pa.array(ids_of(batch.column(catalog.columns.id)), pa.string()))
            keys += [hash(tuple(words)) if len(words := text.split()) >= _MIN_WORDS else 0 for text in texts]
            photos = batch.column(photo) if photo else pa.nulls(len(batch), pa.string())
            columns = {"id": ids[-1], "text": pa.array(texts, pa.string()), "photo": photos}
            for name, labels in catalog.truth().items():
                plain = [sorted(label) if isinstance(label, frozenset) else label for label in labels[rows]]
                is_set = name in catalog.columns.multi_label
                columns[_LABEL + name] = pa.array(plain, pa.list_(pa.string()) if is_set else pa.string())
            part = pa.record_batch(columns)
            writer = writer or pa.ipc.new_file(str(temporary), part.schema)
            writer.write_batch(part)
        if writer is None:
            raise DataError(f"there is nothing to review: {catalog.table.name} has no rows")
        writer.close()
    counts = Counter(keys)
    same = np.array([key if counts[key] <= _MAX_SAME_TEXT else 0 for key in keys], np.int64)
    same[same == 0] = np.arange(1, (same == 0).sum() + 1)  # a group of its own
    return pa.concat_arrays(ids), np.unique(same, return_inverse=True)[1].astype(np.int32)


def _groups(run: Run, ids: pa.Array, text_groups: Rows) -> Rows:
    """Return the groups that the run found, if these are its products, or else those of equal texts."""
    _, of_run = load_split(run.split)
    if not of_run["id"].combine_chunks().equals(ids):
        return text_groups
    return np.unique(of_run["group"].to_numpy(), return_inverse=True)[1].astype(np.int32)


def _compared(of_name: Suggested, labels: tuple[str, ...], truth: Strings) -> Column:
    """Compare suggestions with (n,) labels of the table.

    Doubt: with a label in the table, how probable it is that this is wrong. Else how probable it is that the first
    label is wrong, times how rare the labels are that it may have: `benchmarks/active_learning.py`, and
    docs/design/decisions.md.
    """
    top, share = of_name.top, of_name.share.astype(np.float32)
    has_label = np.array([label is not None for label in truth], dtype=bool)
    if is_multi_label(truth):
        ids = {label: i for i, label in enumerate(labels)}
        sets = (label and {ids.get(one, -1) for one in label} for label in truth)
        rows = zip(sets, top.tolist(), of_name.n_predicted.tolist(), strict=True)
        agrees = has_label & np.array([{*first[:k]} == (label or set()) for label, first, k in rows], dtype=bool)
        confidence = np.where(np.arange(share.shape[1]) < of_name.n_predicted[:, None], share, 1 - share).prod(1)
        of_table, of_first = np.where(agrees, confidence, 0), 1 - confidence
    else:
        label_ids = pc.index_in(pa.array(truth, pa.string()), value_set=pa.array(labels)).fill_null(-1).to_numpy()
        is_same = (top == label_ids[:, None]) & (label_ids >= 0)[:, None]
        agrees, of_table = is_same[:, 0], np.where(is_same, share, 0).sum(1)
        known = label_ids[label_ids >= 0] if (label_ids >= 0).any() else top[:, 0][top[:, 0] >= 0]
        rarity = 1 / np.sqrt(np.bincount(known, minlength=len(labels)) + 1)
        of_first = (1 - share[:, 0]) * (share * rarity[top]).sum(1) / rarity.mean()
    doubt = np.where(has_label, 1 - of_table, of_first) * (top[:, 0] >= 0)
    return Column(**vars(of_name), has_label=has_label, agrees=agrees, doubt=doubt.astype(np.float32))


def _findings(path: Path, ids: pa.Array) -> dict[str, Rows]:
    try:
        table = pq.read_table(path, columns=["id", "kind", "characteristic"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"findings are the audit.parquet of an audit, {path} cannot be read: {error}") from error
    rows = pc.index_in(table["id"].combine_chunks(), value_set=ids).fill_null(-1).to_numpy()
    pairs = zip(table["kind"].to_pylist(), table["characteristic"].to_pylist(), strict=True)
    kinds = np.array([f"{kind}: {name}" if name else kind for kind, name in pairs], object)
    of_kind = {kind: rows[(kinds == kind) & (rows >= 0)].tolist() for kind in dict.fromkeys(kinds)}
    return {kind: np.array([*dict.fromkeys(rows)], np.int32) for kind, rows in of_kind.items() if rows}
