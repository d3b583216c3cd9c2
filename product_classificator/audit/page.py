"""Turns findings into one HTML file that a person looks through: photos, labels, reasons; nothing is fetched from it.

Of all findings the worst of each kind and characteristic are shown by turns, `SHOWN` in all; the parquet file has the
rest. Ids, texts and labels come from the table: the template escapes every value.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from product_classificator.audit.findings import KIND_TITLES, count_findings
from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.images import ImageError
from product_classificator.text import clean

SHOWN = 300
_THUMBNAIL_PX = 176
_TEXT_CHARACTERS = 180
_READ_ROWS = 16_384


@dataclass(frozen=True)
class _Product:
    """What a card shows of a product; `thumbnail` is a data URI, empty without a photo."""

    text: str
    thumbnail: str


def draw_page(catalog: Catalog, findings: pa.Table, facts: Mapping[str, Any]) -> str:
    """Returns the page of the worst findings.

    Args:
        catalog: the products.
        findings: columns as in `findings.SCHEMA`, and `id`.
        facts: what stands at the top, value by name.
    """
    counts = count_findings(findings)
    shown = worst(findings).to_pylist()
    products = _products(catalog, {finding["row"] for finding in shown})
    environment = Environment(
        loader=PackageLoader("product_classificator.audit", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("audit.html.jinja").render(
        facts=facts,
        counts=counts,
        titles=KIND_TITLES,
        characteristics=[name for name in catalog.columns.characteristics if any(name in n for n in counts.values())],
        cards=[(finding, products[finding["row"]]) for finding in shown],
        total=len(findings),
        has_photos=catalog.images is not None,
    )


def worst(findings: pa.Table, limit: int = SHOWN) -> pa.Table:
    """Returns the first findings of every kind and characteristic by turns, `limit` in all, in their order."""
    frame = findings.select(["kind", "characteristic"]).to_pandas().fillna("")
    turn = frame.groupby(["kind", "characteristic"]).cumcount()
    rows = turn.sort_values(kind="stable").index[:limit].sort_values()
    return findings.take(pa.array(rows, pa.int64()))


def _products(catalog: Catalog, rows: set[int]) -> dict[int, _Product]:
    found = {}
    for products in catalog.batches(_READ_ROWS):
        for place in range(len(products)):
            row = products.first_row + place
            if row in rows:
                text = clean(products.texts[place])
                cut = text if len(text) <= _TEXT_CHARACTERS else text[:_TEXT_CHARACTERS].rstrip() + "…"
                found[row] = _Product(cut, _thumbnail(catalog, products.ids[place], products.image_names[place]))
    return found


def _thumbnail(catalog: Catalog, id_: str, photo: str | None) -> str:
    if catalog.images is None:
        return ""
    try:
        image = catalog.images.decode(catalog.image_bytes(id_, photo))
    except ImageError:
        return ""
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
