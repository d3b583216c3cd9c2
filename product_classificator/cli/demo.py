"""`demo`: the main job from nothing, on synthetic products."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demonstration makes.")] = Path("demo"),
    products: Annotated[int, typer.Option("--products", min=50, help="How many products are drawn.")] = 1500,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same shop.")] = 0,
) -> None:
    """Draw a synthetic marketplace, train on it, and classify three of its held-back products."""
    import numpy as np
    import pyarrow.parquet as pq

    from product_classificator import console
    from product_classificator.catalog import make_marketplace, read_catalog
    from product_classificator.catalog.split import load_split
    from product_classificator.classificator import Classificator
    from product_classificator.embeddings.store import EmbeddingStore
    from product_classificator.predict_file import predict_to_file
    from product_classificator.training import TrainSettings, train_heads

    console.log.print(
        f"Drawing {products} SYNTHETIC products (photos and Russian texts of our own making)", style="bold"
    )
    shop = make_marketplace(out / "marketplace", products, seed)
    catalog = read_catalog(shop.table, shop.images, id="nm", text=["title", "description"])
    with console.training_watch(len(catalog)) as callbacks:
        training = train_heads(catalog, out / "synthetic-run", TrainSettings(seed=seed), callbacks=callbacks)
    console.out.print("\nMacro-F1 on held-back SYNTHETIC products", style="bold")
    console.print_scores(training.evaluation)

    classificator = Classificator.from_run(training.run.folder)
    store = EmbeddingStore(training.run.store, classificator.encoder)
    predictions_file = out / "predictions.parquet"
    predict_to_file(classificator, catalog, predictions_file, store=store)

    console.out.print("\nThree of them\n", style="bold")
    split, _ = load_split(training.run.split)
    is_sound = pq.read_table(predictions_file, columns=["status"])["status"].to_numpy() == "ok"
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(is_sound & (split.names == "test")))[:3]
    texts = [catalog.texts()[int(row)] for row in rows]
    photos = [catalog.image_bytes(catalog.ids[row], None) for row in rows]
    titles = [text.split("\n")[0] for text in texts]
    console.print_products(classificator.predict(texts, photos), titles, top_k=1)
    console.out.print(
        f"report       {training.run.report / 'report.md'}\n"
        f"predictions  {predictions_file}\n"
        f"bundle       {training.run.bundle}\n\n"
        "Your own products:\n"
        "  product-classificator train TABLE.parquet --images PHOTOS.zip --id nm --text title,description \\\n"
        "      --characteristics category,sex,season --out my-run",
        soft_wrap=True,
    )
