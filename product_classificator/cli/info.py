"""`info`: describes a run, a store of embeddings, or the encoders."""

from pathlib import Path

import pyarrow.parquet as pq

from product_classificator import console
from product_classificator.cli.options import Info
from product_classificator.embeddings.store import read_store_facts
from product_classificator.encoders import ENCODERS, OPTIONS
from product_classificator.errors import ArtifactError
from product_classificator.heads import HeadBundle
from product_classificator.runs import Run


def info(options: Info) -> None:
    """Describe a run, a store, or the encoders."""
    folder = Path(options.subject)
    if options.subject == "encoders":
        for name, description in {**ENCODERS, **OPTIONS}.items():
            console.out.print(f"{name}  {description}", soft_wrap=True)
    elif (folder / "run.json").is_file():
        _describe_run(folder)
    elif (folder / "store.json").is_file():
        facts = read_store_facts(folder)
        shards = list((folder / "parts").glob("*.parquet"))
        products = sum(pq.read_metadata(shard).num_rows for shard in shards)
        console.out.print(f"Store {folder}: {products} products in {len(shards)} parts, encoder {facts['encoder']}")
        console.out.print(
            f"image {facts['image_dim']}-d, text {facts['text_dim']}-d, fingerprint {facts['fingerprint']}"
        )
    else:
        raise ArtifactError(f"info describes a run, a store, or the word `encoders`: {folder} is none of them")


def _describe_run(folder: Path) -> None:
    run, bundle = Run.load(folder), HeadBundle.load(folder / "bundle")
    dtype = f" in {run.facts['dtype']}" if run.facts.get("dtype") else ""
    console.out.print(
        f"Run {folder}, made {run.facts['created']} with the encoder {run.encoder}{dtype}", soft_wrap=True
    )
    console.out.print(f"id {run.columns.id}; text {', '.join(run.columns.text) or 'none'}; report {run.report}")
    for name, labels in bundle.labels.items():
        shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        kind = ", multi-label" if name in run.columns.multi_label else ""
        console.out.print(f"  {name} ({len(labels)} labels{kind}): {shown}", soft_wrap=True)
