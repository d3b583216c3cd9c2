"""Turns a run and its table into an audit: likely wrong labels, contradictions, outliers and broken rows.

What the run contributes is how it was made: its encoder, its embeddings, its settings. Its heads are not asked, for
they have seen the labels (`folds`). The table may be another one than the run's; then it is its labels that are judged.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from product_classificator.audit import findings
from product_classificator.audit.alike import near_identical, strangeness
from product_classificator.audit.folds import Labelled, opinions_out_of_fold
from product_classificator.audit.page import draw_page
from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.split import near_duplicate_groups, near_duplicate_keys, text_keys
from product_classificator.embeddings.embed import EmbeddedCatalog, embed
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.errors import ArtifactError, DataError
from product_classificator.files import replacing, write_text
from product_classificator.runs import Run
from product_classificator.training import Callbacks, HeadSettings
from product_classificator.types import Strings, as_text

UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Audit:
    """What an audit leaves.

    Attributes:
        table: file of all findings, with the columns of `findings.SCHEMA` and the product's id.
        page: file of the worst findings, for a browser.
        counts: kind -> characteristic, "" where the finding is of the whole product -> number of findings.
    """

    table: Path
    page: Path
    counts: Mapping[str, Mapping[str, int]]


def audit_run(
    run: Run,
    catalog: Catalog,
    out: str | Path,
    *,
    encoder: Encoder | None = None,
    store: str | Path | None = None,
    callbacks: Callbacks | None = None,
) -> Audit:
    """Audits a table and writes `audit.parquet` and `audit.html`.

    Args:
        run: a run on this table, or one like it.
        catalog: products with the characteristics of the run, or some of them.
        out: folder of the findings; made if it is not there. What an interrupted audit has left there is used.
        encoder: `None`: the run's is loaded.
        store: folder of embeddings to use and fill; `None`: the run's.
        callbacks: who is told of the progress.

    Raises:
        DataError: the catalog has no characteristic, or too little is known to fit heads on.
        ArtifactError: the run's settings are not those of this version.
    """
    if not catalog.columns.characteristics:
        raise DataError(f"an audit needs labels: the run tells {', '.join(run.columns.characteristics)}")
    out, callbacks, settings = Path(out), callbacks or Callbacks(), _head_settings(run)
    out.mkdir(parents=True, exist_ok=True)
    encoder = encoder or load_encoder(run.encoder)
    callbacks.on_stage(f"Embedding {len(catalog)} products with {encoder.name}")
    embedded = embed(catalog, encoder, EmbeddingStore(store or run.store, encoder), on_chunk=callbacks.on_chunk)
    found = _findings(catalog, embedded, encoder, settings, out / UNFINISHED, callbacks)

    callbacks.on_stage("Drawing the page")
    table, page = out / "audit.parquet", out / "audit.html"
    with replacing(table) as temporary:
        pq.write_table(found, temporary)
    facts = {
        "table": Path(catalog.table.name).name,
        "products": len(catalog),
        "encoder": encoder.name,
        "created": datetime.now(UTC).isoformat(" ", timespec="minutes"),
    }
    write_text(page, draw_page(catalog, found, facts))
    shutil.rmtree(out / UNFINISHED)
    return Audit(table, page, findings.count_findings(found))


def _head_settings(run: Run) -> HeadSettings:
    try:
        return TypeAdapter(HeadSettings).validate_python(run.settings["heads"])
    except (KeyError, ValidationError) as error:
        raise ArtifactError(f"{run.folder} was trained with settings unknown to this version: train again") from error


def _findings(
    catalog: Catalog,
    embedded: EmbeddedCatalog,
    encoder: Encoder,
    settings: HeadSettings,
    unfinished: Path,
    callbacks: Callbacks,
) -> pa.Table:
    embeddings, texts, truth = embedded.embeddings, catalog.texts(), catalog.truth()
    keys, reasons = text_keys(texts), embedded.set_aside()
    if not (reasons == "ok").any():
        raise DataError(f"an audit needs products with a photo or a text: {catalog.table.name} has none")
    groups = near_duplicate_groups(near_duplicate_keys(keys, embedded.image_keys).values())
    products = Labelled(embeddings, texts, truth, groups, reasons == "ok", catalog.columns.has_title)
    opinions = opinions_out_of_fold(products, encoder, settings, unfinished, callbacks)

    callbacks.on_stage("Comparing the products with one another")
    strange = {
        "photo": strangeness(embeddings.image, embeddings.has_image),
        "text": strangeness(embeddings.text, embeddings.has_text),
    }
    told = {name: as_text(labels) for name, labels in truth.items()}
    tables = [
        findings.wrong_labels(told, opinions),
        findings.contradictions(told, near_identical(embeddings, keys, embedded.image_keys)),
        findings.outliers(strange),
        findings.broken_rows(embedded.status, reasons),
    ]
    found = pa.concat_tables(tables)
    ids: Strings = embeddings.ids[found["row"].to_numpy()]
    return found.add_column(0, "id", pa.array(ids, pa.string()))
