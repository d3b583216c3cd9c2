"""From predictions and truth to a report: macro-F1 with intervals, confusions, plots.

The room knows neither encoders nor heads, so it also judges a rival's predictions.
"""

from product_classificator.evaluation.metrics import (
    CharacteristicScore,
    Confusion,
    Evaluation,
    LabelScore,
    evaluate,
)
from product_classificator.evaluation.reliability import (
    Decided,
    Reliability,
    ReliabilityBin,
    ReviewScore,
    expected_calibration_error,
)
from product_classificator.evaluation.report import RunFacts, evaluation_json, markdown_table, write_report

__all__ = [
    "CharacteristicScore",
    "Confusion",
    "Decided",
    "Evaluation",
    "LabelScore",
    "Reliability",
    "ReliabilityBin",
    "ReviewScore",
    "RunFacts",
    "evaluate",
    "evaluation_json",
    "expected_calibration_error",
    "markdown_table",
    "write_report",
]
