"""Turns a run and a table into a file of predictions: one row a product, in the order of the table, resumable.

Work goes chunk by chunk into parts beside the output (`<file>.parts/`), each renamed into place when it is whole. A
killed run goes on after the last part; the parts are joined at the end and removed. Parts of another table, run or
setting are not mixed in: their state file differs, and the work begins anew.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from product_classificator.catalog.catalog import Catalog
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import EmbeddedChunk, embed_chunks
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import DataError, culprits
from product_classificator.files import replacing, write_text
from product_classificator.text import join_labels
from product_classificator.types import Predictions, Strings

logger = logging.getLogger(__name__)

FORMATS = (".parquet", ".csv", ".jsonl")
_DECISION = "_decision"


@dataclass(frozen=True)
class BulkSummary:
    """What a bulk prediction did.

    Attributes:
        rows: rows in the file.
        resumed: how many of them an interrupted call had left.
        flaws: status -> number of rows, for every status but "ok", most frequent first.
        auto: characteristic -> rows whose value needs no review; empty where nobody asked.
    """

    rows: int
    resumed: int
    flaws: Mapping[str, int]
    auto: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Options:
    """What is written of each product; see `predict_to_file`."""

    top_k: int
    min_precision: float | None


def predict_to_file(
    classificator: Classificator,
    catalog: Catalog,
    out: str | Path,
    *,
    top_k: int = 1,
    min_precision: float | None = None,
    store: EmbeddingStore | None = None,
    on_chunk: Callable[[EmbeddedChunk], None] | None = None,
) -> BulkSummary:
    """Writes the predictions of a catalog to a parquet, CSV or JSON lines file.

    Columns: the id; for each characteristic `<name>` and `<name>_probability`, with `top_k` above 1 also `<name>_2`,
    `<name>_2_probability`, ...; with `min_precision` also `<name>_decision`, "auto" or "review"; `status`: "ok", or
    what is wrong with the row. A product with neither photo nor text has nulls and a status that begins with
    "set_aside:"; it is for review. Of a multi-label characteristic `<name>` is the list of the labels that a product
    bears, whatever `top_k` is, and `<name>_probability` that of their probabilities; in CSV both are joined by "|".

    Args:
        classificator: what predicts.
        catalog: the products.
        out: the file; its ending says the format. An existing file is replaced when the new one is whole.
        top_k: how many labels of each characteristic, 1 or more.
        min_precision: share of the values called "auto" that shall be right, above 0 and below 1.
        store: embeddings to use and fill.
        on_chunk: called after each chunk.

    Raises:
        DataError: the ending is unknown, `top_k` is below 1, `min_precision` no share, the folder of `out` is not
            there, or another process writes the file now.
        ArtifactError: `min_precision` is given, and the heads can promise nothing.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise DataError(f"predictions are written as {', '.join(FORMATS)}, got {out.name}")
    if top_k < 1:
        raise DataError(f"top_k must be 1 or more, got {top_k}")
    if not out.parent.is_dir() or out.is_dir():
        raise DataError(f"the output must be a file in a folder that is there, got {out}")
    sources = [Path(catalog.table.name), *([catalog.images.path] if catalog.images else [])]
    if out.resolve() in [source.resolve() for source in sources]:
        raise DataError(f"the output must not be the table or the photos themselves, got {out}")
    if min_precision is not None:
        classificator.bundle.check_can_decide(min_precision)
    options = _Options(top_k, min_precision)
    _check_names(classificator, catalog.columns.id, top_k, decides=min_precision is not None)
    parts = out.with_name(out.name + ".parts")
    with _alone(parts):
        row, resumed = _predict(classificator, catalog, parts, options, store, on_chunk)
        status, auto = _join(parts, out, () if min_precision is None else tuple(classificator.labels))
        (parts / "state.json").unlink()  # without it, what a kill leaves of the folder is not taken for unfinished work
        shutil.rmtree(parts)
    flaws = {name: n for name, n in status.most_common() if name != "ok"}
    return BulkSummary(row, resumed, flaws, dict(auto))


@contextmanager
def _alone(parts: Path) -> Iterator[None]:
    """Lets one process at a time work on a folder of parts.

    Raises:
        DataError: another one does.
    """
    lock = FileLock(parts.with_name(parts.name + ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(f"another process writes {parts.stem} now: wait for it, or name another output") from error
    try:
        yield
    finally:
        with suppress(OSError):  # some systems do not remove what is open
            Path(lock.lock_file).unlink()
        lock.release()


def _predict(
    classificator: Classificator,
    catalog: Catalog,
    parts: Path,
    options: _Options,
    store: EmbeddingStore | None,
    on_chunk: Callable[[EmbeddedChunk], None] | None,
) -> tuple[int, int]:
    """Fills the folder of parts, and returns how many rows are in it, and how many of them were there before."""
    resumed = _resume(parts, _state(classificator, catalog, options))
    row = resumed
    for chunk in embed_chunks(catalog, classificator.encoder, store, first_row=resumed):
        predictions = classificator.bundle.predict(chunk.embeddings, chunk.texts)
        if options.min_precision is not None:
            promised = options.min_precision
            predictions = classificator.bundle.with_decisions(predictions, chunk.embeddings, chunk.texts, promised)
        table = _table(predictions, chunk.status, catalog.columns.id, options.top_k)
        with replacing(parts / f"{row:012d}-{row + table.num_rows:012d}.parquet") as temporary:
            pq.write_table(table, temporary)
        row += table.num_rows
        if on_chunk:
            on_chunk(chunk)
    if not row:
        raise DataError(f"there is nothing to predict: {catalog.table.name} has no rows")
    return row, resumed


def _state(classificator: Classificator, catalog: Catalog, options: _Options) -> str:
    """Names everything that decides the output, but for the bytes of photos."""
    source, images = Path(catalog.table.name), catalog.images
    if source.is_file():
        table = _identity(source)
    else:
        digest = blake2b("\0".join(catalog.ids).encode(), digest_size=16)
        for value in catalog.texts():
            digest.update(value.encode() + b"\0")
        table = digest.hexdigest()
    facts = {
        "table": table,
        "images": images and [_identity(images.path), images.channels, images.max_pixels],
        "columns": asdict(catalog.columns),
        "encoder": classificator.encoder.fingerprint,
        "bundle": classificator.bundle.digest,
        **asdict(options),
    }
    return json.dumps(facts, indent=1, ensure_ascii=False)


def _identity(path: Path) -> str:
    stat = path.stat()
    changed = "" if path.is_dir() else f" {stat.st_size} {stat.st_mtime_ns}"
    return f"{path.resolve()}{changed}"


def _check_names(classificator: Classificator, id_name: str, top_k: int, *, decides: bool) -> None:
    """Refuses an output in which two columns would have one name."""
    columns = [id_name, "status"]
    for name, labels in classificator.labels.items():
        ranks = 1 if classificator.bundle[name].is_multi_label else min(top_k, len(labels))
        ranked = [name, *(f"{name}_{rank}" for rank in range(2, ranks + 1))]
        columns += [*ranked, *(f"{column}_probability" for column in ranked), *[f"{name}{_DECISION}"] * decides]
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"columns of the output must differ, several would be {culprits(repeated)}: rename the column")


def _resume(parts: Path, state: str) -> int:
    """Readies the folder of parts and returns how many rows are already in it."""
    state_file = parts / "state.json"
    if parts.exists():
        foreign = [path.name for path in parts.iterdir() if path.suffix not in (".tmp", ".json", ".parquet")]
        if foreign:
            raise DataError(f"{parts} is needed for unfinished work, but holds other things: {culprits(foreign)}")
        if not state_file.exists() or state_file.read_text(encoding="utf-8") != state:
            logger.warning("%s is of another table, run or setting: starting anew", parts)
            shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    write_text(state_file, state)
    row = 0
    for path in _parts(parts):
        begin, end = (int(number) for number in path.stem.split("-"))
        if begin != row:  # what comes after a gap is done again
            path.unlink()
        else:
            row = end
    return row


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-*.parquet"))


def _table(predictions: Predictions, status: Strings, id_name: str, top_k: int) -> pa.Table:
    is_known = predictions.is_known
    columns: dict[str, pa.Array] = {id_name: pa.array(predictions.ids, pa.string())}
    for name in predictions.characteristics:
        if name in predictions.decision_thresholds:
            columns |= _list_columns(predictions, name)
            continue
        ranked = predictions.top(name, top_k)
        for rank in range(min(top_k, len(predictions.labels[name]))):
            column = name if rank == 0 else f"{name}_{rank + 1}"
            found = [labels[rank] if labels else (None, None) for labels in ranked]
            columns[column] = pa.array([label for label, _ in found], pa.string())
            columns[f"{column}_probability"] = pa.array([p for _, p in found], pa.float32())
            if predictions.decisions and not rank:
                columns[f"{name}{_DECISION}"] = pa.array(predictions.decisions[name], pa.string())
    columns["status"] = pa.array(np.where(is_known, status, "set_aside:" + status.astype(object)), pa.string())
    return pa.table(columns)


def _list_columns(predictions: Predictions, name: str) -> dict[str, pa.Array]:
    """Returns the columns of a multi-label characteristic: labels and their probabilities as lists."""
    places = {label: place for place, label in enumerate(predictions.labels[name])}
    borne, shares = predictions.labels_of(name), predictions.probabilities[name]
    probabilities = [
        None if labels is None else [float(shares[row, places[label]]) for label in labels]
        for row, labels in enumerate(borne)
    ]
    columns = {
        name: pa.array(borne, pa.list_(pa.string())),
        f"{name}_probability": pa.array(probabilities, pa.list_(pa.float32())),
    }
    if predictions.decisions:
        columns[f"{name}{_DECISION}"] = pa.array(predictions.decisions[name], pa.string())
    return columns


def _join(parts: Path, out: Path, decided: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Writes the parts as one file and returns how often each status occurs, and each of `decided` needs no review."""
    status: Counter[str] = Counter()
    auto: Counter[str] = Counter()

    def tables() -> Iterator[pa.Table]:
        for path in _parts(parts):
            table = pq.read_table(path)
            status.update(table["status"].to_pylist())
            for name in decided:
                auto[name] += table[f"{name}{_DECISION}"].to_pylist().count("auto")
            yield table

    with replacing(out) as temporary:
        _WRITERS[out.suffix.lower()](tables(), temporary)
    return status, auto


def _write_arrow(open_writer: Callable[..., Any], tables: Iterator[pa.Table], path: Path) -> None:
    first = next(tables)
    with open_writer(path, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def _write_json_lines(tables: Iterator[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _flat(table: pa.Table) -> pa.Table:
    """Returns a table for CSV: lists of labels as `read_catalog` reads them, lists of numbers joined likewise."""
    for place, field_ in enumerate(table.schema):
        if pa.types.is_list(field_.type):
            is_text = pa.types.is_string(field_.type.value_type)
            joined = join_labels if is_text else lambda numbers: "|".join(f"{number:.6g}" for number in numbers)
            cells = [None if item is None else joined(item) for item in table.column(place).to_pylist()]
            table = table.set_column(place, field_.name, pa.array(cells, pa.string()))
    return table


def _write_csv(tables: Iterator[pa.Table], path: Path) -> None:
    options = pa.csv.WriteOptions(quoting_style="needed")
    _write_arrow(partial(pa.csv.CSVWriter, write_options=options), map(_flat, tables), path)


_WRITERS: dict[str, Callable[[Iterator[pa.Table], Path], None]] = {
    ".parquet": partial(_write_arrow, pq.ParquetWriter),
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
}
