"""From predictions and truth to a report: macro-F1 with intervals, confusions, calibration, plots.

The room knows neither encoders nor heads, so it also scores a rival's predictions.
"""

from product_classificator.evaluation.metrics import CharacteristicScore, Confusion, Evaluation, evaluate
from product_classificator.evaluation.reliability import Coverage
from product_classificator.evaluation.report import (
    RunFacts,
    evaluation_json,
    of_all,
    write_comparison,
    write_learning_curves,
    write_report,
)

__all__ = [
    "CharacteristicScore",
    "Confusion",
    "Coverage",
    "Evaluation",
    "RunFacts",
    "evaluate",
    "evaluation_json",
    "of_all",
    "write_comparison",
    "write_learning_curves",
    "write_report",
]
