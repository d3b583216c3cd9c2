"""Does units: reads their rows and nothing else, embeds and predicts them, and writes their parts."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from product_classificator.catalog.catalog import Catalog, Products
from product_classificator.catalog.columns import Columns
from product_classificator.catalog.images import UrlImages, open_images
from product_classificator.catalog.labels import PathTable
from product_classificator.catalog.table import open_table
from product_classificator.catalog.wildberries import WildberriesTable
from product_classificator.classificator import Classificator
from product_classificator.classificator.rows import OutputOptions
from product_classificator.classificator.work import Work, embedding, predicting
from product_classificator.cluster.plan import Plan, Unit
from product_classificator.embeddings.embed import CHUNK_PRODUCTS, embed_chunks
from product_classificator.embeddings.feeding import Feeding
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import Encoder, cores, load_encoder
from product_classificator.errors import ArtifactError, DataError
from product_classificator.remote.paths import as_path, has_secrets

OnChunk = Callable[[EmbeddedProducts], None]


@dataclass(frozen=True)
class Recipe:
    """How another process or machine opens the work of a plan: values of JSON.

    `loading` are the arguments of `Classificator` or, without `options`, when a store is filled, of `load_encoder`;
    `images` those of `open_images`, and whether they are `urls`; the others are of table and catalog.
    """

    loading: Mapping[str, Any]
    sources: Sequence[str]
    encoding: str | None
    columns: Mapping[str, Any]
    unknown: Sequence[str]
    images: Mapping[str, Any] | None
    options: Mapping[str, Any] | None = None
    store: str | None = None

    @classmethod
    def of(cls, catalog: Catalog, loading: Mapping[str, Any], options: OutputOptions | None, store: Any) -> "Recipe":
        """Return the recipe of a catalog; `DataError` if others cannot open its table."""
        table, images = catalog.table, catalog.images
        if not table.sources or isinstance(table, WildberriesTable | PathTable):
            rule = "workers open the table themselves, so it must be in files of one table"
            raise DataError(f"{rule}, got {table.name}: save it as parquet")
        used = (*table.sources, images and images.path, loading.get("heads_ver"), store)
        if secret := next(filter(has_secrets, (as_path(str(path)) for path in used if path)), None):
            rule = "workers open URLs with the credentials of their environment"
            raise DataError(f"{rule}, those of {secret} are in the URL: put them into the environment")
        encoding = {*getattr(table, "encoding", "").split()}
        sources = [str(path.absolute()) for path in table.sources]
        opening = asdict(images) | {"path": images.path and str(images.path.resolve())} if images else None
        opening = opening and opening | {"urls": isinstance(images, UrlImages)}
        described = (sources, min(encoding) if len(encoding) == 1 else None, asdict(catalog.columns))
        written = asdict(options) if options else None
        return cls(loading, *described, catalog.read_as[1:], opening, written, store and str(store))

    def load(self, threads: int | None) -> Classificator | Encoder:
        """Load the classificator or the encoder."""
        loading = {**self.loading, "threads": threads and min(threads, cores())}
        return load_encoder(**loading) if self.options is None else Classificator(**loading)

    def open(self, plan: Plan, threads: int | None = None) -> Work:
        """Open the work of a plan for its units; `ArtifactError` if something has changed since."""
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in self.columns.items()}
        columns = Columns(**given)
        opening = dict(self.images or {})
        kind = UrlImages if opening.pop("urls", False) else open_images
        images = kind(**opening) if opening else None
        catalog = Catalog(open_table(self.sources, encoding=self.encoding), columns, images, self.unknown)
        loaded = self.load(threads)
        if isinstance(loaded, Classificator):
            store = EmbeddingStore(self.store, loaded.encoder) if self.store else None
            work = predicting(loaded, catalog, OutputOptions(**(self.options or {})), store)
        else:
            work = embedding(loaded, catalog, EmbeddingStore(str(self.store), loaded, reads=False))
        made, ours = (json.loads(json.dumps({**facts, "dtype": None})) for facts in (plan.made_from, work.facts))
        if made != ours:  # "auto" may be another number format here than where the plan was made
            rule = "table, photos, run and encoder must stay as they were when the plan was made"
            raise ArtifactError(f"{rule}, {plan.storage} was made with others: put them back, or plan again")
        return work


class Reader:
    """Reads units of a catalog, going on where it is if that spares reading something twice.

    Of parquet the row groups of a unit are read and no others; a table of another format is read from its beginning,
    but once by each reader, since units come in the order of the table.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog, self._row = catalog, 0
        self._rows = catalog.rows(CHUNK_PRODUCTS)
        self._rest: pa.RecordBatch | None = None

    def products(self, unit: Unit) -> Iterator[Products]:
        """Yield the products of a unit, `CHUNK_PRODUCTS` at a time, wherever the reader comes from."""
        if not unit.group_row <= self._row <= unit.first_row:
            self._rows = self._catalog.rows(CHUNK_PRODUCTS, unit.first_row)
            self._row, self._rest = unit.first_row, None
        self._take(unit.first_row - self._row)
        for first_row in range(unit.first_row, unit.end, CHUNK_PRODUCTS):
            n = min(CHUNK_PRODUCTS, unit.end - first_row)
            rows = self._take(n)
            if sum(map(len, rows)) < n:
                raise DataError(f"{unit} ends too early: the file has changed, begin again")
            (batch,) = pa.Table.from_batches(rows).combine_chunks().to_batches()
            yield self._catalog.products(first_row, batch)

    def finish(self) -> None:
        """Read on: at the end of the table, that counts its issues."""
        self._rest = self._rest or next(self._rows, None)

    def _take(self, n: int) -> list[pa.RecordBatch]:
        """Return the next n rows, fewer at the end."""
        taken: list[pa.RecordBatch] = []
        while n and (batch := self._rest or next(self._rows, None)) is not None:
            taken.append(batch.slice(0, n))
            self._rest = batch.slice(n) if len(batch) > n else None
            n -= len(taken[-1])
            self._row += len(taken[-1])
        return taken


def run_units(
    plan: Plan,
    work: Work,
    reader: Reader,
    units: Iterable[Unit],
    *,
    on_chunk: OnChunk | None = None,
    feed: Feeding | None = None,
) -> Iterator[Unit]:
    """Do units, in the order of the table, and yield each when its part is written.

    Images of the next unit are loaded while the last chunk of one is encoded: a unit costs no pause.
    """
    begun = deque[Unit]()

    def chunks() -> Iterator[Products]:
        for unit in units:
            begun.append(unit)
            yield from reader.products(unit)

    rows: list[pa.Table] = []
    for chunk in embed_chunks(work.catalog, work.encoder, work.store, chunks=chunks(), feed=feed):
        rows.append(work.to_rows(chunk))
        if chunk.first_row + len(chunk.embeddings) == begun[0].end:
            plan.write(begun[0], pa.concat_tables(rows))
            rows.clear()
            yield begun.popleft()
        if on_chunk:
            on_chunk(chunk)
