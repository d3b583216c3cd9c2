import json
import logging
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from product_classificator.catalog.table import as_strings, canonical, open_table
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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1251"])
def test_csv_is_read_with_the_delimiter_and_encoding_it_has(tmp_path, delimiter, encoding, caplog):
    frame = pd.DataFrame({"nm": ["007", "8"], "title": ["чашка\nсиняя", ""], "цвет": ["синий", None]})
    frame.to_csv(tmp_path / "t.csv", sep=delimiter, encoding=encoding, index=False)
    table = open_table(tmp_path / "t.csv")
    assert table.columns == ["nm", "title", "цвет"]
    (batch,) = table.batches(["цвет", "nm", "title"], 10)
    assert batch.to_pydict() == {"цвет": ["синий", None], "nm": ["007", "8"], "title": ["чашка\nсиняя", None]}
    assert ("cp1251" in caplog.text) == (encoding == "cp1251")


def test_csv_lines_of_the_wrong_length_are_counted_and_left_out(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("nm,title\n1,a\n2,b,c,d\n3,e\n")
    with caplog.at_level(logging.WARNING):
        (batch,) = open_table(tmp_path / "t.csv").batches(["nm"], 10)
    assert batch.to_pydict() == {"nm": ["1", "3"]}
    assert "1 rows without the header's number of columns" in caplog.text


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


def test_repeated_column_names_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    for source in (pd.DataFrame([[1, 2]], columns=["a", "a"]), tmp_path / "t.csv"):
        with pytest.raises(DataError, match=r"column names must be unique, .* repeats a \(1 in all\)"):
            open_table(source)


def test_ids_and_labels_are_alike_whatever_the_format_writes():
    values = ["18.0", "True", " false", "False ", "-3.00", "1.5", "v2.0", None]
    assert canonical(pa.array(values)).to_pylist() == ["18", "true", "false", "false", "-3", "1.5", "v2.0", None]


def test_an_unclosed_quote_is_a_warning(tmp_path, caplog):
    (tmp_path / "t.csv").write_text('nm,title\n1,"12 inch\n2,b\n3,"c"\n4,d\n')
    list(open_table(tmp_path / "t.csv").batches(["nm"], 10))
    assert "values span several lines, or a quote is not closed" in caplog.text


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


def test_a_header_with_quoted_marks_and_blank_names_is_read(tmp_path):
    (tmp_path / "t.csv").write_text('id,"title","colour; size; weight",kind,,\n1,a,b,c,,\n')
    table = open_table(tmp_path / "t.csv")
    assert table.columns == ["id", "title", "colour; size; weight", "kind", "", ""]
    (batch,) = table.batches(["id", "kind"], 10)
    assert batch.to_pydict() == {"id": ["1"], "kind": ["c"]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1251"])
def test_the_encodings_of_excel_are_read(tmp_path, encoding):
    (tmp_path / "t.csv").write_text("id\tвид\n1\tчашка\n", encoding)
    (batch,) = open_table(tmp_path / "t.csv").batches(["id", "вид"], 10)
    assert batch.to_pydict() == {"id": ["1"], "вид": ["чашка"]}


def test_huge_integers_and_half_floats_are_text():
    frame = pd.DataFrame({"nm": pd.Series([10**31], dtype=object), "x": np.array([1.5], dtype=np.float16)})
    (batch,) = open_table(frame).batches(["nm", "x"], 10)
    assert batch.to_pydict() == {"nm": [str(10**31)], "x": ["1.5"]}


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nothing\.parquet"):
        open_table(tmp_path / "nothing.parquet")


def test_an_unknown_format_is_named(tmp_path):
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(DataError, match=r"must end in one of .parquet, .*got t.xlsx"):
        open_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
def test_a_table_that_is_not_what_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be read|is empty|holds no JSON"):
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


def test_json_lines_of_windows_are_read(tmp_path):
    (tmp_path / "t.jsonl").write_bytes('{"nm": "чашка"}\n'.encode("cp1251"))
    (batch,) = open_table(tmp_path / "t.jsonl").batches(["nm"], 10)
    assert batch.to_pydict() == {"nm": ["чашка"]}
