"""Turns the explanation of a prediction into one that names the training products most like the product.

The store of the run is passed over part by part, so memory does not grow with it; 8,889 products take well under a
second, a million some seconds. Products of one text and one photo are stored once, so one of them stands for all.
"""

from dataclasses import replace
from functools import partial
from heapq import nlargest
from typing import TYPE_CHECKING

import numpy as np

from product_classificator.encoders import Encoder
from product_classificator.runs import Run
from product_classificator.types import Embeddings, Explanation, Neighbour, Predictions

if TYPE_CHECKING:  # only explanations need tables, and tables take most of a second to import
    import pandas as pd

_NEAREST = 3


def with_nearest(predictions: Predictions, embeddings: Embeddings, run: Run, encoder: Encoder) -> Predictions:
    """Returns predictions whose explanations name the nearest training products, as far as the run still knows them.

    Args:
        predictions: of n products, made by heads.
        embeddings: of the same products.
        run: the training of the heads.
        encoder: what made the embeddings of both.
    """
    return replace(predictions, explainer=partial(_explain, predictions, embeddings, run, encoder))


def _explain(
    predictions: Predictions, embeddings: Embeddings, run: Run, encoder: Encoder, row: int
) -> dict[str, Explanation]:
    explanations = dict(predictions.explain(row))
    if not (run.labels.is_file() and _has_vectors(run, encoder)):
        return explanations
    labels = run.load_labels()
    similar = _nearest(embeddings.take(np.array([row])), run, encoder, labels.index)
    return {
        name: replace(explanation, nearest=_told(similar, labels[name])) for name, explanation in explanations.items()
    }


def _has_vectors(run: Run, encoder: Encoder) -> bool:
    """Tells whether there is a store of the encoder's vectors: it may have been deleted, or filled by another one."""
    from product_classificator.embeddings.store import read_store_facts

    is_there = (run.store / "store.json").is_file()
    return is_there and read_store_facts(run.store)["fingerprint"] == encoder.fingerprint


def _told(similar: list[tuple[str, float]], labels: "pd.Series") -> tuple[Neighbour, ...]:
    known = labels.dropna()
    return tuple(Neighbour(id_, cosine, known.get(id_)) for id_, cosine in similar)


def _nearest(product: Embeddings, run: Run, encoder: Encoder, trained: "pd.Index") -> list[tuple[str, float]]:
    """Returns id and similarity of the training products that are most like a product, the nearest first."""
    from product_classificator.embeddings.store import EmbeddingStore

    sides = int(product.has_image[0]) + int(product.has_text[0])
    found: dict[str, float] = {}
    for part in EmbeddingStore(run.store, encoder).scan():
        rows = np.flatnonzero(trained.get_indexer_for(part.ids) >= 0)
        similarity = (part.image[rows] @ product.image[0] + part.text[rows] @ product.text[0]) / sides
        for place in np.argsort(-similarity)[:_NEAREST]:
            id_ = part.ids[rows[place]]
            found[id_] = max(float(similarity[place]), found.get(id_, -1.0))
        found = dict(nlargest(_NEAREST, found.items(), key=lambda item: item[1]))
    return list(found.items())
