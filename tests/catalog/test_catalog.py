import pandas as pd
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.errors import DataError

FRAME = pd.DataFrame(
    {
        "nm": [7, 8, 9],
        "title": ["Чашка", " ", None],
        "description": ["синяя", "просто", None],
        "sex": ["Men", " none ", None],
        "category": ["Cups", "Cups ", "Hats"],
        "file": ["a.jpg", " b.jpg", None],
    }
)


def test_columns_are_guessed_and_texts_are_joined():
    catalog = read_catalog(FRAME)
    assert catalog.columns.id == "nm"
    assert catalog.columns.text == ("title", "description")
    assert catalog.columns.characteristics == ("category", "sex")
    assert list(catalog.texts()) == ["Чашка\nсиняя", "\nпросто", ""]
    assert list(catalog.ids) == ["7", "8", "9"]
    assert len(catalog) == 3


def test_blank_and_null_labels_are_unknown_and_others_are_trimmed():
    truth = read_catalog(FRAME).truth()
    assert truth["sex"].tolist() == ["Men", None, None]
    assert truth["category"].tolist() == ["Cups", "Cups", "Hats"]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("first_row", [0, 1, 2])
def test_batches_begin_where_asked_and_keep_the_order(size, first_row):
    batches = list(read_catalog(FRAME, text="title").batches(size, first_row))
    assert [id_ for batch in batches for id_ in batch.ids] == ["7", "8", "9"][first_row:]
    assert batches[0].first_row == first_row
    assert all(len(batch) <= size for batch in batches)


def test_photos_can_be_found_by_a_column_of_names(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"photo of 8")
    catalog = read_catalog(FRAME, tmp_path, photo="file")
    (batch,) = catalog.batches(10)
    assert [[image.name for image in images] for images in batch.images] == [["a.jpg"], ["b.jpg"], []]
    assert catalog.image_bytes(batch.images[1][0]) == b"photo of 8"


def test_a_photos_only_catalog_has_empty_texts(tmp_path):
    catalog = read_catalog(FRAME, tmp_path, text=[])
    assert list(catalog.texts()) == ["", "", ""]


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(DataError, match="no column 'titel': did you mean 'title'"):
        read_catalog(FRAME, text="titel")


def test_rows_are_numbered_where_there_are_no_ids_but_photos_need_them(tmp_path, caplog):
    frame = FRAME.rename(columns={"nm": "number"})
    catalog = read_catalog(frame, text="title")
    assert catalog.columns.id == "row_number"
    assert list(catalog.ids) == [id_ for batch in catalog.batches(2) for id_ in batch.ids] == ["1", "2", "3"]
    assert list(catalog.texts()) == ["Чашка", "", ""]
    assert [batch.ids for batch in catalog.batches(2, first_row=2)] == [["3"]]
    assert "has no column of product ids: its rows are numbered from 1" in caplog.text
    with pytest.raises(DataError, match="photos are found by product ids: name their column"):
        read_catalog(frame, tmp_path)


def test_photo_names_without_photos_are_refused():
    with pytest.raises(DataError, match=r"photo names \('file'\) needs photos"):
        read_catalog(FRAME, photo="file")


def test_a_catalog_of_nothing_is_refused():
    with pytest.raises(DataError, match="products need a photo or a text"):
        read_catalog(FRAME[["nm", "sex"]])


def test_reading_a_photo_of_a_text_only_catalog_says_how_to_get_photos():
    with pytest.raises(DataError, match="this catalog has no photos"):
        read_catalog(FRAME).image_bytes("7")


def test_a_folder_without_tables_is_named_and_nobody_speaks_of_wildberries(tmp_path):
    with pytest.raises(DataError, match="a folder of files: the folder has no tables"):
        read_catalog(tmp_path)


@pytest.mark.parametrize(
    ("columns", "id_", "text"),
    [
        (["Uniq Id", "Product Name", "Description", "Brand"], "Uniq Id", ("Product Name", "Description")),
        (["gender", "productDisplayName", "id"], "id", ("productDisplayName",)),
        (["article_id", "detail_desc", "prod_name"], "article_id", ("prod_name", "detail_desc")),
        (["SKU", "TITLE", "Text"], "SKU", ("TITLE", "Text")),
        (["Артикул", "Описание", "Наименование"], "Артикул", ("Наименование", "Описание")),
    ],
)
def test_ids_and_texts_are_guessed_in_any_spelling(columns, id_, text):
    catalog = read_catalog(pd.DataFrame([["a"] * len(columns)], columns=columns))
    assert (catalog.columns.id, catalog.columns.text) == (id_, text)


def test_columns_that_look_like_texts_and_have_no_role_are_named(tmp_path, caplog):
    frame = pd.DataFrame({"id": ["1", "2"], "blurb": ["a red mug of clay", "a hat for cold days"], "n": ["1", "2"]})
    read_catalog(frame, tmp_path)
    assert "columns that look like texts are not used, name them (--text): blurb" in caplog.text


def test_blanks_around_a_name_do_not_matter():
    frame = pd.DataFrame({" id": ["1"], "title\u00a0": ["a"], "\ufeffkind": ["x"]})
    catalog = read_catalog(frame, id=" id", text="title", characteristics="kind ")
    assert catalog.table.columns == ["id", "title", "kind"]
    assert catalog.truth()["kind"].tolist() == ["x"]


def test_markers_of_missing_values_are_unknown_labels_and_empty_texts():
    cells = ["NA", "N/A", "n/a", "#N/A", "nan", "None", "null", "", "-", "Namibia"]
    frame = pd.DataFrame({"id": range(10), "title": cells, "kind": cells})
    catalog = read_catalog(frame, characteristics="kind")
    assert catalog.truth()["kind"].tolist() == [None] * 8 + ["-", "Namibia"]
    assert list(catalog.texts()) == [""] * 8 + ["-", "Namibia"]
    catalog = read_catalog(frame, characteristics="kind", na_values=["-"])
    assert catalog.truth()["kind"].tolist() == [*cells[:7], None, None, "Namibia"]


def test_rounded_ids_are_a_warning_and_large_floats_are_written_in_full(caplog):
    assert list(read_catalog(pd.DataFrame({"id": ["4.6E+12", "7"], "title": "a"})).ids) == ["4.6E+12", "7"]
    assert "a spreadsheet has rounded, several products may share one: 4.6E+12 (1 in all)" in caplog.text
    catalog = read_catalog(pd.DataFrame({"id": [12345678901234567.0, 4.6e12], "title": "a"}))
    assert list(catalog.ids) == ["12345678901234568", "4600000000000"]
    assert catalog.issues == {"numbers_rounded_by_float64": 1}


def test_lists_of_texts_are_joined_and_structs_are_refused():
    frame = pd.DataFrame({"id": ["1", "2", "3"], "title": [["red", None, "dress"], [], "mug"]})
    assert list(read_catalog(frame).texts()) == ["red dress", "", "mug"]
    with pytest.raises(DataError, match="column 'title' cannot be used"):
        read_catalog(pd.DataFrame({"id": ["1"], "title": [{"en": "mug"}]})).texts()


def test_more_characteristics_than_anybody_can_check_are_refused():
    frame = pd.DataFrame([["a"] * 1002], columns=["id", *map(str, range(1001))])
    with pytest.raises(DataError, match="a catalog has at most 1000 characteristics, got 1001"):
        read_catalog(frame, text="1", characteristics=list(frame)[1:])


def test_a_catalog_of_one_table_has_no_issues():
    assert dict(read_catalog(FRAME).issues) == {}


def test_the_first_of_several_text_columns_is_the_first_line():
    frame = pd.DataFrame({"id": ["1", "2", "3"], "a": ["red\nmug", None, "old\nhat"], "b": ["one\ntwo", "three", ""]})
    catalog = read_catalog(frame, text=["a", "b"])
    assert list(catalog.texts()) == ["red mug\none\ntwo", "\nthree", "old hat"]
    assert catalog.columns.has_title
    assert list(read_catalog(frame, text="b").texts()) == ["one\ntwo", "three", ""]
    assert not read_catalog(frame, text="b").columns.has_title


def test_a_column_of_labels_is_guessed_neither_as_id_nor_as_text():
    frame = pd.DataFrame({"code": ["a", "b"], "name": ["Mug", "Cup"], "description": ["a red mug", "a blue cup"]})
    columns = read_catalog(frame, characteristics=["name", "code"]).columns
    assert columns.text == ("description",)
    assert columns.id not in ("name", "code")


def test_values_that_mean_nothing_are_compared_as_labels_are():
    frame = pd.DataFrame({"id": [0, 1], "title": ["a", "b"], "kind": ["-1.0", "x"]})
    assert read_catalog(frame, characteristics="kind", na_values=["-1.0"]).truth()["kind"].tolist() == [None, "x"]


def test_what_may_have_been_meant_otherwise_is_a_warning(caplog):
    frame = pd.DataFrame({"Код товара": [7, 8], "Название товара": ["Чашка", "Ваза"], "note": ["a b c d", "e f g h"]})
    frame["tags"], frame["kind"] = ["['a', 'b']", "['c']"], ["#Н/Д", "x"]
    catalog = read_catalog(frame, characteristics=["tags", "kind"])
    assert (catalog.columns.id, catalog.columns.text) == ("Код товара", ("Название товара",))
    assert catalog.truth()["kind"].tolist() == [None, "x"]
    assert "look like texts are not used, name them (--text): note" in caplog.text
    assert "tags: cells that look like lists are one label each" in caplog.text
