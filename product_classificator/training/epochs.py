"""Fit the weights of a network by epochs of gradient descent.

While training, `prior_strength` x the log frequency of each label is added to the logits (balanced softmax, Ren et al.
2020; Menon et al. 2021). Learning rates fall linearly to zero, so the last epoch is the one to keep.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LinearLR

from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.errors import DataError
from product_classificator.evaluation import Evaluation
from product_classificator.heads.network import Network
from product_classificator.heads.zero_shot import SCALE
from product_classificator.training.inputs import thinned
from product_classificator.training.settings import HeadSettings
from product_classificator.training.targets import TrainingData
from product_classificator.training.torch_network import Batch, JointNetwork
from product_classificator.types import Floats, Rows

logger = logging.getLogger(__name__)

_MIN_STEPS_PER_EPOCH, _MIN_BATCH = 50, 32


@dataclass(frozen=True)
class EpochFacts:
    """What one epoch did: of the heads, or of a fine-tuning with the heads that were fitted after it.

    Attributes:
        epoch: number from 1; of a fine-tuning 0 is the untuned encoder.
        train_loss: mean loss of a training step, of heads summed over characteristics; `None` for epoch 0.
        valid_loss, recall_at_1: of the validation pairs of a fine-tuning.
        valid_macro_f1: mean of `characteristics` (name -> macro-F1 on the validation products of a fine-tuning), which
            chooses its epoch.
    """

    epoch: int
    train_loss: float | None
    valid_macro_f1: float | None = None
    characteristics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)
    valid_loss: float | None = None
    recall_at_1: float | None = None


@dataclass(frozen=True)
class Callbacks:
    """Progress callbacks of a training or fine-tuning.

    Attributes:
        on_stage: called with one sentence when a stage begins.
        on_chunk: called after each chunk of embedded products.
        on_epoch: called after each epoch of the heads, or of a fine-tuning.
        on_products: called with numbers of products whose activations are computed or found.
        on_step: called after each step of a fine-tuning with epoch, step, steps of the epoch and loss.
        on_result: called in the end with the folder of the report and the scores.
    """

    on_stage: Callable[[str], None] = logger.info
    on_chunk: Callable[[EmbeddedProducts], None] | None = None
    on_epoch: Callable[[EpochFacts], None] | None = None
    on_products: Callable[[int], None] | None = None
    on_step: Callable[[int, int, int, float], None] | None = None
    on_result: Callable[[Path, Evaluation], None] = lambda report, scores: None


def fit_network(
    data: TrainingData, settings: HeadSettings, on_epoch: Callable[[EpochFacts], None] | None
) -> tuple[Network, list[EpochFacts]]:
    """Return the fitted network and what its epochs did; `DataError` if the loss diverges."""
    # Small catalogs get smaller batches: a handful of steps per epoch learns nothing.
    smallest = max(_MIN_BATCH, len(data.inputs.train) // _MIN_STEPS_PER_EPOCH)
    settings = replace(settings, batch_size=min(settings.batch_size, smallest))
    network = JointNetwork(data.shape, settings.dropout)
    _initialize(network, data)
    fitting = _Fitting(network, data, settings)
    history: list[EpochFacts] = []
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        loss = fitting.run_epoch()
        if not np.isfinite(loss):
            raise DataError(
                f"a loss must stay finite, that of the heads is {loss} in epoch {epoch}: lower learning_rate "
                f"({settings.learning_rate:g}) or words_learning_rate ({settings.words_learning_rate:g}), and check "
                "that all embeddings are finite"
            )
        history.append(EpochFacts(epoch, loss, seconds=time.perf_counter() - started))
        if on_epoch:
            on_epoch(history[-1])
    return network.fitted(), history


@torch.no_grad()
def _initialize(network: JointNetwork, data: TrainingData) -> None:
    """Standardise, and start from the words of label names, label embeddings where they are given, and log-odds."""
    network.mean, network.scale = torch.from_numpy(data.inputs.mean), torch.from_numpy(data.inputs.scale)
    label_words = data.label_words.tocoo()
    cells = torch.from_numpy(label_words.col).long(), torch.from_numpy(label_words.row).long()
    network.word_weights[cells] = torch.from_numpy(label_words.data)
    if network.shape.label_dim:
        network.label_embeddings = torch.from_numpy(SCALE * data.label_embeddings)
        # A label that is near to all products says nothing: without this its bias would have to unlearn that first.
        batch = Batch.of(data.embeddings, data.inputs.bags, thinned(data.inputs.train), network.shape)
        network.labels.bias.sub_(network.label_scores(batch).mean(0))
    # The biases of multi-label characteristics start at the log-odds of their labels.
    for target, columns in zip(data.targets, network.shape.columns, strict=True):
        n_known = int(target.is_known[data.inputs.train].sum())
        if target.is_multi_label and n_known:
            network.labels.bias[columns].add_(torch.from_numpy(log_odds(target.counts(data.inputs.train), n_known)))


def log_odds(counts: Rows, n_known: int) -> Floats:
    """Return (k,) log-odds of labels that `counts` of `n_known` products have, each count raised by a half."""
    smoothed = counts.astype(np.float32) + np.float32(0.5)
    odds: Floats = np.log(smoothed / (n_known + 1 - smoothed))
    return odds


class _Fitting:
    def __init__(self, network: JointNetwork, data: TrainingData, settings: HeadSettings) -> None:
        self.network, self.data, self.settings = network, data, settings
        log_priors = []  # what is added to the logits while training; 0 for multi-label characteristics
        for target in data.targets:
            counts = np.zeros(len(target.labels)) if target.is_multi_label else target.counts(data.inputs.train)
            log_priors.append(settings.prior_strength * np.log(np.maximum(counts, 1) / max(counts.sum(), 1)))
        self.log_priors = torch.from_numpy(np.concatenate(log_priors).astype(np.float32))
        others = [weight for name, weight in network.named_parameters() if name != "word_weights"]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
        ]
        if network.shape.n_words:
            # Adam would give the rarest words the largest steps, which memorises them (colour: .34, not .43).
            rate = settings.words_learning_rate * settings.batch_size
            self.optimizers.append(torch.optim.SGD([network.word_weights], lr=rate))
        n_steps = -(-len(data.inputs.train) // settings.batch_size) * settings.epochs
        self.schedules = [LinearLR(optimizer, 1, 0, total_iters=n_steps) for optimizer in self.optimizers]

    def run_epoch(self) -> float:
        """Take one step per batch, and return the mean loss."""
        self.network.train()
        losses = []
        for order in torch.split(torch.randperm(len(self.data.inputs.train)), self.settings.batch_size):
            rows = self.data.inputs.train[order.numpy()]
            batch = Batch.of(self.data.embeddings, self.data.inputs.bags, rows, self.network.shape)
            logits = self.network(_drop_modalities(batch, self.settings)) + self.log_priors
            loss = _loss(logits.flatten(0, 1), self.data, np.tile(rows, len(logits)))
            self.network.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in self.optimizers:
                optimizer.step()
            for schedule in self.schedules:
                schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses))


def _drop_modalities(batch: Batch, settings: HeadSettings) -> Batch:
    """Modality dropout: randomly drop the image or the text, never both, and some words."""
    draw = torch.rand(batch.has_image.shape)
    both = batch.has_image & batch.has_text
    has_image = batch.has_image & ~(both & (draw < settings.modality_dropout))
    has_text = batch.has_text & ~(both & (draw > 1 - settings.modality_dropout))
    words = batch.words.copy()
    words.data *= (torch.rand(words.nnz) >= settings.word_dropout).numpy()
    return Batch(batch.image, batch.text, has_image, has_text, words)


def _loss(logits: Tensor, data: TrainingData, rows: Rows) -> Tensor:
    """Return the cross-entropy of a batch, summed over characteristics and averaged over products.

    An unknown label counts as 0, so a known one weighs the same however few labels are known.
    """
    losses = []
    for target, columns in zip(data.targets, data.shape.columns, strict=True):
        if target.is_multi_label:
            is_known = torch.from_numpy(target.is_known[rows])
            losses.append(multi_label_loss(logits[:, columns], target.indicators[rows], is_known))
        else:
            label_ids = torch.from_numpy(target.label_ids[rows])
            losses.append(functional.cross_entropy(logits[:, columns], label_ids, ignore_index=-1, reduction="sum"))
    return torch.stack(losses).sum() / len(rows)


def multi_label_loss(logits: Tensor, indicators: csr_matrix, is_known: Tensor) -> Tensor:
    """Return the sum of binary cross-entropies over known products and labels: their negative log-likelihood."""
    targets = torch.from_numpy(indicators.toarray())
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses.sum(1) * is_known).sum()
