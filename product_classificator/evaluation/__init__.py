"""From predictions and truth to a report: macro-F1 with intervals, confusions, calibration, plots.

The room knows neither encoders nor heads, so it also scores a rival's predictions.
"""

from product_classificator.evaluation.metrics import CharacteristicScore, Confusion, Evaluation, LabelScore, evaluate
from product_classificator.evaluation.reliability import (
    AcceptedScore,
    Reliability,
    ReliabilityBin,
    SelectiveScore,
    expected_calibration_error,
)
from product_classificator.evaluation.report import (
    RunFacts,
    evaluation_json,
    markdown_table,
    write_comparison,
    write_learning_curves,
    write_report,
)

__all__ = [
    "AcceptedScore",
    "CharacteristicScore",
    "Confusion",
    "Evaluation",
    "LabelScore",
    "Reliability",
    "ReliabilityBin",
    "RunFacts",
    "SelectiveScore",
    "evaluate",
    "evaluation_json",
    "expected_calibration_error",
    "markdown_table",
    "write_comparison",
    "write_learning_curves",
    "write_report",
]
