"""From a classificator to a folder that ONNX Runtime and NumPy can use alone; `runtime` reads it."""

from product_classificator.export.folder import export_classificator

__all__ = ["export_classificator"]
