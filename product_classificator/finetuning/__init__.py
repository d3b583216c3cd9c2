"""Fine-tunes the last residual blocks of an encoder on a catalog, then fits heads."""

from product_classificator.finetuning.contrastive import FinetuneSettings
from product_classificator.finetuning.distributed import Distributed
from product_classificator.finetuning.finetune import Finetuned, finetune

__all__ = ["Distributed", "FinetuneSettings", "Finetuned", "finetune"]
