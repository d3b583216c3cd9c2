"""Uses what `export` has written, with ONNX Runtime and NumPy: photos and texts in, characteristics out.

Neither torch nor transformers, scikit-learn, SciPy, pandas or pyarrow is imported. Texts and photos are prepared, and
predictions kept free of contradictions and decided about, by the very code that the whole package uses.
"""

from product_classificator.runtime.exported import Exported

__all__ = ["Exported"]
