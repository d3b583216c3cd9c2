"""Add the nearest training products to explanations.

The store of the run is scanned shard by shard, so memory does not grow with it; 8,889 products take well under a
second, a million some seconds. Products with the same text and image are stored once, so one of them represents all.
"""

from collections.abc import Mapping
from dataclasses import replace
from heapq import nlargest

import numpy as np

from product_classificator.embeddings.store import EmbeddingStore, read_store_facts
from product_classificator.encoders import Encoder
from product_classificator.runs import Run
from product_classificator.types import Embeddings, Explanation, Neighbour

_NEAREST = 3


def with_nearest(
    explanations: Mapping[str, Explanation], product: Embeddings, run: Run, encoder: Encoder
) -> dict[str, Explanation]:
    """Add the nearest training products to the explanations of one product, if the store is of this encoder."""
    if read_store_facts(run.store)["fingerprint"] != encoder.fingerprint:
        return dict(explanations)
    labels, ids = run.load_training_products()
    nearest = _nearest(product, EmbeddingStore(run.store, encoder), ids)
    return {
        name: replace(explanation, nearest=tuple(Neighbour(id_, cosine, labels[name][id_]) for id_, cosine in nearest))
        for name, explanation in explanations.items()
    }


def _nearest(product: Embeddings, store: EmbeddingStore, ids: Mapping[bytes, str]) -> list[tuple[str, float]]:
    """Return ids and mean cosines of the training products, by digest, most similar to a product, the nearest first."""
    n_parts = int(product.has_image[0]) + int(product.has_text[0])
    best: dict[str, float] = {}
    for products in store.scan():
        shard, rows = products.embeddings, np.flatnonzero([digest in ids for digest in products.digests])
        cosines = (shard.image[rows] @ product.image[0] + shard.text[rows] @ product.text[0]) / n_parts
        for position in np.argsort(-cosines)[:_NEAREST]:
            id_ = ids[products.digests[rows[position]]]
            best[id_] = max(float(cosines[position]), best.get(id_, -1.0))
        best = dict(nlargest(_NEAREST, best.items(), key=lambda item: item[1]))
    return list(best.items())
