"""Trains the last blocks of an encoder: photos are to fit their own texts better than those of the rest of the batch.

The loss is the symmetric cross-entropy of CLIP (Radford et al. 2021) with the temperature that the network was trained
with. Near-duplicates are not each other's negatives: what photo fits which of their texts nobody can tell. A batch of
any size fits the memory: vectors of the whole batch are computed in parts without gradients, the loss gives the
gradient of each vector, and the parts are computed again to carry it on (cached gradients, Gao et al. 2021). The
result is that of one big step, up to rounding, also where several processes share the batch (`distributed`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from product_classificator.errors import DataError
from product_classificator.finetuning.activations import Activations
from product_classificator.finetuning.blocks import Tail
from product_classificator.finetuning.distributed import Distributed
from product_classificator.types import Floats, Rows

_EMBEDDED_AT_ONCE = 64
RECALL_AMONG = 256
"""Pairs that are compared with one another when the fit is judged."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How the last blocks are trained; the defaults are those of the published system but for the schedule.

    Attributes:
        last_blocks: how many blocks of each tower.
        epochs: passes over the pairs of the training part.
        batch_size: pairs that are compared with one another.
        learning_rate: at its highest.
        betas: of Adam.
        eps: of Adam.
        weight_decay: decoupled from the gradient (AdamW).
        warmup_share: share of all steps in which the learning rate rises; then it falls along a cosine to 0.
        micro_batch: pairs computed at once; the fewer, the less memory.
        checkpoint_minutes: how often the state is saved within an epoch.
        cache_limit_gb: activations that are kept; those of further products are computed anew in every epoch.
        seed: of the order of the pairs.
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
    cache_limit_gb: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("last_blocks", "epochs", "micro_batch"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise DataError(f"batch_size must be at least 2, for pairs are compared, got {self.batch_size}")
        for name in ("learning_rate", "eps", "checkpoint_minutes", "cache_limit_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise DataError(f"betas must lie in [0, 1), got {self.betas}")
        if not 0 <= self.warmup_share < 1 or self.weight_decay < 0:
            raise DataError(
                f"warmup_share must lie in [0, 1) and weight_decay at 0 or above, got {self.warmup_share} and "
                f"{self.weight_decay}"
            )


@dataclass(frozen=True)
class Pairs:
    """Products with a photo and a text.

    Attributes:
        activations: their states.
        train: rows to learn from.
        valid: rows to judge by.
        groups: for every product of the catalog a number that near-duplicates share.
    """

    activations: Activations
    train: Rows
    valid: Rows
    groups: Rows


def learning_rate(settings: FinetuneSettings, step: int, steps: int) -> float:
    """Returns the learning rate of a step counted from 0, of `steps` in all."""
    warm = settings.warmup_share * steps
    if step < warm:
        return settings.learning_rate * min(1.0, (step + 1) / warm)
    done = (step - warm) / max(steps - warm, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(tail: Tail, settings: FinetuneSettings) -> torch.optim.Optimizer:
    """Returns the optimiser of the trained parameters."""
    trained = [weight for weight in tail.parameters() if weight.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def order_of(pairs: Pairs, settings: FinetuneSettings, epoch: int) -> list[Rows]:
    """Returns the batches of an epoch, the same whenever it is asked; a rest of one pair is left out."""
    rows = np.random.default_rng((settings.seed, epoch)).permutation(pairs.train)
    batches = [rows[start : start + settings.batch_size] for start in range(0, len(rows), settings.batch_size)]
    return [batch for batch in batches if len(batch) > 1]


def contrastive_loss(image: Tensor, text: Tensor, groups: Tensor, scale: float) -> Tensor:
    """Returns the mean symmetric cross-entropy of n pairs.

    Args:
        image: (n, dim) unit vectors of the photos.
        text: (n, dim) unit vectors of their texts.
        groups: (n,) near-duplicates share a number.
        scale: what cosines are multiplied by.
    """
    logits = scale * image @ text.T
    same = (groups[:, None] == groups[None, :]).fill_diagonal_(False)
    logits = logits.masked_fill(same, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def train_step(
    tail: Tail, pairs: Pairs, batch: Rows, optimizer: torch.optim.Optimizer, micro_batch: int, distributed: Distributed
) -> float:
    """Changes the trained parameters by one batch and returns its loss before the change."""
    optimizer.zero_grad()
    share = distributed.share(batch)
    parts = [share[start : start + micro_batch] for start in range(0, len(share), micro_batch)]
    with torch.set_grad_enabled(len(parts) == 1):  # a single part needs not be computed again
        known = [vectors_of(tail, pairs.activations, part, distributed) for part in parts]
    image, text = (
        distributed.gather(torch.cat(side).detach(), len(batch)).requires_grad_() for side in zip(*known, strict=True)
    )
    loss = contrastive_loss(image, text, torch.from_numpy(pairs.groups[batch]).to(image.device), tail.scale)
    gradients = [distributed.own(every, len(share)) for every in torch.autograd.grad(loss, (image, text))]
    for place, part in enumerate(parts):
        vectors = known[0] if len(parts) == 1 else vectors_of(tail, pairs.activations, part, distributed)
        here = slice(place * micro_batch, place * micro_batch + len(part))
        torch.autograd.backward(vectors, [gradient[here] for gradient in gradients])
    distributed.add_gradients(tail.parameters())
    optimizer.step()
    return float(loss.detach())


def vectors_of(tail: Tail, activations: Activations, rows: Rows, distributed: Distributed) -> tuple[Tensor, Tensor]:
    """Returns the (n, dim) float32 unit vectors of photos and of texts of products that have both."""
    return _of_images(tail, activations, rows, distributed), _of_texts(tail, activations, rows, distributed)


def _of_images(tail: Tail, activations: Activations, rows: Rows, distributed: Distributed) -> Tensor:
    states = activations.images(rows).to(distributed.device)
    with distributed.autocast():
        return tail.of_images(states)


def _of_texts(tail: Tail, activations: Activations, rows: Rows, distributed: Distributed) -> Tensor:
    states, inputs, owners = activations.texts(rows)
    with distributed.autocast():
        found = tail.of_texts(
            states.to(distributed.device), {name: array.to(distributed.device) for name, array in inputs.items()}
        )
    if len(found) == len(rows):
        return found
    sums = found.new_zeros((len(rows), found.shape[1])).index_add(0, owners.to(distributed.device), found)
    return functional.normalize(sums, dim=-1)


_Encode = Callable[[Tail, Activations, Rows, Distributed], Tensor]


def _gathered(encode: _Encode, tail: Tail, activations: Activations, rows: Rows, distributed: Distributed) -> Tensor:
    parts = [
        encode(tail, activations, part, distributed) for part in _steps(distributed.share(rows), _EMBEDDED_AT_ONCE)
    ]
    return distributed.gather(torch.cat(parts), len(rows))


@torch.inference_mode()
def embed_all(tail: Tail, activations: Activations, dim: int, distributed: Distributed) -> tuple[Floats, Floats]:
    """Returns the (n, dim) float32 image parts and text parts of all products, zeros where there is none.

    They are rounded to float16, as `embed` rounds them.
    """
    parts: list[Floats] = []
    for has, encode in ((activations.has_image, _of_images), (activations.has_text, _of_texts)):
        part = np.zeros((len(has), dim), dtype=np.float32)
        for rows in _steps(np.flatnonzero(has), _EMBEDDED_AT_ONCE * distributed.processes):
            part[rows] = _gathered(encode, tail, activations, rows, distributed).cpu().numpy().astype(np.float16)
        parts.append(part)
    return parts[0], parts[1]


@dataclass(frozen=True)
class Fit:
    """How well photos fit their own texts, on pairs that were not learned from.

    Attributes:
        loss: the contrastive loss, mean over batches of `RECALL_AMONG`.
        recall_at_1: share of photos whose own text is the nearest of its batch, and of texts likewise.
        pairs: how many were judged.
    """

    loss: float
    recall_at_1: float
    pairs: int


@torch.inference_mode()
def judge(tail: Tail, pairs: Pairs, distributed: Distributed) -> Fit:
    """Judges the pairs of the validation part."""
    losses, hits, seen = [], 0.0, 0
    for rows in _steps(pairs.valid, RECALL_AMONG):
        if len(rows) < 2:
            continue
        image, text = (
            _gathered(encode, tail, pairs.activations, rows, distributed) for encode in (_of_images, _of_texts)
        )
        groups = torch.from_numpy(pairs.groups[rows]).to(image.device)
        losses.append(float(contrastive_loss(image, text, groups, tail.scale)) * len(rows))
        cosines = image @ text.T
        own = torch.arange(len(rows), device=image.device)
        hits += float(((cosines.argmax(1) == own).sum() + (cosines.argmax(0) == own).sum()) / 2)
        seen += len(rows)
    return Fit(sum(losses) / seen, hits / seen, seen) if seen else Fit(math.nan, math.nan, 0)


def _steps(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
