"""Turn embeddings, texts and known labels into a bundle of heads.

All characteristics are fitted together (`epochs`); unknown labels are masked. Validation products choose the epoch,
temperatures and thresholds (`thresholds`), nothing else; nothing is learned from test products. Training starts from
the words of label names; where a label has few products, from label embeddings too.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from product_classificator.encoders import Encoder
from product_classificator.errors import DataError
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.bundle import HeadBundle
from product_classificator.heads.hierarchy import Hierarchy, restrict_hierarchy
from product_classificator.heads.network import NetworkShape
from product_classificator.training.epochs import EpochFacts, fit_network, logits_of
from product_classificator.training.settings import HeadSettings
from product_classificator.training.targets import LabelledProducts, Target, TrainingData, label_embeddings, varied_rows
from product_classificator.training.taxonomy import learn_hierarchy
from product_classificator.training.thresholds import calibrate, fit_novelty, with_confidence_thresholds
from product_classificator.training.vocabulary import fit_vocabulary, start_with_their_kind, words_of_labels
from product_classificator.types import SPLITS, Embeddings, Rows, Strings, Truth, is_multi_label, iter_labels

logger = logging.getLogger(__name__)

_DEFAULTS = HeadSettings()
_FEW_PRODUCTS = 10
_MAX_WORD_WEIGHTS = 10**8
"""Words x labels of all characteristics: 400 MB, three times while fitting. 100,000 words of 1,000 labels fit."""


@dataclass(frozen=True)
class FittedHeads:
    """The bundle of the best epoch (from 1), and all epochs.

    `left_out` maps characteristic -> label -> number of products, for labels that were treated as unknown.
    """

    bundle: HeadBundle
    history: tuple[EpochFacts, ...]
    best_epoch: int
    left_out: Mapping[str, Mapping[str, int]]


def fit_heads(
    products: LabelledProducts,
    settings: HeadSettings = _DEFAULTS,
    *,
    hierarchy: Hierarchy | None = None,
    encoder: Encoder | None = None,
    on_epoch: Callable[[EpochFacts], None] | None = None,
) -> FittedHeads:
    """Fit heads for all characteristics of labelled products.

    Args:
        products: to learn from and to validate on.
        settings: how to fit.
        hierarchy: which characteristic refines which; `None`: learned from the training products.
        encoder: that of the embeddings. Training starts from its embeddings of labels for a characteristic with a label
            of fewer than 10 training products; without such a label, or an encoder, nothing changes.
        on_epoch: called after each epoch.

    Raises:
        DataError: nothing can be learned: no characteristic has two labels with enough products, or no validation
            product has a known label.
    """
    is_usable = products.embeddings.has_image | products.embeddings.has_text
    split_names = np.where(is_usable, products.split.names, "")
    labels, left_out = _labels_to_learn(products.truth, split_names, settings.min_products_per_label)
    targets = tuple(Target.of(name, names, products.truth[name]) for name, names in labels.items())
    data = _prepare(products, targets, split_names, settings, encoder)
    # Layers draw their weights and dropout from the global generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network, history, best_epoch = fit_network(data, settings, on_epoch or (lambda _: None))
    if hierarchy is None:
        hierarchy = learn_hierarchy(targets, data.train)
    logits = logits_of(network, data, data.valid)
    bundle = HeadBundle(
        characteristics=tuple(
            calibrate(target, logits[:, columns], data.valid)
            for target, columns in zip(targets, network.shape.columns, strict=True)
        ),
        network=network,
        vocabulary=data.vocabulary,
        encoder_name=encoder.name if encoder else "",
        encoder_fingerprint=products.embeddings.fingerprint,
        facts={
            "settings": asdict(settings),
            "products": {name: len(products.split.rows(name)) for name in SPLITS},
            "best_epoch": best_epoch,
            "history": [asdict(epoch) for epoch in history],
            "left_out": left_out,
        },
        hierarchy=restrict_hierarchy(hierarchy, labels),
    )
    # `predict` would count the words of texts again, a tenth of the time of fitting.
    train, valid = np.flatnonzero(split_names == "train"), np.flatnonzero(split_names == "valid")
    predictions = bundle.predict_from(lambda rows: logits_of(network, data, valid[rows]), data.embeddings.take(valid))
    truth = {name: products.truth[name][valid] for name in labels}
    groups = np.arange(len(valid)) if products.groups is None else products.groups[valid]
    used = replace(
        data.embeddings,
        has_image=data.embeddings.has_image & (bundle.image_dim > 0),
        has_text=data.embeddings.has_text & (bundle.text_dim > 0),
    )
    bundle = replace(
        bundle,
        characteristics=with_confidence_thresholds(bundle.characteristics, predictions, truth, groups),
        novelty=fit_novelty(used, products.texts, train, valid, data.vocabulary, settings.seed),
    )
    return FittedHeads(bundle, tuple(history), best_epoch, left_out)


def _labels_to_learn(
    truth: Truth, split_names: Strings, minimum: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, int]]]:
    """Return the labels to learn of each trainable characteristic, and the others with their counts of products.

    Labels of fewer than `minimum` products, or without a training product, are left out.
    """
    labels, left_out = {}, {}
    for name, column in truth.items():
        counts = Counter(iter_labels(column[split_names != ""]))
        trained = set(iter_labels(column[split_names == "train"]))
        kept = tuple(sorted(label for label, count in counts.items() if count >= minimum and label in trained))
        if len(kept) >= (1 if is_multi_label(column) else 2):
            labels[name] = kept
        else:
            logger.warning("%s is left out: it has %d label(s) with %d products or more", name, len(kept), minimum)
            kept = ()
        learned = set(kept)
        rest = {label: count for label, count in sorted(counts.items()) if label not in learned}
        if rest or not kept:
            left_out[name] = rest
    if not labels:
        raise DataError(
            f"a characteristic needs two labels with at least {minimum} products each, "
            f"found none among {list(truth)}: add products or lower min_products_per_label"
        )
    return labels, left_out


def _prepare(
    products: LabelledProducts,
    targets: tuple[Target, ...],
    split_names: Strings,
    settings: HeadSettings,
    encoder: Encoder | None,
) -> TrainingData:
    embeddings = products.embeddings
    is_labelled = np.any([target.is_known for target in targets], axis=0)
    train = np.flatnonzero((split_names == "train") & is_labelled)
    samples = (
        varied_rows(embeddings.image, train[embeddings.has_image[train]]),
        varied_rows(embeddings.text, train[embeddings.has_text[train]]),
    )
    uses_image, uses_text = _parts_to_learn(samples, embeddings, train)
    is_learnable = is_labelled & (embeddings.has_image & uses_image | embeddings.has_text & uses_text)
    train, valid = (np.flatnonzero((split_names == name) & is_learnable) for name in ("train", "valid"))
    if not len(valid):
        raise DataError(
            "the valid split has no product with a known label and a photo or text: check the split; near-identical "
            "products are in one split together, so a catalog needs some different ones"
        )
    vocabulary, words = _learn_words(products, targets, train[embeddings.has_text[train] & uses_text], settings)
    image_dim = embeddings.image.shape[1] if uses_image and embeddings.has_image[train].any() else 0
    text_dim = embeddings.text.shape[1] if uses_text and embeddings.has_text[train].any() else 0
    shares_space = encoder is not None and encoder.shares_space
    starts = label_embeddings(targets, train, encoder if text_dim or (image_dim and shares_space) else None)
    shape = NetworkShape(
        image_dim,
        text_dim,
        tuple(len(target.labels) for target in targets),
        settings.hidden,
        len(vocabulary),
        has_linear=not len(vocabulary),
        label_dim=starts.shape[1],
        shares_space=shares_space and starts.shape[1] > 0,
    )
    train_words = words[train]
    competing = [None if target.is_multi_label else target.label_ids[train] for target in targets]
    pairs = zip(targets, competing, strict=True)
    rows = [words_of_labels(vocabulary, target.labels, train_words, label_ids) for target, label_ids in pairs]
    label_words = vstack(rows, format="csr")
    return TrainingData(embeddings, vocabulary, words, targets, train, valid, samples, starts, label_words, shape)


def _parts_to_learn(samples: tuple[Rows, Rows], embeddings: Embeddings, train: Rows) -> tuple[bool, ...]:
    """Return whether to learn from images and from texts, by the rows that show how each varies.

    A part that fewer than 10 show is left out if the other part is better off: nothing can be learned from it, but its
    weights would move every product that has it.
    """
    is_enough = tuple(len(rows) >= _FEW_PRODUCTS for rows in samples)
    if not any(is_enough):
        return True, True
    has_parts = embeddings.has_image, embeddings.has_text
    for name, rows, has_part in zip(("photo", "text"), samples, has_parts, strict=True):
        if has_part[train].any() and len(rows) < _FEW_PRODUCTS:
            logger.warning(
                "%ss are left out: %d of %d training products have a %s of their own, %d are needed",
                *(name, len(rows), len(train), name, _FEW_PRODUCTS),
            )
    return is_enough


def _learn_words(
    products: LabelledProducts, targets: tuple[Target, ...], train: Rows, settings: HeadSettings
) -> tuple[Vocabulary, csr_matrix]:
    """Learn the words of the texts of training rows, and return the bags of words of all."""
    leading_words = settings.leading_words
    if leading_words is None:
        texts = [products.texts[row] for row in train.tolist()] if settings.max_words else []
        titles = [text.partition("\n")[0] for text in texts] if products.has_title else texts
        single = [target.label_ids[train] for target in targets if not target.is_multi_label]
        leading_words = start_with_their_kind(titles, single)
    return fit_vocabulary(
        products.texts,
        train,
        max_words=min(settings.max_words, _MAX_WORD_WEIGHTS // sum(len(target.labels) for target in targets)),
        has_title=products.has_title,
        has_leading_words=leading_words,
    )
