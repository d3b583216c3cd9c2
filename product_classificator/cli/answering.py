"""`predict` and `embed`: whole tables; for `lite`, nothing of torch is imported."""

from collections import Counter
from dataclasses import asdict

from product_classificator.classificator import Classificator
from product_classificator.cli import console
from product_classificator.cli.options import Embed, Predict
from product_classificator.cli.progress import product_progress
from product_classificator.cli.tables import open_catalog
from product_classificator.embeddings.embed import embed_chunks
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import load_encoder
from product_classificator.predict_file import OutputOptions, predict_to_file
from product_classificator.runs import Run


def predict(options: Predict) -> None:
    """Predict a table and print what was written."""
    catalog = open_catalog(options.table, options.products, run=Run.load(options.run))
    classificator = Classificator.from_run(options.run, **asdict(options.encoder))
    if catalog.images is None and classificator.bundle.image_dim:
        console.log.print("the run was trained with photos, but none are given (--images)", style="yellow")
    with product_progress(len(catalog)) as on_chunk:
        summary = predict_to_file(
            classificator,
            catalog,
            options.out,
            OutputOptions(options.top_k, options.min_precision),
            store=EmbeddingStore(options.store, classificator.encoder) if options.store else None,
            on_chunk=on_chunk,
        )
    resumed = f", {summary.resumed} of them from an interrupted call" if summary.resumed else ""
    console.log.print(f"{summary.rows} rows in {options.out}{resumed}")
    console.print_counts("rows with warnings", summary.warnings)
    console.print_counts("rows that need no review", summary.accepted)


def embed(options: Embed) -> None:
    """Embed a table into a store and print what was encoded."""
    catalog = open_catalog(options.table, options.products)
    encoder = load_encoder(options.encoder.name("lite"), device=options.encoder.device, dtype=options.encoder.dtype)
    store = EmbeddingStore(options.out, encoder)
    status: Counter[str] = Counter()
    n_encoded = 0
    with product_progress(len(catalog)) as on_chunk:
        for chunk in embed_chunks(catalog, encoder, store):
            on_chunk(chunk)
            status.update(chunk.status)
            n_encoded += chunk.encoded
    console.log.print(
        f"{n_encoded} products encoded now, {status.total() - n_encoded} already embedded or repeated; "
        f"store: {options.out}"
    )
    console.print_counts("rows with warnings", {name: n for name, n in status.most_common() if name != "ok"})
