"""Score a run on labelled products, each predicted by heads that never saw it.

Products of the run's own table have their out-of-fold predictions, as in its report. Of other products, those count as
seen that have the id of a product of the run, or are near-duplicates of one; they are left out. A table whose ids
denote other products needs other ids.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.split import load_split
from product_classificator.classificator import Classificator
from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import DataError
from product_classificator.evaluation import Evaluation, evaluate
from product_classificator.heads import MIN_PRECISION
from product_classificator.heads.bundle import HeadBundle
from product_classificator.runs import Run
from product_classificator.training.near_duplicates import Signatures, is_near_duplicate, near_duplicate_groups
from product_classificator.types import LEARNED, Decisions, Predictions, Rows


@dataclass(frozen=True, kw_only=True)
class JudgedProducts:
    """Predictions of products by heads that never saw them, and numbers of products.

    Attributes:
        rows: (m,) rows of the predicted products: first `out_of_fold` products of the run, then new ones.
        seen: not predicted, because the run was trained on them, or on near-duplicates of them.
        seen_by_id_alone: those of `seen` that share nothing but an id with a product of the run.
        set_aside: have neither photo nor text that the heads use, or a repeated id.
    """

    rows: Rows
    predictions: Predictions
    out_of_fold: int
    seen: int
    seen_by_id_alone: int
    set_aside: int


@dataclass(frozen=True, kw_only=True)
class RunEvaluation(JudgedProducts):
    """The scores of a run on the products that it can judge."""

    evaluation: Evaluation


def judge_products(
    run: Run,
    bundle: HeadBundle,
    catalog: Catalog,
    embedded: EmbeddedProducts,
    signatures: Signatures,
    min_precision: float = MIN_PRECISION,
) -> JudgedProducts:
    """Predict the products of a catalog by heads that never saw them, as far as there are such."""
    products, names = embedded.embeddings, [name for name in catalog.columns.characteristics if name in bundle.labels]
    is_read = (products.has_image & bool(bundle.image_dim)) | (products.has_text & bool(bundle.text_dim))
    is_usable = (embedded.set_aside() == "ok") & is_read
    split, columns = load_split(run.split)
    out_of_fold, of_run = run.load_out_of_fold(), Signatures.from_table(columns)
    row_of_id = {product_id: row for row, product_id in enumerate(split.ids) if split.names[row]}
    run_rows = np.array([row_of_id.get(product_id, -1) for product_id in catalog.ids], dtype=np.int64)
    position = np.full(len(split.ids) + 1, -1)  # of each product of the run among the judged ones; the last: unknown
    position[out_of_fold.rows] = np.arange(len(out_of_fold))
    is_own = is_usable & (position[run_rows] >= 0)
    is_own[is_own] = signatures.take(is_own).is_same(of_run.take(run_rows[is_own]))
    is_learned = split.names != ""
    if not run.settings["split"]["refit"]:
        is_learned &= np.isin(split.names, LEARNED)
    is_alike = is_near_duplicate(signatures, of_run.take(is_learned))
    has_learned_id = (run_rows >= 0) & np.append(is_learned, False)[run_rows]
    is_seen = is_usable & ~is_own & (has_learned_id | is_alike)
    own, new = np.flatnonzero(is_own), np.flatnonzero(is_usable & ~is_own & ~is_seen)
    all_texts = catalog.texts()
    embeddings, texts = products.take(new), [all_texts[row] for row in new.tolist()]
    of_new = bundle.with_decisions(bundle.predict(embeddings, texts, names), embeddings, texts, min_precision)
    of_own = bundle.judged(out_of_fold.take(position[run_rows[own]]), catalog.ids[own], min_precision, names)
    parts = ("ids", "probabilities", "is_known", "decisions")
    predictions = replace(of_own, **{part: _join(getattr(of_own, part), getattr(of_new, part)) for part in parts})
    return JudgedProducts(
        rows=np.append(own, new),
        predictions=predictions,
        out_of_fold=len(own),
        seen=int(is_seen.sum()),
        seen_by_id_alone=int((is_seen & ~is_alike).sum()),
        set_aside=int((~is_usable).sum()),
    )


def _join(first: Any, second: Any) -> Any:
    """Return arrays end to end, also those in mappings and decisions."""
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second])
    if isinstance(first, Decisions):
        novel = _join(first.is_out_of_distribution, second.is_out_of_distribution)
        return Decisions(first.min_precision, _join(first.accepted, second.accepted), novel)
    return {name: _join(first[name], second[name]) for name in first}


def column_of_groups(run: Run, catalog: Catalog) -> str | None:
    """Return the column that a run took groups of products from, if the catalog has it."""
    name: str | None = run.settings["split"]["groups"]
    return name if name in catalog.table.columns else None


def evaluate_run(
    run: Run,
    catalog: Catalog,
    *,
    classificator: Classificator | None = None,
    store: str | Path | None = None,
    min_precision: float | None = None,
    on_chunk: Callable[[EmbeddedProducts], None] | None = None,
) -> RunEvaluation:
    """Score a run on the products of a catalog, as far as there are predictions by heads that never saw them.

    Classificator and folder of embeddings are those of the run, unless others are given. `min_precision` is the target
    precision of accepted values; `None`: 0.95.

    Raises:
        DataError: every product of the catalog was seen in training or set aside, or no characteristic is the run's.
    """
    classificator = classificator or Classificator.from_run(run.folder)
    encoder, bundle = classificator.encoder, classificator.bundle
    names = [name for name in catalog.columns.characteristics if name in bundle.labels]
    if not names:
        raise DataError(f"the table must hold a characteristic of the run, which predicts {', '.join(bundle.labels)}")
    classificator.check_inputs(has_images=catalog.images is not None, has_texts=bool(catalog.columns.text))
    truth = catalog.truth()  # a label that cannot be read is found before anything is embedded
    embedded = embed(catalog, encoder, EmbeddingStore(store or run.store, encoder), on_chunk=on_chunk)
    signatures = Signatures.of(catalog.texts(), embedded.thumbnails)
    target = MIN_PRECISION if min_precision is None else min_precision
    judged = judge_products(run, bundle, catalog, embedded, signatures, target)
    rows, column = judged.rows, column_of_groups(run, catalog)
    if judged.set_aside == len(catalog):
        raise DataError("a score needs products with a photo or a text and an id of their own: the table has none")
    if not len(rows):
        raise DataError(
            f"a score needs unseen products: all {judged.seen} are left out because the run was trained on every "
            f"product of the table or on near-identical ones ({judged.seen_by_id_alone} share only an id with a "
            "product of the run: other products need other ids)"
        )
    evaluation = evaluate(
        judged.predictions,
        {name: truth[name][rows] for name in names},
        groups=near_duplicate_groups(signatures, together=catalog.column(column) if column else None)[rows],
        rare_labels={name: bundle.facts.get("rare_labels", {}).get(name, ()) for name in names},
        seed=run.settings["seed"],
    )
    return RunEvaluation(**vars(judged), evaluation=evaluation)
