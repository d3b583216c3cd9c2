"""From a catalog to a run: `Trainer` is the published façade, `train_heads` the verb beneath it."""

from product_classificator.training.run import Training, Watch, train_heads
from product_classificator.training.settings import SplitSettings, TrainSettings, read_settings
from product_classificator.training.trainer import Trainer

__all__ = ["SplitSettings", "TrainSettings", "Trainer", "Training", "Watch", "read_settings", "train_heads"]
