"""From vectors to probabilities: heads that are fitted on embeddings, kept in a bundle, and asked about products.

Heads also come without fitting: from the published files, or from the names of labels alone. A name loads what it
needs, so that the parts that need no torch can be used without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from product_classificator.heads.bundle import HeadBundle
    from product_classificator.heads.descent import EpochFacts
    from product_classificator.heads.fit import FittedHeads, fit_heads
    from product_classificator.heads.hierarchy import Hierarchy, Refinement
    from product_classificator.heads.published import read_published_heads
    from product_classificator.heads.review import MIN_PRECISION
    from product_classificator.heads.settings import HeadSettings
    from product_classificator.heads.zero_shot import zero_shot_heads

_HOMES = {
    "MIN_PRECISION": "review",
    "EpochFacts": "descent",
    "FittedHeads": "fit",
    "HeadBundle": "bundle",
    "HeadSettings": "settings",
    "Hierarchy": "hierarchy",
    "Refinement": "hierarchy",
    "fit_heads": "fit",
    "read_published_heads": "published",
    "zero_shot_heads": "zero_shot",
}

__all__ = [
    "MIN_PRECISION",
    "EpochFacts",
    "FittedHeads",
    "HeadBundle",
    "HeadSettings",
    "Hierarchy",
    "Refinement",
    "fit_heads",
    "read_published_heads",
    "zero_shot_heads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
