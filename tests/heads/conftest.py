from tests.tiny_catalog import fitted, material, quick

__all__ = ["fitted", "material", "quick"]
