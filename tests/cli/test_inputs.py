"""Inputs as people have them, one command each."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from product_classificator.runs import Run
from tests.command_line import QUICKER_TOML, call
from tests.fakes import jpeg

TITLES = ["red hat", "blue mug", "green sock"]
PHOTOS = [jpeg(colour) for colour in ("red", "blue", "green")]
IDS = ["a", "b", "c"]


def hugging_face(folder):
    images = [{"bytes": photo, "path": f"{name}.jpg"} for name, photo in zip(IDS, PHOTOS, strict=True)]
    pq.write_table(pa.table({"id": IDS, "title": TITLES, "image": images}), folder / "train-00000-of-00001.parquet")
    return [folder / "train-00000-of-00001.parquet"]


def photos_of_ids(folder):
    (folder / "photos").mkdir()
    for name, photo in zip(IDS, PHOTOS, strict=True):
        for number in (1, 2):
            (folder / f"photos/{name}_{number}.jpg").write_bytes(photo)
    return ["--images", folder / "photos"]


def hive(folder):
    for name, title in zip(IDS, TITLES, strict=True):
        (folder / f"shop/kind={name}").mkdir(parents=True)
        pd.DataFrame({"id": [name], "title": [title]}).to_csv(folder / f"shop/kind={name}/part-0.csv.gz", index=False)
    return [folder / "shop", *photos_of_ids(folder)]


def excel(folder):
    pytest.importorskip("openpyxl")
    pd.DataFrame({"id": IDS, "title": TITLES}).to_excel(folder / "shop.xlsx", index=False)
    return [folder / "shop.xlsx", *photos_of_ids(folder)]


def json_array(folder):
    urls = [[f"https://cdn.example/x/{name}_{number}.jpg?w=900" for number in (1, 2)] for name in IDS]
    rows = [
        {"id": name, "title": {"en": title}, "images": url} for name, title, url in zip(IDS, TITLES, urls, strict=True)
    ]
    (folder / "shop.json").write_text(json.dumps(rows))
    return [folder / "shop.json", *photos_of_ids(folder), "--photo", "images", "--text", "title.en"]


@pytest.mark.parametrize("make", [hugging_face, hive, excel, json_array])
def test_products_of_any_input_are_embedded_with_their_photos(tmp_path, make, caplog):
    printed = call("embed", *make(tmp_path), "--out", tmp_path / "store")
    assert "3 products encoded now" in printed
    assert "rows with warnings" not in printed
    stored = pq.read_table(tmp_path / "store/parts", columns=["status", "has_image"])
    assert stored.to_pydict() == {"status": ["ok"] * 3, "has_image": [True] * 3}
    assert caplog.messages == []


@pytest.mark.slow
def test_levels_of_a_path_refine_one_another_and_are_evaluated(tmp_path):
    goods = {"hat": "Clothing > Head > Hats", "mug": "Kitchen > Cups > Mugs", "bowl": "Kitchen > Plates > Bowls"}
    rows = [(f"{name}{i}", f"{name} of model {i * 7919}", path) for i in range(30) for name, path in goods.items()]
    pd.DataFrame(rows, columns=["id", "title", "category"]).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "settings.toml").write_text(QUICKER_TOML)
    options = ["--path", "category", "--path-separator", " > ", "--config", tmp_path / "settings.toml"]
    printed = call("train", tmp_path / "t.csv", *options, "--out", tmp_path / "run")
    assert "category_2 refines category_1" in printed
    columns = Run.load(tmp_path / "run").columns
    assert columns.characteristics == ("category_1", "category_2", "category_3")
    printed = call("evaluate", tmp_path / "run", tmp_path / "t.csv")
    assert "category_3" in printed
    tops = [
        (f"new{number}", f"a new {name}", path.split(" > ")[0]) for number, (name, path) in enumerate(goods.items())
    ]
    pd.DataFrame(tops, columns=["id", "title", "category"]).to_csv(tmp_path / "tops.csv", index=False)
    assert "category_1" in call("evaluate", tmp_path / "run", tmp_path / "tops.csv")
    call("predict", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "p.csv")
    assert pd.read_csv(tmp_path / "p.csv").category_3[0] == "Clothing > Head > Hats"
