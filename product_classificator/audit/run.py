"""Audit a labelled table with a run, and show the findings as one HTML file, which loads nothing else.

Labels are compared with predictions by heads that never saw them, for those memorise labels, also wrong ones: the
out-of-fold predictions of the run, or of new folds where products of the table have none. Ids, texts and labels come
from the table: the template of the page escapes every value.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from product_classificator.audit import findings
from product_classificator.audit.findings import KIND_TITLES, count_findings
from product_classificator.catalog.catalog import Catalog
from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.previews import read_previews
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.errors import DataError
from product_classificator.evaluate_run import column_of_groups, judge_products
from product_classificator.evaluation.page import render_page
from product_classificator.files import replacing, write_text
from product_classificator.heads import HeadBundle
from product_classificator.runs import Run
from product_classificator.training import Callbacks, HeadSettings, SplitSettings, TrainSettings, fit_heads
from product_classificator.training.near_duplicates import Signatures, near_duplicate_groups
from product_classificator.training.train import split_catalog
from product_classificator.types import as_text

SHOWN = 300


@dataclass(frozen=True)
class Audit:
    """The table of all findings (`findings.SCHEMA` and the id), the page of the worst, and numbers of products.

    `counts` are products with findings by kind and characteristic ("" where they concern the whole product), `unjudged`
    by characteristic: products whose label has too few different products to be judged.
    """

    table: Path
    page: Path
    counts: Mapping[str, Mapping[str, int]]
    unjudged: Mapping[str, int]


def audit_run(
    run: Run,
    catalog: Catalog,
    out: str | Path,
    *,
    encoder: Encoder | None = None,
    store: str | Path | None = None,
    callbacks: Callbacks | None = None,
) -> Audit:
    """Audit a table, and write `audit.parquet` and `audit.html`.

    Args:
        run: a run on this table, or on one like it.
        catalog: products with some characteristics of the run.
        out: folder of the findings, created if needed.
        encoder: `None`: that of the run.
        store: folder of embeddings to use and fill; `None`: the run's.
        callbacks: for progress.

    Raises:
        DataError: the catalog has no characteristic, or too few labels to fit heads.
    """
    if not catalog.columns.characteristics:
        raise DataError(f"an audit needs labels: the run predicts {', '.join(run.columns.characteristics)}")
    out, callbacks, encoder = Path(out), callbacks or Callbacks(), encoder or load_encoder(run.encoder)
    catalog.check_output(out, store)
    out.mkdir(parents=True, exist_ok=True)
    callbacks.on_stage(f"Embedding {len(catalog)} products with {encoder.name}")
    embedded = embed(catalog, encoder, EmbeddingStore(store or run.store, encoder), on_chunk=callbacks.on_chunk)
    table, unjudged = _findings(run, encoder, catalog, embedded, callbacks)

    callbacks.on_stage("Drawing the page")
    audit = Audit(out / "audit.parquet", out / "audit.html", count_findings(table), unjudged)
    with replacing(audit.table) as temporary:
        pq.write_table(table, temporary)
    created = datetime.now(UTC).isoformat(" ", timespec="minutes")
    facts = {"table": Path(catalog.table.name).name, "products": len(catalog), "encoder": encoder.name}
    write_text(audit.page, draw_page(catalog, table, {**facts, "unjudged": unjudged, "created": created}))
    return audit


def _findings(
    run: Run, encoder: Encoder, catalog: Catalog, embedded: EmbeddedProducts, callbacks: Callbacks
) -> tuple[pa.Table, dict[str, int]]:
    """Return all findings, and characteristic -> number of products whose label cannot be judged."""
    embeddings, texts, truth, reasons = embedded.embeddings, catalog.texts(), catalog.truth(), embedded.set_aside()
    if not (reasons == "ok").any():
        raise DataError(f"an audit needs products with a photo or a text: {catalog.table.name} has none")
    signatures, bundle = Signatures.of(texts, embedded.thumbnails), HeadBundle.load(run.bundle)
    judged = judge_products(run, bundle, catalog, embedded, signatures)
    rows, predictions, names = judged.rows, judged.predictions, catalog.columns.characteristics
    if judged.seen or not set(names) <= set(bundle.labels):
        into_folds = SplitSettings(groups=column_of_groups(run, catalog))
        settings = TypeAdapter(HeadSettings).validate_python(run.settings["heads"])
        of_folds = TrainSettings(seed=settings.seed, split=into_folds)
        split = split_catalog(catalog, embedded, of_folds, into_folds.shares(0))
        # A taxonomy that the run was given holds here too; a hierarchy that it learned may follow from wrong labels.
        hierarchy = bundle.hierarchy if run.settings.get("taxonomy") else None
        fitted = fit_heads(split.products, settings, hierarchy=hierarchy, encoder=encoder, callbacks=callbacks)
        rows = fitted.out_of_fold.rows
        predictions = fitted.bundle.judged(fitted.out_of_fold, embeddings.ids[rows])
    compared = findings.compare_labels(predictions, truth, rows)
    is_usable = reasons == "ok"
    n_labelled = {name: sum(label is not None for label in labels[is_usable]) for name, labels in truth.items()}
    unjudged = {name: n - len(compared.get(name, ())) for name, n in n_labelled.items()}
    callbacks.on_stage("Comparing the products with one another")
    photo = findings.outlier_scores(embeddings.image, embeddings.has_image)
    text = findings.outlier_scores(embeddings.text, embeddings.has_text)
    labels = {name: as_text(column) for name, column in truth.items()}
    tables = [
        findings.wrong_labels(labels, compared),
        findings.contradictions(labels, near_duplicate_groups(signatures, across_photos=False)),
        findings.outliers({"photo": photo, "text": text}),
        findings.broken_rows(embedded.status, reasons),
    ]
    table = pa.concat_tables(tables)
    table = table.add_column(0, "id", pa.array(embeddings.ids[table["row"]], pa.string()))
    return table, {name: n for name, n in unjudged.items() if n}


def draw_page(catalog: Catalog, table: pa.Table, facts: Mapping[str, Any]) -> str:
    """Return the HTML page of the worst findings, which have the columns of `findings.SCHEMA` and `id`."""
    counts, shown = count_findings(table), worst(table).to_pylist()
    previews = read_previews(catalog, {finding["row"] for finding in shown})
    return render_page(
        "audit/audit.html.jinja",
        facts=facts,
        counts=counts,
        titles=KIND_TITLES,
        characteristics=[name for name in catalog.columns.characteristics if any(name in n for n in counts.values())],
        cards=[(finding, *previews[finding["row"]]) for finding in shown],
        total=len(table),
        has_images=catalog.images is not None,
    )


def worst(table: pa.Table, limit: int = SHOWN) -> pa.Table:
    """Return the first findings of every kind and characteristic in turns, `limit` in all, in their order."""
    frame = table.select(["kind", "characteristic"]).to_pandas()
    turn = frame.groupby(["kind", "characteristic"], dropna=False).cumcount()
    rows = turn.sort_values(kind="stable").index[:limit].sort_values()
    return table.take(pa.array(rows, pa.int64()))
