"""Fit both models of the heads, a joint network (`epochs`) and a linear model (`linear`), to some of the products.

All characteristics are fitted together; unknown labels are masked. The network starts from the words of label names;
where a label has few products, from label embeddings too. Models of several parts of a catalog are averaged into one.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import vstack

from product_classificator.encoders import Encoder
from product_classificator.errors import DataError
from product_classificator.heads.bag_of_words import Vocabulary, WeightedWords
from product_classificator.heads.hierarchy import Hierarchy, restrict_hierarchy
from product_classificator.heads.network import ROWS_PER_STEP, Network, NetworkShape
from product_classificator.training.epochs import EpochFacts, fit_network
from product_classificator.training.inputs import (
    FEW_PRODUCTS,
    WEIGHT_SAMPLE,
    BagOfWords,
    CountedTexts,
    Inputs,
    blocks_of,
    has_enough,
    standardization,
    start_with_their_kind,
    thinned,
    varied_rows,
    words_of_labels,
)
from product_classificator.training.linear import LinearModel, fit_linear
from product_classificator.training.settings import HeadSettings
from product_classificator.training.targets import LabelledProducts, Target, TrainingData, label_embeddings
from product_classificator.training.taxonomy import learn_hierarchy
from product_classificator.training.thresholds import Blend
from product_classificator.training.torch_network import MEMBERS
from product_classificator.types import Bools, Embeddings, Floats, Rows, Truth, is_multi_label, iter_labels

logger = logging.getLogger(__name__)

_WORDS_PER_BLOCK, _MAX_WORD_WEIGHTS = 4096, 10**8
"""Words x labels of all characteristics: 400 MB, three times while fitting. 100,000 words of 1,000 labels fit."""


@dataclass(frozen=True)
class FittedModels:
    """A joint network and a linear model, `None` if there are too many products, fitted to the same products.

    Attributes:
        network: knows the whole words of the vocabulary, in front of the pieces.
        hierarchy: as these products show it.
    """

    network: Network
    linear: LinearModel | None
    inputs: Inputs
    hierarchy: Hierarchy
    history: tuple[EpochFacts, ...]

    def logits(self, products: LabelledProducts, rows: Rows) -> tuple[Floats, Floats]:
        """Return the (m, labels) logits of the network and of the linear model, of products in `rows`."""
        joint = np.empty((len(rows), sum(self.network.shape.n_labels)), dtype=np.float32)
        for start in range(0, len(rows), ROWS_PER_STEP):
            step = rows[start : start + ROWS_PER_STEP]
            bags = self.inputs.bags[step, : self.network.shape.n_words]
            words = WeightedWords(bags.data, bags.indices, bags.indptr)
            joint[start : start + len(step)] = self.network.logits(products.embeddings.take(step), words)
        if self.linear is None:
            return joint, np.zeros(joint.shape, dtype=np.float32)
        inputs = linear_inputs(self.network, products.embeddings.take(rows), self.inputs.bags[rows])
        return joint, self.linear.logits(*inputs)


@dataclass(frozen=True)
class Task:
    """What is learned: products, their targets, and how; `counts` are those of their texts.

    `dims` are the widths of image and text that are read, see `dims_to_read`; `hierarchy` is `None` if it is learned;
    `has_linear` says whether there is a linear model, too.
    """

    products: LabelledProducts
    targets: tuple[Target, ...]
    counts: CountedTexts
    settings: HeadSettings
    dims: tuple[int, int]
    hierarchy: Hierarchy | None
    encoder: Encoder | None
    has_linear: bool

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Characteristic -> labels that are learned."""
        return {target.name: target.labels for target in self.targets}

    def inputs(self, rows: Rows) -> Inputs:
        """Return what models read, as the labelled products of `rows` show it."""
        train = rows[np.any([target.is_known[rows] for target in self.targets], axis=0)]
        if not len(train):
            raise DataError(
                "one fold holds all products with a known label, so none are left to learn from: name columns of "
                "splits and groups with several values, or lower holdout"
            )
        embeddings, (image_dim, text_dim) = self.products.embeddings, self.dims
        parts = embeddings.image[:, :image_dim], embeddings.text[:, :text_dim]
        has_parts = embeddings.has_image & (image_dim > 0), embeddings.has_text & (text_dim > 0)
        samples = [varied_rows(part, train[has[train]]) for part, has in zip(parts, has_parts, strict=True)]
        mean, scale = standardization(parts, samples)
        train = train[np.any(has_parts, axis=0)[train]]
        vocabulary, bags = _learn_words(self, train[has_parts[1][train]])
        return Inputs(vocabulary, bags, mean, scale, self.products.weighted(train))

    def fit(self, rows: Rows, on_epoch: Callable[[EpochFacts], None] | None = None) -> FittedModels:
        """Fit both models to the labelled products of `rows`."""
        inputs = self.inputs(rows)
        train = inputs.train
        # Layers draw their weights and dropout from the global generator, whose state is restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            network, history = fit_network(_training_data(self, inputs), self.settings, on_epoch)
        linear = self.fit_linear(network, inputs)
        return FittedModels(network, linear, inputs, self.hierarchy_of(train), tuple(history))

    def fit_linear(self, network: Network, inputs: Inputs) -> LinearModel | None:
        """Fit a linear model to the products of `inputs`, standardised as a network does it."""
        if not self.has_linear:
            return None
        train = inputs.train
        read = linear_inputs(network, self.products.embeddings.take(train), inputs.bags[train])
        return fit_linear(*read, [target.take(train) for target in self.targets])

    def hierarchy_of(self, train: Rows) -> Hierarchy:
        """Return the hierarchy of the labels that are learned, as products of `train` rows show it."""
        hierarchy = learn_hierarchy(self.targets, train) if self.hierarchy is None else self.hierarchy
        return restrict_hierarchy(hierarchy, self.labels)


class Average:
    """The mean of networks that were fitted to parts of a catalog, as one network that reads `inputs`.

    Hidden layers are put side by side, everything else is linear and added up. Each network standardises a little
    differently, which its weights make up for, and does not know some words, which make bags of words longer than its
    own: its weights of words are raised by as much as its bags are shorter on average.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self._columns = {word: column for column, word in enumerate(inputs.vocabulary.words)}
        self._hidden: list[dict[str, Floats]] = []
        self._sums: dict[str, Floats] = {}
        self._shape: NetworkShape | None = None

    def add(self, models: FittedModels) -> None:
        """Add a network of the same labels and widths."""
        network, own, mine = models.network, models.inputs, self.inputs
        weights, shape = network.weights, network.shape
        stretch, shift = mine.scale / own.scale, (mine.mean - own.mean) / own.scale
        shifts = np.split(weights["hidden.weight"] * shift, [shape.image_dim], axis=1)
        moved = np.stack([part.sum(1) for part in shifts])
        self._hidden.append(
            {
                "hidden.weight": weights["hidden.weight"] * stretch,
                "hidden.bias": weights["hidden.bias"] + moved.sum(0),
                "missing": weights["missing"] - moved,
                "labels.weight": weights["labels.weight"],
            }
        )
        for name in {"labels.bias", "label_embeddings"} & weights.keys():
            self._sums[name] = self._sums.get(name, np.float32(0)) + weights[name]
        self._add_words(weights["word_weights"], own)
        if self._shape is None or shape.label_dim:
            self._shape = shape

    def take(self, columns: Rows, n_labels: tuple[int, ...]) -> None:
        """Keep some labels, `n_labels` of each characteristic, by their columns of logits."""
        if self._shape is not None:
            self._shape = replace(self._shape, n_labels=n_labels)
        for weights in self._hidden:
            weights["labels.weight"] = weights["labels.weight"][columns]
        for name, weights_of_all in self._sums.items():
            taken = weights_of_all[:, columns] if name == "word_weights" else weights_of_all[columns]
            self._sums[name] = np.ascontiguousarray(taken)

    def network(self, blends: Sequence[Blend]) -> Network:
        """Return the network whose logits are the share of a blend of the mean logits; it ends the average."""
        if self._shape is None:
            raise ValueError("an average needs a network")
        of_blends = np.array([blend.joint / len(self._hidden) for blend in blends], dtype=np.float32)
        shares = np.repeat(of_blends, self._shape.n_labels)
        sums, axes = self._sums, {"missing": 1, "labels.weight": 1}
        weights = {name: np.concatenate([w[name] for w in self._hidden], axes.get(name, 0)) for name in self._hidden[0]}
        weights |= {"mean": self.inputs.mean, "scale": self.inputs.scale}
        weights["labels.weight"] *= shares[:, None]
        weights["labels.bias"] = sums["labels.bias"] * shares + np.concatenate([blend.offsets for blend in blends])
        weights["word_weights"] = sums["word_weights"]
        weights["word_weights"] *= shares
        if "label_embeddings" in sums:
            weights["label_embeddings"] = sums["label_embeddings"] * shares[:, None]
        hidden, n_words = len(weights["hidden.bias"]), len(self.inputs.vocabulary)
        return Network(replace(self._shape, hidden=hidden, n_words=n_words), weights)

    def _add_words(self, weights: Floats, own: Inputs) -> None:
        """Add the weights of words, block by block in place: those of all words take the most memory."""
        mine = self.inputs
        columns = np.array([self._columns.get(word, -1) for word in own.vocabulary.words[: len(weights)]], np.int64)
        known = np.flatnonzero(columns >= 0)
        factors = own.vocabulary.idf[known] / mine.vocabulary.idf[columns[known]]
        blocks = (mine.bags[rows][:, columns[known]].power(2) @ factors**2 for rows in blocks_of(own.train))
        squares = np.concatenate([*blocks])
        if squares.any():
            factors /= np.sqrt(squares[squares > 0]).mean()
        total = self._sums.setdefault("word_weights", np.zeros((len(mine.vocabulary), weights.shape[1]), np.float32))
        for positions in np.array_split(np.arange(len(known)), len(known) // _WORDS_PER_BLOCK + 1):
            rows = known[positions]
            total[columns[rows]] += weights[rows] * factors[positions, None]


def with_linear(network: Network, linear: LinearModel | None, blends: Sequence[Blend]) -> Network:
    """Return a network whose logits have the share of a linear model, too; it takes over the weights of words."""
    if linear is None:
        return network
    shape, weights = network.shape, dict(network.weights)
    shares = np.repeat(np.array([blend.linear for blend in blends], dtype=np.float32), shape.n_labels)
    weights["labels.bias"] = weights["labels.bias"] + linear.bias * shares
    weights["linear.weight"] = np.ascontiguousarray((linear.inputs * input_scales(shape)[:, None] * shares).T)
    for rows in np.array_split(np.arange(len(linear.words)), len(linear.words) // _WORDS_PER_BLOCK + 1):
        weights["word_weights"][rows] += linear.words[rows] * shares
    return Network(replace(shape, has_linear=True), weights)


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
    """Return the labels of each trainable characteristic that have at least `minimum` usable products, and the others.

    The others, with their counts of products, are rare; without two common labels a characteristic is not trainable.
    """
    labels, rare = {}, {}
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
            rare[name] = rest
    if not labels:
        raise DataError(
            f"a characteristic needs two labels with at least {minimum} products each, "
            f"found none among {list(truth)}: add products or lower min_products_per_label"
        )
    return labels, rare


def _training_data(task: Task, inputs: Inputs) -> TrainingData:
    """Return what the network is fitted to."""
    targets, embeddings, encoder, train = task.targets, task.products.embeddings, task.encoder, inputs.train
    image_dim, text_dim = task.dims
    vocabulary = inputs.vocabulary
    if len(vocabulary) > vocabulary.n_whole:
        inputs = replace(inputs, bags=inputs.bags[:, : vocabulary.n_whole])
    shares_space = encoder is not None and encoder.shares_space
    starts = label_embeddings(targets, train, encoder if text_dim or (image_dim and shares_space) else None)
    shape = NetworkShape(
        image_dim,
        text_dim,
        tuple(len(target.labels) for target in targets),
        MEMBERS * -(-task.settings.hidden // MEMBERS),
        vocabulary.n_whole,
        label_dim=starts.shape[1],
        shares_space=shares_space and starts.shape[1] > 0,
    )
    rows = []
    for target in targets:
        known = None if target.is_multi_label else thinned(train[target.label_ids[train] >= 0], WEIGHT_SAMPLE)
        read = (inputs.bags, None) if known is None else (inputs.bags[known], target.label_ids[known])
        rows.append(words_of_labels(vocabulary, target.labels, *read))
    label_words = vstack(rows, format="csr")
    return TrainingData(embeddings, inputs, targets, starts, label_words, shape)


def dims_to_read(embeddings: Embeddings, train: Rows) -> tuple[int, int]:
    """Return the widths of image and text to read, 0 for one to leave out.

    A part that fewer than 10 show is left out if the other part is better off: nothing can be learned from it, but its
    weights would move every product that has it.
    """
    parts = ("photo", embeddings.image, embeddings.has_image), ("text", embeddings.text, embeddings.has_text)
    samples = [varied_rows(part, train[has_part[train]]) for _, part, has_part in parts]
    dims = []
    for (name, part, has_part), rows, is_read in zip(parts, samples, has_enough(samples), strict=True):
        is_there = has_part[train].any()
        dims.append(part.shape[1] if is_there and is_read else 0)
        if is_there and not is_read:
            sentence = "%ss are left out: %d of %d training products have a %s of their own, %d are needed"
            logger.warning(sentence, name, len(rows), len(train), name, FEW_PRODUCTS)
    return dims[0], dims[1]


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
