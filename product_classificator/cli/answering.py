"""`predict`, `embed` and `info`: with `lite` they import nothing of torch."""

import sys
from collections import Counter
from dataclasses import asdict

import pyarrow.parquet as pq

from product_classificator.classificator import Classificator
from product_classificator.classificator.rows import OutputOptions
from product_classificator.cli import console
from product_classificator.cli.bulk import embed_in_units, predict_in_units, run_one, runner_of
from product_classificator.cli.options import Embed, Info, Predict
from product_classificator.cli.tables import open_catalog, open_once
from product_classificator.cluster.plan import Plan
from product_classificator.cluster.storage import Storage
from product_classificator.embeddings.embed import embed_chunks
from product_classificator.embeddings.progress import bars, product_bar
from product_classificator.embeddings.store import EmbeddingStore, read_store_facts
from product_classificator.encoders import ENCODERS, OPTIONS, load_encoder
from product_classificator.errors import ArtifactError, DataError
from product_classificator.heads import HeadBundle
from product_classificator.predict_file import predict_to_file
from product_classificator.runs import Run, fetched


def predict(options: Predict) -> None:
    """Predict a table, or one unit of a plan, and print what was written."""
    if options.plan is not None and options.unit is not None:
        console.log.print(f"{run_one(Plan.open(Storage(options.plan)), options.unit)} is done")
        return
    if options.run is None or options.table is None or options.out is None or options.plan:
        console.log.print("error: `predict` needs RUN, TABLE and --out, or --plan and --unit", style="red")
        sys.exit(2)
    runner = runner_of(options.by)
    if runner and options.plan_only:
        raise DataError("--plan-only leaves the units to others, --cluster does them: name one of the two")
    run, (table, columns) = Run.load(options.run), open_once(options.table, options.products.encoding)
    catalog = open_catalog(table, columns, options.products, run=run)
    classificator = Classificator.from_run(options.run, **asdict(options.encoder))
    if catalog.images is None and classificator.bundle.image_dim:
        console.log.print("the run was trained with photos, but none are given (--images)", style="yellow")
    store = EmbeddingStore(options.store, classificator.encoder) if options.store else None
    if runner or options.plan_only:
        summary = predict_in_units(runner, options, catalog, classificator, store)
    else:
        written = OutputOptions(options.top_k, options.min_precision, options.bom)
        with bars() as progress:
            bar = product_bar(progress, len(catalog))
            summary = predict_to_file(classificator, catalog, options.out, written, store=store, on_chunk=bar)
    if summary is None:
        return
    resumed = f", {summary.resumed} of them from an interrupted call" if summary.resumed else ""
    console.log.print(f"{summary.rows} rows in {options.out}{resumed}")
    console.print_counts("rows with warnings", summary.warnings)
    console.print_counts("values that need no review", summary.accepted)


def embed(options: Embed) -> None:
    """Embed a table into a store and print what was encoded."""
    runner = runner_of(options.by)
    catalog = open_catalog(*open_once(options.table, options.products.encoding), options.products)
    catalog.check_output(options.out)
    chosen = options.encoder
    encoder = load_encoder(chosen.encoder or "lite", device=chosen.device, dtype=chosen.dtype)
    if runner:
        totals = embed_in_units(runner, options, catalog, encoder)
        console.log.print(f"{totals.rows} products embedded; store: {options.out}")
        console.print_counts("rows with warnings", totals.warnings)
        return
    store = EmbeddingStore(options.out, encoder)
    status: Counter[str] = Counter()
    n_encoded = 0
    with bars() as progress:
        on_chunk = product_bar(progress, len(catalog))
        for chunk in embed_chunks(catalog, encoder, store):
            on_chunk(chunk)
            status.update(chunk.status)
            n_encoded += chunk.encoded
    n_known = status.total() - n_encoded
    console.log.print(f"{n_encoded} products encoded now, {n_known} already embedded or repeated; store: {options.out}")
    console.print_counts("rows with warnings", {name: n for name, n in status.most_common() if name != "ok"})


def info(options: Info) -> None:
    """Describe a run, a store, or the encoders."""
    folder = fetched(options.subject)
    if options.subject == "encoders":
        lines = [f"{name}  {description}" for name, description in {**ENCODERS, **OPTIONS}.items()]
    elif (folder / "run.json").is_file():
        lines = _describe_run(Run.load(folder))
    elif (folder / "store.json").is_file():
        facts, shards = read_store_facts(folder), list((folder / "parts").glob("*.parquet"))
        products = 0
        for shard in shards:
            with shard.open("rb") as file:
                products += pq.read_metadata(file).num_rows
        lines = [
            f"Store {folder}: {products} products in {len(shards)} parts, encoder {facts['encoder']}",
            f"image {facts['image_dim']}-d, text {facts['text_dim']}-d, fingerprint {facts['fingerprint']}",
        ]
    else:
        raise ArtifactError(f"info describes a run, a store, or the word `encoders`: {folder} is none of them")
    console.out.print("\n".join(lines), soft_wrap=True)


def _describe_run(run: Run) -> list[str]:
    dtype = f" in {run.facts['dtype']}" if run.facts.get("dtype") else ""
    lines = [
        f"Run {run.folder}, made {run.facts['created']} with the encoder {run.encoder}{dtype}",
        f"id {run.columns.id}; text {', '.join(run.columns.text) or 'none'}; report {run.report}",
    ]
    for name, labels in HeadBundle.load(run.bundle).labels.items():
        shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        kind = ", multi-label" if name in run.columns.multi_label else ""
        lines.append(f"  {name} ({len(labels)} labels{kind}): {shown}")
    return lines
