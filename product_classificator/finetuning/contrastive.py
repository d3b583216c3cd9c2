"""Trains the last blocks of an encoder so that images match their own texts better than the other texts of the batch.

The loss is the symmetric cross-entropy of CLIP (Radford et al. 2021) with the temperature that the network was trained
with; near-duplicates are not used as each other's negatives. Batches of any size fit into memory thanks to cached
gradients (Gao et al. 2021): the vectors of the whole batch are computed in micro-batches without gradients, the loss
gives the gradient of each vector, and the micro-batches are recomputed to backpropagate it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather, reduce
from torch import Tensor
from torch.nn import functional

from product_classificator.encoders.clip import Side
from product_classificator.errors import DataError
from product_classificator.finetuning.activations import SIDES, Activations, Tail
from product_classificator.finetuning.distributed import Distributed, FinetuneDtype
from product_classificator.training.settings import check_rules
from product_classificator.types import Floats, Rows

_EMBED_BATCH = 64
_RECALL_AMONG = 256  # pairs compared with one another in evaluation


@dataclass(frozen=True)
class FinetuneSettings:
    """How the last blocks of each tower are trained; all defaults but the schedule are those of the published system.

    Attributes:
        batch_size: pairs compared with one another, computed `micro_batch` at once, with all photos of a product.
        warmup_share: share of all steps in which the learning rate rises; then it falls along a cosine to 0.
        cache_dir: folder of the cached activations; `None`: `activations` in the folder of the run.
    """

    last_blocks: int = 1
    epochs: int = 5
    batch_size: int = 256
    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup_share: float = 0.1
    micro_batch: int = 64
    cache_dir: str | None = None
    dtype: FinetuneDtype = "auto"

    def __post_init__(self) -> None:
        check_rules(self)
        if self.batch_size < 2:
            raise DataError(f"batch_size must be at least 2, got {self.batch_size}: a pair is compared with others")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise DataError(f"betas must be at least 0 and below 1, got {self.betas}")


def learning_rate(settings: FinetuneSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, of `steps` in total."""
    warmup = settings.warmup_share * steps
    if step < warmup:
        return settings.learning_rate * min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(steps - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def contrastive_loss(image: Tensor, text: Tensor, groups: Rows, scale: float) -> Tensor:
    """Return the mean symmetric cross-entropy of n pairs, given (n, dim) unit vectors and (n,) groups of duplicates."""
    logits = scale * image @ text.T
    is_duplicate = torch.from_numpy((groups[:, None] == groups) & ~np.eye(len(groups), dtype=bool))
    logits = logits.masked_fill(is_duplicate.to(logits.device), -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


@dataclass(frozen=True)
class Pairs:
    """The pairs of image and text that the last blocks are trained on: rows of products in two splits.

    `activations` and `groups`, which are equal for near-duplicates, have a row for every product.
    """

    tail: Tail
    activations: Activations
    train: Rows
    valid: Rows
    groups: Rows
    distributed: Distributed

    def batches(self, batch_size: int, seed: int, epoch: int) -> list[Rows]:
        """Return the batches of an epoch, reproducibly."""
        return _batches(np.random.default_rng((seed, epoch)).permutation(self.train), batch_size, smallest=2)

    def train_step(self, batch: Rows, optimizer: torch.optim.Optimizer, micro_batch: int) -> float:
        """Update the trained parameters with one batch and return its loss before the update."""
        optimizer.zero_grad()
        share = self.distributed.share(batch)
        own = slice(self.distributed.index * len(share), (self.distributed.index + 1) * len(share))
        micro_batches = _batches(share, micro_batch)
        is_single = len(micro_batches) == 1  # it need not be computed twice
        with torch.set_grad_enabled(is_single):
            encoded = [[self.encode(side, rows) for side in SIDES] for rows in micro_batches]
        sides = (torch.cat(vectors).detach() for vectors in zip(*encoded, strict=True))
        image, text = (gather(vectors.contiguous()).requires_grad_() for vectors in sides)
        # Rows that the last shares repeat are no part of the loss: their gradients are zeros.
        loss = contrastive_loss(image[: len(batch)], text[: len(batch)], self.groups[batch], self.tail.scale)
        gradients = torch.autograd.grad(loss, (image, text))
        parts = (torch.split(gradient[own], micro_batch) for gradient in gradients)
        for rows, *of_rows in zip(micro_batches, *parts, strict=True):
            vectors = encoded[0] if is_single else [self.encode(side, rows) for side in SIDES]
            torch.autograd.backward(vectors, of_rows)
        for parameter in self.tail.parameters():
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "sum")
        optimizer.step()
        return float(loss.detach())

    def encode(self, side: Side, rows: Rows) -> Tensor:
        """Return the (n, dim) float32 unit vectors of the images or texts of `rows`, which all have one."""
        device = self.distributed.device
        inputs: dict[str, Tensor] = {}
        if side == "image":
            states, owners = self.activations.images(rows)
        else:
            states, inputs, owners = self.activations.texts(rows)
        with self.distributed.autocast():
            inputs = {name: array.to(device) for name, array in inputs.items()}
            vectors = self.tail.encode(side, states.to(device), inputs)
        if len(vectors) == len(rows):
            return vectors
        sums = vectors.new_zeros((len(rows), vectors.shape[1])).index_add(0, owners.to(device), vectors)
        return functional.normalize(sums, dim=-1)

    @torch.inference_mode()
    def encode_shared(self, side: Side, rows: Rows) -> Tensor:
        """Return what `encode` returns, computed by all processes together, without gradients."""
        batches = _batches(self.distributed.share(rows), _EMBED_BATCH)
        gathered: Tensor = gather(torch.cat([self.encode(side, batch) for batch in batches]).contiguous())
        return gathered[: len(rows)]

    def embed_all(self, dim: int) -> tuple[Floats, Floats]:
        """Return (n, dim) float32 image and text vectors of all products, rounded to float16, zeros without a part."""
        parts: list[Floats] = []
        for side, has_side in zip(SIDES, (self.activations.has_image, self.activations.has_text), strict=True):
            part = np.zeros((len(has_side), dim), dtype=np.float32)
            for rows in _batches(np.flatnonzero(has_side), _EMBED_BATCH * self.distributed.processes):
                part[rows] = self.encode_shared(side, rows).cpu().numpy().astype(np.float16)
            parts.append(part)
        return parts[0], parts[1]

    def evaluate(self) -> tuple[float, float]:
        """Return the mean loss of valid pairs in batches of 256, and the share whose counterpart is nearest there."""
        loss, hits, n = 0.0, 0.0, 0
        for rows in _batches(self.valid, _RECALL_AMONG, smallest=2):
            image, text = (self.encode_shared(side, rows) for side in SIDES)
            loss += float(contrastive_loss(image, text, self.groups[rows], self.tail.scale)) * len(rows)
            cosines, targets = image @ text.T, torch.arange(len(rows), device=image.device)
            hits += sum(float((cosines.argmax(dim) == targets).sum()) for dim in (0, 1)) / 2
            n += len(rows)
        return loss / n, hits / n


def _batches(rows: Rows, size: int, smallest: int = 1) -> list[Rows]:
    """Return consecutive batches of `rows`; a remainder of fewer than `smallest` is left out."""
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [batch for batch in batches if len(batch) >= smallest]
