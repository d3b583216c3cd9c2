"""Turns embeddings, texts and known labels into a bundle of heads.

All characteristics are fitted together. An unknown label costs nothing: it is masked. Rare labels weigh as much as
common ones in macro-F1, so the joint recipe adds `prior_strength` x the log frequency of each label to the logits
while training (balanced softmax, Ren et al. 2020; Menon et al. 2021), and leaves it away in use. The weights of the
epoch with the best validation macro-F1 are kept, as a copy. Validation products choose that epoch, the temperatures,
and from where on values need no review (`calibration`, `review`, `familiarity`), nothing else; nothing is learned from
test products.

Where a label has few products, the joint recipe starts from the names of the labels (`zero_shot`): macro-F1 of
`sub_category` on validation products with 1, 3 and 9 training products a label .41, .51, .66 instead of .29, .47, .63.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from product_classificator.errors import DataError
from product_classificator.heads.bundle import HeadBundle, logits_of
from product_classificator.heads.calibration import fit_temperatures
from product_classificator.heads.familiarity import Familiarity
from product_classificator.heads.hierarchy import Hierarchy, known_to, learn_hierarchy
from product_classificator.heads.multilabel import (
    Borne,
    borne_labels,
    cuts_of,
    fit_cuts,
    log_odds,
    loss_of,
    macro_f1_of,
)
from product_classificator.heads.network import Batch, JointNetwork, Network, NetworkShape, make_network
from product_classificator.heads.review import fit_thresholds
from product_classificator.heads.settings import HeadSettings
from product_classificator.heads.words import WordBag, WordRows
from product_classificator.heads.zero_shot import SCALE, Codes, LabelVectors, names_to_start_from
from product_classificator.types import (
    PARTS,
    Embeddings,
    Floats,
    Rows,
    Split,
    Strings,
    Truth,
    borne_by,
    is_multi_label,
)

logger = logging.getLogger(__name__)

_DEFAULTS = HeadSettings()
_MEASURED_ON = 50_000
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


@dataclass(frozen=True)
class FittedHeads:
    """What a training leaves: the bundle of the best epoch, and how it came about.

    Attributes:
        bundle: heads with the weights of `best_epoch`.
        history: one entry per epoch that was run.
        best_epoch: number from 1.
        left_out: characteristic -> label -> number of products, for labels that were treated as unknown.
    """

    bundle: HeadBundle
    history: tuple[EpochFacts, ...]
    best_epoch: int
    left_out: Mapping[str, Mapping[str, int]]


def fit_heads(
    embeddings: Embeddings,
    texts: Sequence[str],
    truth: Truth,
    split: Split,
    settings: HeadSettings = _DEFAULTS,
    *,
    on_epoch: Callable[[EpochFacts], None] | None = None,
    label_vectors: LabelVectors | None = None,
    shares_space: bool = False,
    hierarchy: Hierarchy | None = None,
    has_title: bool = False,
) -> FittedHeads:
    """Fits heads for all characteristics of `truth`.

    Args:
        embeddings: of n products.
        texts: (n,) their raw texts.
        truth: characteristic -> (n,) labels; of a multi-label one sets of labels, see `multilabel`.
        split: of the same n products in the same order.
        settings: how to fit.
        on_epoch: called after each epoch, for progress.
        label_vectors: the encoder's vectors of label names. The joint recipe starts from them for a characteristic
            with a label of under 10 training products; without such a label nothing changes.
        shares_space: whether the vectors of names lie in the space of the photos too.
        hierarchy: which characteristic refines which; `None`: learned from the training products, if the recipe is
            the joint one.
        has_title: whether the first line of each text is a title: its words weigh as much as all others.

    Raises:
        DataError: rows do not belong together, or nothing can be learned: no characteristic has two labels with
            enough products, or the valid part has no labelled product.
    """
    _check_rows(embeddings, texts, truth, split)
    part = np.where(embeddings.has_image | embeddings.has_text, split.part, "")
    labels, left_out = _labels_to_learn(truth, part, settings.min_products_per_label)
    codes, borne = _codes(truth, labels), borne_labels(truth, labels)
    train, valid = (np.flatnonzero((part == name) & (codes >= 0).any(1)) for name in ("train", "valid"))
    if not len(valid):
        raise DataError("the valid part has no product with a label and a photo or text: check the split")
    bag, words = WordBag.fit_rows(
        texts, train[embeddings.has_text[train]], max_words=settings.max_words, has_title=has_title
    )
    image_dim = embeddings.image.shape[1] if embeddings.has_image[train].any() else 0
    text_dim = embeddings.text.shape[1] if embeddings.has_text[train].any() else 0
    can_start = settings.recipe == "joint" and (text_dim or (image_dim and shares_space))
    counts = _counts(codes, borne, train, labels)
    names = names_to_start_from(labels, counts, label_vectors if can_start else None)
    shape = NetworkShape(
        recipe=settings.recipe,
        image_dim=image_dim,
        text_dim=text_dim,
        n_words=len(bag),
        n_labels=tuple(len(known) for known in labels.values()),
        hidden=settings.hidden,
        dropout=settings.dropout,
        name_dim=names.shape[1],
        shares_space=shares_space and names.shape[1] > 0,
    )
    material = _Material(embeddings, words, codes, borne, train, valid, tuple(labels), names)
    # Layers draw their weights and dropout from the global generator: it is put back as it was afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network, history, best_epoch = _fit_network(shape, material, settings, on_epoch or (lambda _: None))
    facts = {
        "settings": asdict(settings),
        "products": {part: len(split.rows(part)) for part in PARTS},
        "best_epoch": best_epoch,
        "history": [asdict(epoch) for epoch in history],
        "left_out": left_out,
    }
    if hierarchy is None:
        single = {place: name for place, name in enumerate(labels) if place not in borne}
        can_refine = {name: labels[name] for name in single.values()}
        hierarchy = learn_hierarchy(codes[train][:, list(single)], can_refine) if settings.recipe == "joint" else ()
    known, logits = torch.from_numpy(codes[valid]), _valid_logits(network, material)
    borne_by_valid = {place: each[valid] for place, each in borne.items()}
    temperatures, exponents = fit_temperatures(logits, known, shape.spans, borne_by_valid)
    cuts = {
        tuple(labels)[place]: cuts_of(logits[:, shape.spans[place]], known[:, place] >= 0, each, temperatures[place])
        for place, each in borne_by_valid.items()
    }
    bundle = HeadBundle(
        network, bag, labels, embeddings.fingerprint, temperatures, facts, exponents=exponents, cuts=cuts
    )
    bundle = replace(bundle, hierarchy=known_to(hierarchy, labels))
    bundle = _with_review(bundle, embeddings, texts, truth, part, settings.seed)
    return FittedHeads(bundle, tuple(history), best_epoch, left_out)


def _check_rows(embeddings: Embeddings, texts: Sequence[str], truth: Truth, split: Split) -> None:
    n = len(embeddings)
    found = {"texts": len(texts), "split": len(split.ids)} | {name: len(column) for name, column in truth.items()}
    wrong = {name: length for name, length in found.items() if length != n}
    if wrong:
        raise DataError(f"every input must have one row per product: there are {n} embeddings, but {wrong}")
    if not np.array_equal(embeddings.ids, split.ids):
        raise DataError("embeddings and split must hold the same products in the same order: make the split anew")


def _labels_to_learn(
    truth: Truth, part: Strings, minimum: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, int]]]:
    """Returns the labels to learn of each trainable characteristic, and the labels left out with their counts."""
    labels, left_out = {}, {}
    for name, column in truth.items():
        counts = Counter(borne_by(column[part != ""]))
        trained = set(borne_by(column[part == "train"]))
        kept = tuple(sorted(label for label, count in counts.items() if count >= minimum and label in trained))
        if len(kept) >= (1 if is_multi_label(column) else 2):
            labels[name] = kept
        else:
            logger.warning("%s is left out: it has %d label(s) with %d products or more", name, len(kept), minimum)
            kept = ()
        rest = {label: count for label, count in sorted(counts.items()) if label not in kept}
        if rest or not kept:
            left_out[name] = rest
    if not labels:
        raise DataError(
            f"a characteristic needs two labels with at least {minimum} products each, "
            f"found none among {list(truth)}: add products or lower min_products_per_label"
        )
    return labels, left_out


def _codes(truth: Truth, labels: Mapping[str, Sequence[str]]) -> Codes:
    """Returns the number of each product's label, of a multi-label characteristic 0 where its labels are known."""
    columns = []
    for name, names in labels.items():
        if is_multi_label(truth[name]):
            columns.append(np.array([-1 if item is None else 0 for item in truth[name]], dtype=np.int64))
            continue
        number = {label: i for i, label in enumerate(names)}
        columns.append(np.fromiter((number.get(label, -1) for label in truth[name]), np.int64, len(truth[name])))
    return np.stack(columns, 1)


def _counts(codes: Codes, borne: Mapping[int, Borne], rows: Rows, labels: Mapping[str, Sequence[str]]) -> list[Rows]:
    """Returns of each characteristic the (k,) products of each label among those of `rows`."""
    counts = []
    for place, names in enumerate(labels.values()):
        column = codes[rows, place]
        number = np.bincount(column[column >= 0], minlength=len(names))
        counts.append(np.asarray(borne[place][rows].sum(0)).ravel().astype(np.int64) if place in borne else number)
    return counts


@dataclass(frozen=True)
class _Material:
    """All products, row-aligned, and which of them are for training and which for validation."""

    embeddings: Embeddings
    words: WordRows
    codes: Codes
    borne: Mapping[int, Borne]
    train: Rows
    valid: Rows
    characteristics: tuple[str, ...]
    names: Floats

    @property
    def sample(self) -> Rows:
        """Training products enough to know means and scales."""
        return self.train[:: -(-len(self.train) // _MEASURED_ON)]


def _fit_network(
    shape: NetworkShape, material: _Material, settings: HeadSettings, on_epoch: Callable[[EpochFacts], None]
) -> tuple[Network, list[EpochFacts], int]:
    # A small catalog gets smaller batches: a handful of steps per epoch teaches nothing.
    batch_size = min(settings.batch_size, max(8, len(material.train) // _MIN_STEPS_PER_EPOCH))
    settings = replace(settings, batch_size=batch_size)
    network = make_network(shape)
    _standardise(network, material)
    _start_from_names(network, material)
    _start_from_odds(network, material)
    priors = _log_priors(material, shape, settings.prior_strength)
    optimizers = _optimizers(network, settings)
    schedules = _schedules(optimizers, settings, -(-len(material.train) // batch_size))
    history: list[EpochFacts] = []
    best, best_weights = -1, deepcopy(network.state_dict())
    for epoch in range(1, settings.max_epochs + 1):
        started = time.perf_counter()
        loss = _run_epoch(network, material, priors, optimizers, schedules, settings)
        scores = _valid_macro_f1(network, material)
        mean = float(np.mean(list(scores.values())))
        history.append(EpochFacts(epoch, loss, scores, mean, time.perf_counter() - started))
        on_epoch(history[-1])
        if best < 0 or mean > history[best].mean_valid_macro_f1:
            best, best_weights = epoch - 1, deepcopy(network.state_dict())
        if epoch - 1 - best >= settings.patience:
            break
    network.load_state_dict(best_weights)
    return network.eval(), history, best + 1


def _standardise(network: Network, material: _Material) -> None:
    if not isinstance(network, JointNetwork):
        return
    means, scales = [], []
    sample = material.embeddings.take(material.sample)
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


def _start_from_names(network: Network, material: _Material) -> None:
    if isinstance(network, JointNetwork) and network.start is not None:
        network.start.compare(torch.from_numpy(material.names), SCALE)
        # A name that is near to all products tells nothing: without this a bias would have to unlearn it first.
        batch = Batch.of(material.embeddings, material.words, material.sample, network.shape)
        with torch.no_grad():
            network.labels.bias.sub_(network.start(batch).mean(0))


def _start_from_odds(network: Network, material: _Material) -> None:
    """Lets the biases of multi-label characteristics start at the log-odds of their labels."""
    for place, borne in material.borne.items():
        known = material.train[material.codes[material.train, place] >= 0]
        if isinstance(network, JointNetwork) and len(known):
            with torch.no_grad():
                bias = network.labels.bias[network.shape.spans[place]]
                bias.add_(torch.from_numpy(log_odds(borne[known], len(known))))


def _log_priors(material: _Material, shape: NetworkShape, strength: float) -> Tensor:
    """Returns (all labels,) what is added to the logits while training; nothing to those of multi-label ones."""
    counts = [
        np.zeros(k) if place in material.borne else np.bincount(column[column >= 0], minlength=k)
        for place, (column, k) in enumerate(zip(material.codes[material.train].T, shape.n_labels, strict=True))
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
    material: _Material,
    priors: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    schedules: Sequence[LRScheduler],
    settings: HeadSettings,
) -> float:
    network.train()
    losses = []
    for order in torch.split(torch.randperm(len(material.train)), settings.batch_size):
        rows = material.train[order.numpy()]
        batch = _with_gaps(Batch.of(material.embeddings, material.words, rows, network.shape), settings)
        loss = _loss(network(batch) + priors, material, rows, network.shape)
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


def _loss(logits: Tensor, material: _Material, rows: Rows, shape: NetworkShape) -> Tensor:
    """Returns the cross-entropy of a batch, summed over characteristics and averaged over products.

    An unknown label counts as 0, so a known one weighs the same however rare it is that one is known.
    """
    codes = torch.from_numpy(material.codes[rows])
    losses = [
        loss_of(logits[:, span], material.borne[place][rows], column >= 0)
        if place in material.borne
        else functional.cross_entropy(logits[:, span], column, ignore_index=-1, reduction="sum")
        for place, (span, column) in enumerate(zip(shape.spans, codes.T, strict=True))
    ]
    return torch.stack(losses).sum() / len(codes)


def _valid_logits(network: Network, material: _Material) -> Tensor:
    valid = material.valid
    return logits_of(network, material.embeddings.take(valid), material.words[valid])


def _valid_macro_f1(network: Network, material: _Material) -> dict[str, float]:
    from sklearn.metrics import f1_score  # a second to import, and use does without it

    logits, codes = _valid_logits(network, material), material.codes[material.valid]
    scores = {}
    for place, (name, span, column) in enumerate(
        zip(material.characteristics, network.shape.spans, codes.T, strict=True)
    ):
        known = column >= 0
        if place in material.borne and known.any():
            borne, told = material.borne[place][material.valid[known]], torch.sigmoid(logits[:, span]).numpy()[known]
            scores[name] = macro_f1_of(told >= fit_cuts(told, borne), borne)
        elif known.any():
            predicted = logits[:, span].argmax(1).numpy()[known]
            scores[name] = float(f1_score(column[known], predicted, average="macro", zero_division=0))
    return scores


def _with_review(
    bundle: HeadBundle, embeddings: Embeddings, texts: Sequence[str], truth: Truth, part: Strings, seed: int
) -> HeadBundle:
    """Returns the heads with what they need to tell which values a person should review."""
    train, valid = np.flatnonzero(part == "train"), np.flatnonzero(part == "valid")
    predictions = bundle.predict(embeddings.take(valid), [texts[row] for row in valid.tolist()])
    thresholds = fit_thresholds(predictions, {name: truth[name][valid] for name in bundle.labels})
    familiarity = Familiarity.fit(embeddings, texts, train, valid, bundle.bag, seed=seed)
    return replace(bundle, thresholds=thresholds, familiarity=familiarity)
