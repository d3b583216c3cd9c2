"""From a catalog to embeddings: `embed` and `embed_chunks` make them, `EmbeddingStore` keeps them."""

from product_classificator.embeddings.pipeline import (
    CHUNK_PRODUCTS,
    EmbeddedCatalog,
    EmbeddedChunk,
    count_statuses,
    embed,
    embed_chunks,
)
from product_classificator.embeddings.store import EmbeddingStore, Record, read_store_facts

__all__ = [
    "CHUNK_PRODUCTS",
    "EmbeddedCatalog",
    "EmbeddedChunk",
    "EmbeddingStore",
    "Record",
    "count_statuses",
    "embed",
    "embed_chunks",
    "read_store_facts",
]
