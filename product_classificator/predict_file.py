"""Predict a table into a file: one row per product, in the order of the table, resumable.

Each chunk becomes a part in `<file>.parts/`, written whole or not at all; at the end the parts are joined and removed.
A killed call is resumed after its last part. Parts of another table, run or setting are discarded: their state differs.
"""

import json
import logging
import re
import shutil
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from hashlib import blake2b
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from product_classificator.catalog.catalog import Catalog
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import CHUNK_PRODUCTS, embed_chunks
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import DataError, MissingExtraError, culprits
from product_classificator.files import replacing, write_text
from product_classificator.remote.paths import open_file_system
from product_classificator.text import join_labels
from product_classificator.types import Predictions

logger = logging.getLogger(__name__)

FORMATS = (".parquet", ".csv", ".jsonl", ".xlsx")
_MAX_EXCEL_ROWS = 1_048_575
_NOT_IN_EXCEL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_OWN_FILE = re.compile(r"\d{12}-\d{12}\.parquet|state\.json|\..*\.tmp")


@dataclass(frozen=True)
class OutputOptions:
    """Columns to write: `top_k` labels, decisions at a target precision between 0 and 1 (exclusive; `None`: none).

    CSV is for Excel if `bom`: it begins with a byte order mark, without which Excel does not read UTF-8, and an
    apostrophe is put before what Excel would compute: cells that begin with `=`, `+`, `-`, `@`, a tab or a line break
    (OWASP, CSV injection). `read_catalog` takes it away from ids, labels and names of columns.
    """

    top_k: int = 1
    min_precision: float | None = None
    bom: bool = False


@dataclass(frozen=True)
class PredictSummary:
    """What a call of `predict_to_file` wrote: rows, those of them that an interrupted call left, and counts of rows.

    Attributes:
        warnings: every status but "ok" -> rows, the most frequent first.
        accepted: characteristic -> rows whose value is marked "auto"; empty without decisions.
    """

    rows: int
    resumed: int
    warnings: Mapping[str, int]
    accepted: Mapping[str, int] = field(default_factory=dict)


_DEFAULTS = OutputOptions()


def predict_to_file(
    classificator: Classificator,
    catalog: Catalog,
    out: str | Path,
    options: OutputOptions = _DEFAULTS,
    *,
    store: EmbeddingStore | None = None,
    on_chunk: Callable[[EmbeddedProducts], None] | None = None,
) -> PredictSummary:
    """Write the predictions of a catalog to parquet, CSV, JSON lines or Excel; an old file is replaced at the end.

    Columns: the id; for each characteristic `<name>` and `<name>_probability`, with `top_k` above 1 also `<name>_2`,
    `<name>_2_probability`, ...; with `min_precision` also `<name>_decision`, "auto" or "review"; `status`: "ok", or
    what is wrong with the row. A product with neither photo nor text has nulls, "review", and a status that begins with
    "set_aside:". A multi-label `<name>` is the list of predicted labels, whatever `top_k` is, and `<name>_probability`
    the list of their probabilities; in CSV and Excel both are joined by "|".

    Raises:
        DataError: the suffix of `out` is not in `FORMATS`, its folder does not exist, an option is out of range, or
            another process is writing the file.
        ArtifactError: `min_precision` is given, but the heads have no thresholds.
    """
    out = Path(out)
    _check(classificator, catalog, out, options)
    parts = out.with_name(out.name + ".parts")
    with _single_writer(parts):
        resumed = _resume(parts, _state(classificator, catalog, options))
        rows = resumed
        for chunk in embed_chunks(catalog, classificator.encoder, store, first_row=resumed):
            table = _predict(classificator, chunk, catalog.columns.id, options)
            with replacing(parts / f"{rows:012d}-{rows + len(table):012d}.parquet") as temporary:
                pq.write_table(table, temporary, write_page_checksum=True)
            rows += len(table)
            if on_chunk:
                on_chunk(chunk)
        if not rows:
            raise DataError(f"there is nothing to predict: {catalog.table.name} has no rows")
        decided = () if options.min_precision is None else tuple(classificator.labels)
        statuses, accepted = _join(parts, out, decided, bom=options.bom)
        (parts / "state.json").unlink()  # so that parts a kill leaves of the folder are not resumed
        shutil.rmtree(parts)
    warnings = {status: n for status, n in statuses.most_common() if status != "ok"} | dict(catalog.issues)
    return PredictSummary(rows, resumed, warnings, accepted)


def _check(classificator: Classificator, catalog: Catalog, out: Path, options: OutputOptions) -> None:
    if out.suffix.lower() not in FORMATS:
        raise DataError(f"predictions are written as {', '.join(FORMATS)}, got {out.name}")
    if out.suffix.lower() == ".xlsx":
        _check_excel(len(catalog))
    if options.top_k < 1:
        raise DataError(f"top_k must be 1 or more, got {options.top_k}")
    if not out.parent.is_dir() or out.is_dir():
        raise DataError(f"the output must be a file in an existing folder, got {out}")
    catalog.check_output(out)
    if catalog.images and catalog.images.path == out.resolve():
        raise DataError(f"the output must not be the table or the photos themselves, got {out}")
    classificator.check_inputs(has_images=catalog.images is not None, has_texts=bool(catalog.columns.text))
    if options.min_precision is not None:
        classificator.bundle.check_can_decide(options.min_precision)
    columns = [catalog.columns.id, "status"]
    for name, labels in classificator.labels.items():
        ranks = 1 if classificator.bundle[name].is_multi_label else min(options.top_k, len(labels))
        ranked = [_ranked(name, rank) for rank in range(ranks)]
        columns += [*ranked, *(f"{column}_probability" for column in ranked)]
        columns += [f"{name}_decision"] * (options.min_precision is not None)
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"columns of the output must differ, several would be {culprits(repeated)}: rename the column")


def _check_excel(n_rows: int) -> None:
    if not find_spec("openpyxl"):
        raise MissingExtraError("writing .xlsx", "excel")
    if n_rows > _MAX_EXCEL_ROWS:
        raise DataError(f"Excel holds {_MAX_EXCEL_ROWS} rows, the table has {n_rows}: write .csv or .parquet")


@contextmanager
def _single_writer(parts: Path) -> Iterator[None]:
    lock = FileLock(parts.with_name(parts.name + ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(f"another process is writing {parts.stem}: wait for it, or name another output") from error
    try:
        yield
    finally:
        with suppress(OSError):  # some systems do not remove what is open
            Path(lock.lock_file).unlink()
        lock.release()


def _state(classificator: Classificator, catalog: Catalog, options: OutputOptions) -> str:
    """Return everything that determines the output, except the bytes of the images."""
    sources, images = catalog.table.sources, catalog.images
    is_file = len(sources) == 1 and sources[0].is_file()
    digest = blake2b(digest_size=16)
    if not is_file:
        for products in catalog.batches(CHUNK_PRODUCTS):
            names = (image.name for images in products.images for image in images)
            for value in chain(products.ids, products.texts, names):
                digest.update(value.encode() + b"\0")
            for data in (image.data for images in products.images for image in images):
                digest.update(data or b"")
    photos = images.path and _identity(images.path) if images else None
    facts = {
        "table": _identity(sources[0]) if is_file else digest.hexdigest(),
        "images": images and [photos, *astuple(images)[1:]],
        "columns": asdict(catalog.columns),
        "read_as": catalog.read_as,
        "encoder": classificator.encoder.fingerprint,
        "bundle": classificator.bundle.digest,
        "options": [options.top_k, options.min_precision],  # a byte order mark is written when parts are joined
    }
    return json.dumps(facts, indent=1, ensure_ascii=False)


def _identity(path: Path) -> str:
    system, location = open_file_system(path)
    info = system.get_file_info(location)
    return f"{path.resolve()} {info.size} {info.mtime_ns}" if info.is_file else str(path.resolve())


def _resume(parts: Path, state: str) -> int:
    """Prepare the folder of parts and return how many rows it already has."""
    state_file = parts / "state.json"
    if parts.exists():
        if foreign := [path.name for path in parts.iterdir() if not _OWN_FILE.fullmatch(path.name)]:
            raise DataError(f"{parts} is needed for unfinished work, but holds other files: {culprits(foreign)}")
        if not state_file.exists() or state_file.read_text(encoding="utf-8") != state:
            logger.warning("%s is of another table, run or setting: starting again", parts)
            shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    write_text(state_file, state)
    rows = 0
    for path in sorted(parts.glob("*-*.parquet")):
        first, end = (int(number) for number in path.stem.split("-"))
        if first != rows or not _is_sound(path, end - first):  # after a gap everything is predicted again
            path.unlink()
        else:
            rows = end
    return rows


def _is_sound(part: Path, n_rows: int) -> bool:
    try:
        return bool(pq.read_table(part, page_checksum_verification=True).num_rows == n_rows)
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s is damaged, its products are predicted again (%s)", part, error)
        return False


def _predict(classificator: Classificator, chunk: EmbeddedProducts, id_name: str, options: OutputOptions) -> pa.Table:
    bundle = classificator.bundle
    predictions = bundle.predict(chunk.embeddings, chunk.texts)
    if options.min_precision is not None:
        predictions = bundle.with_decisions(predictions, chunk.embeddings, chunk.texts, options.min_precision)
    columns: dict[str, pa.Array] = {id_name: pa.array(predictions.ids, pa.string())}
    for name in predictions.characteristics:
        for rank, (labels, probabilities) in enumerate(_label_columns(predictions, name, options.top_k)):
            columns[_ranked(name, rank)], columns[f"{_ranked(name, rank)}_probability"] = labels, probabilities
            if rank == 0 and predictions.decisions is not None:
                columns[f"{name}_decision"] = pa.array(predictions.decisions[name], pa.string())
    status = np.where(predictions.is_known, chunk.status, "set_aside:" + chunk.status)
    return pa.table({**columns, "status": pa.array(status, pa.string())})


def _label_columns(predictions: Predictions, name: str, top_k: int) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield labels and probabilities rank by rank; those of a multi-label characteristic are lists, once."""
    if name in predictions.decision_thresholds:
        label_ids = {label: label_id for label_id, label in enumerate(predictions.labels[name])}
        label_sets = predictions.labels_of(name)
        probability_lists = [
            None if labels is None else [float(row[label_ids[label]]) for label in labels]
            for labels, row in zip(label_sets, predictions.probabilities[name], strict=True)
        ]
        yield pa.array(label_sets, pa.list_(pa.string())), pa.array(probability_lists, pa.list_(pa.float32()))
        return
    top = predictions.top(name, top_k)
    for rank in range(min(top_k, len(predictions.labels[name]))):
        labels, probabilities = zip(*(row[rank] if row else (None, None) for row in top), strict=True)
        yield pa.array(labels, pa.string()), pa.array(probabilities, pa.float32())


def _ranked(name: str, rank: int) -> str:
    return name if rank == 0 else f"{name}_{rank + 1}"


def _join(parts: Path, out: Path, decided: Sequence[str], *, bom: bool) -> tuple[Counter[str], dict[str, int]]:
    """Write the parts as one file; return the rows of each status, and the accepted values of each `decided` name."""
    statuses, accepted, kind = Counter[str](), Counter[str](), out.suffix.lower()
    files = sorted(parts.glob("*-*.parquet"))

    def plain(table: pa.Table) -> pa.Table:
        table = _flat(table) if kind in (".csv", ".xlsx") else table
        return _without_formulas(table) if bom and kind == ".csv" else table

    schema = plain(pq.read_schema(files[0]).empty_table()).schema
    with replacing(out) as new, new.open("wb") as file, _appending(file, kind, schema, bom=bom) as append:
        for table in map(pq.read_table, files):
            statuses.update(table["status"].to_pylist())
            accepted.update({name: table[f"{name}_decision"].to_pylist().count("auto") for name in decided})
            append(plain(table))
    return statuses, dict(accepted)


@contextmanager
def _appending(file: IO[bytes], kind: str, schema: pa.Schema, *, bom: bool) -> Iterator[Callable[[pa.Table], object]]:
    """Yield what appends a table to a file of a kind in `FORMATS`."""
    if kind == ".jsonl":
        yield lambda table: file.writelines(
            f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in table.to_pylist()
        )
    elif kind == ".xlsx":
        import openpyxl  # an extra

        def cell(value: Any) -> Any:
            if isinstance(value, str):
                value = openpyxl.cell.WriteOnlyCell(sheet, _NOT_IN_EXCEL.sub("", value))
                value.data_type = "s"  # "=1+1" is a text
            return value

        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()
        sheet.append([*map(cell, schema.names)])
        yield lambda table: [sheet.append([*map(cell, row.values())]) for row in table.to_pylist()]
        book.save(file)
    elif kind == ".csv":
        file.write(BOM_UTF8 * bom)
        with pa.csv.CSVWriter(file, schema, write_options=pa.csv.WriteOptions(quoting_style="needed")) as writer:
            yield writer.write_table
    else:
        with pq.ParquetWriter(file, schema) as writer:
            yield writer.write_table


def _without_formulas(table: pa.Table) -> pa.Table:
    mark = partial(pc.replace_substring_regex, pattern=r"^[=+\-@\t\r\n]", replacement=r"'\0")
    columns = [mark(column) if pa.types.is_string(column.type) else column for column in table.columns]
    return pa.table(columns, mark(pa.array(table.column_names)).to_pylist())


def _flat(table: pa.Table) -> pa.Table:
    """Return a table for CSV or Excel: label lists as `read_catalog` reads them, probabilities joined likewise."""
    for index, column in enumerate(table.schema):
        if pa.types.is_list(column.type):
            is_text = pa.types.is_string(column.type.value_type)
            join = join_labels if is_text else lambda numbers: "|".join(f"{number:.6g}" for number in numbers)
            cells = [None if item is None else join(item) for item in table.column(index).to_pylist()]
            table = table.set_column(index, column.name, pa.array(cells, pa.string()))
    return table
