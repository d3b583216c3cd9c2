import re
from zipfile import ZipFile

import pandas as pd
import pyarrow as pa
import pytest

from product_classificator.audit.findings import SCHEMA
from product_classificator.audit.run import SHOWN, draw_page
from product_classificator.catalog import read_catalog
from tests.fakes import jpeg, truncated_jpeg

FACTS = {"table": "shop.parquet", "products": 3, "encoder": "tiny", "created": "today"}
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def catalog(tmp_path):
    with ZipFile(tmp_path / "photos.zip", "w") as photos:
        photos.writestr("1.jpg", jpeg("red", size=(900, 1200)))
        photos.writestr("2.jpg", truncated_jpeg())
    frame = pd.DataFrame({"nm": ["1", "2", "3"], "title": [f"{EVIL} cup", "hat " * 200, "sock"], "sex": "women"})
    return read_catalog(frame, tmp_path / "photos.zip", text="title", characteristics=["sex"])


def findings_of(*findings):
    blank = dict.fromkeys(SCHEMA.names)
    rows = [{**blank, "kind": "wrong_label", "characteristic": "sex", "reason": "why", **row} for row in findings]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return table.add_column(0, "id", pa.array([str(row["row"] + 1) for row in findings], pa.string()))


def test_values_of_the_table_are_shown_and_not_executed(catalog):
    findings = findings_of({"row": 0, "characteristic": EVIL, "label": "<b>men</b>", "suggested": EVIL, "reason": EVIL})
    page = draw_page(catalog, findings, {**FACTS, "table": EVIL})
    assert "<script>alert" not in page
    assert "<b>men" not in page
    assert "&lt;b&gt;men&lt;/b&gt;" in page
    assert page.count("&lt;script&gt;alert(1)") >= 5


def test_the_page_needs_nothing_but_itself(catalog):
    page = draw_page(catalog, findings_of({"row": 0}), FACTS)
    assert "data:image/jpeg;base64," in page
    assert "http:" not in page and "https:" not in page
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert 'name="viewport"' in page


def test_photos_are_shrunk_texts_are_cut_and_a_missing_photo_leaves_a_gap(catalog):
    page = draw_page(catalog, findings_of(*({"row": row} for row in range(3))), FACTS)
    assert len(page) < 20_000
    assert page.count("no photo") == 2
    assert "hat hat…" in page


def test_of_many_findings_some_are_shown_and_the_rest_is_counted(catalog):
    page = draw_page(catalog, findings_of(*({"row": 2} for _ in range(SHOWN + 50))), FACTS)
    assert page.count("<article") == SHOWN
    assert "350 findings; the 300 worst are shown" in page


def test_a_catalog_without_photos_or_findings_has_a_page_too():
    bare = read_catalog(pd.DataFrame({"nm": ["1"], "title": ["cup"]}), text="title", characteristics=[])
    page = draw_page(bare, findings_of(), FACTS)
    assert "0 findings" in page
    assert "<article" not in page
    assert "no photo" not in draw_page(bare, findings_of({"row": 0}), FACTS)
