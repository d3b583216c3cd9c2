"""From a catalog to a run: `Trainer` is the published façade, `train_heads` the verb beneath it."""

from product_classificator.training.contrast import TuneSettings
from product_classificator.training.course import TuneWatch
from product_classificator.training.engine import Engine
from product_classificator.training.run import Training, Watch, train_heads
from product_classificator.training.settings import SplitSettings, TrainSettings, read_settings
from product_classificator.training.trainer import Trainer
from product_classificator.training.tune import Tuning, tune

__all__ = [
    "Engine",
    "SplitSettings",
    "TrainSettings",
    "Trainer",
    "Training",
    "TuneSettings",
    "TuneWatch",
    "Tuning",
    "Watch",
    "read_settings",
    "train_heads",
    "tune",
]
