"""The sets that methods are compared on, each as one task: products, their embeddings, their labels, and a test part.

The test part is held out from every method. Ours deals the other products into folds, as `train` does, and rivals that
come in variants choose by the same folds.

The five fashion sets are the same products with the same split: they differ in what a method gets to see, so their
differences show what title, description and photos are worth. Descriptions link near-identical products in all of them,
whether or not they are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
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
from product_classificator.catalog.split import split_products
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.encoders import Encoder, embed_labels
from product_classificator.training import FittedHeads, LabelledProducts
from product_classificator.training.fit import labels_to_learn
from product_classificator.training.settings import SplitSettings, TrainSettings
from product_classificator.training.train import split_catalog
from product_classificator.types import Rows, Truth

FASHION = ["category", "sub_category", "sex", "season", "age_restrictions", "usage", "color", "hazmat"]
FLIPKART = ["category", "sub_category", "third"]
OZON_PRODUCTS = 60_000
SETS = ("fashion", "fashion_title", "fashion_photos", "fashion_text", "fashion_half", "ozon", "flipkart", "synthetic")
TEST_SHARE, TEST_SHARES = 0.2, {"ozon": 0.15, "flipkart": 0.3}


@dataclass(frozen=True)
class Task:
    """What every method gets.

    Attributes:
        texts: (n,) raw texts, "" where there is none.
        embeddings: of the n products.
        truth: characteristic -> (n,) labels.
        split: "train" to learn from, "test" to be judged on, once.
        groups: (n,) group of near-identical products that each belongs to.
        encoder: that of the embeddings, from whose embeddings of labels ours starts.
        has_title: whether the first line of each text is a title.
        seed: of the folds.
        min_products: labels of fewer products to learn from are not learned.
    """

    texts: Sequence[str]
    embeddings: Embeddings
    truth: Truth
    split: Split
    groups: Rows
    encoder: Encoder
    has_title: bool = False
    seed: int = 0
    min_products: int = HeadSettings().min_products_per_label

    @cached_property
    def learn(self) -> Rows:
        """Rows to learn from, ascending."""
        return self.split.rows("train")

    @cached_property
    def test(self) -> Rows:
        """Rows that are held out from every method, ascending."""
        return self.split.rows("test")

    @cached_property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Characteristic -> the labels that are learned, at least two."""
        return labels_to_learn(self.truth, self.split.names == "train", self.min_products)[0]

    @cached_property
    def dealt(self) -> Split:
        """The products to learn from, dealt as `train` deals a table of them."""
        shares = SplitSettings().shares(len(self.learn))
        is_learned = self.split.names == "train"
        return split_products(self.split.ids, self.groups, self.truth, is_learned, shares, seed=self.seed)

    @cached_property
    def folds(self) -> list[Rows]:
        """Rows of each fold; of more than 50,000 products, of the one that is judged."""
        return [self.dealt.rows(name) for name in self.dealt.folds]

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
    """Fit the heads of this package to the products to learn from; rows of its out-of-fold predictions are of these."""
    learn = task.learn
    products = LabelledProducts(
        task.embeddings.take(learn),
        [task.texts[row] for row in learn],
        {name: labels[learn] for name, labels in task.truth.items()},
        Split(task.dealt.ids[learn], task.dealt.names[learn]),
        task.has_title,
        task.groups[learn],
    )
    return fit_heads(products, replace(settings, min_products_per_label=task.min_products), encoder=task.encoder)


def open_task(name: str, seed: int, folder: Path) -> Task:
    """Return the task of a set.

    Args:
        name: one of `SETS`.
        seed: of the split and the folds.
        folder: of the stores of embeddings; products are embedded at the first call.
    """
    base = name.split("_")[0]
    catalog, embedded = _embedded(base, folder)
    share = TEST_SHARES.get(base, TEST_SHARE)
    products = split_catalog(catalog, embedded, TrainSettings(seed=seed), {"train": 1 - share, "test": share}).products
    texts, embeddings = _shown(name, folder)
    split = Split(catalog.ids, np.where(embeddings.has_image | embeddings.has_text, products.split.names, ""))
    encoder = _encoder()
    embed_labels(encoder, ["warm"])  # a training has the encoder at hand: its loading is not to be counted
    has_title = name == "fashion_title" or catalog.columns.has_title
    return Task(texts, embeddings, products.truth, split, products.group_ids, encoder, has_title, seed)


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
    if name == "flipkart":
        folder, text = DATA / "flipkart", ("product_name", "description")
        return read_catalog(
            folder / "products.parquet", folder / "images.zip", id="uniq_id", text=text, characteristics=FLIPKART
        )
    table = DATA / "fashion/products.parquet"
    if name == "fashion_title":  # its photos are those of fashion
        return read_catalog(table, id="nm", text=("title", "description"), characteristics=FASHION)
    return read_catalog(table, DATA / "fashion/images.zip", id="nm", text="description", characteristics=FASHION)
