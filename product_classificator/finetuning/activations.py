"""Caches the states that enter the last blocks of an encoder as plain arrays on disk, so that they are computed once.

`image.npy` has a row per product and `text.npy` the tokens of all texts, in catalog order. Both are allocated first;
`<first row>.json` then marks each chunk of products as complete, so an interrupted computation continues there and
several processes share the work. States beyond the size limit are recomputed from images and texts whenever a batch
needs them. An image takes 77 kB (ViT-B/32 at 224 px) to 886 kB (ViT-B/16 at 384 px), a text of 40 tokens 41 kB.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from product_classificator.catalog.catalog import Catalog, Products
from product_classificator.embeddings.embed import CHUNK_PRODUCTS, LoadedProduct, load_product
from product_classificator.embeddings.products import THUMBNAIL_BYTES, thumbnail
from product_classificator.encoders import Encoder, cores
from product_classificator.encoders.clip import clip_towers, token_windows
from product_classificator.encoders.preprocessing import Ids, Inputs
from product_classificator.encoders.torch_clip import computing, torch_network_of
from product_classificator.errors import DataError, culprits
from product_classificator.files import remove_leftovers, replacing, write_text
from product_classificator.finetuning.blocks import SIDES, Side, hidden_states
from product_classificator.finetuning.distributed import Distributed
from product_classificator.text import clean
from product_classificator.types import Rows, strings

logger = logging.getLogger(__name__)

Halves: TypeAlias = npt.NDArray[np.float16]
_BATCH = 16  # the states of all blocks of a batch are in memory: 370 MB for ViT-B/16 at 384 px


class Frozen:
    """The part of a CLIP-like encoder before the last blocks of each tower; raises `DataError` for other encoders."""

    def __init__(self, encoder: Encoder, last_blocks: int, distributed: Distributed) -> None:
        self.encoder, self.distributed = encoder, distributed
        self.fingerprint = f"{encoder.fingerprint}-{last_blocks}-{distributed.dtype}"
        self._last_blocks = last_blocks
        self._network = torch_network_of(encoder)
        image, text = clip_towers(encoder)
        self._images, self._texts = image.preparation, text.preparation

    def images(self, images: Sequence[Image.Image]) -> Iterator[Halves]:
        """Yield the (tokens, width) states of images."""
        for start in range(0, len(images), _BATCH):
            yield from self._states("image", self._images.inputs(images[start : start + _BATCH]))

    def windows(self, texts: Sequence[str]) -> tuple[list[Ids], Rows, Rows]:
        """Return the token windows of texts, and for each window the number of its text and its length in tokens."""
        windows, owners = token_windows(self.encoder.text, texts)
        return windows, owners, np.array([self.length(window) for window in windows], dtype=np.int64)

    def length(self, window: Ids) -> int:
        """Return how many tokens of a window the tower reads."""
        return self._texts.padded_to or len(window)

    def texts(self, windows: Sequence[Ids]) -> list[Halves]:
        """Return the (tokens, width) states of windows."""
        states: dict[int, Halves] = {}
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]))  # similar lengths need little padding
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            padded = self._states("text", self._texts.inputs([windows[i] for i in batch]))
            states |= {i: row[: self.length(windows[i])] for i, row in zip(batch, padded, strict=True)}
        return [states[i] for i in range(len(windows))]

    def text_inputs(self, windows: Sequence[Ids]) -> dict[str, Tensor]:
        """Return the inputs of the text tower for windows."""
        return self._network.tensors(self._texts.inputs(windows))

    def _states(self, side: Side, inputs: Inputs) -> Halves:
        with computing(self._network.threads), self.distributed.autocast():
            hidden = hidden_states(self._network.model, side, self._network.tensors(inputs), self._last_blocks)
            states: Halves = hidden.to(torch.float16).cpu().numpy()
        return states


class Activations:
    """The states of all products of a catalog that enter the last blocks; `cache` must be called before they are read.

    Reads all images, without decoding them, and tokenises all texts.

    Attributes:
        n_cached: products whose states are on disk; those of the others are recomputed.
        thumbnails: (n, 192) uint8, to recognise the same photo; all 0 without an image.
        image_status: (n,) "ok", or why there is no image; likewise `text_status`.
        has_image: (n,) whether a product has a readable image; likewise `has_text`.
    """

    def __init__(self, catalog: Catalog, frozen: Frozen) -> None:
        self._catalog, self._frozen, self._texts = catalog, frozen, catalog.texts()
        max_pixels = catalog.images and catalog.images.max_pixels  # decides which images are too large
        digest = blake2b(f"{frozen.fingerprint} {max_pixels}".encode(), digest_size=16)
        names: list[str | None] = []
        n_images, n_tokens, chunks = [0], [0], [0]
        for products in catalog.batches(CHUNK_PRODUCTS):
            loaded = _load(catalog, frozen.encoder, products, _All())
            digest.update(b"".join(item.digest for item in loaded))
            _, owners, lengths = frozen.windows(products.texts)
            tokens = np.bincount(owners, lengths, len(products)).astype(int)
            n_tokens += [int(n) if clean(text) else 0 for n, text in zip(tokens, products.texts, strict=True)]
            n_images += [int(item.image_status == "ok") for item in loaded]
            names += products.image_names
            chunks.append(products.first_row + len(products))
        self.digest, self._chunks, self._image_names = digest.hexdigest(), chunks, strings(names)
        self._n_images, self._text_start = np.cumsum(n_images), np.cumsum(n_tokens)  # before each product
        self.has_text = np.array(n_tokens[1:]) > 0
        no_text = "empty" if catalog.columns.text else "unused"
        self.text_status = strings(np.where(self.has_text, "ok", no_text).tolist())

    def cache(
        self,
        folder: Path,
        *,
        limit_gb: float = math.inf,
        on_stage: Callable[[str], None] = logger.info,
        on_products: Callable[[int], None] | None = None,
    ) -> None:
        """Compute the states, or find them in the folder of caches, which all processes must share.

        `on_stage` is called with a sentence about size and place of the cache, `on_products` with numbers of products.
        """
        n, distributed = len(self._catalog), self._frozen.distributed
        image_shape = next(self._frozen.images([Image.new("RGB", (64, 64))])).shape
        width = self._frozen.texts(self._frozen.windows(["a"])[0])[0].shape[1]
        size_gb = (self._n_images * math.prod(image_shape) + self._text_start * width) * 2 / 1e9
        self.n_cached = n_cached = int(np.searchsorted(size_gb, limit_gb, "right")) - 1
        stage = f"Computing the activations of {n} products once: {size_gb[-1]:.2g} GB in {folder}"
        if n_cached < n:
            stage += f"; {limit_gb:g} GB (cache_limit_gb) hold {n_cached}, the others are recomputed in every epoch"
        on_stage(stage)

        folder = folder / f"{self.digest}-{n_cached}"
        shapes = {"image": (n_cached, *image_shape), "text": (int(self._text_start[n_cached]), width)}
        if distributed.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            for side, shape in shapes.items():
                if not (folder / f"{side}.npy").exists():  # zeros that are not written take no space
                    with replacing(folder / f"{side}.npy") as new:
                        np.lib.format.open_memmap(new, "w+", np.float16, shape)
        distributed.wait()
        self._image, self._text = (np.load(folder / f"{side}.npy", mmap_mode="r") for side in SIDES)
        markers = {row: folder / f"{row}.json" for row in self._chunks[:-1]}
        missing = {
            row: path for i, (row, path) in enumerate(markers.items()) if distributed.is_mine(i) and not path.exists()
        }
        on_products = on_products or (lambda _: None)
        on_products(sum(b - a for a, b in pairwise(self._chunks) if a not in missing))
        for products in self._catalog.batches(CHUNK_PRODUCTS):
            if products.first_row in missing:
                loaded = self._compute(products)
                pixels = (thumbnail(i.image).tobytes() if i.image else bytes(THUMBNAIL_BYTES) for i in loaded)
                images = [(data.hex(), i.image_status) for data, i in zip(pixels, loaded, strict=True)]
                write_text(missing[products.first_row], json.dumps(images))
                on_products(len(products))
        distributed.wait()
        images = [image for path in markers.values() for image in json.loads(path.read_text(encoding="utf-8"))]
        self.image_status = strings([status for _, status in images])
        self.has_image = self.image_status == "ok"
        pixels = b"".join(bytes.fromhex(pixels) for pixels, _ in images)
        self.thumbnails = np.frombuffer(pixels, np.uint8).reshape(-1, THUMBNAIL_BYTES)

    def _compute(self, products: Products) -> list[LoadedProduct]:
        """Write the states of a chunk, as far as they are cached, and return its images."""
        loaded = _load(self._catalog, self._frozen.encoder, products)
        rows = np.arange(products.first_row, min(products.first_row + len(products), self.n_cached))
        images = {row: item.image for row, item in zip(rows.tolist(), loaded, strict=False) if item.image is not None}
        _write(self._image, images, self._frozen.images([*images.values()]))
        windows, starts, _ = self._windows(rows[self.has_text[rows]])
        _write(self._text, starts, self._frozen.texts(windows))
        return loaded

    def _windows(self, rows: Rows) -> tuple[list[Ids], Rows, Rows]:
        """Return the windows of the texts of `rows`: token ids, first rows in `text.npy`, and positions in `rows`."""
        windows, owners, lengths = self._frozen.windows([self._texts[row] for row in rows.tolist()])
        start = np.cumsum(lengths) - lengths
        first = start[np.searchsorted(owners, np.arange(len(rows)))]
        return windows, start + (self._text_start[rows] - first)[owners], owners

    def images(self, rows: Rows) -> Tensor:
        """Return the (n, tokens, width) float32 states of the images of `rows`, which all have one.

        Raises:
            DataError: an image that is not cached cannot be read any more.
        """
        states = np.empty((len(rows), *self._image.shape[1:]), np.float32)
        is_cached = rows < self.n_cached
        states[is_cached] = self._image[rows[is_cached]]
        if not is_cached.all():
            others = rows[~is_cached]
            ids, names = self._catalog.ids[others].tolist(), self._image_names[others].tolist()
            products = Products(0, ids, [""] * len(ids), names)
            images = [item.image for item in _load(self._catalog, self._frozen.encoder, products)]
            missing = [id_ for id_, image in zip(ids, images, strict=True) if image is None]
            if missing:
                raise DataError(
                    f"images must stay in place during fine-tuning, those of {culprits(missing)} cannot be read any "
                    "more: restore them, or start again"
                )
            states[~is_cached] = [*self._frozen.images([image for image in images if image is not None])]
        return torch.from_numpy(states)

    def texts(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the token windows of the texts of `rows`, which all have one.

        Returns:
            States (windows, longest, width), inputs of the text tower, and the position in `rows` of each window.
        """
        windows, starts, owners = self._windows(rows)
        inputs = self._frozen.text_inputs(windows)
        is_cached = (rows < self.n_cached)[owners]
        recomputed = iter(self._frozen.texts([windows[i] for i in np.flatnonzero(~is_cached)]))
        states = np.zeros((*inputs["input_ids"].shape, self._text.shape[1]), np.float32)
        for i, window in enumerate(windows):
            n = self._frozen.length(window)
            states[i, :n] = self._text[starts[i] : starts[i] + n] if is_cached[i] else next(recomputed)
        return torch.from_numpy(states), inputs, torch.from_numpy(owners)


def _load(
    catalog: Catalog, encoder: Encoder, products: Products, undecoded: Container[bytes] | None = None
) -> list[LoadedProduct]:
    """Return the images of products, but for those of `undecoded` digests."""
    load = partial(load_product, catalog, encoder, undecoded)
    with ThreadPoolExecutor(cores(), thread_name_prefix="images") as pool:
        return list(pool.map(load, products.ids, products.image_names, products.texts))


class _All(frozenset[bytes]):
    def __contains__(self, _: object) -> bool:
        return True


def _write(array: np.memmap[Any, Any], rows: Iterable[int], states: Iterable[Halves]) -> None:
    """Write states to the file of an array; through its memory map, machines would overwrite each other's pages."""
    with Path(str(array.filename)).open("rb+") as file:
        for row, state in zip(rows, states, strict=True):
            file.seek(array.offset + int(row) * array.strides[0])
            file.write(state.tobytes())
        file.flush()
        os.fsync(file.fileno())
