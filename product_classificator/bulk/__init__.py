"""From a run and a table of products to a file of predictions, or to an honest score."""

from product_classificator.bulk.evaluate import Heldout, evaluate_run
from product_classificator.bulk.predict import BulkSummary, predict_to_file

__all__ = ["BulkSummary", "Heldout", "evaluate_run", "predict_to_file"]
