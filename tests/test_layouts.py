"""Catalogs laid out as in well-known data sets go through train, predict, evaluate and audit with one command each."""

import csv
import json
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from tests.command_line import QUICK_TOML, call

pytestmark = pytest.mark.slow

N = 150
TYPES = ("Shirts", "Watches", "Casual Shoes")
COLOURS = {"Navy Blue": (20, 30, 90), "Red": (200, 30, 40), "Olive": (110, 120, 40)}
BRANDS = ("Lotta", "Brackwater", "Ridge", "Ohm", "Sella")


def kind(i):
    return TYPES[i % 3]


def colour(i):
    return list(COLOURS)[i // 3 % 3]


def title(i):
    line = ("Classic", "Sport", "Lite")[i // 7 % 3]
    return f"{BRANDS[i % 5]} {['Men', 'Women'][i // 9 % 2]} {colour(i)} {kind(i)} {line}"


def photo(i):
    """Draw the product in its colour: a shape for each kind, and noise that makes each photo its own."""
    rng = np.random.default_rng(i)
    image = Image.fromarray(rng.integers(225, 256, (12, 12, 3), dtype=np.uint8)).resize((96, 96))
    x, y = rng.integers(5, 30, 2).tolist()
    draw = ImageDraw.Draw(image)
    (draw.rectangle, draw.ellipse, draw.rounded_rectangle)[i % 3](
        [x, y, x + 40 + i % 3 * 12, y + 50], fill=COLOURS[colour(i)]
    )
    file = BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def write_photos(folder, names):
    for i, name in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(i))


def styles(folder, rows):
    """Fashion Product Images: commas in the last, unquoted column; photos `images/<id>.jpg`."""
    lines = ["id,gender,masterCategory,articleType,baseColour,season,year,usage,productDisplayName"]
    for i in rows:
        name = title(i) + (f", Pack of {i}, boxed" if i % 10 == 0 else "")
        lines.append(
            f"{10000 + i},{['Men', 'Women'][i // 9 % 2]},Apparel,{kind(i)},{colour(i)},Summer,2012,Casual,{name}"
        )
    (folder / "styles.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_photos(folder / "images", {i: f"{10000 + i}.jpg" for i in rows})
    return (
        ["styles.csv", "--images", "images"],
        [str(10000 + i) for i in rows],
        {"articleType": kind, "baseColour": colour},
    )


def articles(folder, rows):
    """H&M: ids with leading zeros, photos in folders named by their first three digits."""
    ids = [f"0{108775000 + i}" for i in rows]
    with (folder / "articles.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ["article_id", "product_code", "prod_name", "product_type_name", "colour_group_name", "detail_desc"]
        )
        for i, id_ in zip(rows, ids, strict=True):
            table.writerow(
                [id_, id_[:7], title(i), kind(i), colour(i), f"Made of cotton,\nin {colour(i)} for every day {i}."]
            )
    write_photos(folder / "images", {i: f"{id_[:3]}/{id_}.jpg" for i, id_ in zip(rows, ids, strict=True)})
    return ["articles.csv", "--images", "images"], ids, {"product_type_name": kind, "colour_group_name": colour}


def avito(folder, rows):
    """Avito: Russian advertisements; a column of photo names without extension, some empty; a zip with folders."""
    kinds = dict(zip(TYPES, ("Рубашки", "Часы", "Обувь"), strict=True))
    names = {i: f"{i:064x}" if i % 12 else "" for i in rows}
    frame = pd.DataFrame({"item_id": [f"{i:012x}" for i in rows], "region": "Самарская область", "city": "Самара"})
    frame["category_name"] = [kinds[kind(i)] for i in rows]
    frame["title"] = [kinds[kind(i)] for i in rows]
    frame["description"] = [f"Продаю, {kinds[kind(i)].lower()}\nновые, размер {i}\n" for i in rows]
    frame["price"], frame["image"] = [100.0 * i for i in rows], [names[i] for i in rows]
    frame.to_csv(folder / "train.csv", index=False)
    with ZipFile(folder / "train_jpg.zip", "w") as archive:
        for i, name in names.items():
            if name:
                archive.writestr(f"data/competition_files/train_jpg/{name}.jpg", photo(i))
    arguments = ["train.csv", "--images", "train_jpg.zip", "--photo", "image"]
    return arguments, frame.item_id.tolist(), {"category_name": lambda i: kinds[kind(i)]}


def flipkart(folder, rows):
    """Flipkart: ids in `uniq_id`, prices and lists beside the text, line breaks in quoted cells."""
    frame = pd.DataFrame({"uniq_id": [f"{i:032x}" for i in rows], "product_url": "http://example.com/p"})
    frame["product_name"] = [title(i) for i in rows]
    frame["product_category_tree"] = [f'["Clothing >> {kind(i)} >> {title(i)}"]' for i in rows]
    frame["kind"], frame["retail_price"] = [kind(i) for i in rows], [999.0 + i for i in rows]
    frame["image"] = '["http://example.com/1.jpeg", "http://example.com/2.jpeg"]'
    frame["description"] = [f'Key Features of {title(i)} "{i}",\nPrice: Rs. {i}; Made in Surat' for i in rows]
    frame["brand"] = [BRANDS[i % 5] if i % 4 else None for i in rows]
    frame.to_csv(folder / "flipkart.csv", index=False)
    write_photos(folder / "images", {i: f"{i:032x}.jpg" for i in rows})
    return (
        ["flipkart.csv", "--images", "images"],
        frame.uniq_id.tolist(),
        {"kind": kind, "brand": lambda i: BRANDS[i % 5] if i % 4 else None},
    )


@pytest.mark.parametrize("layout", [styles, articles, avito, flipkart])
def test_a_known_layout_goes_through_every_command(layout, tmp_path, monkeypatch):
    for name in ("known", "new"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "known")
    Path("quick.toml").write_text(QUICK_TOML, encoding="utf-8")
    rows = list(range(N))
    table, ids, truth = layout(tmp_path / "known", rows)
    first = next(iter(truth))
    train = ["train", *table, "--characteristics", ",".join(truth), "--out", "run", "--config", "quick.toml"]
    printed = " ".join(call(*train).split())
    assert f"{N} products" in printed
    assert "warning" not in printed.lower().replace("rows used with warnings", "") or layout in (styles, avito), printed

    call("predict", "run", *table, "--out", "predictions.parquet")
    predictions = pq.read_table("predictions.parquet")
    assert predictions[predictions.column_names[0]].to_pylist() == ids
    right = np.mean([label == truth[first](i) for label, i in zip(predictions[first].to_pylist(), rows, strict=True)])
    assert right > 0.95

    monkeypatch.chdir(tmp_path / "new")
    new, _, _ = layout(tmp_path / "new", list(range(N, N + 40)))
    call("evaluate", "../known/run", *new, "--json", "scores.json")
    scores = json.loads(Path("scores.json").read_text(encoding="utf-8"))
    assert scores["products"] == 40
    assert scores["characteristics"][first]["macro_f1"] > 0.9

    monkeypatch.chdir(tmp_path / "known")
    call("audit", "run", *table, "--out", "audit")
    findings = pq.read_table("audit/audit.parquet").to_pandas()
    wrong = findings[(findings.kind == "wrong_label") & (findings.characteristic == first)]
    assert len(wrong) < 0.05 * N, wrong
