"""Turns a run and a labelled table into scores on products that the run has not learned from.

A product counts as seen when its id is in the run's train or valid part, or when its text or photo is that of a product
there, by the same rule that keeps near-identical products together in the split. So judging a run on its own table
judges its test part, and a table whose ids mean other products should be given other ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.split import load_split, near_duplicate_keys, text_keys
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import EmbeddedChunk, embed
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import DataError
from product_classificator.evaluation import Evaluation, evaluate
from product_classificator.heads import MIN_PRECISION
from product_classificator.runs import Run


@dataclass(frozen=True)
class Heldout:
    """Scores on held-back products.

    Attributes:
        evaluation: the scores.
        scored: products that were judged.
        seen: products left out because the run has learned from them or from near-identical ones.
        set_aside: products with neither photo nor text, and repeated ids.
    """

    evaluation: Evaluation
    scored: int
    seen: int
    set_aside: int


def evaluate_run(
    run: Run,
    catalog: Catalog,
    *,
    classificator: Classificator | None = None,
    store: str | Path | None = None,
    min_precision: float | None = None,
    on_chunk: Callable[[EmbeddedChunk], None] | None = None,
) -> Heldout:
    """Scores a run on the products of a catalog that it has not learned from.

    Args:
        run: the run.
        catalog: products with the characteristics of the run, or some of them.
        classificator: `None`: loaded from the run.
        store: folder of embeddings to use and fill; `None`: the run's.
        min_precision: promised for values that are decided without a person; `None`: 0.95, if the heads can promise.
        on_chunk: called after each chunk of embedded products.

    Raises:
        DataError: every product of the catalog was seen in training or set aside, or no characteristic is the run's.
        ArtifactError: `min_precision` is given, and the heads can promise nothing.
    """
    classificator = classificator or Classificator.from_run(run.folder)
    names = [name for name in catalog.columns.characteristics if name in classificator.labels]
    if not names:
        raise DataError(f"the table must hold a characteristic of the run: it tells {', '.join(classificator.labels)}")
    encoder = classificator.encoder
    embedded = embed(catalog, encoder, EmbeddingStore(store or run.store, encoder), on_chunk=on_chunk)
    texts, embeddings = catalog.texts(), embedded.embeddings
    split, keys = load_split(run.split)
    learned = np.isin(split.names, ("train", "valid"))
    seen = pd.Series(catalog.ids).isin(split.ids[learned]).to_numpy() & (catalog.ids != "")
    for name, found in near_duplicate_keys(text_keys(texts), embedded.image_keys).items():
        known = keys[name][learned]
        seen |= np.isin(found, known[known != 0])
    usable = embedded.set_aside() == "ok"
    rows = np.flatnonzero(usable & ~seen)
    if not usable.any():
        raise DataError("a score needs products with a photo or a text and an id of their own: the table has none")
    if not len(rows):
        raise DataError("an honest score needs unseen products: the run has learned from every product of the table")
    bundle, products, words = classificator.bundle, embeddings.take(rows), texts.take(rows)
    predictions = bundle.predict(products, words, names)
    if bundle.can_decide or min_precision is not None:
        predictions = bundle.with_decisions(predictions, products, words, min_precision or MIN_PRECISION)
    truth = catalog.truth()
    evaluation = evaluate(predictions, {name: truth[name][rows] for name in names})
    return Heldout(evaluation, len(rows), int((usable & seen).sum()), int((~usable).sum()))
