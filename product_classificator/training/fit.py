"""Fit both models of the heads, a joint network (`epochs`) and a linear model (`linear`), to some of the products.

All characteristics are fitted together; unknown labels are masked. The network starts from the words of label names;
where a label has few products, from label embeddings too.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import vstack

from product_classificator.encoders import Encoder
from product_classificator.errors import DataError
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.hierarchy import Hierarchy, restrict_hierarchy
from product_classificator.heads.network import Network, NetworkShape
from product_classificator.training.epochs import EpochFacts, fit_network, logits_of
from product_classificator.training.linear import LinearModel, fit_linear
from product_classificator.training.settings import HeadSettings
from product_classificator.training.targets import (
    FEW_PRODUCTS,
    LabelledProducts,
    Target,
    TrainingData,
    label_embeddings,
    varied_rows,
)
from product_classificator.training.taxonomy import learn_hierarchy
from product_classificator.training.vocabulary import BagOfWords, CountedTexts, start_with_their_kind, words_of_labels
from product_classificator.types import Bools, Embeddings, Floats, Rows, Truth, is_multi_label, iter_labels

logger = logging.getLogger(__name__)

_MAX_WORD_WEIGHTS = 10**8
"""Words x labels of all characteristics: 400 MB, three times while fitting. 100,000 words of 1,000 labels fit."""


@dataclass(frozen=True)
class FittedModels:
    """A joint network and a linear model, `None` if there are too many products, fitted to the same products.

    Attributes:
        network: knows the whole words of the vocabulary, in front of the pieces.
        hierarchy: as these products show it.
        train: rows that were learned from.
        bags: (n, words) bags of words of all products.
    """

    network: Network
    linear: LinearModel | None
    vocabulary: Vocabulary
    hierarchy: Hierarchy
    train: Rows
    bags: BagOfWords
    history: tuple[EpochFacts, ...]

    def logits(self, products: LabelledProducts, rows: Rows) -> tuple[Floats, Floats]:
        """Return the (m, labels) logits of the network and of the linear model, of products in `rows`."""
        embeddings, bags = products.embeddings.take(rows), self.bags[rows]
        joint = logits_of(self.network, embeddings, bags[:, : self.network.shape.n_words])
        if self.linear is None:
            return joint, np.zeros_like(joint)
        return joint, self.linear.logits(*linear_inputs(self.network, embeddings, bags))


@dataclass(frozen=True)
class Task:
    """What is learned: products, their targets, and how; `counts` are those of their texts.

    `hierarchy` is `None` if it is learned; `has_linear` says whether there is a linear model, too.
    """

    products: LabelledProducts
    targets: tuple[Target, ...]
    counts: CountedTexts
    settings: HeadSettings
    hierarchy: Hierarchy | None
    encoder: Encoder | None
    has_linear: bool

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Characteristic -> labels that are learned."""
        return {target.name: target.labels for target in self.targets}

    def fit(self, train: Rows, on_epoch: Callable[[EpochFacts], None] | None = None) -> FittedModels:
        """Fit both models to the products of `train` rows."""
        data, vocabulary, bags = _prepare(self, train)
        # Layers draw their weights and dropout from the global generator, whose state is restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            network, history = fit_network(data, self.settings, on_epoch)
        linear = None
        if self.has_linear:
            inputs = linear_inputs(network, self.products.embeddings.take(data.train), bags[data.train])
            linear = fit_linear(*inputs, [target.take(data.train) for target in self.targets])
        hierarchy = learn_hierarchy(self.targets, data.train) if self.hierarchy is None else self.hierarchy
        hierarchy = restrict_hierarchy(hierarchy, self.labels)
        return FittedModels(network, linear, vocabulary, hierarchy, data.train, bags, tuple(history))


def linear_inputs(network: Network, embeddings: Embeddings, bags: BagOfWords) -> tuple[BagOfWords, Floats]:
    """Return what the linear model reads of n products: (n, words) bags, empty without a text, and (n, dim) inputs."""
    return bags.multiply(embeddings.has_text[:, None]).tocsr(), network.inputs(embeddings) * input_scales(network.shape)


def input_scales(shape: NetworkShape) -> Floats:
    """Return what standardised inputs are multiplied by for the linear model: its parts are of about unit length."""
    dims = np.array([shape.image_dim, shape.text_dim])
    return np.repeat(1 / np.sqrt(np.maximum(dims, 1)), dims).astype(np.float32)


def labels_to_learn(
    truth: Truth, is_usable: Bools, minimum: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, int]]]:
    """Return the labels to learn of each trainable characteristic, and the others with their counts of products.

    Labels of fewer than `minimum` usable products are left out.
    """
    labels, left_out = {}, {}
    for name, column in truth.items():
        counts = Counter(iter_labels(column[is_usable]))
        kept = tuple(sorted(label for label, count in counts.items() if count >= minimum))
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


def _prepare(task: Task, train: Rows) -> tuple[TrainingData, Vocabulary, BagOfWords]:
    """Return what the network is fitted to, and the vocabulary with the bags of words of all products."""
    products, targets, settings = task.products, task.targets, task.settings
    embeddings, encoder = products.embeddings, task.encoder
    is_labelled = np.any([target.is_known for target in targets], axis=0)
    train = train[is_labelled[train]]
    if not len(train):
        raise DataError(
            "one fold holds all products with a known label, so none are left to learn from: name columns of splits "
            "and groups with several values, or lower holdout"
        )
    samples = (
        varied_rows(embeddings.image, train[embeddings.has_image[train]]),
        varied_rows(embeddings.text, train[embeddings.has_text[train]]),
    )
    uses_image, uses_text = _parts_to_learn(samples, embeddings, train)
    has_part = embeddings.has_image & uses_image | embeddings.has_text & uses_text
    train = train[has_part[train]]
    vocabulary, bags = _learn_words(task, train[embeddings.has_text[train] & uses_text])
    words = bags[:, : vocabulary.n_whole]
    image_dim = embeddings.image.shape[1] if uses_image and embeddings.has_image[train].any() else 0
    text_dim = embeddings.text.shape[1] if uses_text and embeddings.has_text[train].any() else 0
    shares_space = encoder is not None and encoder.shares_space
    starts = label_embeddings(targets, train, encoder if text_dim or (image_dim and shares_space) else None)
    shape = NetworkShape(
        image_dim,
        text_dim,
        tuple(len(target.labels) for target in targets),
        settings.hidden,
        vocabulary.n_whole,
        label_dim=starts.shape[1],
        shares_space=shares_space and starts.shape[1] > 0,
    )
    train_words = words[train]
    competing = [None if target.is_multi_label else target.label_ids[train] for target in targets]
    pairs = zip(targets, competing, strict=True)
    rows = [words_of_labels(vocabulary, target.labels, train_words, label_ids) for target, label_ids in pairs]
    label_words = vstack(rows, format="csr")
    data = TrainingData(embeddings, words, targets, train, samples, starts, label_words, shape)
    return data, vocabulary, bags


def _parts_to_learn(samples: tuple[Rows, Rows], embeddings: Embeddings, train: Rows) -> tuple[bool, ...]:
    """Return whether to learn from images and from texts, by the rows that show how each varies.

    A part that fewer than 10 show is left out if the other part is better off: nothing can be learned from it, but its
    weights would move every product that has it.
    """
    is_enough = tuple(len(rows) >= FEW_PRODUCTS for rows in samples)
    if not any(is_enough):
        return True, True
    has_parts = embeddings.has_image, embeddings.has_text
    for name, rows, has_part in zip(("photo", "text"), samples, has_parts, strict=True):
        if has_part[train].any() and len(rows) < FEW_PRODUCTS:
            logger.warning(
                "%ss are left out: %d of %d training products have a %s of their own, %d are needed",
                *(name, len(rows), len(train), name, FEW_PRODUCTS),
            )
    return is_enough


def _learn_words(task: Task, train: Rows) -> tuple[Vocabulary, BagOfWords]:
    """Learn the words of the texts of training rows, and return the bags of words of all."""
    settings, products, leading_words = task.settings, task.products, task.settings.leading_words
    if leading_words is None:
        texts = [products.texts[row] for row in train.tolist()] if settings.max_words else []
        titles = [text.partition("\n")[0] for text in texts] if products.has_title else texts
        single = [target.label_ids[train] for target in task.targets if not target.is_multi_label]
        leading_words = start_with_their_kind(titles, single)
    max_words = min(settings.max_words, _MAX_WORD_WEIGHTS // sum(len(target.labels) for target in task.targets))
    return task.counts.fit_vocabulary(train, max_words=max_words, has_leading_words=leading_words)
