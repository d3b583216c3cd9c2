"""From embeddings to probabilities, in NumPy: heads as a bundle on disk, calibrated, hierarchical and selective."""

from product_classificator.heads.bundle import MIN_PRECISION, HeadBundle
from product_classificator.heads.calibration import Characteristic
from product_classificator.heads.hierarchy import Hierarchy, Refinement
from product_classificator.heads.zero_shot import zero_shot_heads

__all__ = ["MIN_PRECISION", "Characteristic", "HeadBundle", "Hierarchy", "Refinement", "zero_shot_heads"]
