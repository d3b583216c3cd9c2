"""Cleaning of texts against NLTK, and reading of Wildberries characteristics: rows a second on one core.

    python benchmarks/cleaning.py [--texts 20000] [--rows 20000]

The rival of `clean_published` keeps the same rules as the published system did: NLTK's `word_tokenize`, then every
word is looked up in one list of punctuation, stop words and units. NLTK's sentence splitter (Punkt) runs without its
trained parameters, which cannot be had offline; it does the same work. Both clean the same texts in turns of 250.
Times are those of the processor, so that other work on the machine counts little.
"""

import argparse
import json
import re
import string
import time
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import DATA, save

from product_classificator import text as ours
from product_classificator.catalog import read_catalog
from product_classificator.catalog.wildberries import TEST_FILE, TRAIN_FILE
from product_classificator.catalog.wildberries_values import labels_of, parse_characteristics
from product_classificator.demo import draw_facts, write_text

SIZE_OR_AMOUNT = re.compile(r"\d+[хХxX]\d+|\d+[кмглршт]+|\d+ [xXхХ] \d+")
TURN = 250
FREE = ("Состав", "Комплектация", "Особенности модели", "Назначение", "Декоративные элементы", "Уход за вещами")
PICKED = ("Цвет", "Страна производства", "Рисунок", "Вид застежки", "Тип посадки", "Фактура материала", "Покрой")
NUMBERS = ("Высота предмета", "Ширина упаковки", "Длина упаковки", "Вес товара с упаковкой (г)", "Рост модели")
WORDS = "хлопок эластан полиэстер синий красный Россия Китай натуральная кожа металл пластик для дома без рисунка"
TOLD = {
    "Пол": ["Женский", "Мужской", "Детский", "Мальчики", "Девочки", "унисекс"],
    "Сезон": ["лето", "зима", "демисезон", "круглогодичный"],
    "Возрастные ограничения": ["0+", "3+", "6+", "12+", "18+", "от 3 лет", "для малышей", "без ограничений"],
    "Хрупкость": ["хрупкий", "не хрупкий", "нет", "да"],
}


def nltk_version():
    """Return the cleaning of the published system."""
    try:
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktSentenceTokenizer
    except ImportError:
        raise SystemExit("the rival needs NLTK: pip install nltk (its data is not needed)") from None
    sentences, words = PunktSentenceTokenizer(), NLTKWordTokenizer()
    stop_words = [word for word in ours._STOP_WORDS.split() if word not in ("не", "для")]
    left_out = list(string.punctuation) + stop_words + ours._UNITS.split()

    def clean(text: str) -> str:
        text = SIZE_OR_AMOUNT.sub("", text)
        tokens = [token for sentence in sentences.tokenize(text.lower()) for token in words.tokenize(sentence)]
        kept = [word for word in tokens if word not in left_out and not word.isdigit() and len(word) <= 15]
        return " ".join(kept[:100])

    return clean


def text_sets(texts: int) -> dict[str, list[str]]:
    """Return texts by their origin: real ones as far as they are there, and generated ones."""
    sets = {}
    for name, path, column in (("ozon titles", "ozon_ru", "title"), ("fashion descriptions", "fashion", "description")):
        if (DATA / path).is_dir():
            found = pq.read_table(DATA / path / "products.parquet", columns=[column])[column].drop_null().to_pylist()
            order = np.random.default_rng(0).permutation(len(found))
            sets[name] = [found[i] for i in order[: texts - sum(map(len, sets.values()))][: texts * 3 // 4]]
    rng = Random(0)  # noqa: S311
    written = ("\n".join(write_text(draw_facts(rng), "Велта", i, rng)) for i in range(texts // 4))
    return {**sets, "generated": list(written)}


def compare(texts: list[str], rival) -> dict[str, float]:
    """Cleans texts in both ways, by turns, and returns times and agreement."""
    seconds = [0.0, 0.0]
    found: tuple[list[str], list[str]] = ([], [])
    for start in range(0, len(texts), TURN):
        for i, clean in enumerate((rival, ours.clean_published)):
            began = time.process_time()
            found[i].extend([clean(text) for text in texts[start : start + TURN]])
            seconds[i] += time.process_time() - began
    words = [[Counter(text.split()) for text in cleaned] for cleaned in found]
    common = sum((a & b).total() for a, b in zip(*words, strict=True))
    return {
        "texts": len(texts),
        "mean_characters": round(sum(map(len, texts)) / len(texts), 1),
        "nltk_us_per_text": round(seconds[0] / len(texts) * 1e6, 1),
        "ours_us_per_text": round(seconds[1] / len(texts) * 1e6, 2),
        "ratio": round(seconds[0] / seconds[1], 1),
        "equal_texts": round(sum(a == b for a, b in zip(*found, strict=True)) / len(texts), 3),
        "common_words": round(common / sum((a | b).total() for a, b in zip(*words, strict=True)), 3),
        "seconds": seconds,
    }


def draw_entries(rng: np.random.Generator) -> list[dict[str, object]]:
    """Draw the 10 to 20 characteristics of one product."""
    names = [*FREE, *PICKED, *NUMBERS, *TOLD]
    entries = []
    for name in rng.permutation(names)[: rng.integers(10, 21)].tolist():
        if name in NUMBERS:
            entries.append({"charcName": name, "charcValues": None, "value": float(rng.integers(1, 900)) / 2})
            continue
        if name in TOLD:
            values = [TOLD[name][rng.integers(len(TOLD[name]))]]
        else:
            count = rng.integers(1, 4) if name in FREE else 1
            values = [" ".join(rng.choice(WORDS.split(), rng.integers(1, 4)).tolist()) for _ in range(count)]
        entries.append({"charcName": name, "charcValues": values, "value": None})
    return entries


def printed(entries: list[dict[str, object]]) -> str:
    """Return what NumPy prints for an array of the entries."""
    array = np.empty(len(entries), dtype=object)
    for i, entry in enumerate(entries):
        values = entry["charcValues"]
        array[i] = {**entry, "charcValues": None if values is None else np.array(values, dtype=object)}
    return str(array)


def raw_forms(rows: int) -> dict[str, list[bytes]]:
    """Return raw characteristics of the same products in every form."""
    rng = np.random.default_rng(0)
    products = [draw_entries(rng) for _ in range(rows)]
    numpy_form = [printed(entries).encode() for entries in products]
    json_form = [json.dumps(entries, ensure_ascii=False).encode() for entries in products]
    escaped = [json.dumps(entries).encode() for entries in products]
    return {
        "numpy": numpy_form,
        "json": json_form,
        "mix of both": [(numpy_form, json_form)[i % 2][i] for i in range(rows)],
        "json, \\u escapes": escaped,
        "json, \\u escapes, wrapped twice": [repr([repr(raw)]).encode() for raw in escaped],
    }


def measure_rows(raws: list[bytes]) -> dict[str, float]:
    """Turns raw characteristics into labels three times; the quickest pass counts."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        for raw in raws:
            labels_of(parse_characteristics(raw) or {})
        seconds.append(time.process_time() - began)
    return {
        "rows": len(raws),
        "mean_characters": round(sum(len(raw.decode()) for raw in raws) / len(raws)),
        "rows_per_s": round(len(raws) / min(seconds)),
        "rows_per_s_slowest_pass": round(len(raws) / max(seconds)),
    }


def measure_tables(raws: list[bytes]) -> dict[str, float]:
    """Open both tables with as many rows each, and reads ids, texts and labels."""
    rows = len(raws)
    texts = {"nm": range(rows), "title": ["кружка"] * rows, "description": ["кружка с рисунком " * 10] * rows}
    labels = {"category": ["Посуда"] * rows, "sub_category": ["Кружки"] * rows, "isadult": [False] * rows}
    with TemporaryDirectory() as name:
        pq.write_table(pa.table({**texts, "characteristics": raws}), Path(name) / TRAIN_FILE)
        pq.write_table(pa.table({**texts, "nm": range(rows, 2 * rows), **labels}), Path(name) / TEST_FILE)
        began = time.process_time()
        catalog = read_catalog(name)
        catalog.truth(), catalog.ids, catalog.texts()
        seconds = time.process_time() - began
    return {"rows": 2 * rows, "rows_per_s": round(2 * rows / seconds)}


def main() -> None:
    """Measure both and saves the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=20_000)
    arguments = parser.parse_args()
    rival = nltk_version()
    cleaning = {name: compare(texts, rival) for name, texts in text_sets(arguments.texts).items()}
    totals = np.sum([result.pop("seconds") for result in cleaning.values()], axis=0)
    for name, result in cleaning.items():
        print(name, result)
    ratio = round(float(totals[0] / totals[1]), 1)
    forms = raw_forms(arguments.rows)
    characteristics = {name: measure_rows(raws) for name, raws in forms.items()}
    for name, result in characteristics.items():
        print(name, result)
    tables = measure_tables(forms["mix of both"])
    print("both tables", tables)
    results = {"cleaning": cleaning, "ratio": ratio, "characteristics": characteristics, "tables": tables}
    print("NLTK's time against ours, all texts:", ratio, save("cleaning", results))


if __name__ == "__main__":
    main()
