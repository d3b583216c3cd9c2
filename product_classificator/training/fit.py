"""Turns embeddings, texts and known labels into a bundle of heads.

All characteristics are fitted together (`descent`). An unknown label costs nothing: it is masked. Validation products
choose the epoch whose weights are kept, the temperatures, and from where on values need no review (`calibration`,
`review`, `novelty`), nothing else; nothing is learned from test products.

The joint recipe starts from the words of the names of the labels (`data`). Where a label has few products, it
starts from the vectors of the names, too (`zero_shot`): macro-F1 of `sub_category` on validation products with 1, 3 and
9 training products a label .41, .51, .66 instead of .29, .47, .63.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from product_classificator.errors import DataError
from product_classificator.heads.bag_of_words import BagOfWords, Vocabulary
from product_classificator.heads.bundle import HeadBundle
from product_classificator.heads.hierarchy import Hierarchy, known_to, learn_hierarchy
from product_classificator.heads.novelty import NoveltyDetector
from product_classificator.heads.selective import fit_thresholds
from product_classificator.heads.shape import NetworkShape
from product_classificator.heads.telling import tell
from product_classificator.heads.zero_shot import LabelIds, LabelVectors, names_to_start_from
from product_classificator.training.calibration import fit_temperatures
from product_classificator.training.epochs import EpochFacts, fit_network, logits_of
from product_classificator.training.head_settings import HeadSettings
from product_classificator.training.leading_words import open_with_their_kind
from product_classificator.training.multilabel import decision_thresholds_of, indicators_of
from product_classificator.training.targets import (
    TrainingData,
    counts_of,
    label_ids_of,
    labels_to_learn,
    words_of_names,
)
from product_classificator.types import SPLITS, Embeddings, Rows, Split, Strings, Truth

_DEFAULTS = HeadSettings()


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
    part = np.where(embeddings.has_image | embeddings.has_text, split.names, "")
    labels, left_out = labels_to_learn(truth, part, settings.min_products_per_label)
    label_ids, indicators = label_ids_of(truth, labels), indicators_of(truth, labels)
    train, valid = (np.flatnonzero((part == name) & (label_ids >= 0).any(1)) for name in ("train", "valid"))
    if not len(valid):
        raise DataError(
            "the valid part has no product with a known label and a photo or text: check the split; near-identical "
            "products are in one part together, so a catalog needs some different ones"
        )
    single = [place for place in range(len(labels)) if place not in indicators]
    vocabulary, words = _words(
        texts, train[embeddings.has_text[train]], label_ids[:, single], settings.max_words, has_title
    )
    image_dim = embeddings.image.shape[1] if embeddings.has_image[train].any() else 0
    text_dim = embeddings.text.shape[1] if embeddings.has_text[train].any() else 0
    can_start = settings.recipe == "joint" and (text_dim or (image_dim and shares_space))
    counts = counts_of(label_ids, indicators, train, labels)
    names = names_to_start_from(labels, counts, label_vectors if can_start else None)
    shape = NetworkShape(
        recipe=settings.recipe,
        image_dim=image_dim,
        text_dim=text_dim,
        n_words=len(vocabulary),
        n_labels=tuple(len(known) for known in labels.values()),
        hidden=settings.hidden,
        dropout=settings.dropout,
        name_dim=names.shape[1],
        shares_space=shares_space and names.shape[1] > 0,
    )
    name_words = words_of_names(labels, indicators, vocabulary, words[train], label_ids[train])
    data = TrainingData(embeddings, words, label_ids, indicators, train, valid, tuple(labels), names, name_words)
    # Layers draw their weights and dropout from the global generator: it is put back as it was afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network, history, best_epoch = fit_network(shape, data, settings, on_epoch or (lambda _: None))
    facts = {
        "settings": asdict(settings),
        "products": {part: len(split.rows(part)) for part in SPLITS},
        "best_epoch": best_epoch,
        "history": [asdict(epoch) for epoch in history],
        "left_out": left_out,
    }
    if hierarchy is None:
        can_refine = {name: known for place, (name, known) in enumerate(labels.items()) if place in single}
        hierarchy = learn_hierarchy(label_ids[train][:, single], can_refine) if settings.recipe == "joint" else ()
    bundle = HeadBundle(network, vocabulary, labels, embeddings.fingerprint, (1.0,) * len(labels), facts)
    bundle = replace(_calibrated(bundle, data), hierarchy=known_to(hierarchy, labels))
    bundle = _with_review(bundle, data, texts, truth, part, settings.seed)
    return FittedHeads(bundle, tuple(history), best_epoch, left_out)


def _words(
    texts: Sequence[str], train: Rows, label_ids: LabelIds, max_words: int, has_title: bool
) -> tuple[Vocabulary, BagOfWords]:
    """Learns the words of the training texts, by their numbers, and returns the rows of all."""
    if not max_words:
        return Vocabulary.fit_rows(texts, train, max_words=0)
    titles = [texts[row].partition("\n")[0] if has_title else texts[row] for row in train.tolist()]
    has_leading_words = open_with_their_kind(titles, label_ids[train])
    return Vocabulary.fit_rows(
        texts, train, max_words=max_words, has_title=has_title, has_leading_words=has_leading_words
    )


def _check_rows(embeddings: Embeddings, texts: Sequence[str], truth: Truth, split: Split) -> None:
    n = len(embeddings)
    found = {"texts": len(texts), "split": len(split.ids)} | {name: len(column) for name, column in truth.items()}
    wrong = {name: length for name, length in found.items() if length != n}
    if wrong:
        raise DataError(f"every input must have one row per product: there are {n} embeddings, but {wrong}")
    if not np.array_equal(embeddings.ids, split.ids):
        raise DataError("embeddings and split must hold the same products in the same order: make the split anew")


def _calibrated(bundle: HeadBundle, data: TrainingData) -> HeadBundle:
    """Returns the heads with temperatures, and with the decision_thresholds of multi-label characteristics."""
    logits, spans = logits_of(bundle.network, data, data.valid), bundle.network.shape.spans
    label_ids = data.label_ids[data.valid]
    indicators = {place: each[data.valid] for place, each in data.indicators.items()}
    temperatures, exponents = fit_temperatures(logits, label_ids, spans, indicators)
    decision_thresholds = {}
    for place, each in indicators.items():
        own, is_known = logits[:, spans[place]], label_ids[:, place] >= 0
        decision_thresholds[data.characteristics[place]] = decision_thresholds_of(
            own, is_known, each, temperatures[place]
        )
    return replace(bundle, temperatures=temperatures, exponents=exponents, decision_thresholds=decision_thresholds)


def _with_review(
    bundle: HeadBundle, data: TrainingData, texts: Sequence[str], truth: Truth, part: Strings, seed: int
) -> HeadBundle:
    """Returns the heads with what they need to tell which values a person should review."""
    train, valid = np.flatnonzero(part == "train"), np.flatnonzero(part == "valid")
    shown = data.embeddings.take(valid)
    # `predict` would count the words of texts again, a tenth of the time of fitting.
    predictions = tell(bundle, shown, None, lambda rows: logits_of(bundle.network, data, valid[rows]))
    thresholds = fit_thresholds(predictions, {name: truth[name][valid] for name in bundle.labels})
    novelty = NoveltyDetector.fit(data.embeddings, texts, train, valid, bundle.vocabulary, seed=seed)
    return replace(bundle, thresholds=thresholds, novelty=novelty)
