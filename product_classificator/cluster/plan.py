"""Cuts a table into units, and knows which of them have their part, and what the parts hold together.

A unit is a range of rows in one file. Its part is named after file, first row and the fingerprint of everything that
decides its content, so it can be written by anybody, twice, and by two at once. Nothing here holds all units or ids:
units are listed a thousand at a time, and their parts lie in folders of a thousand.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from product_classificator.catalog.cells import Table
from product_classificator.cluster.storage import CLOCK, DRIVER, Storage
from product_classificator.errors import ArtifactError, DataError, culprits

logger = logging.getLogger(__name__)

UNIT_ROWS = 4_096
PLAN, UNITS, SUCCESS, QUARANTINE = "_plan.json", "_units.parquet", "_SUCCESS.json", "quarantine"
_FORMAT, _PER_FOLDER, _SHOWN = 1, 1_000, 5


@dataclass(frozen=True)
class Unit:
    """Rows of one file of a table.

    `row_in_file` is its first row in its file, `first_row` that in the whole table, `group_row` likewise the first row
    of the row group that reading begins with.
    """

    number: int
    file: str
    file_number: int
    row_in_file: int
    group_row: int
    first_row: int
    rows: int

    @property
    def end(self) -> int:
        """The row after the last one."""
        return self.first_row + self.rows

    def __str__(self) -> str:
        return f"unit {self.number} ({self.file}, rows {self.row_in_file} to {self.row_in_file + self.rows - 1})"


_SCHEMA = pa.schema([(entry.name, pa.int64() if entry.type is int else pa.string()) for entry in fields(Unit)])


@dataclass(frozen=True)
class Plan:
    """A folder of units and their parts.

    `made_from` decides the content of parts, `fingerprint` is its digest; `recipe` are the arguments of a `Recipe`.
    """

    storage: Storage
    format: int
    fingerprint: str
    n_units: int
    n_rows: int
    made_from: Mapping[str, Any]
    recipe: Mapping[str, Any] | None = None
    unit_rows: int | None = None  # at most; unknown in older plans

    @classmethod
    def open(cls, storage: Storage) -> "Plan":
        """Open the plan of a folder; none, or another format, is an `ArtifactError`."""
        content = storage.read_json(PLAN)
        if content.get("format") != _FORMAT:
            raise ArtifactError(f"{storage} holds no plan ({PLAN}) of this version: predict into it first (--cluster)")
        return cls(storage, **content)

    def _folder(self, number: int) -> list[Unit]:
        with pq.ParquetFile(self.storage.open(UNITS)) as listing:
            return [Unit(**row) for row in listing.read_row_group(number).to_pylist()]

    def unit(self, number: int) -> Unit:
        """Return a unit; `DataError` if there is none of that number."""
        if not 0 <= number < self.n_units:
            raise DataError(f"a unit must be between 0 and {self.n_units - 1}, got {number}")
        return self._folder(number // _PER_FOLDER)[number % _PER_FOLDER]

    def parts(self) -> Iterator[tuple[Unit, Any]]:
        """Yield each unit, in the order of the table, with what the listing says of its part; `None`: it has none."""
        for number in range(-(-self.n_units // _PER_FOLDER)):
            units = self.storage.patiently(partial(self._folder, number))
            files = self.storage.patiently(partial(self.storage.list, f"parts/{number:05d}"))
            for unit in units:
                part = files.get(self.part(unit).rpartition("/")[2])
                yield unit, part if part and part.size else None

    def todo(self) -> Iterator[Unit]:
        """Yield the units without a part, in the order of the table."""
        return (unit for unit, part in self.parts() if part is None)

    def part(self, unit: Unit) -> str:
        """Return the name of a unit's part; in the order of these names they make the table."""
        name = f"{unit.file_number:06d}-{unit.row_in_file:012d}-{self.fingerprint[:12]}.parquet"
        return f"parts/{unit.number // _PER_FOLDER:05d}/{name}"

    def write(self, unit: Unit, rows: pa.Table) -> None:
        """Write the part of a unit, whole or not at all."""
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer, write_page_checksum=True)
        self.storage.write(self.part(unit), buffer.getvalue().to_pybytes())

    def read(self, unit: Unit) -> tuple[pa.Table | None, bytes]:
        """Return the rows and the bytes of a part; no rows if it is damaged: it is deleted, to be written once more."""
        data = bytes(self.storage.open(self.part(unit)).read())
        try:
            rows = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
            if len(rows) == unit.rows:
                return rows, data
            reason: object = f"{len(rows)} rows instead of {unit.rows}"
        except (OSError, pa.ArrowException) as error:
            reason = error
        part = self.part(unit)
        logger.warning("%s/%s is damaged, its products are predicted again (%s)", self.storage, part, reason)
        self.storage.delete(part)
        return None, data

    def quarantine(self, unit: Unit, message: str | None, trace: str = "") -> None:
        """Note why a unit has no part, or (`None`) that this is past."""
        name = f"{QUARANTINE}/{unit.number:08d}.json"
        if message is None:
            self.storage.delete(name)
            return
        logger.warning("%s is in quarantine: %s", unit, message)
        self.storage.write_json(name, {"unit": str(unit), "error": message, "traceback": trace.splitlines()})

    def quarantined(self) -> dict[str, str]:
        """Return why units are in quarantine, by their names."""
        entries = [self.storage.read_json(f"{QUARANTINE}/{name}") for name in sorted(self.storage.list(QUARANTINE))]
        return {entry["unit"]: entry["error"] for entry in filter(None, entries)}


def make_plan(
    storage: Storage, table: Table, facts: Mapping[str, Any], rows: int, recipe: Mapping[str, Any] | None = None
) -> Plan:
    """Return the plan of a table in a folder: a new one, or that which is there.

    `facts` decide the content of parts; a unit has `rows` at most. A folder that ends in ".parts" is ours: the plan of
    anything else in it is discarded.

    Raises:
        DataError: the table has no rows, or the folder holds another plan or other files.
    """
    own = {PLAN, UNITS, SUCCESS, DRIVER, CLOCK, QUARANTINE, "parts"}
    if foreign := sorted({*(names := storage.list())} - own):
        raise DataError(f"{storage} is needed for unfinished work, but holds other files: {culprits(foreign)}")
    fingerprint = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
    existing = storage.read_json(PLAN)
    if (existing.get("format"), existing.get("fingerprint")) == (_FORMAT, fingerprint):
        return Plan.open(storage)
    is_ours, begun = storage.path.suffix == ".parts", {*names} - {DRIVER, CLOCK, UNITS}
    if begun and not is_ours:
        raise DataError(f"{storage} holds the work of another table, run or setting: name another output, or delete it")
    if begun:
        logger.warning("%s is of another table, run or setting: starting again", storage)
        storage.clear()
    files = ((file.name, file.row_groups()) for file in table.files())
    made = write_plan(
        storage, cut(files, rows), fingerprint=fingerprint, made_from=facts, recipe=recipe, unit_rows=rows
    )
    if not made.n_rows:
        storage.clear()
        raise DataError(f"there is nothing to predict: {table.name} has no rows")
    return made


def write_plan(storage: Storage, units: Iterable[Unit], **facts: Any) -> Plan:
    """Write the listing of units, then the plan that makes it count; `facts` are other attributes of a `Plan`."""
    buffer, n_units, n_rows, units = pa.BufferOutputStream(), 0, 0, iter(units)
    with pq.ParquetWriter(buffer, _SCHEMA) as writer:
        while folder := list(islice(units, _PER_FOLDER)):
            writer.write_table(pa.table([*zip(*map(astuple, folder), strict=True)], schema=_SCHEMA))
            n_units, n_rows = n_units + len(folder), n_rows + sum(unit.rows for unit in folder)
    storage.write(UNITS, buffer.getvalue().to_pybytes())
    storage.write_json(PLAN, {"format": _FORMAT, **facts, "n_units": n_units, "n_rows": n_rows})
    return Plan.open(storage)


def cut(files: Iterable[tuple[str, Sequence[int]]], rows: int) -> Iterator[Unit]:
    """Cut files, given by name and rows of their row groups, into units: several row groups, or a piece of one."""
    number = row = 0
    for file_number, (file, groups) in enumerate(files):
        file_row = row
        for n_together in _together(groups, rows):
            start, row = row, row + n_together
            for first in range(start, row, rows):
                yield Unit(number, file, file_number, first - file_row, start, first, min(rows, row - first))
                number += 1


def _together(groups: Iterable[int], rows: int) -> Iterator[int]:
    """Yield the rows of consecutive row groups that together have at most `rows`, or of a larger one alone."""
    total = 0
    for size in groups:
        if total and total + size > rows:
            yield total
            total = 0
        total += size
    yield total


def check_complete(plan: Plan) -> None:
    """Raise `ArtifactError` if units have no part, and name the first of them with what is known."""
    n_missing, first, reasons = 0, list[str](), plan.quarantined()
    for unit in plan.todo():
        n_missing += 1
        if n_missing <= _SHOWN:
            first.append(f"{unit}: {reasons.get(str(unit), 'not done yet')}")
    if n_missing:
        rule = f"{n_missing} of {plan.n_units} units have no part in {plan.storage}"
        way_out = "the others are kept; run the same command again to try them once more"
        raise ArtifactError(f"{rule}: {'; '.join(first)}{'; ...' * (n_missing > _SHOWN)}; {way_out}")
