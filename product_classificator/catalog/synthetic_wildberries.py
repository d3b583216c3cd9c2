"""Turns the rows of a SYNTHETIC marketplace into the two tables of the Wildberries set, in the words of its sellers.

Half of the products stand in the train table (raw characteristics), half in the test table (category and so on), one
in twenty-five in both. Characteristics are by turns what NumPy prints and JSON; a few are cut and cannot be read. Of
twenty-five texts one lacks its title, one its description.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from product_classificator.catalog.wildberries import TEST_FILE, TRAIN_FILE

Row = Mapping[str, object]
"""A product as the plain layout has it: nm, title, description, brand, characteristics (`None`: unknown), source."""
Entry = Mapping[str, object]
"""One characteristic: charcName, charcValues, value."""

_IN_BOTH, _CUT, _HALF_TEXT = 0.04, 0.02, 0.04
_NAMES = {"sex": "Пол", "season": "Сезон", "age_restrictions": "Возрастные ограничения", "fragility": "Хрупкость"}
_SAID: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("sex", "Мужской"): ("Мужской", "мужской", "Men"),
    ("sex", "Женский"): ("Женский", "женский", "Women"),
    ("sex", "Унисекс"): ("Унисекс", "унисекс"),
    ("sex", "Мальчики"): ("Мальчики", "Boy"),
    ("sex", "Девочки"): ("Девочки", "Girl"),
    ("age_restrictions", "0+"): ("0+", "без ограничений", "для всех"),
    ("age_restrictions", "3+"): ("3+", "от 3 лет", "детям"),
    ("age_restrictions", "6+"): ("6+", "6-10 лет", "школьникам"),
    ("age_restrictions", "12+"): ("12+", "от 12 лет", "подросткам"),
    ("age_restrictions", "18+"): ("18+", "взрослым"),
    ("fragility", "да"): ("хрупкий", "Хрупкое", "да"),
    ("fragility", "нет"): ("не хрупкий", "нет", "прочный"),
}
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "Состав": ("хлопок 95%", "эластан 5%", "полиэстер", "натуральная кожа", "сталь", 'пластик "soft touch"'),
    "Цвет": ("синий", "чёрный", "белый", "красный", "зелёный"),
    "Страна производства": ("Россия", "Китай", "Турция", "Беларусь"),
    "Комплектация": ("товар 1 шт.", "упаковка", "инструкция", "набор O'Key"),
    "Особенности": ("ручная работа", "подарочная упаковка", "экологичный материал", "новинка"),
}
_NUMBERS = ("Вес товара с упаковкой (г)", "Высота предмета", "Ширина предмета", "Глубина предмета")


_TEXTS = (("nm", pa.int64()), ("title", pa.string()), ("description", pa.string()))
_TRAIN_COLUMNS = (*_TEXTS, ("characteristics", pa.binary()))
_TEST_COLUMNS = (
    *_TEXTS,
    ("category", pa.string()),
    ("sub_category", pa.string()),
    ("price", pa.float64()),
    ("brand", pa.string()),
    ("isadult", pa.bool_()),
)


def write_wildberries(rows: Sequence[Row], folder: Path, seed: int, notice: str) -> None:
    """Writes both tables; the same rows and seed give the same bytes."""
    order = np.random.default_rng((seed, 5)).permutation(len(rows)).tolist()
    half = len(rows) // 2
    train, test = sorted(order[: half + round(len(rows) * _IN_BOTH)]), sorted(order[half:])
    for name, columns, numbers in ((TRAIN_FILE, _TRAIN_COLUMNS, train), (TEST_FILE, _TEST_COLUMNS, test)):
        written = []
        for place, number in enumerate(numbers):
            rng = np.random.default_rng((seed, 6, number))
            row = {**rows[number], **_texts(rng), "price": round(float(rng.lognormal(7, 1)), 2)}
            row["isadult"] = row["isadult"] == "да"
            if name == TRAIN_FILE:
                row["characteristics"] = _raw(_entries(rows[number], rng), is_printed=place % 2 == 0, rng=rng)
            written.append({column: row[column] for column, _ in columns})
        table = pa.Table.from_pylist(written, schema=pa.schema(columns, metadata={"notice": notice}))
        pq.write_table(table, folder / name)


def _texts(rng: np.random.Generator) -> dict[str, object]:
    chance = rng.random()
    if chance < 2 * _HALF_TEXT:
        return {"title" if chance < _HALF_TEXT else "description": ""}
    return {}


def _entries(row: Row, rng: np.random.Generator) -> list[Entry]:
    entries: list[Entry] = []
    for characteristic, name in _NAMES.items():
        label = row[characteristic]
        if label is not None:
            said = _SAID.get((characteristic, str(label)), (str(label),))
            entries.append({"charcName": name, "charcValues": [_pick(said, rng)], "value": None})
    for name, values in _OTHERS.items():
        chosen = rng.choice(len(values), int(rng.integers(1, 4)), replace=False)
        entries.append({"charcName": name, "charcValues": [values[i] for i in chosen], "value": None})
    numbers = (rng.integers(1, 900, len(_NUMBERS)) / 2).tolist()
    entries += [{"charcName": n, "charcValues": None, "value": v} for n, v in zip(_NUMBERS, numbers, strict=True)]
    return [entries[i] for i in rng.permutation(len(entries))]


def _raw(entries: Sequence[Entry], *, is_printed: bool, rng: np.random.Generator) -> bytes:
    text = _printed(entries) if is_printed else json.dumps(entries, ensure_ascii=False)
    if rng.random() < _CUT:
        text = text[: len(text) // 2]
    return text.encode()


def _printed(entries: Sequence[Entry]) -> str:
    array = np.empty(len(entries), dtype=object)
    for i, entry in enumerate(entries):
        values = entry["charcValues"]
        array[i] = {**entry, "charcValues": None if values is None else np.array(values, dtype=object)}
    with np.printoptions(linewidth=75, threshold=1000, legacy=False):
        return str(array)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
