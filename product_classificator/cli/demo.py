"""`demo`: the commands one after another, on synthetic products."""

import numpy as np
import pyarrow.parquet as pq

from product_classificator.catalog import read_catalog
from product_classificator.cli import console
from product_classificator.cli.answering import predict
from product_classificator.cli.fitting import train
from product_classificator.cli.options import Demo, Predict, ProductOptions, Train, TrainingOptions
from product_classificator.demo import make_marketplace
from product_classificator.heads import HeadBundle
from product_classificator.runs import Run


def demo(options: Demo) -> None:
    """Train on a synthetic shop, predict it, and show three of its products, judged by heads fitted without them."""
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

    console.out.print("\nThree products, predicted by heads that never saw them\n", style="bold")
    catalog, out_of_fold = read_catalog(shop.table, photos), run.load_out_of_fold()
    is_ok = pq.read_table(predictions, columns=["status"])["status"].to_numpy() == "ok"
    ok = np.flatnonzero(is_ok[out_of_fold.rows])
    shown = out_of_fold.take(np.random.default_rng(options.seed).permutation(ok)[:3])
    titles = [text.split("\n")[0] for text in catalog.texts().take(shown.rows)]
    console.print_products(HeadBundle.load(run.bundle).judged(shown, catalog.ids[shown.rows]), titles, top_k=1)
    console.out.print(
        "Your own products:\n"
        "  product-classificator train TABLE.parquet --images PHOTOS.zip --id nm --text title,description \\\n"
        "      --characteristics category,sex,season --out my-run",
        soft_wrap=True,
    )
