"""From vectors to probabilities: heads that are fitted on embeddings, kept in a bundle, and asked about products."""

from product_classificator.heads.bundle import HeadBundle
from product_classificator.heads.fit import EpochFacts, FittedHeads, fit_heads
from product_classificator.heads.settings import HeadSettings

__all__ = ["EpochFacts", "FittedHeads", "HeadBundle", "HeadSettings", "fit_heads"]
