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


def test_texts_can_be_taken_and_sliced():
    texts = read_catalog(FRAME).texts()
    assert texts[1] == "\nпросто"
    assert texts[:2] == ["Чашка\nсиняя", "\nпросто"]
    assert list(texts.take([2, 0])) == ["", "Чашка\nсиняя"]


def test_photos_can_be_found_by_a_column_of_names(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"photo of 8")
    catalog = read_catalog(FRAME, tmp_path, photo="file")
    (batch,) = catalog.batches(10)
    assert batch.image_names == ["a.jpg", "b.jpg", None]
    assert catalog.image_bytes(batch.ids[1], batch.image_names[1]) == b"photo of 8"


def test_a_photos_only_catalog_has_empty_texts(tmp_path):
    catalog = read_catalog(FRAME, tmp_path, text=[])
    assert list(catalog.texts()) == ["", "", ""]


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(DataError, match="no column 'titel': did you mean 'title'"):
        read_catalog(FRAME, text="titel")


def test_a_table_without_a_known_id_column_asks_for_one():
    with pytest.raises(DataError, match="name the column of product ids: DataFrame has none of nm, id"):
        read_catalog(FRAME.rename(columns={"nm": "number"}))


def test_photo_names_without_photos_are_refused():
    with pytest.raises(DataError, match=r"photo names \('file'\) needs photos"):
        read_catalog(FRAME, photo="file")


def test_a_catalog_of_nothing_is_refused():
    with pytest.raises(DataError, match="products need a photo or a text"):
        read_catalog(FRAME[["nm", "sex"]])


def test_reading_a_photo_of_a_text_only_catalog_says_how_to_get_photos():
    with pytest.raises(DataError, match="this catalog has no photos"):
        read_catalog(FRAME).image_bytes("7", None)


def test_a_folder_that_holds_no_tables_says_which_are_expected(tmp_path):
    with pytest.raises(DataError, match=r"must hold wb_school_train.parquet and wb_school_test.parquet: .* has no wb_"):
        read_catalog(tmp_path)


def test_a_catalog_of_one_table_has_no_issues():
    assert dict(read_catalog(FRAME).issues) == {}


def test_the_first_of_several_text_columns_is_the_first_line():
    frame = pd.DataFrame({"id": ["1", "2", "3"], "a": ["red\nmug", None, "old\nhat"], "b": ["one\ntwo", "three", ""]})
    catalog = read_catalog(frame, text=["a", "b"])
    assert list(catalog.texts()) == ["red mug\none\ntwo", "\nthree", "old hat"]
    assert catalog.columns.has_title
    assert list(read_catalog(frame, text="b").texts()) == ["one\ntwo", "three", ""]
    assert not read_catalog(frame, text="b").columns.has_title
