"""From vectors to probabilities: heads that are fitted on embeddings, kept in a bundle, and asked about products.

Heads also come without fitting: from the published files, or from the names of labels alone.
"""

from product_classificator.heads.bundle import HeadBundle
from product_classificator.heads.fit import EpochFacts, FittedHeads, fit_heads
from product_classificator.heads.published import read_published_heads
from product_classificator.heads.review import MIN_PRECISION
from product_classificator.heads.settings import HeadSettings
from product_classificator.heads.zero_shot import zero_shot_heads

__all__ = [
    "MIN_PRECISION",
    "EpochFacts",
    "FittedHeads",
    "HeadBundle",
    "HeadSettings",
    "fit_heads",
    "read_published_heads",
    "zero_shot_heads",
]
