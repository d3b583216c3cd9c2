"""Tells the characteristics of products from their photos and texts.

`read_catalog`, `embed`, `fit_heads`, `HeadBundle.predict` and `evaluate` are the verbs; `Trainer` and `Classificator`
are the façades over them. Importing this module imports neither torch nor pandas: a name loads what it needs.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from product_classificator.catalog import make_marketplace, open_images, read_catalog
    from product_classificator.classificator import Classificator, pretrained_heads
    from product_classificator.embeddings import EmbeddingStore, embed
    from product_classificator.encoders import RUCLIP_MODELS, load_encoder
    from product_classificator.encoders.checkpoint import load
    from product_classificator.evaluation import evaluate
    from product_classificator.export import export_classificator
    from product_classificator.heads import HeadBundle, HeadSettings, fit_heads
    from product_classificator.runtime import Exported
    from product_classificator.training import Trainer, train_heads
    from product_classificator.types import Embeddings, Predictions, Split

_HOMES = {
    "Classificator": "classificator",
    "EmbeddingStore": "embeddings",
    "Embeddings": "types",
    "Exported": "runtime",
    "HeadBundle": "heads",
    "HeadSettings": "heads",
    "Predictions": "types",
    "RUCLIP_MODELS": "encoders",
    "Split": "types",
    "Trainer": "training",
    "embed": "embeddings",
    "evaluate": "evaluation",
    "export_classificator": "export",
    "fit_heads": "heads",
    "load": "encoders.checkpoint",
    "load_encoder": "encoders",
    "make_marketplace": "catalog",
    "open_images": "catalog",
    "pretrained_heads": "classificator",
    "read_catalog": "catalog",
    "train_heads": "training",
}

__all__ = [
    "RUCLIP_MODELS",
    "Classificator",
    "EmbeddingStore",
    "Embeddings",
    "Exported",
    "HeadBundle",
    "HeadSettings",
    "Predictions",
    "Split",
    "Trainer",
    "embed",
    "evaluate",
    "export_classificator",
    "fit_heads",
    "load",
    "load_encoder",
    "make_marketplace",
    "open_images",
    "pretrained_heads",
    "read_catalog",
    "train_heads",
]

__version__ = version("product_classificator")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
