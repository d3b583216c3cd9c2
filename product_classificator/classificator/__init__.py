"""Photos and texts in, characteristics out."""

from product_classificator.classificator.facade import Classificator
from product_classificator.classificator.opening import pretrained_heads
from product_classificator.inputs import Photo

__all__ = ["Classificator", "Photo", "pretrained_heads"]
