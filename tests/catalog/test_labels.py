import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.catalog.catalog import read_frame
from product_classificator.catalog.labels import PathTable
from product_classificator.catalog.split import stratify
from product_classificator.catalog.table import open_table
from product_classificator.errors import DataError
from product_classificator.text import join_labels, split_labels
from product_classificator.types import as_text, is_multi_label, strings

LISTS = [["wool", "cotton"], ["cotton", "cotton", " ", None], [], None, [None, ""], ["12.0", "True"]]
WANTED = [{"wool", "cotton"}, {"cotton"}, set(), None, None, {"12", "true"}]


def truth(source, **options):
    catalog = read_catalog(source, text="title", **{"characteristics": ["materials"], **options})
    assert catalog.columns.multi_label == ("materials",)
    labels = catalog.truth()["materials"]
    assert is_multi_label(labels)
    return [None if item is None else set(item) for item in labels]


def frame(values):
    return pd.DataFrame({"nm": range(len(values)), "title": "a", "materials": pd.Series(values, dtype=object)})


@pytest.mark.parametrize("kind", [list, tuple, np.array, frozenset, set])
def test_lists_of_a_frame_become_sets_of_labels_and_an_empty_list_is_known(kind):
    assert truth(frame([None if item is None else kind(item) for item in LISTS])) == WANTED


@pytest.mark.parametrize("of", [pa.list_, pa.large_list])
def test_lists_of_parquet_are_recognised_by_their_type(tmp_path, of):
    table = pa.table({"nm": range(6), "title": ["a"] * 6, "materials": pa.array(LISTS, of(pa.string()))})
    pq.write_table(table, tmp_path / "t.parquet")
    assert truth(tmp_path / "t.parquet") == WANTED


def test_lists_and_single_labels_may_mix_in_json_lines(tmp_path):
    rows = [{"nm": i, "title": "a", "materials": item} for i, item in enumerate([*LISTS, "silk", [1, 2.0, False]])]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert truth(tmp_path / "t.jsonl") == [*WANTED, {"silk"}, {"1", "2", "false"}]


def test_a_plain_cell_among_lists_is_one_label_and_a_warning(caplog):
    cells = [["wool"], "a|b", "", None, '["silk", "a|b"]', "nan", 3]
    wanted = [{"wool"}, {"a|b"}, None, None, {"silk", "a|b"}, None, {"3"}]
    assert truth(frame(cells)) == wanted
    assert truth(frame(cells), multi_label="materials") == wanted
    assert "materials holds lists, so it is multi-label; plain cells are one label each: a|b, 3 (2 in all)" in (
        caplog.messages
    )
    caplog.clear()
    assert truth(frame(LISTS)) == WANTED
    assert not caplog.messages


def test_lists_that_appear_far_down_are_found(tmp_path):
    rows = [{"nm": i, "title": "a", "materials": "wool"} for i in range(1001)] + [{"nm": -1, "materials": ["silk"]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert truth(tmp_path / "t.jsonl")[-2:] == [{"wool"}, {"silk"}]


def test_csv_holds_lists_as_json_or_joined_if_they_are_named(tmp_path):
    cells = ["wool|cotton", '["cotton", "a|b"]', "[]", "", "nan", " | ", "silk"]
    frame(cells).to_csv(tmp_path / "t.csv", index=False)
    named = {"characteristics": [], "multi_label": "materials"}
    wanted = [{"wool", "cotton"}, {"cotton", "a|b"}, set(), None, None, None, {"silk"}]
    assert truth(tmp_path / "t.csv", **named) == wanted
    assert truth(frame(cells), **named) == wanted


@pytest.mark.parametrize("cell", ["['a' 'b']", "['a'\n 'b']", "('a', 'b',)", "{'a', 'b'}", " ['a', \"b\"] "])
def test_lists_are_read_as_programs_print_them(cell):
    assert truth(frame([cell, "(new)", "{x}"]), characteristics=[], multi_label="materials") == [
        {"a", "b"},
        {"(new)"},
        {"{x}"},
    ]


def test_a_cell_that_only_looks_like_a_list_is_refused():
    for cell in (
        "['a', ['b']]",
        "['a' b]",
        '{"a": "b"}',
        "[a b]",
        '[["a"]]',
        '[{"a": 1}]',
        "[" * 40_000 + "]" * 40_000,
    ):
        catalog = read_catalog(frame([cell, "wool", "[b c]"]), text="title", multi_label="materials")
        with pytest.raises(DataError, match=r"a cell of the multi-label column 'materials' is a list of labels or"):
            catalog.truth()


def test_a_cell_that_is_no_list_among_others_costs_only_itself(caplog):
    assert truth(frame(["wool|silk", "silk", "[a b]"]), multi_label="materials") == [{"wool", "silk"}, {"silk"}, None]
    assert 'found [a b] (1 in all); write lists like ["a", "b"], or save the table as parquet: these are unknown' in (
        caplog.text
    )


@pytest.mark.parametrize("nested", [[["a"]], [{"a": 1}, "b"]])
def test_a_list_in_a_list_costs_only_its_row(tmp_path, nested, caplog):
    rows = [{"nm": i, "title": "a", "materials": value} for i, value in enumerate([["wool"], nested, ["silk", "wool"]])]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for source in (tmp_path / "t.jsonl", pd.DataFrame(rows)):
        assert truth(source) == [{"wool"}, None, {"silk", "wool"}]
        catalog = read_catalog(source, text="materials")
        assert catalog.texts() == ["wool", "", "silk wool"]
        assert [list(products.ids) for products in catalog.batches(1)] == [["0"], ["1"], ["2"]]
        assert catalog.issues == {"cells_left_out_for_nested_lists": 1}
    assert "1 cells left out for nested lists" in caplog.text


def test_lists_of_lists_are_refused(tmp_path):
    frame([[["a"]], [["b"]]]).to_parquet(tmp_path / "t.parquet")
    catalog = read_catalog(tmp_path / "t.parquet", text="title", characteristics="materials")
    with pytest.raises(DataError, match=r"column 'materials' cannot be used: lists must hold plain values, found list"):
        catalog.truth()


def test_lists_are_refused_as_ids():
    with pytest.raises(DataError, match="ids are plain values, but 'materials' holds lists: join them to text"):
        read_catalog(frame(LISTS), text="title", id="materials")


def test_a_table_read_into_memory_keeps_its_lists(tmp_path):
    frame(LISTS).to_parquet(tmp_path / "t.parquet")
    assert truth(read_frame(tmp_path / "t.parquet")) == WANTED


def test_a_plain_cell_among_lists_that_begins_like_one_is_read_into_memory(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"nm": 1, "materials": ["wool"]}\n{"nm": 2, "materials": "[new] silk"}\n')
    assert read_frame(tmp_path / "t.jsonl").materials.tolist() == [["wool"], "[new] silk"]


def test_a_table_without_rows_is_read_into_memory(tmp_path):
    frame(LISTS).head(0).to_csv(tmp_path / "t.csv", index=False)
    assert list(read_frame(tmp_path / "t.csv")) == ["nm", "title", "materials"]


def test_what_is_joined_can_be_split():
    for labels in (["a"], ["a", "b c"], ["a|b", "c"], ["[x]"], ["('x')"], ["{'x", "y'}"], ["[x", "y"], ['"'], []):
        assert split_labels(join_labels(labels)) == labels


def test_sets_are_written_as_one_text():
    texts = as_text(strings([frozenset("ba"), frozenset(), None]))
    assert texts.tolist() == ["a, b", "(none)", None]


def test_every_label_of_a_list_is_stratified():
    random = np.random.default_rng(0)
    sets = [
        frozenset(label for label, p in (("a", 0.5), ("b", 0.1), ("c", 0.02)) if random.random() < p)
        for _ in range(900)
    ]
    sets[::7] = [None] * len(sets[::7])
    split = stratify(np.arange(900), {"x": strings(sets)}, np.ones(900, bool), [0.8, 0.2], seed=0)
    for label in "abc":
        has_label = np.array([item is not None and label in item for item in sets])
        assert abs((split[has_label] == 1).sum() - 0.2 * has_label.sum()) <= 1


def test_lists_as_python_prints_them_are_read():
    cells = ["['wool', 'it\\'s']", "[\"a|b\", 'c, d']", "['12.0', None, nan, 3]", "['wool']", "[]"]
    wanted = [{"wool", "it's"}, {"a|b", "c, d"}, {"12", "3"}, {"wool"}, set()]
    assert truth(frame(cells), characteristics=[], multi_label="materials") == wanted


@pytest.mark.parametrize("mark", [",", ";"])
def test_other_separators_are_used_with_a_warning_where_no_cell_has_the_usual_one(mark, caplog):
    cells = [f"wool{mark} silk", "wool", f"silk{mark}cotton", None]
    wanted = [{"wool", "silk"}, {"wool"}, {"silk", "cotton"}, None]
    assert truth(frame(cells), characteristics=[], multi_label="materials") == wanted
    assert f'materials: no cell holds "|": labels are split at "{mark}"' in caplog.text
    assert truth(frame([*cells, "a|b"]), characteristics=[], multi_label="materials")[0] == {cells[0]}


def test_labels_that_look_alike_are_one_label_and_case_is_a_warning(caplog):
    cells = [
        "Summer dress",
        "Summer\u200b dress\ufeff",
        "Summer\u00a0dress",
        " Summer  dress",
        "summer dress",
        "cafe\u0301",
    ]
    catalog = read_catalog(frame(cells), text="title", characteristics="materials")
    assert catalog.truth()["materials"].tolist() == ["Summer dress"] * 4 + ["summer dress", "caf\u00e9"]
    catalog.truth()
    sentence = "(case, quotes, dashes, Cyrillic and Latin letters) are different labels: "
    assert caplog.text.count(f"materials: labels that look alike {sentence}Summer dress, summer dress (2 in all)") == 1


@pytest.mark.parametrize(
    "alike",
    [
        ['"Dresses"', "Dresses", "Dresses.", "«Dresses»."],
        ["T-shirt", "T shirt", "T\u2011shirt", "Tshirt"],
        ["XL", "\u0425L"],
        ["Чёрный", "Черный"],
        ["Home > Mugs", "Home>Mugs"],
    ],
)
def test_labels_that_look_alike_are_a_warning(alike, caplog):
    cells = [*alike, "Hats", ".", "...", "Size 5.5", "Size 5", "C#", "C", "3+", "3"]
    catalog = read_catalog(frame(cells), text="title", characteristics="materials")
    assert catalog.truth()["materials"].tolist() == cells
    assert f"are different labels: {', '.join(sorted(alike))} ({len(alike)} in all)" in caplog.text


def test_cells_with_marks_that_do_not_split_labels_are_a_warning(caplog):
    cells = ["wool, silk", "wool", "silk", "silk\ncotton"]
    assert truth(frame(cells), characteristics=[], multi_label="materials")[0] == {"wool, silk"}
    assert "cells with other marks are one label each: wool, silk, silk\ncotton (2 in all)" in caplog.text


def test_a_label_of_thousands_of_letters_is_refused():
    catalog = read_catalog(frame(["a" * 5000]), text="title", characteristics="materials")
    with pytest.raises(
        DataError, match=r"at most 1000 characters, 'materials' holds a{30}\.\.\. \(1 in all\): is it a text"
    ):
        catalog.truth()


def test_the_separator_of_labels_can_be_named():
    cells = pd.DataFrame({"nm": [1, 2], "title": ["a", "b"], "marks": ["new/sale", "1|2"]})
    catalog = read_catalog(cells, characteristics=[], multi_label="marks", label_separator="/")
    assert catalog.truth()["marks"].tolist() == [{"new", "sale"}, {"1|2"}]
    catalog = read_catalog(cells, characteristics=[], multi_label=["marks"], label_separator={"marks": "|", "x": "/"})
    assert catalog.truth()["marks"].tolist() == [{"new/sale"}, {"1", "2"}]
    assert catalog.label_separators == {"marks": "|"}


PATHS = [
    ["Clothing >> Women >> Dresses", "Clothing>>Women", "Shoes >> Women >> Boots", None],
    ["Clothing | Women | Dresses", "Clothing | Women", "Shoes | Women|Boots", ""],
    ['["Clothing >> Women >> Dresses"]', "['Clothing', 'Women']", '["Shoes", "Women", "Boots"]', "[]"],
    [["Clothing", "Women", "Dresses"], ["Clothing", "Women"], ["Shoes", "Women", "Boots"], None],
]


@pytest.mark.parametrize("paths", PATHS)
def test_levels_of_a_path_are_characteristics(paths):
    table = pd.DataFrame({"nm": range(4), "title": ["a"] * 4, "category": paths, "sex": ["w"] * 4})
    catalog = read_catalog(table, path="category")
    truth = {name: labels.tolist() for name, labels in catalog.truth().items()}
    mark = " | " if paths[0] == PATHS[1][0] else " >> "
    ways = [
        [name and name.replace(">>", mark.strip()) for name in names]
        for names in (
            ["Clothing", "Clothing", "Shoes", None],
            ["Clothing >> Women", "Clothing >> Women", "Shoes >> Women", None],
            ["Clothing >> Women >> Dresses", None, "Shoes >> Women >> Boots", None],
        )
    ]
    assert truth == {"sex": ["w"] * 4, **dict(zip(("category_1", "category_2", "category_3"), ways, strict=True))}
    assert catalog.columns.path == "category"
    assert list(catalog.texts()) == ["a"] * 4


def levels(paths, **options):
    table = pd.DataFrame({"nm": range(len(paths)), "title": ["a"] * len(paths), "kind": paths})
    return list(zip(*read_catalog(table, path="kind", **options).truth().values(), strict=True))


def test_an_empty_or_unknown_level_ends_a_path_and_entries_of_lists_are_not_cut():
    paths = ["/a/b", "a//b", "N/A", '["a/x", "b"]', '["a", null, "b"]', '["c/d"]', "a/nan", " "]
    wanted = ["a/b", "a", None, "a/x/b", "a", "c/d", "a", None]
    found = [deepest or top for top, deepest in levels(paths)]
    assert [name and name.replace(" / ", "/") for name in found] == wanted
    assert levels(["a-b - c", "a - d", "none so"], path_separator=" - ", na_values=["none so"]) == [
        ("a-b", "a-b - c"),
        ("a", "a - d"),
        (None, None),
    ]


def test_a_column_of_empty_paths_has_no_levels_but_those_of_a_run():
    frame = pd.DataFrame({"nm": [1, 2], "kind": [None, ""]})
    with pytest.raises(DataError, match="few cells of 'kind' hold '>>': name what separates them"):
        PathTable(open_table(frame), "kind", None, ())
    frame["kind"] = ["a > b", "a"]
    (batch,) = PathTable(open_table(frame.head(1)), "kind", ">", (), n_levels=3).batches(["kind_2", "kind_3"], 9)
    assert batch.to_pydict() == {"kind_2": ["a > b"], "kind_3": [None]}


def test_levels_that_few_products_reach_are_left_out_and_other_separators_are_named():
    paths = ["a~b"] * 19 + ["a~b~c"]
    table = pd.DataFrame({"nm": range(20), "title": ["a"] * 20, "kind": paths})
    catalog = read_catalog(table, path="kind", path_separator="~")
    assert catalog.columns.characteristics == ("kind_1", "kind_2")
    with pytest.raises(DataError, match="few cells of 'kind' hold '>>': name what separates them"):
        read_catalog(table, path="kind")
    with pytest.raises(DataError, match="no column 'kid': did you mean 'kind'"):
        read_catalog(table, path="kid")
