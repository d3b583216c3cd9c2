"""The Wildberries tables as DataFrames, raw and with labels: what subclasses of the published `Trainer` change."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from product_classificator.catalog.wildberries import ADULT_CATEGORIES, ID, RAW, TEXTS, wildberries_files
from product_classificator.catalog.wildberries_values import labels_of, parse_characteristics


def read_raw(path: str | Path) -> pd.DataFrame:
    """Return the rows of the tables, the train table first, with raw `characteristics` and the types of the files.

    As in the published system an empty description is the title, and the reverse; rows with neither, and the columns
    brand and price, are left out.
    """
    rows = pd.concat([pd.read_parquet(file) for files in wildberries_files(path) for file in files], ignore_index=True)
    title, description = (rows[name].where(rows[name].fillna("").str.strip() != "") for name in TEXTS)
    rows = rows.assign(title=title.fillna(description), description=description.fillna(title))
    return rows.dropna(subset=list(TEXTS)).drop(columns=["brand", "price"], errors="ignore").reset_index(drop=True)


def with_labels(rows: pd.DataFrame, characteristics: Sequence[str]) -> pd.DataFrame:
    """Return one row per product, with labels for the raw characteristics; other tables as they are.

    `characteristics` may name raw ones ("Цвет"); the other labels are the published ones.
    """
    if RAW in rows:
        raw = [parse_characteristics(value) if isinstance(value, bytes | str) else {} for value in rows[RAW]]
        labels = pd.DataFrame([labels_of(values or {}, characteristics) for values in raw], index=rows.index)
        rows = rows.drop(columns=[RAW, TEXTS[0]], errors="ignore").join(labels[labels.columns.difference(rows.columns)])
        if {"category", "isadult"} <= {*rows}:
            rows["isadult"] = rows["isadult"].mask(rows["category"].isin(ADULT_CATEGORIES), other=True)
        rows = rows.groupby(ID, sort=False, as_index=False).first()
    return rows
