"""CSV as people have it: every row that a careful reader would see comes out."""

import pyarrow as pa
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.catalog.delimited import CsvTable
from product_classificator.catalog.table import open_table
from product_classificator.errors import DataError


def rows(path, data, encoding=None, size=2, **issues):
    """Return the columns and rows of a CSV file with these bytes, and check its issues."""
    path = path / "t.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    table = open_table(path, encoding=encoding)
    batches = list(table.batches(table.columns, size))
    assert dict(table.issues) == issues
    return table.columns, [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1251", "koi8-r", "cp866"]
)
def test_separator_and_encoding_are_found(tmp_path, mark, encoding):
    wanted = [("007", 'чашка "Гжель"\nсиняя', None), ("8", "шапка, зимняя; синяя", "синий")] * 9
    lines = ["nm,title,цвет", '007,"чашка ""Гжель""\nсиняя",', '8,"шапка, зимняя; синяя",синий']
    text = "\n".join([lines[0], *lines[1:] * 9]).replace(",", mark).replace(f"шапка{mark} ", "шапка, ")
    assert rows(tmp_path, text.encode(encoding)) == (["nm", "title", "цвет"], wanted)


@pytest.mark.parametrize("text", ["Größe 38, für Männer", "Robe d'été légère", "Señor Ñandú", "“5” – 6 €", "café"])
def test_western_letters_are_what_was_written(tmp_path, text, caplog):
    assert rows(tmp_path, f"id;title\n1;{text}\n".encode("cp1252"))[1] == [("1", text)]
    assert "is not UTF-8: read as cp1252; encoding (--encoding) names another" in caplog.text


def test_an_encoding_can_be_named(tmp_path):
    assert rows(tmp_path, "id,title\n1,żółty\n".encode("cp1250"), "cp1250")[1] == [("1", "żółty")]
    with pytest.raises(DataError, match="encoding must be one that Python knows, like cp1251, got 'cp12510'"):
        rows(tmp_path, "id\n1\n", "cp12510")


@pytest.mark.parametrize("at", [3, 30_000])
def test_a_wrong_byte_never_decides_the_encoding(tmp_path, at):
    lines = ["id,title", *(f"{number},Куртка зимняя" for number in range(40_000))]
    data = "\n".join(lines).encode().split(b"\n")
    data[at] = b"x,caf\xe9"
    _, found = rows(tmp_path, b"\n".join(data), size=10_000, wrong_characters=1)
    assert len(found) == 40_000
    assert found[at - 1] == ("x", "caf\ufffd")
    assert found[at] == (str(at), "Куртка зимняя")


def test_nul_bytes_are_left_out(tmp_path):
    assert rows(tmp_path, "id,title\n1,red\0 mug\n\0", nul_characters=2)[1] == [("1", "red mug")]


def test_missing_cells_are_unknown_and_surplus_ones_belong_to_the_last_text(tmp_path):
    text = "id,kind,title\n1,Mug\n2\n3,Hat,red, warm, new\n4,Hat,a,\n5,Hat,b\n"
    wanted = [
        ("1", "Mug", None),
        ("2", None, None),
        ("3", "Hat", "red, warm, new"),
        ("4", "Hat", "a"),
        ("5", "Hat", "b"),
    ]
    issues = {"rows_with_missing_cells": 2, "rows_with_surplus_cells": 1}
    assert rows(tmp_path, text, **issues) == (["id", "kind", "title"], wanted)


def test_surplus_text_never_becomes_a_label(tmp_path):
    text = "id,title,kind\n1,red wool hat,Hat\n2,blue mug, big,Mug\n3,red cap,Hat\n"
    found = rows(tmp_path, text, rows_with_surplus_cells=1)[1]
    assert found[1] == ("2", "blue mug, big", "Mug")


@pytest.mark.parametrize("header", ["id,title", "id,title,"])
def test_a_separator_at_the_end_of_every_line_is_nothing(tmp_path, header):
    columns, found = rows(tmp_path, header + "\n1,a,\n2,b,\n")
    assert columns[:2] == ["id", "title"]
    assert [row[:2] for row in found] == [("1", "a"), ("2", "b")]


def test_a_header_with_quoted_marks_and_blank_names_is_read(tmp_path):
    columns, found = rows(tmp_path, 'id,"title","colour; size; weight",,\n1,a,b,c,\n2,d\n', rows_with_missing_cells=1)
    assert columns == ["id", "title", "colour; size; weight", "", ".1"]
    assert found == [("1", "a", "b", "c", None), ("2", "d", None, None, None)]


@pytest.mark.parametrize(
    "above",
    ["sep=;\n", '"sep=;"\n', "\n\n", "\ufeff", "Products of 2026\n\n", "Export;;\nshop;;\n", "\ufeffsep=;\r\n\r\n"],
)
def test_what_stands_above_the_header_is_skipped(tmp_path, above):
    text = above + ' id;\u00a0title ;"kind"\n1;red, blue;x\n\n2;b;y\n \n'
    assert rows(tmp_path, text) == (["id", "title", "kind"], [("1", "red, blue", "x"), ("2", "b", "y")])


def test_a_title_above_a_header_of_few_rows_is_skipped(tmp_path):
    assert rows(tmp_path, "Export of the shop\n\nid,kind,colour\n1,Mug, red,\n") == (
        ["id", "kind", "colour"],
        [("1", "Mug", " red")],
    )
    assert rows(tmp_path, "review\nwarm\nsoft\n") == (["review"], [("warm",), ("soft",)])


def test_a_column_without_a_name_and_a_single_column_are_read(tmp_path):
    assert rows(tmp_path, ",title\n0,red mug\n") == (["", "title"], [("0", "red mug")])
    assert rows(tmp_path, "title\nred, mug\nblue, mug\n", rows_with_surplus_cells=2)[1] == [
        ("red, mug",),
        ("blue, mug",),
    ]


def test_a_quote_that_is_never_closed_swallows_nothing(tmp_path):
    text = 'id|title|kind\n1|"|a\n2|"12 inch|b\n3|plain|c\n4|"proper ""one"""|d\n5|"|e\n6|say "hi"|f\n7|"Acme" tv|g\n'
    wanted = [
        ("1", '"', "a"), ("2", '"12 inch', "b"), ("3", "plain", "c"), ("4", 'proper "one"', "d"), ("5", '"', "e"),
        ("6", 'say "hi"', "f"), ("7", '"Acme" tv', "g"),
    ]  # fmt: skip
    assert rows(tmp_path, text, rows_with_stray_quotes=4)[1] == wanted


@pytest.mark.parametrize(
    ("last", "wanted"),
    [
        ('400;";new";c\n', ("400", ";new", "c")),
        ('400;"\n\nnew";"\nc"\n', ("400", "\n\nnew", "\nc")),
        ('400;TV 12";c\n', ("400", 'TV 12"', "c")),
    ],
)
@pytest.mark.parametrize("between", [0, 300])
def test_a_quote_that_a_later_row_seems_to_close_swallows_no_rows(tmp_path, last, wanted, between):
    plain = [(str(number), "Cup", "b") for number in range(99, 99 + between)]
    text = 'id;title;kind\n98;"12 inch;a\n' + "".join(";".join(row) + "\n" for row in plain) + last
    assert rows(tmp_path, text, rows_with_stray_quotes=1)[1] == [("98", '"12 inch', "a"), *plain, wanted]


def test_rows_that_a_lone_quote_may_have_joined_are_counted(tmp_path):
    text = 'id;title;kind\nred;"12 inch;\ntv;";\nbig;Cup;b\n'
    assert rows(tmp_path, text, rows_that_a_quote_may_have_joined=1)[1] == [
        ("red", "12 inch;\ntv;", None),
        ("big", "Cup", "b"),
    ]
    text = 'id;title;kind;price\nred;"12 inch;a;1\ntv;"\nbig;Cup;b;2\n'
    issues = {"rows_with_stray_quotes": 2, "rows_with_missing_cells": 1}
    assert [row[0] for row in rows(tmp_path, text, **issues)[1]] == ["red", "tv", "big"]


def test_line_breaks_and_escapes_within_quotes_are_no_alarm(tmp_path, caplog):
    text = 'id,title,kind\r\n1,"a\r\n\r\nb, ""c""\n",x\r\n2,"5\\" tv, new",y\r\n3, "d, e" ,z\r\n'
    wanted = [("1", 'a\n\nb, "c"\n', "x"), ("2", '5" tv, new', "y"), ("3", "d, e", "z")]
    assert rows(tmp_path, text)[1] == wanted
    assert not caplog.text


def test_a_regular_beginning_and_an_odd_end_are_one_table(tmp_path):
    lines = ["id,title", *(f"{number},mug" for number in range(50_000)), "x", "y,a,b"]
    found = rows(tmp_path, "\n".join(lines), size=10_000, rows_with_missing_cells=1, rows_with_surplus_cells=1)[1]
    assert found[-2:] == [("x", None), ("y", "a,b")]
    assert len({id_ for id_, _ in found}) == len(found) == 50_002


def test_both_readers_agree(tmp_path):
    text = 'id,title,kind\n1,"a, ""b""",x\n2,,"y"\n3,5" tv,"  z"\n\n4,\u00a0c ,d\n5,"",Я\n,,\n'
    for encoding in ("utf-8", "utf-8-sig", "cp1251"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        tables = [CsvTable(tmp_path / "t.csv", encoding) for _ in range(2)]
        assert tables[0]._is_regular
        tables[1]._is_regular = False
        quick, careful = (pa.Table.from_batches(table.batches(["kind", "id", "title"], 2)) for table in tables)
        assert quick == careful
        assert quick["title"].to_pylist() == ['a, "b"', None, '5" tv', "\u00a0c ", None, None]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["id,title,kind", '"id","title", kind ', "id,title,kind,"])
def test_a_header_that_is_repeated_is_no_product(tmp_path, bom, end, header):
    text = end.join([bom + header, "1,mug,Mug", bom + header, header, "2,title,kind", header])
    _, found = rows(tmp_path, text, repeated_headers=3)
    assert [row[:3] for row in found] == [("1", "mug", "Mug"), ("2", "title", "kind")]


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="is empty: a CSV table needs a header"):
        rows(tmp_path, "\n \n")


def test_a_quoted_cell_may_end_with_the_separator_on_a_later_line(tmp_path):
    path = tmp_path / "k.csv"
    path.write_text('id;title;c\n1;"Mug;\nred;";x\n2;Cup;y\n', encoding="utf-8")
    catalog = read_catalog(path, characteristics="c")
    assert list(catalog.ids) == ["1", "2"]
    assert catalog.truth()["c"].tolist() == ["x", "y"]


def test_ids_that_spreadsheets_keep_as_texts_and_the_end_mark_of_dos_are_read(tmp_path):
    (tmp_path / "t.csv").write_text('id,title,kind\n="001",a,x\n"=""002""",b,y\n\x1a')
    catalog = read_catalog(tmp_path / "t.csv")
    assert list(catalog.ids) == ["001", "002"]
    assert not catalog.issues


def test_any_character_may_separate(tmp_path):
    (tmp_path / "s.csv").write_text("sep=§\nid§title§c\n1§a§x\n", encoding="utf-8")
    assert list(read_catalog(tmp_path / "s.csv", characteristics="c").ids) == ["1"]
