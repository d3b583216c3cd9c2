"""Keeps the states that go into the last blocks of an encoder on disk, so that they are computed once.

A shard holds those of `CHUNK_PRODUCTS` products and is named by the digests of these products: a killed call goes on
with the first shard that is missing, and what has not changed is not computed again. Shards are mapped into memory, so
a batch reads its own rows only. Where all shards would take more than is allowed, those of the first products are
kept; of the others only an outline is, and their states are computed anew, from photos and texts, when they are asked
for.
"""

from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from product_classificator.catalog.catalog import Catalog, Products
from product_classificator.embeddings.embed import CHUNK_PRODUCTS, Loaded, load_product
from product_classificator.encoders import Encoder, cores
from product_classificator.errors import DataError, culprits
from product_classificator.files import remove_leftovers
from product_classificator.finetuning.blocks import Side
from product_classificator.finetuning.shards import Frozen, Shard
from product_classificator.types import Rows, strings

_SAMPLE = 32


class _Photos:
    """Reads and decodes the photos of products, several at a time."""

    def __init__(self, catalog: Catalog, encoder: Encoder) -> None:
        self._catalog, self._encoder = catalog, encoder
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="photos")

    def load(self, products: Products, known: Container[bytes] | None = None) -> list[Future[Loaded]]:
        """Begins with one answer per product; one whose digest is known is not decoded."""
        rows = zip(products.ids, products.image_names, products.texts, strict=True)
        return [self._pool.submit(load_product, self._catalog, self._encoder, known, *row) for row in rows]


class _Anew:
    """Computes the states of products that are not kept, whenever they are asked for.

    Args:
        catalog: where the photos are.
        frozen: what computes.
        photos: reads them.
        chunks: the products, which follow one another.
    """

    def __init__(self, catalog: Catalog, frozen: Frozen, photos: _Photos, chunks: Sequence[Products]) -> None:
        self._catalog, self._frozen, self._photos = catalog, frozen, photos
        self._first_row = chunks[0].first_row if chunks else 0
        self._rows = [row for chunk in chunks for row in zip(chunk.ids, chunk.texts, chunk.image_names, strict=True)]

    def shard(self, rows: Rows, side: Side) -> Shard:
        """Returns the states of one side of `rows`, numbered in their order.

        Raises:
            DataError: a photo that was there cannot be read any more.
        """
        found = [self._rows[row - self._first_row] for row in rows.tolist()]
        products = Products(0, *(list(column) for column in zip(*found, strict=True)))
        if side == "text":
            return self._frozen.shard(self._catalog, products.texts, [_NO_PHOTO] * len(found))
        loaded = [future.result() for future in self._photos.load(products)]
        gone = [id_ for id_, item in zip(products.ids, loaded, strict=True) if item.image is None]
        if gone:
            raise DataError(
                f"photos must stay while an encoder is tuned on them, those of {culprits(gone)} cannot be read any "
                "more: bring them back, or start again"
            )
        return self._frozen.shard(self._catalog, [""] * len(found), loaded)


_NO_PHOTO = Loaded(b"", 0, "unused", None)


class Activations:
    """States of all products of a catalog, shard after shard.

    Args:
        shards: of all products; the last ones may be outlines.
        n_kept: shards that hold states.
        anew: computes the states of rows that lie in an outline; `None` if there is none.
    """

    def __init__(self, shards: Sequence[Shard], n_kept: int, anew: _Anew | None = None) -> None:
        self._shards, self._n_kept, self._anew = list(shards), n_kept, anew
        sizes = [len(shard) for shard in self._shards]
        self._shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.image_keys = np.concatenate([shard.image_keys for shard in self._shards])
        self.image_status = strings([status for shard in self._shards for status in shard.image_status])
        self.text_status = strings([status for shard in self._shards for status in shard.text_status])
        self.has_image = self.image_status == "ok"
        self.has_text = self.text_status == "ok"

    @property
    def nbytes(self) -> int:
        """Bytes of all states that are kept."""
        return sum(shard.image.nbytes + shard.text.nbytes for shard in self._shards)

    def images(self, rows: Rows) -> Tensor:
        """Returns the (p, tokens, width) float32 states of the photos of `rows`, which all have one."""
        found = [shard.image[shard.image_place[here]] for shard, here in self._places(rows, "image")]
        return torch.from_numpy(np.stack(found).astype(np.float32))

    def texts(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Returns states (w, longest, width), inputs and owners of the windows of `rows`, which all have a text."""
        spans: list[tuple[Shard, int, int]] = []
        owners: list[int] = []
        for place, (shard, here) in enumerate(self._places(rows, "text")):
            windows = np.flatnonzero(shard.owners == here).tolist()
            spans += [(shard, int(shard.text_first[window]), int(shard.text_first[window + 1])) for window in windows]
            owners += [place] * len(windows)
        longest = max(stop - start for _, start, stop in spans)
        width = spans[0][0].text.shape[1]
        states = np.zeros((len(spans), longest, width), dtype=np.float32)
        inputs = {name: np.zeros((len(spans), longest), dtype=np.int64) for name in spans[0][0].inputs}
        for place, (shard, start, stop) in enumerate(spans):
            states[place, : stop - start] = shard.text[start:stop]
            for name, array in inputs.items():
                array[place, : stop - start] = shard.inputs[name][start:stop]
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return torch.from_numpy(states), tensors, torch.tensor(owners)

    def _places(self, rows: Rows, side: Side) -> list[tuple[Shard, int]]:
        """Returns for each row a shard that holds its states of one side, and its number there."""
        numbers = self._shard_of[rows]
        found = [
            (self._shards[number], int(here)) for number, here in zip(numbers, rows - self._first[numbers], strict=True)
        ]
        outlined = np.flatnonzero(numbers >= self._n_kept)
        if len(outlined) and self._anew is not None:
            shard = self._anew.shard(rows[outlined], side)
            for here, place in enumerate(outlined):
                found[place] = (shard, here)
        return found


def keep_activations(
    catalog: Catalog,
    frozen: Frozen,
    folder: Path,
    *,
    n_kept: int | None = None,
    on_products: Callable[[int], None] | None = None,
) -> Activations:
    """Computes the states of a catalog, or finds them where an earlier call has kept them.

    Several processes share the work; `folder` must be one that all of them see.

    Args:
        catalog: the products.
        frozen: what computes.
        folder: of the shards.
        n_kept: how many products may be kept; `None`: all.
        on_products: called after each shard with its number of products.
    """
    remove_leftovers(folder)
    limit = len(catalog) if n_kept is None else n_kept
    photos = _Photos(catalog, frozen.encoder)
    paths: list[Path] = []
    outlined: list[Products] = []
    ahead: list[Callable[[], None]] = []  # photos of the next shard are decoded while this one is computed
    for number, products in enumerate(catalog.batches(CHUNK_PRODUCTS)):
        is_kept = products.first_row + len(products) <= limit
        if not is_kept:
            outlined.append(products)
        digests = [future.result().digest for future in photos.load(products, _EVERYTHING)]
        path = folder / _name(catalog, frozen, digests, is_kept=is_kept)
        paths.append(path)
        if frozen.distributed.is_mine(number) and not path.exists():
            compute = frozen.shard if is_kept else frozen.outline
            ahead.append(partial(_save, compute, catalog, products, photos.load(products), path))
        while len(ahead) > 1:
            ahead.pop(0)()
        if on_products:
            on_products(len(products))
    for save in ahead:
        save()
    frozen.distributed.wait()
    shards = [Shard.load(path) for path in paths]
    return Activations(shards, len(shards) - len(outlined), _Anew(catalog, frozen, photos, outlined))


def _name(catalog: Catalog, frozen: Frozen, digests: Sequence[bytes], *, is_kept: bool) -> str:
    max_pixels = catalog.images and catalog.images.max_pixels  # decides which photos are too large
    known = f"{frozen.fingerprint}-{max_pixels}{'' if is_kept else '-outline'}"
    name = blake2b(known.encode(), digest_size=16)
    for digest in digests:
        name.update(digest)
    return name.hexdigest()


def _save(
    compute: Callable[[Catalog, Sequence[str], Sequence[Loaded]], Shard],
    catalog: Catalog,
    products: Products,
    loaded: Sequence[Future[Loaded]],
    path: Path,
) -> None:
    shard = compute(catalog, products.texts, [future.result() for future in loaded])
    try:
        shard.save(path)
    except OSError:
        if not path.exists():  # another process has written the same one meanwhile
            raise


def bytes_needed(catalog: Catalog, frozen: Frozen) -> int:
    """Returns about how many bytes the states of a catalog will take, judged by its first products."""
    for products in catalog.batches(_SAMPLE):
        loaded = [future.result() for future in _Photos(catalog, frozen.encoder).load(products)]
        shard = frozen.shard(catalog, products.texts, loaded)
        return (shard.image.nbytes + shard.text.nbytes) * len(catalog) // len(products)
    return 0


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


_EVERYTHING = _Everything()
