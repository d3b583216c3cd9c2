"""From files to a checked table: products with their photos, the split, and synthetic sample data."""

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
