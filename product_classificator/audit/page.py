"""Show findings as one HTML file with photos, labels and reasons; the page loads nothing else.

Ids, texts and labels come from the table: the template escapes every value.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from product_classificator.audit.findings import KIND_TITLES, count_findings
from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.photo import PhotoError
from product_classificator.text import clean

SHOWN = 300
_THUMBNAIL_PX = 176
_TEXT_CHARACTERS = 180
_READ_ROWS = 16_384


def draw_page(catalog: Catalog, findings: pa.Table, facts: Mapping[str, Any]) -> str:
    """Return the HTML page of the worst findings, which have the columns of `findings.SCHEMA` and `id`."""
    counts, shown = count_findings(findings), worst(findings).to_pylist()
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
        cards=[(finding, *products[finding["row"]]) for finding in shown],
        total=len(findings),
        has_images=catalog.images is not None,
    )


def worst(findings: pa.Table, limit: int = SHOWN) -> pa.Table:
    """Return the first findings of every kind and characteristic in turns, `limit` in all, in their order."""
    frame = findings.select(["kind", "characteristic"]).to_pandas()
    turn = frame.groupby(["kind", "characteristic"], dropna=False).cumcount()
    rows = turn.sort_values(kind="stable").index[:limit].sort_values()
    return findings.take(pa.array(rows, pa.int64()))


def _products(catalog: Catalog, rows: set[int]) -> dict[int, tuple[str, str]]:
    """Return row -> shortened text and thumbnail, a data URI or "" without an image."""
    shown = {}
    for products in catalog.batches(_READ_ROWS):
        for row in rows & set(range(products.first_row, products.first_row + len(products.ids))):
            i = row - products.first_row
            text = clean(products.texts[i])
            if len(text) > _TEXT_CHARACTERS:
                text = text[:_TEXT_CHARACTERS].rstrip() + "…"
            shown[row] = (text, _thumbnail(catalog, products.ids[i], products.image_names[i]))
    return shown


def _thumbnail(catalog: Catalog, product_id: str, image_name: str | None) -> str:
    if catalog.images is None:
        return ""
    try:
        image = catalog.images.decode(catalog.image_bytes(product_id, image_name))
    except PhotoError:
        return ""
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
