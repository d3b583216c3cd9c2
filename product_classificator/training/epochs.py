"""Fits the weights of a network: epochs of gradient descent, of which the best on validation products is kept.

The joint recipe adds `prior_strength` x the log frequency of each label to the logits while training (balanced softmax,
Ren et al. 2020; Menon et al. 2021), and leaves it away in use. Its learning rates fall to nothing within `max_epochs`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from product_classificator.heads.bag_of_words import WeightedWords
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.shape import NetworkShape
from product_classificator.heads.sharpness import sigmoid
from product_classificator.heads.zero_shot import SCALE
from product_classificator.training.head_settings import HeadSettings
from product_classificator.training.multilabel import fit_decision_thresholds, log_odds, loss_of, macro_f1_of, mean_f1
from product_classificator.training.targets import TrainingData
from product_classificator.training.torch_network import Batch, JointNetwork, Network, fitted, make_network
from product_classificator.types import Floats, Rows

_MIN_STEPS_PER_EPOCH = 50


@dataclass(frozen=True)
class EpochFacts:
    """What one epoch did.

    Attributes:
        epoch: number from 1.
        train_loss: mean loss of a training step, summed over characteristics.
        valid_macro_f1: characteristic -> macro-F1 on the validation part; absent where it has no label there.
        mean_valid_macro_f1: their mean, which chooses the epoch.
        seconds: time the epoch took.
    """

    epoch: int
    train_loss: float
    valid_macro_f1: Mapping[str, float]
    mean_valid_macro_f1: float
    seconds: float


def fit_network(
    shape: NetworkShape, data: TrainingData, settings: HeadSettings, on_epoch: Callable[[EpochFacts], None]
) -> tuple[FittedNetwork, list[EpochFacts], int]:
    """Returns the network with the weights of the best epoch, all epochs, and the number of the best, from 1."""
    # A small catalog gets smaller batches: a handful of steps per epoch teaches nothing.
    batch_size = min(settings.batch_size, max(8, len(data.train) // _MIN_STEPS_PER_EPOCH))
    settings = replace(settings, batch_size=batch_size)
    network = make_network(shape)
    _standardise(network, data)
    _start_from_names(network, data)
    _start_from_odds(network, data)
    priors = _log_priors(data, shape, settings.prior_strength)
    optimizers = _optimizers(network, settings)
    schedules = _schedules(optimizers, settings, -(-len(data.train) // batch_size))
    history: list[EpochFacts] = []
    best, best_weights = -1, deepcopy(network.state_dict())
    for epoch in range(1, settings.max_epochs + 1):
        started = time.perf_counter()
        loss = _run_epoch(network, data, priors, optimizers, schedules, settings)
        scores = _valid_macro_f1(fitted(network), data)
        mean = float(np.mean(list(scores.values())))
        history.append(EpochFacts(epoch, loss, scores, mean, time.perf_counter() - started))
        on_epoch(history[-1])
        if best < 0 or mean > history[best].mean_valid_macro_f1:
            best, best_weights = epoch - 1, deepcopy(network.state_dict())
        if epoch - 1 - best >= settings.patience:
            break
    network.load_state_dict(best_weights)
    return fitted(network), history, best + 1


def _standardise(network: Network, data: TrainingData) -> None:
    if not isinstance(network, JointNetwork):
        return
    means, scales = [], []
    sample = data.embeddings.take(data.sample)
    for part, has, used in (
        (sample.image, sample.has_image, network.shape.image_dim),
        (sample.text, sample.has_text, network.shape.text_dim),
    ):
        seen = part[has][:, :used]
        means.append(seen.mean(0) if len(seen) else np.zeros(used, np.float32))
        # A column that hardly varies is not blown up: it would drown the others.
        spread = seen.std(0) if len(seen) else np.zeros(used, np.float32)
        scales.append(np.maximum(spread, max(0.01 * spread.mean(), 1e-6)) if used else spread)
    network.standardise(torch.from_numpy(np.concatenate(means)), torch.from_numpy(np.concatenate(scales)))


def _start_from_names(network: Network, data: TrainingData) -> None:
    """Lets training start from the names of the labels: from their words, and from their vectors if they are given."""
    if not isinstance(network, JointNetwork):
        return
    network.words.start_from(data.name_words)
    if network.start is not None:
        network.start.compare(torch.from_numpy(data.names), SCALE)
        # A name that is near to all products tells nothing: without this a bias would have to unlearn it first.
        batch = Batch.of(data.embeddings, data.words, data.sample, network.shape)
        with torch.no_grad():
            network.labels.bias.sub_(network.start(batch).mean(0))


def _start_from_odds(network: Network, data: TrainingData) -> None:
    """Lets the biases of multi-label characteristics start at the log-odds of their labels."""
    for place, indicators in data.indicators.items():
        known = data.train[data.label_ids[data.train, place] >= 0]
        if isinstance(network, JointNetwork) and len(known):
            with torch.no_grad():
                bias = network.labels.bias[network.shape.spans[place]]
                bias.add_(torch.from_numpy(log_odds(indicators[known], len(known))))


def _log_priors(data: TrainingData, shape: NetworkShape, strength: float) -> Tensor:
    """Returns (all labels,) what is added to the logits while training; nothing to those of multi-label ones."""
    counts = [
        np.zeros(k) if place in data.indicators else np.bincount(column[column >= 0], minlength=k)
        for place, (column, k) in enumerate(zip(data.label_ids[data.train].T, shape.n_labels, strict=True))
    ]
    return torch.from_numpy(
        np.concatenate([strength * np.log(np.maximum(c, 1) / max(c.sum(), 1)) for c in counts]).astype(np.float32)
    )


def _optimizers(network: Network, settings: HeadSettings) -> list[torch.optim.Optimizer]:
    words = [weight for name, weight in network.named_parameters() if name == "words.weight"]
    others = [weight for name, weight in network.named_parameters() if name != "words.weight"]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    ]
    if words and words[0].numel():
        # Adam would give the rarest words the largest steps, which learns them by heart (colour: .34, not .43).
        optimizers.append(torch.optim.SGD(words, lr=settings.words_learning_rate * settings.batch_size))
    return optimizers


def _schedules(
    optimizers: Sequence[torch.optim.Optimizer], settings: HeadSettings, steps_per_epoch: int
) -> list[LRScheduler]:
    """Returns what lowers the learning rates of the joint recipe to nothing; the published recipe keeps its own."""
    if settings.recipe != "joint":
        return []
    return [LinearLR(each, 1, 0, total_iters=steps_per_epoch * settings.max_epochs) for each in optimizers]


def _run_epoch(
    network: Network,
    data: TrainingData,
    priors: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    schedules: Sequence[LRScheduler],
    settings: HeadSettings,
) -> float:
    network.train()
    losses = []
    for order in torch.split(torch.randperm(len(data.train)), settings.batch_size):
        rows = data.train[order.numpy()]
        batch = _with_gaps(Batch.of(data.embeddings, data.words, rows, network.shape), settings)
        loss = _loss(network(batch) + priors, data, rows, network.shape)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def _with_gaps(batch: Batch, settings: HeadSettings) -> Batch:
    """Hides some photos, texts and words, never both parts of a product."""
    if not settings.modality_dropout and not settings.word_dropout:
        return batch
    draw = torch.rand(batch.has_image.shape)
    both = batch.has_image & batch.has_text
    has_image = batch.has_image & ~(both & (draw < settings.modality_dropout))
    has_text = batch.has_text & ~(both & (draw > 1 - settings.modality_dropout))
    words = batch.words.copy()
    words.data *= (torch.rand(words.nnz) >= settings.word_dropout).numpy()
    return Batch(batch.image, batch.text, has_image, has_text, words)


def _loss(logits: Tensor, data: TrainingData, rows: Rows, shape: NetworkShape) -> Tensor:
    """Returns the cross-entropy of a batch, summed over characteristics and averaged over products.

    An unknown label counts as 0, so a known one weighs the same however rare it is that one is known.
    """
    label_ids = torch.from_numpy(data.label_ids[rows])
    losses = [
        loss_of(logits[:, span], data.indicators[place][rows], column >= 0)
        if place in data.indicators
        else functional.cross_entropy(logits[:, span], column, ignore_index=-1, reduction="sum")
        for place, (span, column) in enumerate(zip(shape.spans, label_ids.T, strict=True))
    ]
    return torch.stack(losses).sum() / len(label_ids)


def logits_of(network: FittedNetwork, data: TrainingData, rows: Rows) -> Floats:
    """Returns the (rows, all labels) logits of products, whose words are counted already."""
    return network.logits(data.embeddings.take(rows), WeightedWords.of(data.words[rows]))


def _valid_macro_f1(network: FittedNetwork, data: TrainingData) -> dict[str, float]:
    logits, label_ids = logits_of(network, data, data.valid), data.label_ids[data.valid]
    scores = {}
    columns = zip(data.characteristics, network.shape.spans, network.shape.n_labels, label_ids.T, strict=True)
    for place, (name, span, k, column) in enumerate(columns):
        known = column >= 0
        if place in data.indicators and known.any():
            indicators, told = data.indicators[place][data.valid[known]], sigmoid(logits[known, span])
            scores[name] = macro_f1_of(told >= fit_decision_thresholds(told, indicators), indicators)
        elif known.any():
            true, told = column[known], logits[known, span].argmax(1)
            n_true, n_told, hits = (np.bincount(each, minlength=k) for each in (true, told, true[true == told]))
            scores[name] = mean_f1(hits, n_true + n_told)
    return scores
