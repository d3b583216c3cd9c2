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
from product_classificator.runs import SKETCH_DIM, Run, sketch
from product_classificator.types import Embeddings, Explanation, Floats, Neighbour

_NEAREST = 3
_SAME = 0.15  # rounding of another dtype moves an embedding by up to 0.14, another product by far more


def with_nearest(
    explanations: Mapping[str, Explanation], product: Embeddings, run: Run, encoder: Encoder
) -> dict[str, Explanation]:
    """Add the nearest training products to the explanations of one product, if the store is of this encoder."""
    if read_store_facts(run.store)["fingerprint"] != encoder.fingerprint:
        return dict(explanations)
    labels, sketches = run.load_training_products()
    nearest = _nearest(product, EmbeddingStore(run.store, encoder), sketches)
    return {
        name: replace(explanation, nearest=tuple(Neighbour(id_, cosine, labels[name][id_]) for id_, cosine in nearest))
        for name, explanation in explanations.items()
    }


def _nearest(product: Embeddings, store: EmbeddingStore, sketches: Mapping[str, Floats]) -> list[tuple[str, float]]:
    """Return ids and mean cosines of the training products most similar to a product, the nearest first."""
    n_parts = int(product.has_image[0]) + int(product.has_text[0])
    best: dict[str, float] = {}
    for shard in store.scan():
        rows = np.flatnonzero([id_ in sketches for id_ in shard.ids])
        learned = np.array([sketches[shard.ids[row]] for row in rows]).reshape(len(rows), SKETCH_DIM)
        differences = sketch(shard.image[rows], shard.text[rows]) - learned
        rows = rows[np.linalg.norm(differences, axis=1) < _SAME]
        cosines = (shard.image[rows] @ product.image[0] + shard.text[rows] @ product.text[0]) / n_parts
        for position in np.argsort(-cosines)[:_NEAREST]:
            id_ = shard.ids[rows[position]]
            best[id_] = max(float(cosines[position]), best.get(id_, -1.0))
        best = dict(nlargest(_NEAREST, best.items(), key=lambda item: item[1]))
    return list(best.items())
