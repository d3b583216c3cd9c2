"""What is done to products, predicting or embedding them, and all that decides its outcome."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Any

import pyarrow as pa

from product_classificator.catalog.catalog import Catalog
from product_classificator.classificator.classificator import Classificator
from product_classificator.classificator.rows import OutputOptions, check_columns, embedded_rows, predicted_rows
from product_classificator.embeddings.embed import CHUNK_PRODUCTS
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import Encoder
from product_classificator.encoders.clip import dtype_of
from product_classificator.remote.paths import as_path, identity


@dataclass(frozen=True)
class Work:
    """What is done to the products of every unit, opened; `facts` are all that decides its outcome."""

    catalog: Catalog
    encoder: Encoder
    to_rows: Callable[[EmbeddedProducts], pa.Table]
    facts: Mapping[str, Any]
    store: EmbeddingStore | None = None
    options: OutputOptions = field(default_factory=OutputOptions)


def predicting(
    classificator: Classificator, catalog: Catalog, options: OutputOptions, store: EmbeddingStore | None = None
) -> Work:
    """Return the work of predicting a catalog; what could make it fail at its end is checked (`DataError`)."""
    check_columns(classificator, catalog.columns.id, options)
    classificator.check_inputs(has_images=catalog.images is not None, has_texts=bool(catalog.columns.text))
    facts = _facts(catalog, classificator.encoder)  # a byte order mark is written when parts are joined
    facts |= {"bundle": classificator.bundle.digest, "options": [options.top_k, options.min_precision]}

    def to_rows(chunk: EmbeddedProducts) -> pa.Table:
        return predicted_rows(classificator, chunk, catalog.columns.id, options)

    return Work(catalog, classificator.encoder, to_rows, facts, store, options)


def embedding(encoder: Encoder, catalog: Catalog, store: EmbeddingStore) -> Work:
    """Return the work of embedding a catalog into a store; the rows of a part name what the store holds."""
    return Work(catalog, encoder, embedded_rows, _facts(catalog, encoder), store)


def _facts(catalog: Catalog, encoder: Encoder) -> dict[str, Any]:
    """Return everything that decides what is embedded, except the bytes of the images."""
    images, names = catalog.images, [file.name for file in catalog.table.files()]
    is_in_files = catalog.table.sources and all(as_path(name).is_file() for name in names)
    return {
        "table": [*map(identity, names)] if is_in_files else _digest(catalog),
        "images": images
        and [images.identity(ids=not catalog.columns.photo), *astuple(images)[1:], type(images).__name__],
        "columns": asdict(catalog.columns),
        "read_as": catalog.read_as,
        "encoder": encoder.fingerprint,
        "dtype": dtype_of(encoder),
    }


def _digest(catalog: Catalog) -> str:
    digest = blake2b(digest_size=16)
    for products in catalog.batches(CHUNK_PRODUCTS):
        images = [*chain.from_iterable(products.images)]
        for value in chain(products.ids, products.texts, (image.name for image in images)):
            digest.update(value.encode() + b"\0")
        for image in images:
            digest.update(image.data or b"")
    return digest.hexdigest()
