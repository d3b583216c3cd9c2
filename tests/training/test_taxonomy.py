import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.errors import DataError
from product_classificator.heads import HeadBundle, Refinement
from product_classificator.training import train_heads
from product_classificator.training.taxonomy import read_taxonomy
from product_classificator.types import strings
from tests.fakes import TinyEncoder
from tests.fixtures import QUICKER

TRUTH = {
    "sub": strings(["cup", "plate", "boot", "boot", None]),
    "top": strings(["dishes", "dishes", "footwear", "dishes", "footwear"]),
    "line": strings(["home", "home", "wear", "wear", "wear"]),
}
ROWS = [("cup", "dishes"), ("plate", "dishes"), ("boot", "footwear")]
SUB_TOP = Refinement("sub", "top", dict(ROWS))


def table(*rows: tuple[str | None, ...], columns: tuple[str, ...] = ("sub", "top")) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))


def test_the_columns_of_a_taxonomy_name_the_characteristics(tmp_path: Path) -> None:
    table(*ROWS, (None, "footwear")).to_csv(tmp_path / "taxonomy.csv", index=False)
    assert read_taxonomy(tmp_path / "taxonomy.csv", TRUTH) == (SUB_TOP,)


def test_a_taxonomy_of_three_levels_is_split_into_pairs() -> None:
    rows = [(sub, top, {"dishes": "home", "footwear": "wear"}[top]) for sub, top in ROWS]
    found = read_taxonomy(table(*rows, columns=("sub", "top", "line")), TRUTH)
    assert found == (SUB_TOP, Refinement("top", "line", {"dishes": "home", "footwear": "wear"}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("cup", "dishes"), ("cup", "footwear")], r"one parent: cup < dishes and footwear \(1 in all\); keep one"),
        ([("spoon", "cutlery")], r"which has no such pair: spoon < cutlery \(1 in all\); check the spelling"),
    ],
)
def test_a_taxonomy_that_breaks_a_rule_is_refused(rows: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_taxonomy(table(*rows), TRUTH)


@pytest.mark.parametrize("columns", [("child", "parent"), ("sub", "parent")])
def test_a_taxonomy_without_its_columns_says_what_it_needs(columns: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=rf"\(sub, top, line\), the finest first: DataFrame has {', '.join(columns)}"):
        read_taxonomy(table(("cup", "dishes"), columns=columns), TRUTH)


def test_mismatches_between_taxonomy_and_products_are_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_taxonomy(table(("cup", "dishes"), ("boot", "footwear"), ("spoon", "dishes")), TRUTH)
    assert [record.getMessage() for record in caplog.records] == [
        "rows of the taxonomy without products: spoon < dishes (1 in all)",
        "labels of sub without a parent in the taxonomy: plate (1 in all)",
        "1 products contradict the taxonomy in top: boot < dishes (footwear in the taxonomy): 1 (1 in all)",
    ]


def test_a_training_takes_the_taxonomy_and_its_report_names_it(tmp_path: Path) -> None:
    kinds, tops = ["cup", "hat", "sock"], ["dishes", "wear", "wear"]
    products = [(i, f"{kinds[i % 3]} {i}", kinds[i % 3], tops[i % 3]) for i in range(90)]
    catalog = read_catalog(
        pd.DataFrame(products, columns=["nm", "title", "kind", "top"]), characteristics=["kind", "top"]
    )
    taxonomy = tmp_path / "taxonomy.csv"
    rows = [("cup", "dishes"), ("hat", "wear"), ("sock", "wear")]
    table(*rows, columns=("kind", "top")).to_csv(taxonomy, index=False)
    settings = replace(QUICKER, taxonomy=str(taxonomy))
    training = train_heads(catalog, tmp_path / "run", settings, encoder=TinyEncoder())
    found = (Refinement("kind", "top", {"cup": "dishes", "hat": "wear", "sock": "wear"}),)
    assert HeadBundle.load(training.run.bundle).hierarchy == found
    assert "kind refines top" in (training.run.report / "report.md").read_text(encoding="utf-8")
