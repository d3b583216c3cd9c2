import json
from datetime import datetime
from uuid import UUID
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from product_classificator.catalog.cells import as_strings, canonical
from product_classificator.catalog.delimited import MAX_LINE_CHARS
from product_classificator.catalog.table import open_table
from product_classificator.errors import DataError

FRAME = pd.DataFrame(
    {"nm": [1, 2, 3], "title": ["чашка", None, "a\nb, c"], "price": [1.0, 2.5, np.nan], "adult": [True, False, True]}
)
WANTED = {
    "nm": ["1", "2", "3"],
    "title": ["чашка", None, "a\nb, c"],
    "price": ["1", "2.5", None],
    "adult": ["true", "false", "true"],
}


def content(source, size=2):
    batches = list(open_table(source).batches(list(WANTED), size))
    assert all(batch.num_rows <= size for batch in batches)
    return pa.Table.from_batches(batches).to_pydict()


def test_a_frame_and_a_parquet_file_give_the_same_strings(tmp_path):
    FRAME.to_parquet(tmp_path / "t.parquet")
    assert content(FRAME) == WANTED
    assert content(tmp_path / "t.parquet") == WANTED


def test_json_lines_give_the_same_strings(tmp_path):
    FRAME.to_json(tmp_path / "t.jsonl", orient="records", lines=True, force_ascii=False)
    assert content(tmp_path / "t.jsonl") == WANTED


def test_a_column_of_mixed_objects_becomes_strings():
    frame = pd.DataFrame({"nm": pd.Series([1, "b", None, "\ud800c"], dtype=object)})
    (batch,) = open_table(frame).batches(["nm"], 10)
    assert batch.to_pydict() == {"nm": ["1", "b", None, "?c"]}


def test_dictionaries_and_bytes_are_read_as_text():
    assert as_strings(pa.array(["a", None, "a"]).dictionary_encode()).to_pylist() == ["a", None, "a"]
    assert as_strings(pa.array(["чай".encode(), b"\xff"])).to_pylist() == ["чай", "\ufffd"]


def test_a_column_of_structs_is_refused():
    frame = pd.DataFrame({"nm": [1], "tags": [{"a": "b"}]})
    with pytest.raises(DataError, match="column 'tags' cannot be used: a column must hold plain values or lists of"):
        list(open_table(frame).batches(["tags"], 10))


def test_ids_and_labels_are_alike_whatever_the_format_writes():
    values = ["18.0", "True", " false", "False ", "-3.00", "1.5", "v2.0", None]
    assert canonical(pa.array(values)).to_pylist() == ["18", "true", "false", "false", "-3", "1.5", "v2.0", None]


def test_fractions_are_written_alike_whatever_their_width(tmp_path):
    frame = pd.DataFrame({"nm": range(3), "x": np.array([0.1, 42.5, 3], np.float32)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for source in (frame, tmp_path / "t.csv", tmp_path / "t.parquet"):
        (batch,) = open_table(source).batches(["x"], 10)
        assert canonical(batch.column("x")).to_pylist() == ["0.1", "42.5", "3"]


def test_dates_and_what_only_pandas_knows_are_written_as_in_csv(tmp_path):
    frame = pd.DataFrame(
        {
            "id": [UUID(int=number) for number in range(3)],
            "band": pd.cut([1, 2, 3], 3),
            "month": pd.period_range("2020-01", periods=3, freq="M"),
            "takes": pd.to_timedelta(["1h", "2h", None]),
            "day": pd.to_datetime(["2024-01-01", "2024-01-02", None]),
            "moment": pd.to_datetime(["2024-01-01 10:00:00", "2024-01-02 11:30:01", None]),
            "sex": ["женскии\u0306", "женский", "женский"],
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    (of_frame,), (of_csv,) = (open_table(source).batches(list(frame), 10) for source in (frame, tmp_path / "t.csv"))
    for name in frame:
        assert canonical(of_frame.column(name)).to_pylist() == canonical(of_csv.column(name)).to_pylist()
    assert canonical(of_csv.column("day")).to_pylist() == ["2024-01-01", "2024-01-02", None]
    assert canonical(of_csv.column("sex")).to_pylist() == ["женский"] * 3
    frame[["day", "id"]].to_parquet(tmp_path / "t.parquet")
    (of_parquet,) = open_table(tmp_path / "t.parquet").batches(["day", "id"], 10)
    for name in ("day", "id"):
        assert canonical(of_parquet.column(name)).to_pylist() == canonical(of_csv.column(name)).to_pylist()


def test_huge_integers_and_half_floats_are_text():
    frame = pd.DataFrame({"nm": pd.Series([10**31], dtype=object), "x": np.array([1.5], dtype=np.float16)})
    (batch,) = open_table(frame).batches(["nm", "x"], 10)
    assert batch.to_pydict() == {"nm": [str(10**31)], "x": ["1.5"]}


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nothing\.parquet"):
        open_table(tmp_path / "nothing.parquet")


def test_an_unknown_format_is_named(tmp_path):
    (tmp_path / "t.ods").touch()
    with pytest.raises(DataError, match=r"must end in one of .parquet, .*.xlsx, .*got t.ods"):
        open_table(tmp_path / "t.ods")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
def test_a_table_that_is_not_what_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be read|is empty|holds no JSON"):
        open_table(tmp_path / name)


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"PAR1", "a parquet file"), (b"PK\3\4", "a workbook or a zip"), (b"\xd0\xcf\x11\xe0", "old Excel")],
)
def test_a_file_that_is_no_text_is_named(tmp_path, head, kind):
    for name in ("t.csv", "t.json", "t.txt"):
        (tmp_path / name).write_bytes(head + b"\n1,2")
        with pytest.raises(DataError, match=f"cannot be read as a table: it is .*{kind}, rename it or save it as CSV"):
            open_table(tmp_path / name)


def test_a_parquet_file_damaged_in_the_middle_is_a_clear_error(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"nm": range(5000), "title": [f"title {i * 7919}" for i in range(5000)]}).to_parquet(path)
    data = bytearray(path.read_bytes())
    data[4:20_000] = b"\xff" * (20_000 - 4)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="is damaged"):
        list(open_table(path).batches(["nm", "title"], 100))


def test_broken_lines_of_json_are_left_out_and_named(tmp_path, caplog):
    (tmp_path / "t.jsonl").write_text(json.dumps({"nm": 1}) + '\n{oops\n[1, 2]\n\n{"nm": 2}\n')
    (batch,) = open_table(tmp_path / "t.jsonl").batches(["nm"], 10)
    assert batch.to_pydict() == {"nm": ["1", "2"]}
    assert "lines that are not a JSON object were left out: 2, 3 (2 in all)" in caplog.text


def test_objects_with_a_comma_or_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "t.jsonl").write_text('[\n{"nm": 1},\n\ufeff{"nm": 2},\n', encoding="utf-8")  # an array that is cut
    table = open_table(tmp_path / "t.jsonl")
    assert [batch.to_pydict() for batch in table.batches(["nm"], 10)] == [{"nm": ["1", "2"]}]
    assert dict(table.issues) == {"lines_that_are_no_object": 1}


def test_columns_that_differ_in_case_alone_are_a_warning(tmp_path, caplog):
    (tmp_path / "t.jsonl").write_text('{"nm": 1, "kind": "a"}\n{"nm": 2, "Kind": "b"}\n')
    assert open_table(tmp_path / "t.jsonl").columns == ["nm", "kind", "Kind"]
    assert "columns whose names differ in case alone are different columns: kind, Kind" in caplog.text


def test_json_lines_of_windows_are_read(tmp_path):
    (tmp_path / "t.jsonl").write_bytes('{"nm": "чашка"}\n'.encode("cp1251"))
    (batch,) = open_table(tmp_path / "t.jsonl").batches(["nm"], 10)
    assert batch.to_pydict() == {"nm": ["чашка"]}


def test_json_columns_are_those_of_all_objects(tmp_path):
    rows = [{"nm": i, **({"late": "x"} if i > 1500 else {})} for i in range(1600)]
    for name, text in (("t.jsonl", "\n".join(map(json.dumps, rows))), ("t.json", json.dumps(rows, indent=1))):
        (tmp_path / name).write_text(text)
        table = open_table(tmp_path / name)
        assert table.columns == ["nm", "late"]
        assert sum(batch.column(1).null_count for batch in table.batches(["nm", "late"], 500)) == 1501


def test_an_array_on_one_long_line_is_read(tmp_path):
    rows = [{"nm": i, "title": "\ufffd" if i == 3 else "mug " * 2500} for i in range(1700)]
    (tmp_path / "t.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert (tmp_path / "t.json").stat().st_size > MAX_LINE_CHARS
    table = open_table(tmp_path / "t.json")
    assert sum(map(len, table.batches(["nm"], 500))) == 1700
    assert dict(table.issues) == {"wrong_characters": 1}


def test_a_damaged_array_says_where(tmp_path):
    (tmp_path / "t.json").write_text('[{"nm": 1}, {"nm"')
    with pytest.raises(DataError, match=r"an array of objects, is expected; the array is damaged: .*column 18"):
        open_table(tmp_path / "t.json")


@pytest.mark.parametrize(
    "suffix", ["csv.gz", "csv.zst", "txt", "json", "jsonl.gz", "feather", "parquet.gzip", "PARQUET"]
)
def test_tables_are_known_by_their_endings(tmp_path, suffix):
    plain = FRAME[["nm", "title"]].fillna("").astype(str)
    writers = {"csv": "to_csv", "txt": "to_csv", "json": "to_json", "jsonl": "to_json", "feather": "to_feather"}
    options = {"to_csv": {"index": False}, "to_json": {"orient": "records"}, "to_feather": {}, "to_parquet": {}}
    writer = writers.get(suffix.split(".")[0], "to_parquet")
    path = tmp_path / "t"
    getattr(plain, writer)(path, **options[writer])
    data = path.read_bytes()
    if suffix.endswith((".gz", ".zst")):
        data = pa.compress(data, "gzip" if suffix.endswith("gz") else "zstd", asbytes=True)
    (tmp_path / f"t.{suffix}").write_bytes(data)
    (batch,) = open_table(tmp_path / f"t.{suffix}").batches(["nm", "title"], 10)
    assert [cell or "" for cell in batch.column("title").to_pylist()] == plain.title.tolist()


def test_parts_in_folders_are_one_table_with_the_columns_of_all(tmp_path):
    for kind, more in (("Hat", {}), ("Mug", {"late": "x"})):
        (tmp_path / f"kind={kind}").mkdir()
        pd.DataFrame({"nm": [kind], **more}).to_parquet(tmp_path / f"kind={kind}" / "part-0.parquet")
    (tmp_path / "_SUCCESS").touch()
    for source in (tmp_path, tmp_path / "kind=*" / "*.parquet"):
        table = pa.Table.from_batches(open_table(source).batches(["nm", "kind", "late"], 10))
        assert table.to_pydict() == {"nm": ["Hat", "Mug"], "kind": ["Hat", "Mug"], "late": [None, "x"]}


def test_files_of_any_format_are_one_table(tmp_path, caplog):
    (tmp_path / "kind=Hat").mkdir()
    (tmp_path / "kind=Hat/1.csv").write_text("nm,title\n1,red hat\n2,\n")
    (tmp_path / "2.csv").write_text("title;nm;late\nblue mug;3;x\n")
    (tmp_path / "LICENSE.txt").write_text("All rights reserved")
    (tmp_path / "_hidden.csv").write_text("nm\n9\n")
    wanted = {"nm": ["3", "1", "2"], "kind": [None, "Hat", "Hat"], "late": ["x", None, None]}
    paths = [tmp_path / "2.csv", tmp_path / "kind=*" / "*.csv"]
    for source in (tmp_path, paths):
        table = pa.Table.from_batches(open_table(source).batches(list(wanted), 10))
        assert table.to_pydict() == wanted
    (tmp_path / "more.jsonl").write_text('{"nm": 4, "tags": ["a"]}\noops\n')
    table = open_table([tmp_path / "2.csv", tmp_path / "more.jsonl"])
    assert table.name == f"{paths[0]}, {tmp_path / 'more.jsonl'} (2 in all)"
    for _ in range(2):
        assert [id_ for batch in table.batches(["nm"], 1) for id_ in batch["nm"].to_pylist()] == ["3", "4"]
    assert table.holds_lists("tags")
    assert table.issues == {"lines_that_are_no_object": 1}
    assert caplog.text.count("lines that are not a JSON object") == 2  # when it is opened, and when it is read
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder has no tables .*empty"):
        open_table(tmp_path / "empty")


def test_what_is_hidden_or_written_by_this_package_is_no_part_of_a_folder(tmp_path):
    names = ["a.csv", ".ipynb_checkpoints/a.csv", "_temporary/0/a.csv", "p.csv.parts/0.csv", "run/x/a.csv", "s/a.csv"]
    for name in [*names, "run/run.json", "s/store.json"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("nm\n1\n")
    (batch,) = open_table(tmp_path).batches(["nm"], 9)
    assert len(batch) == 1
    with pytest.raises(DataError, match="a table must be a file or a pattern like"):
        open_table(tmp_path / "a**b.csv")


def test_folders_of_hive_are_columns_of_relative_patterns(tmp_path, monkeypatch):
    for name in ("kind=Hat%20red", "kind=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_text("nm\n1\n")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path, "kind=*/*.csv"):
        table = pa.Table.from_batches(open_table(source).batches(["kind"], 9))
        assert table.to_pydict() == {"kind": ["Hat red", None]}


@pytest.mark.parametrize("kind", ["gzip", "zstd", "bz2"])
def test_compressed_text_is_known_by_its_content(tmp_path, kind):
    for name in ("a.csv", "a.csv.gzip", "a.csv.bz2") if kind != "bz2" else ("a.csv.BZ2",):
        with pa.CompressedOutputStream(str(tmp_path / name), kind) as file:
            file.write(b"nm,title\n1,cup\n")
        (batch,) = open_table(tmp_path / name).batches(["nm", "title"], 9)
        assert batch.to_pydict() == {"nm": ["1"], "title": ["cup"]}
    (tmp_path / "a.csv.gz").write_text("nm,title\n1,cup\n")
    assert open_table(tmp_path / "a.csv.gz").columns == ["nm", "title"]


def test_a_workbook_with_wrong_dimensions_several_sheets_and_formulas(tmp_path, caplog):
    openpyxl = pytest.importorskip("openpyxl")
    workbook = openpyxl.Workbook()
    for row in (["id", "title", "name"], [1, "cup", "=B2"], [2, "hat", "=B3"]):
        workbook.active.append(row)
    workbook.create_sheet("more")
    workbook.save(tmp_path / "t.xlsx")
    with ZipFile(tmp_path / "t.xlsx") as old, ZipFile(tmp_path / "u.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'<dimension ref="A1:C3"', b'<dimension ref="A1"'))
    (batch,) = open_table(tmp_path / "u.xlsx").batches(["id", "title"], 9)
    assert batch.to_pydict() == {"id": ["1", "2"], "title": ["cup", "hat"]}
    assert "has 2 sheets: the first one, 'Sheet', is read" in caplog.text
    assert "formulas that no program has computed: open and save it: name" in caplog.text


class OfHuggingFace:
    """What of `datasets.Dataset` is used: rows may be a selection, which only Arrow tables of it show."""

    features = ()

    def __init__(self, table):
        self.table = table

    def with_format(self, type):  # noqa: A002
        assert type == "arrow"
        return self.table


def test_datasets_of_hugging_face_are_read_with_the_names_of_their_labels(tmp_path):
    facts = {"info": {"features": {"kind": {"names": ["hat", "mug"], "_type": "ClassLabel"}, "nm": {"_type": "Value"}}}}
    table = pa.table({"nm": [1, 2, 3], "kind": [1, 0, -1]}).replace_schema_metadata({"huggingface": json.dumps(facts)})
    (tmp_path / "saved/train").mkdir(parents=True)
    with pa.ipc.new_stream(tmp_path / "saved/train/data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "saved/train/state.json").write_text("{}")
    pq.write_table(table, tmp_path / "t.parquet")
    for source in (OfHuggingFace(table), tmp_path / "saved", tmp_path / "t.parquet"):
        (batch,) = open_table(source).batches(["nm", "kind"], 10)
        assert batch.to_pydict() == {"nm": ["1", "2", "3"], "kind": ["mug", "hat", None]}


def test_a_workbook_is_read(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    workbook = openpyxl.Workbook()
    for row in (["Price list"], [], ["id", "title", None, "day"], [1, "чашка", None, datetime(2024, 1, 31)], ["b"]):
        workbook.active.append(row)
    workbook.save(tmp_path / "t.xlsx")
    table = open_table(tmp_path / "t.xlsx")
    assert table.columns == ["id", "title", "day"]
    (batch,) = table.batches(["id", "title", "day"], 10)
    days = ["2024-01-31 00:00:00.000000", None]
    assert batch.to_pydict() == {"id": ["1", "b"], "title": ["чашка", None], "day": days}
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"t.xlsx cannot be read as a workbook \(BadZipFile.*save it again, or as CSV"):
        open_table(tmp_path / "t.xlsx")


def test_fields_of_objects_and_structs_are_columns(tmp_path):
    rows = [{"nm": 1, "title": {"en": "mug", "ru": {"short": "чашка"}}, "tags": [{"name": "a"}, {"name": "b", "n": 1}]}]
    rows.append({"nm": 2, "title": None, "tags": []})
    (tmp_path / "t.json").write_text(json.dumps(rows))
    table = open_table(tmp_path / "t.json")
    wanted = {"nm": ["1", "2"], "title.ru.short": ["чашка", None]}
    (batch,) = table.batches([*wanted, "tags.name"], 10)
    assert batch.to_pydict() == wanted | {"tags.name": ['["a", "b"]', None]}
    assert table.holds_lists("tags.name")
    table = open_table(pa.table({"nm": [1, 2], "title": [row["title"] for row in rows]}))
    assert table.columns == ["nm", "title.en", "title.ru.short"]
    (batch,) = table.batches(list(wanted), 10)
    assert batch.to_pydict() == wanted


def test_arrow_memory_is_read_and_other_things_are_named():
    class Foreign:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"nm": [1]}).__arrow_c_stream__(requested_schema)

    for source in (pa.table({"nm": [1]}), Foreign()):
        (batch,) = open_table(source).batches(["nm"], 10)
        assert batch.to_pydict() == {"nm": ["1"]}
    with pytest.raises(DataError, match="must be a file, a DataFrame or an Arrow table, got dict"):
        open_table({"nm": [1]})


def test_wrong_bytes_of_parquet_are_replaced_and_counted(tmp_path, caplog):
    cells = [b"caf\xe9", b"tea"]
    for array in (
        pa.array(cells).cast(pa.string(), safe=False),
        pa.array([cells, None]).cast(pa.list_(pa.string()), safe=False),
    ):
        pq.write_table(pa.table({"title": array}), tmp_path / "t.parquet")
        table = open_table(tmp_path / "t.parquet")
        (batch,) = table.batches(["title"], 10)
        assert "caf\ufffd" in batch.column(0).to_pylist()[0]
        assert table.issues == {"cells_with_wrong_bytes": 1}


def test_a_cell_of_millions_of_letters_is_cut(tmp_path):
    frame = pd.DataFrame({"nm": ["1", "2"], "title": ["ы" * 3_000_000, "b"]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (frame, tmp_path / "t.parquet", tmp_path / "t.csv"):
        table = open_table(source)
        (batch,) = table.batches(["title", "nm"], 10)
        assert batch.to_pydict() == {"title": ["ы" * 100_000, "b"], "nm": ["1", "2"]}
        assert table.issues == {"cells_cut": 1}


def test_the_second_of_equal_column_names_gets_a_number(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    for source in (pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"]), tmp_path / "t.csv"):
        (batch,) = open_table(source).batches(["a.1", "a"], 10)
        assert batch.to_pydict() == {"a.1": ["3"], "a": ["1"]}
    assert "repeats the column name a: the later one is named a.1" in caplog.text
