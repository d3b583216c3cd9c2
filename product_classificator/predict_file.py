"""Predict a table into a file: one row per product, in the order of the table, resumable.

The file is joined from the parts of a plan, which lie in `<file>.parts/` until then.
"""

import hashlib
import json
import re
from codecs import BOM_UTF8
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from product_classificator.catalog.catalog import Catalog
from product_classificator.classificator import Classificator
from product_classificator.classificator.rows import OutputOptions as OutputOptions
from product_classificator.classificator.work import Work, predicting
from product_classificator.cluster.plan import SUCCESS, UNIT_ROWS, Plan, check_complete
from product_classificator.cluster.runners import LocalRunner, Runner, running
from product_classificator.cluster.storage import Storage
from product_classificator.cluster.work import OnChunk, Recipe
from product_classificator.embeddings.embed import CHUNK_PRODUCTS
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import ArtifactError, DataError, MissingExtraError
from product_classificator.files import remove_leftovers
from product_classificator.remote.paths import UrlPath, as_path, replacing
from product_classificator.text import join_labels

FORMATS = (".parquet", ".csv", ".jsonl", ".xlsx")
_MAX_EXCEL_ROWS, _READ_ROWS = 1_048_575, 16_384
_NOT_IN_EXCEL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


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


@dataclass
class Totals:
    """What parts hold: rows, those of each status, accepted values of each characteristic, and a sha256.

    The sha256 is that of all parts, one after the other: `cat parts/*/*.parquet | sha256sum`.
    """

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    sha256: Any = field(default_factory=hashlib.sha256)

    @property
    def warnings(self) -> dict[str, int]:
        """Rows of each status but "ok", the most frequent first."""
        return {status: n for status, n in self.statuses.most_common() if status != "ok"}

    def read(self, plan: Plan) -> Iterator[pa.Table]:
        """Yield the rows of all parts, checked, in the order of the table, and count them.

        Raises `ArtifactError` if one is missing or damaged.
        """
        check_complete(plan)
        for unit, _ in plan.parts():
            rows, data = plan.read(unit)
            if rows is None:
                raise ArtifactError(f"{unit} had a damaged part, which was deleted: run the same command again")
            self.rows += len(rows)
            self.sha256.update(data)
            self.statuses.update(rows["status"].to_pylist())
            for name in rows.column_names:
                if {f"{name}_decision", f"{name}_probability"} <= {*rows.column_names}:
                    self.accepted[name] += rows[f"{name}_decision"].to_pylist().count("auto")
            yield rows


def finish(plan: Plan, totals: Totals | None = None) -> Totals:
    """Check all parts, unless that has given `totals`, and write `_SUCCESS.json`, the last file of a plan."""
    if totals is None:
        deque((totals := Totals()).read(plan), 0)
    if plan.storage.is_local:
        for folder in (plan.storage.path / "parts").glob("*"):
            remove_leftovers(folder)
    counts = {"units": plan.n_units, "rows": totals.rows, "statuses": totals.statuses, "accepted": totals.accepted}
    ended = {"sha256": totals.sha256.hexdigest(), "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    plan.storage.write_json(SUCCESS, {"fingerprint": plan.fingerprint, **counts, **ended})
    return totals


_DEFAULTS = OutputOptions()


def predict_to_file(
    classificator: Classificator,
    catalog: Catalog,
    out: str | Path,
    options: OutputOptions = _DEFAULTS,
    *,
    store: EmbeddingStore | None = None,
    on_chunk: OnChunk | None = None,
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
    check_file(out := as_path(out), len(catalog))
    work = predicting(classificator, catalog, options, store)
    return predict_with(LocalRunner(on_chunk=on_chunk), work, out, rows=CHUNK_PRODUCTS)


def predict_with(
    runner: Runner,
    work: Work,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    rows: int = UNIT_ROWS,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> PredictSummary:
    """Do the work of `predicting`, into a file of `FORMATS` or into a folder of parts; units have so many `rows`.

    Errors as in `predict_to_file`; an `ArtifactError` lists the units that could not be done.
    """
    out, catalog = as_path(out), work.catalog
    check_output(catalog, out)
    storage = Storage(folder := parts_folder(out))
    with running(storage, work, runner, recipe=recipe, rows=rows, on_rows=on_rows) as (plan, resumed):
        if folder != out:
            totals = join_parts(plan, out, bom=work.options.bom)
            storage.clear()
        else:
            totals = finish(plan)
    noticed = Counter(catalog.issues)
    if resumed and not recipe:  # of what the interrupted call read, issues are not known; workers count none
        deque(catalog.table.batches([catalog.columns.id, *catalog.columns.text], _READ_ROWS), 0)
    return PredictSummary(
        totals.rows, resumed, totals.warnings | dict(noticed | Counter(catalog.issues)), dict(totals.accepted)
    )


def parts_folder(out: Path) -> Path:
    """Return the folder of the parts of an output."""
    return out.with_name(out.name + ".parts") if out.suffix.lower() in FORMATS else out


def check_output(catalog: Catalog, out: Path) -> None:
    """Raise `DataError` if predictions of a catalog cannot be written there."""
    if parts_folder(out) != out:
        check_file(out, len(catalog))
    catalog.check_output(out)
    if catalog.images and catalog.images.path == out.resolve():
        raise DataError(f"the output must not be the table or the photos themselves, got {out}")


def check_file(out: Path, n_rows: int) -> None:
    """Raise `DataError` if so many rows cannot be written to a file."""
    if out.suffix.lower() not in FORMATS:
        raise DataError(f"predictions are written as {', '.join(FORMATS)}, got {out.name}")
    if out.suffix.lower() == ".xlsx" and not find_spec("openpyxl"):
        raise MissingExtraError("writing .xlsx", "excel")
    if out.suffix.lower() == ".xlsx" and n_rows > _MAX_EXCEL_ROWS:
        raise DataError(f"Excel holds {_MAX_EXCEL_ROWS} rows, the table has {n_rows}: write .csv or .parquet")
    if out.is_dir() or not (out.parent.is_dir() or isinstance(out, UrlPath)):
        raise DataError(f"the output must be a file in an existing folder, got {out}")


def join_parts(plan: Plan, out: Path, *, bom: bool = False) -> Totals:
    """Write the parts of a plan as one file, and return what they hold."""
    totals, kind = Totals(), out.suffix.lower()

    def plain(table: pa.Table) -> pa.Table:
        table = _flat(table) if kind in (".csv", ".xlsx") else table
        return without_formulas(table) if bom and kind == ".csv" else table

    tables = map(plain, _in_groups(totals.read(plan)))
    first = next(tables)
    with replacing(out) as new, new.open("wb") as file, appending(file, kind, first.schema, bom=bom) as append:
        for table in chain([first], tables):
            append(table)
    return totals


def _in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables, since Parquet makes a group of rows of each."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _READ_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


@contextmanager
def appending(
    file: IO[bytes], kind: str, schema: pa.Schema, *, bom: bool = False
) -> Iterator[Callable[[pa.Table], object]]:
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


def without_formulas(table: pa.Table) -> pa.Table:
    """Return a table whose texts no spreadsheet computes, see `OutputOptions`."""
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
