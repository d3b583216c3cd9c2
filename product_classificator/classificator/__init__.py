"""From texts and images to characteristics: `opening` finds heads and encoder, `Classificator` joins them."""

from product_classificator.classificator.classificator import Classificator

__all__ = ["Classificator"]
