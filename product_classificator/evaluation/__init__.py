"""From predictions and truth to a report: macro-F1 with intervals, confusions, calibration, plots.

The room knows neither encoders nor heads, so it also scores a rival's predictions.
"""

from product_classificator.evaluation.metrics import Confusion, Evaluation, evaluate
from product_classificator.evaluation.report import RunFacts, evaluation_json, write_report

__all__ = ["Confusion", "Evaluation", "RunFacts", "evaluate", "evaluation_json", "write_report"]
