"""A tiny catalog: only the text says the colour, both embeddings the kind, the image the mostly unknown size."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.training import FittedHeads, HeadSettings, LabelledProducts, fit_heads
from product_classificator.training.inputs import BagOfWords, CountedTexts
from product_classificator.types import Embeddings, Rows, Split, strings

PARTS = ("train", "valid", "test")
KINDS, COLOURS = ("mug", "shoe", "сумка"), ("blue", "red")
QUICK = HeadSettings(epochs=5, hidden=32, learning_rate=1e-2)


def rows_of(products: LabelledProducts, split: str) -> tuple[Embeddings, list[str]]:
    """Return the embeddings and texts of a split."""
    rows = products.split.rows(split)
    return products.embeddings.take(rows), [products.texts[row] for row in rows]


def unit(matrix: np.ndarray) -> np.ndarray:
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def fit_vocabulary(
    texts: Sequence[str], train: Rows | None = None, *, has_title: bool = False, min_texts: int = 2, **options: int
) -> tuple[Vocabulary, BagOfWords]:
    """Learn the words of texts, by default of all of them."""
    counts = replace(CountedTexts.of(texts, has_title=has_title), min_texts=min_texts)
    return counts.fit_vocabulary(np.arange(len(texts)) if train is None else train, **options)


@pytest.fixture(scope="session")
def products() -> LabelledProducts:
    n, draw = 240, np.random.default_rng(0)
    kind, colour, big = draw.integers(0, 3, n), draw.integers(0, 2, n), draw.integers(0, 2, n)
    ids = strings([f"p{i}" for i in range(n)])
    embeddings = Embeddings(
        ids,
        unit(np.eye(8)[kind] + np.eye(8)[3 + big] + 0.1 * draw.normal(size=(n, 8))),
        unit(np.eye(6)[kind] + 0.1 * draw.normal(size=(n, 6))),
        np.ones(n, dtype=bool),
        np.ones(n, dtype=bool),
        "tiny-1",
    )
    filler = strings(["nice", "new", "small", "good", "best"])
    texts = [f"{filler[i % 5]} {COLOURS[c]} {filler[i * 7 % 5]} thing" for i, c in enumerate(colour)]
    size = strings([("S", "L")[big[i]] if i % 5 == 0 else None for i in range(n)])
    truth = {"kind": strings(KINDS)[kind], "colour": strings(COLOURS)[colour], "size": size}
    split = Split(ids, strings([PARTS[0 if i % 4 < 2 else i % 4 - 1] for i in range(n)]))
    return LabelledProducts(embeddings, texts, truth, split)


@pytest.fixture(scope="session")
def quick() -> HeadSettings:
    return QUICK


@pytest.fixture(scope="session")
def fitted(products: LabelledProducts, quick: HeadSettings) -> FittedHeads:
    """Heads that have not seen the products of the test split."""
    return fit_heads(products, quick, refit=False)
