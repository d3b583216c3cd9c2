from tests.tiny_catalog import fitted, products, quick

__all__ = ["fitted", "products", "quick"]
