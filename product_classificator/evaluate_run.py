"""Score a run on the labelled products of a table that it was not trained on.

A product counts as seen if its id is in the run's train or valid split, or if it is a near-duplicate of a product
there, as when the split was made. So on its own table a run is scored on its test split; a table whose ids denote
other products needs other ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.split import load_split
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import EmbeddedProducts, embed
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import DataError
from product_classificator.evaluation import Evaluation, evaluate
from product_classificator.heads import MIN_PRECISION
from product_classificator.runs import Run
from product_classificator.training.near_duplicates import Signatures, is_near_duplicate, near_duplicate_groups


@dataclass(frozen=True)
class RunEvaluation:
    """Scores on unseen products, with the numbers of products that were scored and left out.

    `seen` are those the run was trained on, or near-duplicates of them; `seen_by_id_alone` share nothing but an id with
    a training product. `set_aside` have neither photo nor text that the heads use, or a repeated id.
    """

    evaluation: Evaluation
    scored: int
    seen: int
    seen_by_id_alone: int
    set_aside: int


def evaluate_run(
    run: Run,
    catalog: Catalog,
    *,
    classificator: Classificator | None = None,
    store: str | Path | None = None,
    min_precision: float | None = None,
    on_chunk: Callable[[EmbeddedProducts], None] | None = None,
) -> RunEvaluation:
    """Score a run on the products of a catalog that it was not trained on.

    Classificator and folder of embeddings are those of the run, unless others are given. `min_precision` is the target
    precision of accepted values; `None`: 0.95, if the heads have thresholds.

    Raises:
        DataError: every product of the catalog was seen in training or set aside, or no characteristic is the run's.
        ArtifactError: `min_precision` is given, but the heads have no thresholds.
    """
    classificator = classificator or Classificator.from_run(run.folder)
    encoder, bundle = classificator.encoder, classificator.bundle
    names = [name for name in catalog.columns.characteristics if name in bundle.labels]
    if not names:
        raise DataError(f"the table must hold a characteristic of the run, which predicts {', '.join(bundle.labels)}")
    classificator.check_inputs(has_images=catalog.images is not None, has_texts=bool(catalog.columns.text))
    truth = catalog.truth()  # a label that cannot be read is found before anything is embedded
    embedded = embed(catalog, encoder, EmbeddingStore(store or run.store, encoder), on_chunk=on_chunk)
    products = embedded.embeddings
    is_read = (products.has_image & bool(bundle.image_dim)) | (products.has_text & bool(bundle.text_dim))
    is_usable = (embedded.set_aside() == "ok") & is_read
    signatures = Signatures.of(catalog.texts(), embedded.thumbnails)
    split, columns = load_split(run.split)
    is_learned = np.isin(split.names, ("train", "valid"))
    learned_ids = set(split.ids[is_learned]) - {""}
    has_learned_id = np.array([product_id in learned_ids for product_id in catalog.ids], dtype=bool)
    is_alike = is_near_duplicate(signatures, Signatures.from_table(columns).take(is_learned))
    is_seen = is_usable & (has_learned_id | is_alike)
    rows = np.flatnonzero(is_usable & ~is_seen)
    if not is_usable.any():
        raise DataError("a score needs products with a photo or a text and an id of their own: the table has none")
    if not len(rows):
        raise DataError("a score needs unseen products: the run was trained on every product of the table")
    embeddings, texts = products.take(rows), catalog.texts().take(rows)
    predictions = bundle.predict(embeddings, texts, names)
    if bundle.novelty is not None or min_precision is not None:
        target = MIN_PRECISION if min_precision is None else min_precision
        predictions = bundle.with_decisions(predictions, embeddings, texts, target)
    evaluation = evaluate(
        predictions,
        {name: truth[name][rows] for name in names},
        groups=near_duplicate_groups(signatures.take(rows)),
        left_out={name: bundle.facts.get("left_out", {}).get(name, ()) for name in names},
    )
    by_id_alone = int((is_seen & ~is_alike).sum())
    return RunEvaluation(evaluation, len(rows), int(is_seen.sum()), by_id_alone, int((~is_usable).sum()))
