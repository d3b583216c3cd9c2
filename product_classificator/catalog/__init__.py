"""From files to a checked table: products with their photos, the split, and synthetic sample data.

A name loads what it needs, so that photos can be read without pandas and pyarrow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from product_classificator.catalog.images import ImageSource, open_images
    from product_classificator.catalog.read import (
        PUBLISHED_CHARACTERISTICS,
        Catalog,
        Columns,
        read_catalog,
        read_frame,
        read_wildberries,
    )
    from product_classificator.catalog.splits import group_products, split_products
    from product_classificator.catalog.synthetic import make_marketplace
    from product_classificator.catalog.wildberries import is_wildberries

_HOMES = {
    "PUBLISHED_CHARACTERISTICS": "read",
    "Catalog": "read",
    "Columns": "read",
    "ImageSource": "images",
    "group_products": "splits",
    "is_wildberries": "wildberries",
    "make_marketplace": "synthetic",
    "open_images": "images",
    "read_catalog": "read",
    "read_frame": "read",
    "read_wildberries": "read",
    "split_products": "splits",
}

__all__ = [
    "PUBLISHED_CHARACTERISTICS",
    "Catalog",
    "Columns",
    "ImageSource",
    "group_products",
    "is_wildberries",
    "make_marketplace",
    "open_images",
    "read_catalog",
    "read_frame",
    "read_wildberries",
    "split_products",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
