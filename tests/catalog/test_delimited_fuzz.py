"""Tables by chance: every row that a careful reader would see is in the ids, or counted; nothing is raised."""

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from product_classificator.catalog import read_catalog
from product_classificator.errors import DataError

LETTERS = {
    "utf-8": "aé Жя5-日",
    "utf-8-sig": "aЖ ",
    "utf-16": "aЖ 日",
    "utf-16-le": "aЖ ",
    "cp1251": "Жяёшка ",
    "koi8-r": "Жяёшка ",
    "cp866": "Жяёшка ",
    "cp1252": "aé nü",
}
HEADERS = ["id", "title", "kind", "Цвет", " price ", "size", "", "title"]


@st.composite
def tables(draw):
    """Return (bytes of a CSV file, encoding, whether to name it, id -> cells or None if a reader must guess)."""
    encoding = draw(st.sampled_from(list(LETTERS)))
    mark = draw(st.sampled_from(",;\t|"))
    names = ["id", *draw(st.lists(st.sampled_from(HEADERS[1:]), min_size=1, max_size=5))]
    if "cp" in encoding or "koi" in encoding:  # a header of other letters would be another encoding's evidence
        names = [name.replace("Цвет", "colour") for name in names]
    plain = st.text(LETTERS[encoding], max_size=12)
    anything = st.text(LETTERS[encoding] + '",;\t|\n', max_size=12)
    end = draw(st.sampled_from(["\n", "\r\n"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    above = draw(st.sampled_from(["", "\n", "\n\n", f"sep={mark}\n", "Export of the shop\n\n"]))
    text = io.StringIO(newline="")
    text.write(above.replace("\n", end))
    writer = csv.writer(text, delimiter=mark, quoting=quoting, lineterminator=end)
    writer.writerow(names)
    wanted = {}
    # Between a stray quote and a later quoted cell only whole rows show which quote is stray.
    odd = draw(st.sampled_from([["short", "trailing", "surplus", "blank"], ["trailing", "stray", "blank"]]))
    for number in range(draw(st.integers(1, 30))):
        kind = draw(st.sampled_from(["regular"] * 6 + odd))
        cells = [f"row{number}", *(draw(anything if kind == "regular" else plain) for _ in names[1:])]
        wanted[cells[0]] = cells if kind in ("regular", "trailing") else None
        if kind == "short":
            cells = cells[: draw(st.integers(1, len(cells)))]
        if kind == "trailing":
            cells += [""] * draw(st.integers(1, 3))
        if kind == "blank":
            text.write(draw(st.sampled_from(["", " ", "\t " if mark != "\t" else " "])) + end)
        if kind in ("surplus", "stray"):  # written by hand, without quoting
            more = f"{mark} a b" if kind == "surplus" else ""
            cells[1] = draw(st.sampled_from(['"', '"12 inch', 'a "b" c', '"a" b'])) if kind == "stray" else cells[1]
            text.write(mark.join(cells) + more + end)
        else:
            writer.writerow(cells)
    data = text.getvalue().encode(encoding)
    enough = sum(map(str.isalpha, text.getvalue())) > 200  # a few letters do not show an encoding
    is_named = ("cp" in encoding or "koi" in encoding) and (not enough or draw(st.booleans()))
    return data, encoding, is_named, wanted


def check(table):
    data, encoding, is_named, wanted = table
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(data)
        catalog = read_catalog(path, id="id", text=[], images=path.parent, encoding=encoding if is_named else None)
        rows = {
            row.pop("id"): row for batch in catalog.table.batches(catalog.table.columns, 7) for row in batch.to_pylist()
        }
        issues = catalog.issues
    lost = set(wanted) - set(rows)
    assert len(lost) <= issues.get("rows_with_stray_quotes", 0) + issues.get("rows_with_surplus_cells", 0), (
        lost,
        issues,
    )
    if not lost and not issues.get("rows_with_stray_quotes"):
        for id_, cells in wanted.items():
            if cells is not None:
                read = [value or "" for value in rows[id_].values()]
                # Letters by chance are no words: a wrong guess of their encoding is a warning.
                guessed = [cell.encode(encoding).decode(catalog.table.encoding, "replace") for cell in cells]
                assert read == [cell.replace("\r\n", "\n") for cell in guessed[1 : len(read) + 1]]


OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=50, derandomize=True, **OPTIONS)
@given(tables())
def test_rows_of_any_table_come_out(table):
    check(table)


@pytest.mark.slow
@settings(max_examples=2000, derandomize=True, phases=[Phase.generate], **OPTIONS)
@given(tables())
def test_rows_of_thousands_of_tables_come_out(table):
    check(table)


@settings(max_examples=50, derandomize=True, **OPTIONS)
@given(st.binary(max_size=200) | st.text('ab",;|\t\n\r\0 ', max_size=80).map(str.encode))
def test_whatever_the_bytes_a_table_is_read_or_refused(data):
    with TemporaryDirectory() as folder:
        for name in ("t.csv", "t.jsonl"):
            (Path(folder) / name).write_bytes(data)
            try:
                catalog = read_catalog(Path(folder) / name, Path(folder), text=[], id=None)
                list(catalog.table.batches(catalog.table.columns, 3))
            except DataError:
                continue
