"""Splits the towers of a CLIP-like network before the last blocks, and caches the states that enter these on disk.

`hidden_states` computes the input of the last blocks; `Tail` computes the rest from there. Both run the network's own
forward pass, so masks, pooling and projections stay its business: in the tail a placeholder returns the cached states.
This works for any model of transformers whose towers keep their blocks in one list.

`image.npy` has a row per image and `text.npy` the tokens of all texts, in catalog order. Both are allocated first;
`<first row>.json` then marks each chunk of products as complete, so an interrupted computation continues there and
several processes share the work.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from product_classificator.catalog.catalog import Catalog, Products
from product_classificator.embeddings.embed import CHUNK_PRODUCTS, LoadedProduct, load_product
from product_classificator.embeddings.feeding import on_cpu
from product_classificator.embeddings.products import THUMBNAIL_BYTES, row_status, thumbnail
from product_classificator.encoders import Encoder, cores
from product_classificator.encoders.base import CleanedTexts
from product_classificator.encoders.clip import Side, clip_towers
from product_classificator.encoders.preprocessing import Ids
from product_classificator.encoders.torch_clip import METHODS, computing, pooled, torch_network_of
from product_classificator.errors import DataError
from product_classificator.files import remove_leftovers, replacing, write_text
from product_classificator.finetuning.distributed import Distributed
from product_classificator.text import clean, clean_published
from product_classificator.types import Rows, strings

logger = logging.getLogger(__name__)

Halves: TypeAlias = npt.NDArray[np.float16]
_BATCH = 16  # the states of all blocks of a batch are in memory
SIDES: tuple[Side, ...] = ("image", "text")
_TOWERS = {"image": "vision_model", "text": "text_model"}
# Norms and projections after the blocks, trained with them as in the published system.
_TRAINED_AFTER = {
    "image": ("vision_model.post_layernorm", "vision_model.head", "visual_projection"),
    "text": ("text_model.final_layer_norm", "text_model.head", "text_model.pre_LN", "text_projection"),
}


class Activations:
    """The states that enter the last blocks of a CLIP-like encoder, of all products; `cache` comes before reading.

    Attributes:
        digest, digests: of all images and texts, and of each product as in `EmbeddedProducts`.
        has_image, has_text: (n,) as in `Embeddings`.
        thumbnails, status: as in `EmbeddedProducts`.
    """

    def __init__(self, catalog: Catalog, encoder: Encoder, last_blocks: int, distributed: Distributed) -> None:
        self._catalog, self._encoder, self._texts = catalog, encoder, catalog.texts()
        self._last_blocks, self._distributed = last_blocks, distributed
        self._network = torch_network_of(encoder)
        image, text = clip_towers(encoder)
        self._preparation: dict[Side, Any] = {"image": image.preparation, "text": text.preparation}
        max_pixels = catalog.images and catalog.images.max_pixels  # decides which images are too large
        digest, self.digests = blake2b(str(max_pixels).encode(), digest_size=16), list[bytes]()
        n_tokens, n_images, self._chunks, self._n_found = [0], [0], [0], 0
        for products in catalog.batches(CHUNK_PRODUCTS):
            loaded = self._load(products, _All())
            self.digests += [item.digest for item in loaded]
            _, lengths, owners = self._windows(products.texts)
            tokens = np.bincount(owners, lengths, len(products)).astype(int)
            n_tokens += [int(n) if clean(text) else 0 for n, text in zip(tokens, products.texts, strict=True)]
            n_images += map(len, products.images)
            images = zip(products.images, loaded, strict=True)
            self._n_found += sum(len(refs) - len(i.errors) for refs, i in images if i.image_status == "ok")
            self._chunks.append(products.first_row + len(products))
        self._text_start, self._image_start = np.cumsum(n_tokens), np.cumsum(n_images)  # before each product
        digest.update(b"".join(self.digests) + self._image_start.tobytes())
        self.digest = digest.hexdigest()
        self.has_text = np.array(n_tokens[1:]) > 0

    def cache(
        self,
        folder: Path,
        on_stage: Callable[[str], None] = logger.info,
        on_products: Callable[[int], None] | None = None,
    ) -> None:
        """Compute the states, or find them in the folder of caches, which all processes must share.

        `on_products` is called with numbers of products; raises `DataError` if the disk has too little space.
        """
        distributed, on_products = self._distributed, on_products or (lambda _: None)
        folder = folder / f"{self.digest}-{self._encoder.fingerprint}-{self._last_blocks}-{distributed.dtype}"
        if distributed.is_main:
            self._allocate(folder, on_stage)
        distributed.wait()
        self._image, self._text = (np.load(folder / f"{side}.npy", mmap_mode="r") for side in SIDES)
        markers = {row: folder / f"{row}.json" for row in self._chunks[:-1]}
        mine = self._chunks[distributed.index : -1 : distributed.processes]
        missing = {row: markers[row] for row in mine if not markers[row].exists()}
        on_products(sum(end - row for row, end in pairwise(self._chunks) if row not in missing))
        for products in self._catalog.batches(CHUNK_PRODUCTS):
            if products.first_row in missing:
                loaded = self._compute(products)
                pixels = (thumbnail(i.images[0]).tobytes() if i.images else bytes(THUMBNAIL_BYTES) for i in loaded)
                images = [(data.hex(), i.image_status, len(i.images)) for data, i in zip(pixels, loaded, strict=True)]
                write_text(missing[products.first_row], json.dumps(images))
                on_products(len(products))
        distributed.wait()
        images = [image for path in markers.values() for image in json.loads(path.read_text(encoding="utf-8"))]
        image_status = strings([status for _, status, _ in images])
        self._n_images = np.array([n for _, _, n in images])
        no_text = "empty" if self._catalog.columns.text else "unused"
        self.has_image = image_status == "ok"
        self.status = row_status(image_status, strings(np.where(self.has_text, "ok", no_text).tolist()))
        thumbnails = b"".join(bytes.fromhex(pixels) for pixels, *_ in images)
        self.thumbnails = np.frombuffer(thumbnails, np.uint8).reshape(-1, THUMBNAIL_BYTES)

    def images(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the (images, tokens, width) float32 states of the images of `rows`, and their positions in `rows`."""
        counts = self._n_images[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        places = np.arange(len(owners)) + (self._image_start[rows] - np.cumsum(counts) + counts)[owners]
        return torch.from_numpy(self._image[places].astype(np.float32)), torch.from_numpy(owners)

    def texts(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the token windows of the texts of `rows`, which all have one.

        Returns:
            States (windows, longest, width), inputs of the text tower, and the position in `rows` of each window.
        """
        windows, lengths, starts, owners = self._windows_of(rows)
        inputs = self._network.tensors(self._preparation["text"].inputs(windows))
        states = np.zeros((*inputs["input_ids"].shape, self._text.shape[1]), np.float32)
        for i, (start, n) in enumerate(zip(starts, lengths, strict=True)):
            states[i, :n] = self._text[start : start + n]
        return torch.from_numpy(states), inputs, torch.from_numpy(owners)

    def _allocate(self, folder: Path, on_stage: Callable[[str], None]) -> None:
        """Create the arrays if they do not exist; zeros that are not written take no space."""
        n = len(self._catalog)
        image_shape = next(self._states("image", [Image.new("RGB", (64, 64))])).shape
        text_shape = int(self._text_start[-1]), next(self._states("text", self._windows(["a"])[0])).shape[1]
        size_gb = (self._n_found * math.prod(image_shape) + math.prod(text_shape)) * 2 / 1e9
        on_stage(f"Computing the activations of {n} products once: {size_gb:.2g} GB in {folder.parent}")
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        shapes = {folder / "image.npy": (int(self._image_start[-1]), *image_shape), folder / "text.npy": text_shape}
        missing = {path: shape for path, shape in shapes.items() if not path.exists()}
        free_gb = shutil.disk_usage(folder).free / 1e9
        if missing and size_gb > free_gb:
            raise DataError(
                f"activations need {size_gb:.2g} GB, {folder.parent} has {free_gb:.2g} GB left: name another folder "
                "(cache_dir), or take fewer products or an encoder of smaller images"
            )
        for path, shape in missing.items():
            with replacing(path) as new:
                np.lib.format.open_memmap(new, "w+", np.float16, shape)

    def _compute(self, products: Products) -> list[LoadedProduct]:
        """Write the states of a chunk, and return its images."""
        loaded = self._load(products)
        rows = products.first_row + np.arange(len(products))
        starts = self._image_start[rows].tolist()
        images = {
            start + k: image for start, item in zip(starts, loaded, strict=True) for k, image in enumerate(item.images)
        }
        _write(self._image, images, self._states("image", [*images.values()]))
        windows, lengths, starts, _ = self._windows_of(rows[self.has_text[rows]])
        order = sorted(range(len(windows)), key=lengths.__getitem__)  # similar lengths need little padding
        padded = zip(order, self._states("text", [windows[i] for i in order]), strict=True)
        _write(self._text, [starts[i] for i in order], (states[: lengths[i]] for i, states in padded))
        return loaded

    def _load(self, products: Products, undecoded: Container[bytes] | None = None) -> list[LoadedProduct]:
        """Return the images of products, but for those of `undecoded` digests."""
        load = partial(load_product, self._catalog, undecoded, on_cpu(self._encoder))
        with ThreadPoolExecutor(cores(), thread_name_prefix="images") as pool:
            return list(pool.map(load, products.images, products.texts))

    def _windows(self, texts: Sequence[str]) -> tuple[list[Ids], list[int], Rows]:
        """Return the token windows of texts, their lengths in tokens, and for each the number of its text."""
        cleaned = map(clean_published, texts) if isinstance(self._encoder.text, CleanedTexts) else texts
        windows, owners = self._preparation["text"].windows([*cleaned])
        return windows, [self._preparation["text"].padded_to or len(window) for window in windows], owners

    def _windows_of(self, rows: Rows) -> tuple[list[Ids], list[int], list[int], Rows]:
        """Return the windows of the texts of `rows`: ids, lengths, first rows in `text.npy`, positions in `rows`."""
        windows, lengths, owners = self._windows([self._texts[row] for row in rows.tolist()])
        start = np.cumsum(lengths, dtype=np.int64) - lengths
        first = start[np.searchsorted(owners, np.arange(len(rows)))]
        return windows, lengths, (start + (self._text_start[rows] - first)[owners]).tolist(), owners

    def _states(self, side: Side, items: Sequence[Any]) -> Iterator[Halves]:
        """Yield the (tokens, width) states of images or token windows, these padded to the longest of a batch."""
        for start in range(0, len(items), _BATCH):
            inputs = self._preparation[side].inputs(items[start : start + _BATCH])
            with computing(self._network.threads), self._distributed.autocast():
                tensors = self._network.tensors(inputs)
                hidden = hidden_states(self._network.model, side, tensors, self._last_blocks).to(torch.float16)
            yield from hidden.cpu().numpy()


class _All(frozenset[bytes]):
    def __contains__(self, _: object) -> bool:
        return True


def _write(array: np.memmap[Any, Any], rows: Iterable[int], states: Iterable[Halves]) -> None:
    """Write states to the file of an array; through its memory map, machines would overwrite each other's pages."""
    with Path(str(array.filename)).open("rb+") as file:
        for row, state in zip(rows, states, strict=True):
            file.seek(array.offset + row * array.strides[0])
            file.write(state.tobytes())
        file.flush()
        os.fsync(file.fileno())


@torch.no_grad()
def hidden_states(model: nn.Module, side: Side, inputs: Mapping[str, Tensor], last_blocks: int) -> Tensor:
    """Return the (n, tokens, width) input of the last blocks, given preprocessed images or texts."""
    _blocks(model, side, last_blocks)
    states: tuple[Tensor, ...] = model.get_submodule(_TOWERS[side])(**inputs, output_hidden_states=True).hidden_states
    return states[-1 - last_blocks]


class _Cached(nn.Module):
    """Placeholder for embeddings and frozen blocks: returns the cached states, whatever its input."""

    hidden: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        return self.hidden

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Replace the input of a block."""
        return ((self.hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": self.hidden})


class Tail(nn.Module):
    """The last blocks of both towers and what follows them, copied; parameters keep the names of the whole model.

    Embeddings and frozen blocks of `model` are placeholders; `scale` is the factor of the cosines that the network was
    trained with. Raises `DataError` if a tower has fewer blocks, or none are found.
    """

    def __init__(self, model: nn.Module, last_blocks: int) -> None:
        super().__init__()
        self._cached = {side: _Cached() for side in SIDES}
        trained: list[str] = []
        replaced: dict[int, Any] = {}  # deepcopy takes these instead of copying, so frozen weights cost no memory
        names = {module: name for name, module in model.named_modules()}
        for side in SIDES:
            blocks = _blocks(model, side, last_blocks)
            towers = [
                name for name in names.values() if name.startswith(_TOWERS[side]) and name.endswith(".embeddings")
            ]
            if not towers:
                raise DataError(f"{type(model).__name__} has no embeddings in {_TOWERS[side]}: it cannot be fine-tuned")
            embeddings = model.get_submodule(min(towers, key=len))
            replaced |= dict.fromkeys(map(id, [*blocks[:-last_blocks], embeddings]), self._cached[side])
            trained += [names[block] for block in blocks[-last_blocks:]]
            trained += [name for name in names.values() if name in _TRAINED_AFTER[side]]
        self.model: nn.Module = deepcopy(model, replaced).requires_grad_(False)
        for side, cached in self._cached.items():  # a norm may lie between embeddings and blocks
            first = _blocks(self.model, side, last_blocks)[-last_blocks]
            first.register_forward_pre_hook(cached.enter, with_kwargs=True)
        for name in trained:
            self.model.get_submodule(name).requires_grad_(True)
        self.scale = float(self.model.get_parameter("logit_scale").detach().exp())

    def encode(self, side: Side, hidden: Tensor, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return (n, dim) unit vectors, by cached states (n, tokens, width), and by the token ids and mask of texts."""
        self._cached[side].hidden = hidden
        try:
            output = getattr(self.model, METHODS[side])(**(inputs or {"pixel_values": hidden}))
        finally:
            self._cached[side].hidden = None
        return nn.functional.normalize(pooled(output).float(), dim=-1)

    def trained(self) -> dict[str, Tensor]:
        """Return copies of the trained parameters by name, as `load_state_dict(..., strict=False)` of `model` takes."""
        weights = self.model.named_parameters()
        return {name: weight.detach().clone() for name, weight in weights if weight.requires_grad}


def _blocks(model: nn.Module, side: Side, last_blocks: int) -> list[nn.Module]:
    """Return the blocks of a tower: its longest list of modules of one type."""
    lists = [
        list(module.children())
        for name, module in model.named_modules()
        if name.startswith(_TOWERS[side]) and isinstance(module, nn.ModuleList)
    ]
    uniform = [blocks for blocks in lists if len({type(block) for block in blocks} - {_Cached}) == 1]
    blocks = max(uniform, key=len, default=[])
    if not blocks:
        raise DataError(f"{type(model).__name__} has no list of blocks in {_TOWERS[side]}: it cannot be fine-tuned")
    if not 1 <= last_blocks <= len(blocks):
        raise DataError(f"the {side} tower has {len(blocks)} blocks, {last_blocks} cannot be trained: ask for fewer")
    return blocks
