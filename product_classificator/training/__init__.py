"""From a catalog to a run: heads fitted on embeddings, and everything that judges them."""

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
