"""`demo`: the whole path from nothing, on synthetic products."""

import numpy as np
import pyarrow.parquet as pq

from product_classificator import console
from product_classificator.catalog import read_catalog
from product_classificator.catalog.split import load_split
from product_classificator.classificator import Classificator
from product_classificator.cli.fitting import print_scores, training_progress
from product_classificator.cli.options import Demo
from product_classificator.demo import make_marketplace
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.predict_file import predict_to_file
from product_classificator.training import TrainSettings, train_heads


def demo(options: Demo) -> None:
    """Train on a synthetic shop and show three of its held-out products."""
    console.log.print(
        f"Generating {options.products} SYNTHETIC products (photos and Russian texts of our own making)", style="bold"
    )
    shop = make_marketplace(options.out / "marketplace", options.products, options.seed)
    catalog = read_catalog(shop.table, shop.images, id="nm", text=["title", "description"])
    with training_progress(len(catalog)) as callbacks:
        trained = train_heads(
            catalog, options.out / "synthetic-run", TrainSettings(seed=options.seed), callbacks=callbacks
        )
    console.out.print("\nMacro-F1 on held-out SYNTHETIC products", style="bold")
    print_scores(trained.evaluation)

    classificator = Classificator.from_run(trained.run.folder)
    predictions_file = options.out / "predictions.parquet"
    store = EmbeddingStore(trained.run.store, classificator.encoder)
    predict_to_file(classificator, catalog, predictions_file, store=store)

    console.out.print("\nThree of them\n", style="bold")
    split, _ = load_split(trained.run.split)
    is_ok = pq.read_table(predictions_file, columns=["status"])["status"].to_numpy() == "ok"
    rows = np.random.default_rng(options.seed).permutation(np.flatnonzero(is_ok & (split.names == "test")))[:3]
    texts = [catalog.texts()[int(row)] for row in rows]
    images = [catalog.image_bytes(catalog.ids[row], None) for row in rows]
    titles = [text.split("\n")[0] for text in texts]
    console.print_products(classificator.predict(texts, images), titles, top_k=1)
    console.out.print(
        f"report       {trained.run.report / 'report.md'}\n"
        f"predictions  {predictions_file}\n"
        f"bundle       {trained.run.bundle}\n\n"
        "Your own products:\n"
        "  product-classificator train TABLE.parquet --images PHOTOS.zip --id nm --text title,description \\\n"
        "      --characteristics category,sex,season --out my-run",
        soft_wrap=True,
    )
