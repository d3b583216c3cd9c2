"""`demo`: the commands one after another, on synthetic products."""

import numpy as np
import pyarrow.parquet as pq

from product_classificator.catalog import read_catalog
from product_classificator.catalog.split import load_split
from product_classificator.classificator import Classificator
from product_classificator.cli import console
from product_classificator.cli.answering import predict
from product_classificator.cli.fitting import train
from product_classificator.cli.options import Demo, Predict, ProductOptions, Train, TrainingOptions
from product_classificator.demo import make_marketplace
from product_classificator.runs import Run


def demo(options: Demo) -> None:
    """Train on a synthetic shop, predict it, and show three of its held-out products."""
    console.log.print(
        f"Generating {options.products} SYNTHETIC products (photos and Russian texts of our own making): scores say "
        "nothing of real ones",
        style="bold",
    )
    shop = make_marketplace(options.out / "marketplace", options.products, options.seed)
    folder, predictions, photos = options.out / "synthetic-run", options.out / "predictions.parquet", shop.images
    products, training = ProductOptions(images=photos), TrainingOptions(seed=options.seed)
    train(Train(shop.table, out=folder, products=products, training=training))
    run = Run.load(folder)
    predict(Predict(folder, shop.table, out=predictions, products=products, store=run.store))

    console.out.print("\nThree held-out products\n", style="bold")
    catalog, (split, _) = read_catalog(shop.table, photos), load_split(run.split)
    is_ok = pq.read_table(predictions, columns=["status"])["status"].to_numpy() == "ok"
    rows = np.random.default_rng(options.seed).permutation(np.flatnonzero(is_ok & (split.names != "")))[:3]
    texts = catalog.texts().take(rows)
    images = [catalog.image_bytes(catalog.ids[row], None) for row in rows]
    titles = [text.split("\n")[0] for text in texts]
    console.print_products(Classificator.from_run(folder).predict(list(texts), images), titles, top_k=1)
    console.out.print(
        "Your own products:\n"
        "  product-classificator train TABLE.parquet --images PHOTOS.zip --id nm --text title,description \\\n"
        "      --characteristics category,sex,season --out my-run",
        soft_wrap=True,
    )
