"""The sets that methods are compared on, each as one task: products, their embeddings, their split, their labels.

The five fashion sets are the same products with the same split: they differ in what a method gets to see, so their
differences show what title, description and photos are worth. Descriptions link near-identical products in all of them,
whether or not they are shown.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
from common import DATA

from product_classificator import (
    Embeddings,
    EmbeddingStore,
    HeadSettings,
    Split,
    embed,
    fit_heads,
    load_encoder,
    make_marketplace,
    read_catalog,
)
from product_classificator.catalog import Catalog
from product_classificator.embeddings.embed import EmbeddedProducts
from product_classificator.encoders import Encoder, embed_labels
from product_classificator.training import FittedHeads, LabelledProducts
from product_classificator.training.settings import TrainSettings
from product_classificator.training.train import split_catalog
from product_classificator.types import Rows, Truth

FASHION = ["category", "sub_category", "sex", "season", "age_restrictions", "usage", "color", "hazmat"]
OZON_PRODUCTS = 60_000
SETS = ("fashion", "fashion_title", "fashion_photos", "fashion_text", "fashion_half", "ozon", "synthetic")


@dataclass(frozen=True)
class Task:
    """What every method gets.

    Attributes:
        texts: (n,) raw texts, "" where there is none.
        embeddings: of the n products.
        truth: characteristic -> (n,) labels.
        split: train to learn from, valid to choose by, test to be judged on.
        labels: characteristic -> the labels that are learned, at least two.
        encoder: that of the embeddings, from whose embeddings of labels ours starts.
        has_title: whether the first line of each text is a title.
    """

    texts: Sequence[str]
    embeddings: Embeddings
    truth: Truth
    split: Split
    labels: dict[str, tuple[str, ...]]
    encoder: Encoder
    has_title: bool = False

    @property
    def judged(self) -> Rows:
        """Row numbers of valid and test, ascending."""
        return np.flatnonzero(np.isin(self.split.names, ("valid", "test"))).astype(np.int64)

    def codes(self, name: str) -> Rows:
        """Return for each product the number of its label of a characteristic; -1: unknown or not learned."""
        numbers = {label: number for number, label in enumerate(self.labels[name])}
        return np.array([numbers.get(label, -1) for label in self.truth[name]], dtype=np.int64)

    def digest(self, *, of_words: bool) -> str:
        """Name products, parts and labels, and, unless only words are read, the encoder.

        Results are comparable where it is the same.
        """
        encoder = "" if of_words else self.embeddings.fingerprint
        facts = (encoder, self.split.ids.tolist(), self.split.names.tolist(), self.labels)
        return blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def fit(task: Task, settings: HeadSettings) -> FittedHeads:
    """Fit the heads of this package to a task."""
    products = LabelledProducts(task.embeddings, task.texts, task.truth, task.split, task.has_title)
    return fit_heads(products, settings, encoder=task.encoder)


def open_task(name: str, seed: int, folder: Path) -> Task:
    """Return the task of a set.

    Args:
        name: one of `SETS`.
        seed: of the split.
        folder: of the stores of embeddings; products are embedded at the first call.
    """
    base = name.split("_")[0]
    catalog, embedded = _embedded(base, folder)
    products = split_catalog(catalog, embedded, TrainSettings(seed=seed)).products
    texts, embeddings = _shown(name, folder)
    split = Split(catalog.ids, np.where(embeddings.has_image | embeddings.has_text, products.split.names, ""))
    labels = _labels(products.truth, split)
    encoder = _encoder()
    embed_labels(encoder, ["warm"])  # a training has the encoder at hand: its loading is not to be counted
    has_title = name == "fashion_title" or catalog.columns.has_title
    return Task(texts, embeddings, products.truth, split, labels, encoder, has_title)


def _shown(name: str, folder: Path) -> tuple[list[str], Embeddings]:
    """Return texts and embeddings as far as the set shows them."""
    catalog, embedded = _embedded(name.split("_")[0], folder)
    texts, embeddings = list(catalog.texts()), embedded.embeddings
    n = len(texts)
    if name == "fashion_title":
        catalog, embedded = _embedded(name, folder)
        titles = embedded.embeddings
        return list(catalog.texts()), replace(embeddings, text=titles.text, has_text=titles.has_text)
    if name == "fashion_photos":
        return [""] * n, replace(embeddings, text=np.zeros_like(embeddings.text), has_text=np.zeros(n, bool))
    if name in ("fashion_text", "fashion_half"):
        is_kept = np.random.default_rng(0).permutation(n) % 2 == 0 if name == "fashion_half" else np.zeros(n, bool)
        has_image = embeddings.has_image & is_kept
        return texts, replace(embeddings, image=embeddings.image * has_image[:, None], has_image=has_image)
    return texts, embeddings


@cache
def _encoder() -> Encoder:
    return load_encoder("lite")


@cache
def _embedded(name: str, folder: Path) -> tuple[Catalog, EmbeddedProducts]:
    catalog = _catalog(name, folder)
    return catalog, embed(catalog, _encoder(), EmbeddingStore(folder / name, _encoder()))


def _catalog(name: str, folder: Path) -> Catalog:
    if name == "synthetic":
        shop = make_marketplace(folder / "synthetic_shop")
        return read_catalog(shop.table, shop.images)
    if name == "ozon":
        path = folder / "ozon60.parquet"
        pd.read_parquet(DATA / "ozon_ru/products.parquet").sample(OZON_PRODUCTS, random_state=0).to_parquet(path)
        return read_catalog(path, id="nm", text="title", characteristics="sub_category")
    table = DATA / "fashion/products.parquet"
    if name == "fashion_title":  # its photos are those of fashion
        return read_catalog(table, id="nm", text=("title", "description"), characteristics=FASHION)
    return read_catalog(table, DATA / "fashion/images.zip", id="nm", text="description", characteristics=FASHION)


def _labels(truth: Truth, split: Split) -> dict[str, tuple[str, ...]]:
    """Return the labels of enough products, one of them at least in the train part, as `fit_heads` chooses them."""
    minimum = HeadSettings().min_products_per_label
    labels = {}
    for name, column in truth.items():
        counts = Counter(column[split.names != ""])
        trained = set(column[split.rows("train")]) - {None}
        kept = tuple(sorted(label for label in trained if counts[label] >= minimum))
        if len(kept) > 1:
            labels[name] = kept
    return labels
