"""Turns embeddings, texts and known labels into a bundle of heads.

All characteristics are fitted together (`descent`). An unknown label costs nothing: it is masked. Validation products
choose the epoch whose weights are kept, the temperatures, and from where on values need no review (`calibration`,
`review`, `familiarity`), nothing else; nothing is learned from test products.

The joint recipe starts from the words of the names of the labels (`material`). Where a label has few products, it
starts from the vectors of the names, too (`zero_shot`): macro-F1 of `sub_category` on validation products with 1, 3 and
9 training products a label .41, .51, .66 instead of .29, .47, .63.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from product_classificator.errors import DataError
from product_classificator.heads.bundle import HeadBundle
from product_classificator.heads.calibration import fit_temperatures
from product_classificator.heads.descent import EpochFacts, fit_network, logits_of
from product_classificator.heads.familiarity import Familiarity
from product_classificator.heads.hierarchy import Hierarchy, known_to, learn_hierarchy
from product_classificator.heads.material import Material, codes_of, counts_of, labels_to_learn, words_of_names
from product_classificator.heads.multilabel import borne_labels, cuts_of
from product_classificator.heads.openings import open_with_their_kind
from product_classificator.heads.review import fit_thresholds
from product_classificator.heads.settings import HeadSettings
from product_classificator.heads.shape import NetworkShape
from product_classificator.heads.telling import tell
from product_classificator.heads.words import WordBag, WordRows
from product_classificator.heads.zero_shot import Codes, LabelVectors, names_to_start_from
from product_classificator.types import PARTS, Embeddings, Rows, Split, Strings, Truth

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
    part = np.where(embeddings.has_image | embeddings.has_text, split.part, "")
    labels, left_out = labels_to_learn(truth, part, settings.min_products_per_label)
    codes, borne = codes_of(truth, labels), borne_labels(truth, labels)
    train, valid = (np.flatnonzero((part == name) & (codes >= 0).any(1)) for name in ("train", "valid"))
    if not len(valid):
        raise DataError(
            "the valid part has no product with a known label and a photo or text: check the split; near-identical "
            "products are in one part together, so a catalog needs some different ones"
        )
    single = [place for place in range(len(labels)) if place not in borne]
    bag, words = _words(texts, train[embeddings.has_text[train]], codes[:, single], settings.max_words, has_title)
    image_dim = embeddings.image.shape[1] if embeddings.has_image[train].any() else 0
    text_dim = embeddings.text.shape[1] if embeddings.has_text[train].any() else 0
    can_start = settings.recipe == "joint" and (text_dim or (image_dim and shares_space))
    counts = counts_of(codes, borne, train, labels)
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
    name_words = words_of_names(labels, borne, bag, words[train], codes[train])
    material = Material(embeddings, words, codes, borne, train, valid, tuple(labels), names, name_words)
    # Layers draw their weights and dropout from the global generator: it is put back as it was afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network, history, best_epoch = fit_network(shape, material, settings, on_epoch or (lambda _: None))
    facts = {
        "settings": asdict(settings),
        "products": {part: len(split.rows(part)) for part in PARTS},
        "best_epoch": best_epoch,
        "history": [asdict(epoch) for epoch in history],
        "left_out": left_out,
    }
    if hierarchy is None:
        can_refine = {name: known for place, (name, known) in enumerate(labels.items()) if place in single}
        hierarchy = learn_hierarchy(codes[train][:, single], can_refine) if settings.recipe == "joint" else ()
    bundle = HeadBundle(network, bag, labels, embeddings.fingerprint, (1.0,) * len(labels), facts)
    bundle = replace(_calibrated(bundle, material), hierarchy=known_to(hierarchy, labels))
    bundle = _with_review(bundle, material, texts, truth, part, settings.seed)
    return FittedHeads(bundle, tuple(history), best_epoch, left_out)


def _words(
    texts: Sequence[str], train: Rows, codes: Codes, max_words: int, has_title: bool
) -> tuple[WordBag, WordRows]:
    """Learns the words of the training texts, by their numbers, and returns the rows of all."""
    if not max_words:
        return WordBag.fit_rows(texts, train, max_words=0)
    titles = [texts[row].partition("\n")[0] if has_title else texts[row] for row in train.tolist()]
    has_openings = open_with_their_kind(titles, codes[train])
    return WordBag.fit_rows(texts, train, max_words=max_words, has_title=has_title, has_openings=has_openings)


def _check_rows(embeddings: Embeddings, texts: Sequence[str], truth: Truth, split: Split) -> None:
    n = len(embeddings)
    found = {"texts": len(texts), "split": len(split.ids)} | {name: len(column) for name, column in truth.items()}
    wrong = {name: length for name, length in found.items() if length != n}
    if wrong:
        raise DataError(f"every input must have one row per product: there are {n} embeddings, but {wrong}")
    if not np.array_equal(embeddings.ids, split.ids):
        raise DataError("embeddings and split must hold the same products in the same order: make the split anew")


def _calibrated(bundle: HeadBundle, material: Material) -> HeadBundle:
    """Returns the heads with temperatures, and with the cuts of multi-label characteristics."""
    logits, spans = logits_of(bundle.network, material, material.valid), bundle.network.shape.spans
    codes = material.codes[material.valid]
    borne = {place: each[material.valid] for place, each in material.borne.items()}
    temperatures, exponents = fit_temperatures(logits, codes, spans, borne)
    cuts = {}
    for place, each in borne.items():
        own, is_known = logits[:, spans[place]], codes[:, place] >= 0
        cuts[material.characteristics[place]] = cuts_of(own, is_known, each, temperatures[place])
    return replace(bundle, temperatures=temperatures, exponents=exponents, cuts=cuts)


def _with_review(
    bundle: HeadBundle, material: Material, texts: Sequence[str], truth: Truth, part: Strings, seed: int
) -> HeadBundle:
    """Returns the heads with what they need to tell which values a person should review."""
    train, valid = np.flatnonzero(part == "train"), np.flatnonzero(part == "valid")
    shown = material.embeddings.take(valid)
    # `predict` would count the words of texts again, a tenth of the time of fitting.
    predictions = tell(bundle, shown, None, lambda rows: logits_of(bundle.network, material, valid[rows]))
    thresholds = fit_thresholds(predictions, {name: truth[name][valid] for name in bundle.labels})
    familiarity = Familiarity.fit(material.embeddings, texts, train, valid, bundle.bag, seed=seed)
    return replace(bundle, thresholds=thresholds, familiarity=familiarity)
