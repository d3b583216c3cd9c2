import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from product_classificator.catalog import is_wildberries, read_catalog
from product_classificator.catalog.wildberries import TEST_FILE, TRAIN_FILE
from product_classificator.catalog.wildberries_values import RAW_CHARACTERISTICS, labels_of, parse_characteristics
from product_classificator.errors import DataError

FIXTURE = Path(__file__).parents[2].parent / "shared" / "fixtures" / "wildberries_characteristics.jsonl"


def entry(name, values=None, value=None):
    return {"charcName": name, "charcValues": values, "value": value}


def printed(entries, dtype=object):
    """What the tables hold: NumPy's print of an array of dicts."""
    array = np.empty(len(entries), dtype=object)
    for i, one in enumerate(entries):
        values = one["charcValues"]
        array[i] = {**one, "charcValues": None if values is None else np.array(values, dtype=dtype)}
    return str(array)


def expected(entries):
    by_name = {}
    for one in entries:
        values = [one["value"]] if one["charcValues"] is None else one["charcValues"]
        number = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values if v is not None]
        by_name.setdefault(one["charcName"].strip(), []).extend(str(value) for value in number)
    return by_name


PRINTABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
ENTRIES = st.lists(
    st.builds(
        entry,
        PRINTABLE | st.sampled_from(["Пол", "it's", 'a "b"', "\\", "array(['x'], dtype=object)"]),
        st.none() | st.lists(PRINTABLE | st.sampled_from(["зима", "", "'", '"', "'\"", "None", "}\n {"]), max_size=4),
        st.none() | NUMBERS | PRINTABLE,
    ),
    max_size=6,
)
WRAPPERS = (
    lambda text: repr(text.encode()),
    lambda text: repr([repr(text.encode())]),
    lambda text: json.dumps([repr(text.encode())], ensure_ascii=False),
    lambda text: str([repr(text.encode()).replace('"', '\\"')]),
)


@given(ENTRIES)
def test_what_numpy_prints_is_read_back(entries):
    assert parse_characteristics(printed(entries)) == expected(entries)


@given(ENTRIES, st.booleans())
def test_json_is_read_back(entries, ensure_ascii):
    text = json.dumps(entries, ensure_ascii=ensure_ascii)
    assert parse_characteristics(text) == parse_characteristics(text.encode()) == expected(entries)


@given(ENTRIES, st.sampled_from(WRAPPERS[:3]), st.sampled_from([printed, json.dumps]))
def test_wrapped_bytes_are_read_back(entries, wrap, write):
    assert parse_characteristics(wrap(write(entries))) == expected(entries)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_escaped_quotes_are_undone_as_often_as_they_were_made(wrap):
    entries = [entry("Пол", ["Женский"]), entry("Рост", None, 164.0)]
    assert parse_characteristics(wrap(json.dumps(entries))) == {"Пол": ["Женский"], "Рост": ["164"]}


@given(st.text() | st.binary() | st.text("[]{}()'\"\\,: \nabNone1.arycVlu=", max_size=60))
def test_whatever_the_text_nothing_is_raised(raw):
    assert isinstance(parse_characteristics(raw), dict | None)


@settings(max_examples=50)
@given(ENTRIES.filter(bool), st.data())
def test_a_cut_text_is_unreadable(entries, data):
    text = printed(entries)
    assert parse_characteristics(text[: data.draw(st.integers(1, len(text) - 1))]) is None


@pytest.mark.parametrize("raw", [None, "", b"", " \n", "None", "null", "b''", "[]", b"[]"])
def test_nothing_is_not_unreadable(raw):
    assert parse_characteristics(raw) == {}


@pytest.mark.parametrize(
    "raw",
    [
        "[{'charcName': open('pwned', 'w'), 'charcValues': array(['x'])}]",
        "[{'charcName': 'Пол', 'charcValues': array([__import__('os').mkdir('pwned')], dtype=object), 'value': None}]",
        "[{'charcName': 'Пол', 'charcValues': array(['x'], dtype=print(1)), 'value': None}]",
        "[{'charcName': 'Пол', 'charcValues': array(['x'], dtype=object), 'value': 1} and 1]",
        "[{'charcName': f'{1}', 'charcValues': None}]",
        "[{'charcName': 'Пол'",
        "[" * 100_000,
        '[{"a":' * 100_000,
        "{}",
        '"text"',
        "[1]",
        '[{"charcName": 1, "charcValues": ["a"]}]',
        '[{"charcName": "Пол", "charcValues": [["a"]]}]',
        '[{"charcValues": ["a"]}]',
        '[{"charcName": "Рост", "value": ' + "9" * 5000 + "}]",
        b"\xff\xfe\xfd",
    ],
)
def test_hostile_and_damaged_characteristics_are_unreadable_and_nothing_is_executed(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_characteristics(raw) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "piece", ["'", '"', "\\'", "{'charcName': ", "{'charcName': \"", "[{'charcName': '\\'", "b'\\"]
)
def test_a_long_hostile_text_takes_no_longer_than_its_length(piece):
    began = time.monotonic()
    assert parse_characteristics("[{'charcName': 'a" + piece * (1_000_000 // len(piece))) is None
    assert time.monotonic() - began < 5


def test_unusual_prints_of_numpy_are_read():
    raw = (
        "[ {'charcName': \"it's\", 'charcValues': array(['a',\n       None, 'b'],\n      dtype=object), 'value': None}"
        "\n"
        " {'charcName': 'Рост', 'charcValues': None, 'value': np.float64(3.5)},"
        " {'charcName': 'Вес', 'charcValues': array([], dtype=float64), 'value': nan}"
        " {'charcName': 'Пол', 'charcValues': array(['Men'], dtype='<U3')}"
        " {'charcName': 'Пол', 'charcValues': [True, 2, np.float64(nan)]}]"
    )
    assert parse_characteristics(raw) == {"it's": ["a", "b"], "Рост": ["3.5"], "Вес": [], "Пол": ["Men", "True", "2"]}


def label_of(**values):
    names = {"sex": "Пол", "season": "Сезон", "age": "Возрастные ограничения", "fragility": "Хрупкость"}
    labels = labels_of({names[name]: value if isinstance(value, list) else [value] for name, value in values.items()})
    return next(iter(labels.values()), None)


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"sex": " Женский "}, "для женщин"),
        ({"sex": "BOY"}, "для мальчиков"),
        ({"sex": ["Мужской", "Женский"]}, None),
        ({"sex": "унисекс"}, None),
        ({"season": "Лето "}, "лето"),
        ({"season": ["круглогодичный", "зима"]}, "зима"),
        ({"season": ["весна\ud800", "осень"]}, "весна"),
        ({"season": []}, None),
        ({"season": " "}, None),
        ({"age": "0 +"}, None),
        ({"age": "10+"}, "для детей"),
        ({"age": ["12+", "3+"]}, "для детей"),
        ({"age": "от 6 месяцев"}, "для малышей"),
        ({"age": "2"}, "для малышей"),
        ({"age": "16 лет"}, "для подростков"),
        ({"age": "9" * 5000}, "для взрослых"),
        ({"age": "для женщин"}, "для взрослых"),
        ({"age": "подросткам"}, "для подростков"),
        ({"age": "девочкам"}, "для детей"),
        ({"age": "универсальный"}, "для всех возрастов"),
        ({"fragility": "Хрупкое"}, "хрупкий"),
        ({"fragility": "не  хрупкое"}, "не хрупкий"),
        ({"fragility": "не бросать"}, "хрупкий"),
        ({"fragility": "обычный"}, "не хрупкий"),
        ({"fragility": ["да", "хрупкий"]}, "хрупкий"),
        ({"fragility": ["да", "нет"]}, None),
    ],
)
def test_values_become_labels_by_the_published_rules(values, label):
    assert label_of(**values) == label


@pytest.mark.skipif(not FIXTURE.is_file(), reason="the fixture is outside the project")
def test_every_line_of_the_fixture_gives_what_it_expects():
    for line in FIXTURE.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        for raw in (case["raw"], case["raw"].encode()):
            values = parse_characteristics(raw)
            labels = None if values is None else {name: labels_of(values).get(name) for name in RAW_CHARACTERISTICS}
            assert labels == case["expected"], line


def raw(**labels):
    names = {"sex": "Пол", "season": "Сезон"}
    return json.dumps([entry(names[name], [label]) for name, label in labels.items()]).encode()


TRAIN = pd.DataFrame(
    {
        "nm": [1, 2, 3, 4, 5],
        "title": ["шапка", " ", None, "очки", None],
        "description": ["тёплая шапка", "кепка", "", None, None],
        "characteristics": [raw(sex="Женский", season="зима"), raw(), raw(sex="men"), b"[{'", None],
    }
)
TEST = pd.DataFrame(
    {
        "nm": [6, 3, 1, 7, 8],
        "title": ["трубка", "маска", "шапка вторая", "кубик", "мяч"],
        "description": ["курительная трубка", None, "другая шапка", "кубик", "мяч"],
        "category": ["Товары для курения", "Товары для взрослых", "Шапки", "Игрушки", None],
        "sub_category": ["Трубки", "Маски", "Шапки", "Кубики", "Кубики "],
        "price": [1.5, 2.0, 3.0, 4.0, 5.0],
        "brand": ["A", None, "B", "C", "C"],
        "isadult": [False, True, False, False, None],
    }
)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


def write(folder, train=TRAIN, test=TEST):
    train.to_parquet(folder / TRAIN_FILE)
    test.to_parquet(folder / TEST_FILE)
    return folder


def test_both_tables_make_one_row_a_product_with_the_labels_of_both(folder):
    catalog = read_catalog(folder)
    assert catalog.ids.tolist() == ["1", "2", "4", "6", "3", "7", "8"]
    assert len(catalog) == 7
    assert list(catalog.texts()) == ["тёплая шапка", "кепка", "очки", "курительная трубка", "маска", "кубик", "мяч"]
    assert {name: labels.tolist() for name, labels in catalog.truth().items()} == {
        "category": ["Шапки", None, None, "Товары для курения", "Товары для взрослых", "Игрушки", None],
        "sub_category": ["Шапки", None, None, "Трубки", "Маски", "Кубики", "Кубики"],
        "isadult": ["false", None, None, "true", "true", "false", None],
        "sex": ["для женщин", None, None, None, "для мужчин", None, None],
        "season": ["зима", None, None, None, None, None, None],
        "age_restrictions": [None] * 7,
        "fragility": [None] * 7,
    }


def test_what_was_set_aside_is_counted(folder, caplog):
    assert read_catalog(folder).issues == {"title_and_description_empty": 1, "characteristics_unreadable": 1}
    assert "the characteristics of 1 rows cannot be read" in caplog.text
    assert read_catalog(TRAIN).issues == {}


def test_rows_without_nm_and_repeated_ones_are_left_out_and_counted(tmp_path):
    train = pd.DataFrame({"nm": [1, None, 1], "title": list("abc"), "description": None, "characteristics": None})
    catalog = read_catalog(write(tmp_path, train.astype({"nm": "Int64"}), TEST.iloc[:1]), text="title")
    assert list(catalog.texts()) == ["a", "трубка"]
    assert catalog.issues == {"nm_missing": 1, "nm_repeated": 1}


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("first_row", [0, 2, 5])
def test_batches_begin_where_asked_and_keep_the_order(folder, size, first_row):
    batches = list(read_catalog(folder, text="title").batches(size, first_row))
    assert all(0 < len(batch) <= size for batch in batches)
    assert [batch.first_row for batch in batches] == (
        first_row + np.cumsum([0, *(len(batch) for batch in batches[:-1])])
    ).tolist()
    titles = [text for batch in batches for text in batch.texts]
    assert titles == ["шапка", "кепка", "очки", "трубка", "маска", "кубик", "мяч"][first_row:]


def test_read_catalog_recognises_the_folder(folder):
    assert is_wildberries(folder)
    catalog = read_catalog(folder, id="nm")
    assert catalog.columns.text == ("description",)
    assert catalog.table.columns[:3] == ["nm", "title", "description"]


def test_text_and_characteristics_are_those_asked_for(folder):
    catalog = read_catalog(str(folder), text=["brand", "title"], characteristics="price")
    assert list(catalog.texts())[:2] == ["B\nшапка", "\nкепка"]
    assert catalog.truth()["price"].tolist()[3:5] == ["1.5", "2"]
    assert catalog.issues == {"title_and_description_empty": 1}


def test_only_the_columns_that_are_asked_for_must_be_there(tmp_path):
    write(tmp_path, TRAIN.drop(columns="characteristics"), TEST[["nm", "title", "description", "category"]])
    assert read_catalog(tmp_path, characteristics="category").truth()["category"][0] == "Шапки"
    with pytest.raises(
        DataError, match=r"wb_school_train.parquet must have .* characteristics \(for sex\).* export it"
    ):
        read_catalog(tmp_path, characteristics=["sex"])
    with pytest.raises(
        DataError, match=r"wb_school_test.parquet must have .* there is no 'sub_category'; export it, or"
    ):
        read_catalog(tmp_path, characteristics=["sub_category"])


def test_one_table_alone_is_read_and_the_other_named_where_it_is_needed(tmp_path):
    TRAIN.to_parquet(tmp_path / TRAIN_FILE)
    for path in (tmp_path, tmp_path / TRAIN_FILE, tmp_path / "*train*"):
        assert is_wildberries(path)
        truth = read_catalog(path).truth()
        assert list(truth) == list(RAW_CHARACTERISTICS)
        assert truth["sex"].tolist() == ["для женщин", None, None]
    with pytest.raises(DataError, match=r"has no wb_school_test.parquet, which holds category: add it, or leave them"):
        read_catalog(tmp_path, characteristics="category")
    (tmp_path / TRAIN_FILE).unlink()
    TEST.to_parquet(tmp_path / TEST_FILE)
    assert list(read_catalog(tmp_path).truth()) == ["category", "sub_category", "isadult"]
    with pytest.raises(DataError, match=r"has no wb_school_train.parquet, which holds sex"):
        read_catalog(tmp_path, characteristics=["category", "sex"])


def test_shards_are_one_table(folder, tmp_path):
    shards = tmp_path / "shards"
    (shards / "wb_school_test").mkdir(parents=True)
    for number, rows in enumerate((slice(0, 2), slice(2, 5))):
        TRAIN[rows].to_parquet(shards / f"wb_school_train-{number:05}-of-00002.parquet")
        TEST[rows].to_parquet(shards / "wb_school_test" / f"part-{number}.parquet")
    whole = read_catalog(folder).truth()
    for path in (shards, f"{shards}/wb_school_*"):
        catalog = read_catalog(path)
        assert {name: labels.tolist() for name, labels in catalog.truth().items()} == {
            name: labels.tolist() for name, labels in whole.items()
        }
        assert catalog.texts() == read_catalog(folder).texts()
    assert not is_wildberries(tmp_path / "nowhere" / "**x")


def test_outputs_may_be_next_to_the_tables_but_not_replace_them(folder):
    out, copy = folder / "wb_school_test_predicted.parquet", folder / f"{TRAIN_FILE}.bak"
    TEST.to_parquet(out)
    copy.write_bytes((folder / TRAIN_FILE).read_bytes())
    for path in (folder, folder / "*", folder / TEST_FILE):
        catalog = read_catalog(path)
        catalog.check_output(out)
        with pytest.raises(DataError, match="must not be the table or the photos themselves"):
            catalog.check_output(folder / TEST_FILE)
        assert catalog.issues["nm_repeated"] == read_catalog(folder / TEST_FILE).issues["nm_repeated"]
    assert not is_wildberries(out)


def test_any_raw_characteristic_may_be_named(tmp_path):
    colours = [["синий", " тёмно  синий"], ["белый"], [], None, ["синий"]]
    raws = [json.dumps([entry("Цвет", values), entry("Пол", ["Женский"])]).encode() for values in colours]
    folder = write(tmp_path, TRAIN.assign(characteristics=raws, title="шапка"))
    truth = read_catalog(folder, characteristics=["Цвет", "sex", "category"]).truth()
    assert truth["Цвет"].tolist() == ["синий", "белый", None, None, "синий", None, None, None]
    assert set(truth["sex"]) == {"для женщин", None}
    several = read_catalog(folder, multi_label="Цвет", characteristics=["sex"])
    assert several.truth()["Цвет"][0] == {"синий", "тёмно синий"}
    with pytest.raises(DataError, match=r"no product of .* has a characteristic 'Цввет': name it as the table does"):
        read_catalog(folder, characteristics="Цввет")
    with pytest.raises(DataError, match=r"one label per characteristic: leave out multi_label=\['sex'\]"):
        read_catalog(folder, multi_label="sex")


def test_a_damaged_table_is_reported(folder):
    (folder / TEST_FILE).write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match=r"wb_school_test.parquet cannot be read as a table"):
        read_catalog(folder)


def test_another_id_or_a_photo_column_is_refused(folder):
    for options in ({"id": "title"}, {"photo": "brand"}):
        with pytest.raises(DataError, match="Wildberries set are found by nm: leave out id and photo"):
            read_catalog(folder, **options)


def test_neither_text_nor_photos_is_refused(folder):
    with pytest.raises(DataError, match="products need a photo or a text"):
        read_catalog(folder, text=[])


def test_red_and_blue_of_the_photos_are_swapped_back(folder):
    Image.new("RGB", (8, 8), (10, 20, 200)).save(folder / "1.png")
    with zipfile.ZipFile(folder / "photos.zip", "w") as photos:
        photos.write(folder / "1.png", "1.png")
    with read_catalog(folder, folder / "photos.zip").images as images:
        assert images.decode(images.read("1", is_id=True)).getpixel((0, 0)) == (200, 20, 10)


def test_empty_tables_make_an_empty_catalog(tmp_path):
    catalog = read_catalog(write(tmp_path, TRAIN.iloc[:0], TEST.iloc[:0]))
    assert len(catalog) == 0
    assert list(catalog.texts()) == []
    assert {len(labels) for labels in catalog.truth().values()} == {0}
