"""From a catalog to a run: heads fitted on embeddings, and everything that judges them."""

from importlib import import_module
from typing import Any

from product_classificator.training.cross_fit import FittedHeads, fit_heads
from product_classificator.training.epochs import Callbacks, EpochFacts
from product_classificator.training.settings import HeadSettings, SplitSettings, TrainSettings, read_settings
from product_classificator.training.targets import LabelledProducts
from product_classificator.training.train import Training, train_heads

__all__ = [
    "Callbacks",
    "EpochFacts",
    "FittedHeads",
    "HeadSettings",
    "LabelledProducts",
    "SplitSettings",
    "TrainSettings",
    "Training",
    "fit_heads",
    "read_settings",
    "train_heads",
]


def __getattr__(name: str) -> Any:
    """Find `Trainer` where 0.0.6 had it; its module is on a higher floor."""
    if name != "Trainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("product_classificator.trainer").Trainer
