"""From a catalog to embeddings: `embed` and `embed_chunks` make them, `EmbeddingStore` keeps them."""

from product_classificator.embeddings.pipeline import (
    CHUNK_PRODUCTS,
    EmbeddedCatalog,
    EmbeddedChunk,
    Idle,
    count_statuses,
    embed,
    embed_chunks,
    embed_rows,
)
from product_classificator.embeddings.store import EmbeddingStore, Record, own_store, read_store_facts

__all__ = [
    "CHUNK_PRODUCTS",
    "EmbeddedCatalog",
    "EmbeddedChunk",
    "EmbeddingStore",
    "Idle",
    "Record",
    "count_statuses",
    "embed",
    "embed_chunks",
    "embed_rows",
    "own_store",
    "read_store_facts",
]
