"""From products to embeddings: `products` encodes a few, `embed` a catalog, `store` keeps them on disk."""
