"""Decisions out and in: parquet, CSV and JSON lines; tasks for Label Studio, and its annotations."""

import io
import json
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.sax.saxutils import quoteattr

import pyarrow as pa

from product_classificator.catalog.table import open_table
from product_classificator.errors import DataError, culprits
from product_classificator.predict_file import appending, without_formulas
from product_classificator.review.choices import Choices, as_list
from product_classificator.review.history import Decision, History
from product_classificator.review.products import Labels, Products
from product_classificator.text import join_labels, split_labels

FORMATS = ("parquet", "csv", "jsonl")
NONE_OF_THESE = "(none of these)"
MAX_TASKS = 1_000
"""Tasks hold their photos, about 15 kB each."""
_SCHEMA = pa.schema(
    {name: pa.string() for name in ("id", "characteristic", "label", "suggested", "status", "people", "decided_at")}
)
"""Status: "decided", "disagreement", "bad_photo"; several labels are joined by "|", no label is `NONE_OF_THESE`."""


def export(history: History, kind: str) -> bytes:
    """Return all decisions as a file of a kind in `FORMATS`; CSV has nothing that a spreadsheet would compute."""
    rows = []
    for answer in history.answers():
        label, status = (_cell(answer["label"]), "decided") if answer["label"] else ("", "disagreement")
        cells = answer["product"], answer["characteristic"], label, _cell(answer["suggested"]), status
        rows.append((*cells, ", ".join(answer["given"]), answer["at"]))
    bad = history.rows("SELECT product, person, MAX(at) AS at FROM live WHERE kind = 'bad_photo' GROUP BY product")
    rows += [(row["product"], "", "", "", "bad_photo", row["person"], row["at"]) for row in bad]
    rows = [(*cells, datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")) for *cells, at in rows]
    table = pa.table([*zip(*rows, strict=True)] or [()] * len(_SCHEMA), schema=_SCHEMA)
    buffer = io.BytesIO()
    with appending(buffer, f".{kind}", _SCHEMA, bom=False) as append:
        append(without_formulas(table) if kind == "csv" else table)
    return buffer.getvalue()


def _cell(label: str) -> str:
    value: Labels = json.loads(label)
    return join_labels(value) if isinstance(value, list) else NONE_OF_THESE if value is None else value


def label_studio_tasks(products: Products, rows: Sequence[int], photo: Callable[[int], bytes | None]) -> bytes:
    """Return products as tasks of Label Studio, with text, small photo and suggestions; `label_studio_config` fits."""
    tasks = []
    for row in rows[:MAX_TASKS]:
        facts = products.facts(row)
        results = [
            {"from_name": f"c_{name}", "to_name": "text", "type": "choices", "value": {"choices": as_list(label)}}
            for name in products.names
            if (label := products.predicted(name, row)) is not None
        ]
        image = "data:image/jpeg;base64," + b64encode(photo(row) or b"").decode()
        data = {"id": facts["id"], "text": facts["text"], "image": image}
        tasks.append({"data": data, "predictions": [{"result": results}]})
    return json.dumps(tasks, ensure_ascii=False, indent=1).encode()


def label_studio_config(products: Products) -> str:
    """Return the labelling configuration that belongs to the tasks."""
    parts = ['<View>\n<Image name="image" value="$image"/>\n<Text name="text" value="$text"/>']
    for name in products.names:
        kind = "multiple" if products.bundle[name].is_multi_label else "single"
        parts.append(
            f'<Header value={quoteattr(name)}/>\n<Choices name={quoteattr(f"c_{name}")} toName="text" choice="{kind}">'
        )
        parts += [f"<Choice value={quoteattr(label)}/>" for label in products.labels[name]]
        parts.append("</Choices>")
    return "\n".join([*parts, "</View>\n"])


def read_decisions(content: bytes, file_name: str, products: Products, choices: Choices) -> list[Decision]:
    """Return the decisions of a file that `export` wrote, or of annotations of Label Studio.

    Where people of a file disagree on a product, it decides nothing.

    Raises:
        DataError: the file is neither, or names products, characteristics or labels that the review does not know.
    """
    found = [*(_annotations(content, products) if file_name.endswith(".json") else _rows(content, file_name, products))]
    ids = [*dict.fromkeys(decision.product for decision in found)]
    unknown = [id_ for id_, row in zip(ids, products.rows_of(ids).tolist(), strict=True) if row < 0]
    if unknown or not found:
        what = f"it names products that the table lacks: {culprits(unknown)}" if unknown else "it holds none"
        raise DataError(f"{file_name} is read for decisions of this table: {what}")
    by_cell = defaultdict[tuple[str, str], list[Decision]](list)
    for decision in found:
        if decision.characteristic not in products.names:
            known = ", ".join(products.names)
            raise DataError(f"there is no characteristic {decision.characteristic!r}: {file_name} may name {known}")
        choices.check(decision.characteristic, decision.label)
        by_cell[decision[:2]].append(decision)
    return [same[0] for same in by_cell.values() if all(decision == same[0] for decision in same)]


def _rows(content: bytes, file_name: str, products: Products) -> Iterator[Decision]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "decisions" + Path(file_name).suffix)
        path.write_bytes(content)
        table = open_table(path)
        if missing := {"id", "characteristic", "label"} - {*table.columns}:
            raise DataError(f"decisions have the columns id, characteristic and label: {file_name} lacks {missing}")
        names = [name for name in ("id", "characteristic", "label", "status") if name in table.columns]
        for row in (row for batch in table.batches(names, 16_384) for row in batch.to_pylist()):
            if row.get("status") in ("decided", None) and row["label"]:
                id_, name, cell = (_without_mark(row[column] or "", path.suffix) for column in names[:3])
                if name in products.names and products.bundle[name].is_multi_label:
                    yield Decision(id_, name, sorted(map(str, split_labels(cell))))
                else:
                    yield Decision(id_, name, None if cell == NONE_OF_THESE else cell)


def _without_mark(cell: str, suffix: str) -> str:
    """Undo what `without_formulas` did to a cell of CSV."""
    return re.sub(r"^'(?=[=+\-@\t\r\n])", "", cell) if suffix.lower() == ".csv" else cell


def _annotations(content: bytes, products: Products) -> Iterator[Decision]:
    try:
        tasks = json.loads(content)
        for task in tasks:
            for annotation in task["annotations"]:
                for name, results in groupby(annotation["result"], key=lambda result: result["from_name"]):
                    characteristic = str(name).removeprefix("c_")
                    labels = sorted(label for result in results for label in result["value"]["choices"])
                    is_set = products.bundle[characteristic].is_multi_label
                    label: Labels = labels if is_set else labels[0] if labels else None
                    yield Decision(str(task["data"]["id"]), characteristic, label)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"annotations are what Label Studio exports as JSON of tasks from here: {error!r}") from error
