"""Trains the last blocks of an encoder so that images match their own texts better than the other texts of the batch.

The loss is the symmetric cross-entropy of CLIP (Radford et al. 2021) with the temperature that the network was trained
with; near-duplicates are not used as each other's negatives. Batches of any size fit into memory thanks to cached
gradients (Gao et al. 2021): the vectors of the whole batch are computed in micro-batches without gradients, the loss
gives the gradient of each vector, and the micro-batches are recomputed to backpropagate it. Up to rounding the result
is that of one large step, also when several processes share the batch (`distributed`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from product_classificator.errors import DataError
from product_classificator.finetuning.activations import Activations
from product_classificator.finetuning.blocks import SIDES, Side, Tail
from product_classificator.finetuning.distributed import Distributed, FinetuneDtype
from product_classificator.types import Floats, Rows

_EMBED_BATCH = 64
_RECALL_AMONG = 256  # pairs compared with one another in evaluation


@dataclass(frozen=True)
class FinetuneSettings:
    """How the last blocks of each tower are trained; all defaults but the schedule are those of the published system.

    Attributes:
        batch_size: pairs compared with one another.
        learning_rate: its maximum.
        warmup_share: share of all steps in which the learning rate rises; then it falls along a cosine to 0.
        micro_batch: pairs computed at once; fewer need less memory.
        checkpoint_minutes: how often the state is saved within an epoch.
        cache_dir: folder of the cached activations; `None`: `activations` in the folder of the run.
        cache_limit_gb: size of the cached activations; those of further products are recomputed in every epoch.
        dtype: see `Distributed`.
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
    checkpoint_minutes: float = 10.0
    cache_dir: str | None = None
    cache_limit_gb: float = 100.0
    dtype: FinetuneDtype = "auto"

    def __post_init__(self) -> None:
        for name, minimum in {
            "last_blocks": 1,
            "epochs": 1,
            "micro_batch": 1,
            "batch_size": 2,
            "weight_decay": 0,
        }.items():
            if getattr(self, name) < minimum:
                raise DataError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        for name in ("learning_rate", "eps", "checkpoint_minutes", "cache_limit_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not all(0 <= share < 1 for share in (*self.betas, self.warmup_share)):
            raise DataError(f"betas and warmup_share must be in [0, 1), got {self.betas} and {self.warmup_share}")


@dataclass(frozen=True)
class Pairs:
    """The rows of products with an image and a text in two splits; `groups` (all products) unite near-duplicates."""

    activations: Activations
    train: Rows
    valid: Rows
    groups: Rows

    def batches(self, batch_size: int, seed: int, epoch: int) -> list[Rows]:
        """Return the batches of an epoch, reproducibly; a remainder of one pair is left out."""
        rows = np.random.default_rng((seed, epoch)).permutation(self.train)
        return [batch for batch in _batches(rows, batch_size) if len(batch) > 1]


def learning_rate(settings: FinetuneSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, of `steps` in total."""
    warmup = settings.warmup_share * steps
    if step < warmup:
        return settings.learning_rate * min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(steps - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def contrastive_loss(image: Tensor, text: Tensor, groups: Tensor, scale: float) -> Tensor:
    """Return the mean symmetric cross-entropy of n pairs, given (n, dim) unit vectors and (n,) groups of duplicates."""
    logits = scale * image @ text.T
    is_duplicate = (groups[:, None] == groups[None, :]).fill_diagonal_(False)
    logits = logits.masked_fill(is_duplicate, -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def train_step(
    tail: Tail, pairs: Pairs, batch: Rows, optimizer: torch.optim.Optimizer, micro_batch: int, distributed: Distributed
) -> float:
    """Update the trained parameters with one batch and return its loss before the update."""
    optimizer.zero_grad()
    share = distributed.share(batch)
    micro_batches = list(_batches(share, micro_batch))

    def encode(rows: Rows) -> list[Tensor]:
        return [encode_side(side, tail, pairs.activations, rows, distributed) for side in SIDES]

    with torch.set_grad_enabled(len(micro_batches) == 1):  # a single micro-batch need not be recomputed
        encoded = [encode(rows) for rows in micro_batches]
    image, text = (
        distributed.gather(torch.cat(side).detach(), len(batch)).requires_grad_() for side in zip(*encoded, strict=True)
    )
    loss = contrastive_loss(image, text, torch.from_numpy(pairs.groups[batch]).to(image.device), tail.scale)
    gradients = [distributed.own(gradient, len(share)) for gradient in torch.autograd.grad(loss, (image, text))]
    for i, rows in enumerate(micro_batches):
        vectors = encoded[0] if len(micro_batches) == 1 else encode(rows)
        start = i * micro_batch
        torch.autograd.backward(vectors, [gradient[start : start + len(rows)] for gradient in gradients])
    distributed.sum_gradients(tail.parameters())
    optimizer.step()
    return float(loss.detach())


def encode_side(side: Side, tail: Tail, activations: Activations, rows: Rows, distributed: Distributed) -> Tensor:
    """Return the (n, dim) float32 unit vectors of the images or texts of `rows`, which all have one."""
    device = distributed.device
    if side == "image":
        states = activations.images(rows).to(device)
        with distributed.autocast():
            return tail.encode_images(states)
    states, inputs, owners = activations.texts(rows)
    with distributed.autocast():
        windows = tail.encode_texts(states.to(device), {name: array.to(device) for name, array in inputs.items()})
    if len(windows) == len(rows):
        return windows
    sums = windows.new_zeros((len(rows), windows.shape[1])).index_add(0, owners.to(device), windows)
    return functional.normalize(sums, dim=-1)


def _encode_shared(side: Side, tail: Tail, activations: Activations, rows: Rows, distributed: Distributed) -> Tensor:
    """Return what `encode_side` returns, computed by all processes together."""
    batches = _batches(distributed.share(rows), _EMBED_BATCH)
    vectors = [encode_side(side, tail, activations, batch, distributed) for batch in batches]
    return distributed.gather(torch.cat(vectors), len(rows))


@torch.inference_mode()
def embed_all(tail: Tail, activations: Activations, dim: int, distributed: Distributed) -> tuple[Floats, Floats]:
    """Return the (n, dim) float32 image and text vectors of all products, zeros where there is none.

    They are rounded to float16, as `embed` does.
    """
    parts: list[Floats] = []
    for side, has_side in zip(SIDES, (activations.has_image, activations.has_text), strict=True):
        part = np.zeros((len(has_side), dim), dtype=np.float32)
        for rows in _batches(np.flatnonzero(has_side), _EMBED_BATCH * distributed.processes):
            vectors = _encode_shared(side, tail, activations, rows, distributed)
            part[rows] = vectors.cpu().numpy().astype(np.float16)
        parts.append(part)
    return parts[0], parts[1]


@torch.inference_mode()
def evaluate_pairs(tail: Tail, pairs: Pairs, distributed: Distributed) -> tuple[float, float]:
    """Evaluate the pairs of the valid split in batches of 256; a remainder of one pair is left out.

    Returns:
        The mean loss, and recall@1: the share of images and texts whose counterpart is the nearest of the batch.
    """
    loss, hits, n = 0.0, 0.0, 0
    for rows in _batches(pairs.valid, _RECALL_AMONG):
        if len(rows) < 2:
            continue
        image, text = (_encode_shared(side, tail, pairs.activations, rows, distributed) for side in SIDES)
        groups = torch.from_numpy(pairs.groups[rows]).to(image.device)
        loss += float(contrastive_loss(image, text, groups, tail.scale)) * len(rows)
        cosines, targets = image @ text.T, torch.arange(len(rows), device=image.device)
        hits += sum(float((cosines.argmax(dim) == targets).sum()) for dim in (0, 1)) / 2
        n += len(rows)
    return loss / n, hits / n


def _batches(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
