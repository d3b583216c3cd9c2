"""Turns a catalog into the states that go into the last blocks of an encoder, computed once and kept on disk.

What lies before the last blocks does not change while these are trained. A shard holds the states of the photos and
texts of `CHUNK_PRODUCTS` products in float16, and is named by the digests of these products: a killed call goes on
with the first shard that is missing, and what has not changed is not computed again. Shards are mapped into memory, so
a batch reads its own rows only. Over `limit_gb` nothing is kept, and every batch is computed anew from photos and
texts.

A photo of ViT-B/32 at 224 px takes 77 kB, of ViT-B/16 at 384 px 886 kB, a text of 40 tokens 41 kB.
"""

import json
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from product_classificator.catalog.read import Catalog, Products
from product_classificator.embeddings import CHUNK_PRODUCTS
from product_classificator.embeddings.pipeline import Loaded, load_product
from product_classificator.encoders import Encoder, cores
from product_classificator.encoders.blocks import Side, hidden_states
from product_classificator.encoders.combined import clip_of, prepared_texts
from product_classificator.encoders.preparation import Inputs
from product_classificator.encoders.towers import computing, torch_towers_of
from product_classificator.files import replacing_folder
from product_classificator.text import clean
from product_classificator.types import Rows, Strings, strings

Halves: TypeAlias = npt.NDArray[np.float16]
Integers: TypeAlias = npt.NDArray[Any]

_BATCH = 32
_SAMPLE = 32


@dataclass(frozen=True)
class Shard:
    """States of consecutive products of a catalog, in memory or mapped from a file.

    Attributes:
        image: (m, tokens, width) float16, of the products that have a readable photo, in their order.
        text: (all tokens, width) float16, the windows of text one after the other.
        inputs: what the text tower takes beside them, name -> (all tokens,) integers.
        lengths: (windows,) tokens of each window.
        owners: (windows,) number in the shard of each window's product, ascending.
        image_keys: (n,) equal for photos of the same bytes, 0 without a photo.
        image_status: (n,) "ok", or why there is no photo; likewise `text_status`.
    """

    image: Halves
    text: Halves
    inputs: Mapping[str, Integers]
    lengths: Integers
    owners: Integers
    image_keys: npt.NDArray[np.uint64]
    image_status: Strings
    text_status: Strings

    def save(self, folder: Path) -> None:
        """Writes the shard as a folder, whole or not at all."""
        with replacing_folder(folder) as new:
            for name in ("image", "text", "lengths", "owners", "image_keys"):
                np.save(new / f"{name}.npy", getattr(self, name))
            for name, array in self.inputs.items():
                np.save(new / f"input.{name}.npy", array)
            status = {"image": list(self.image_status), "text": list(self.text_status)}
            (new / "status.json").write_text(json.dumps(status), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Shard":
        """Maps a shard into memory."""
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}
        inputs = {name: array for name, array in arrays.items() if name.startswith("input.")}
        return cls(
            inputs={name.removeprefix("input."): np.asarray(array) for name, array in inputs.items()},
            image_status=strings(status["image"]),
            text_status=strings(status["text"]),
            image=arrays["image"],
            text=arrays["text"],
            lengths=np.asarray(arrays["lengths"]),
            owners=np.asarray(arrays["owners"]),
            image_keys=np.asarray(arrays["image_keys"]),
        )


class Frozen:
    """The part of an encoder that comes before its last blocks.

    Args:
        encoder: a CLIP-like encoder that computes with PyTorch, perhaps with cleaned texts.
        last_blocks: how many blocks of each tower come after.

    Raises:
        DataError: the encoder has no towers, or these have fewer blocks.
    """

    def __init__(self, encoder: Encoder, last_blocks: int) -> None:
        self.encoder = encoder
        self.last_blocks = last_blocks
        self.fingerprint = f"{encoder.fingerprint}-{last_blocks}"
        self._clip = clip_of(encoder)
        self._towers = torch_towers_of(self._clip)

    def shard(self, catalog: Catalog, texts: Sequence[str], loaded: Sequence[Loaded]) -> Shard:
        """Computes the states of products whose photos are decoded."""
        images = [item.image for item in loaded if item.image is not None]
        known = [row for row, text in enumerate(texts) if clean(text)]
        no_text = "empty" if catalog.columns.text else "unused"
        text, inputs, lengths, owners = self._of_texts([texts[row] for row in known])
        return Shard(
            image=self._of_images(images),
            text=text,
            inputs=inputs,
            lengths=lengths,
            owners=np.array(known, dtype=np.int64)[owners],
            image_keys=np.array([item.image_key for item in loaded], dtype=np.uint64),
            image_status=strings([item.image_status for item in loaded]),
            text_status=strings(["ok" if row in set(known) else no_text for row in range(len(texts))]),
        )

    def _of_images(self, images: Sequence[Image.Image]) -> Halves:
        found = [
            self._states("image", self._clip.images.inputs(images[start : start + _BATCH]))
            for start in range(0, len(images), _BATCH)
        ]
        return np.concatenate(found) if found else np.zeros((0, 0, 0), dtype=np.float16)

    def _of_texts(self, texts: Sequence[str]) -> tuple[Halves, dict[str, Integers], Integers, Integers]:
        windows, owners = self._clip.texts.windows(prepared_texts(self.encoder, texts))
        order = np.argsort([len(window) for window in windows], kind="stable")
        states: dict[int, Halves] = {}
        inputs: dict[int, dict[str, Integers]] = {}
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH].tolist()
            arrays = self._clip.texts.inputs([windows[row] for row in rows])
            found = self._states("text", arrays)
            states |= dict(zip(rows, found, strict=True))
            inputs |= {row: {name: array[place] for name, array in arrays.items()} for place, row in enumerate(rows)}
        if not windows:
            return np.zeros((0, 0), dtype=np.float16), {}, np.zeros(0, dtype=np.int64), owners
        every = range(len(windows))
        return (
            np.concatenate([states[row] for row in every]),
            {name: np.concatenate([inputs[row][name] for row in every]) for name in inputs[0]},
            np.array([len(states[row]) for row in every], dtype=np.int64),
            owners,
        )

    def _states(self, side: Side, inputs: Inputs) -> Halves:
        with computing(self._towers.threads):
            found = hidden_states(self._towers.model, side, self._towers.tensors(inputs), self.last_blocks)
            states: Halves = found.to(torch.float16).cpu().numpy()
        return states


class Activations:
    """States of all products of a catalog, shard after shard."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = list(shards)
        sizes = [len(shard.image_keys) for shard in self._shards]
        self._shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.image_keys = np.concatenate([shard.image_keys for shard in self._shards])
        self.image_status = strings([status for shard in self._shards for status in shard.image_status])
        self.text_status = strings([status for shard in self._shards for status in shard.text_status])
        self.has_image = self.image_status == "ok"
        self.has_text = self.text_status == "ok"
        self._image_place = [np.cumsum(shard.image_status == "ok") - 1 for shard in self._shards]
        self._text_first = [np.concatenate([[0], np.cumsum(shard.lengths)]) for shard in self._shards]

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(shard.image.nbytes + shard.text.nbytes for shard in self._shards)

    def images(self, rows: Rows) -> Tensor:
        """Returns the (p, tokens, width) float32 states of the photos of `rows`, which all have one."""
        found = []
        for row in rows.tolist():
            number = self._shard_of[row]
            found.append(self._shards[number].image[self._image_place[number][row - self._first[number]]])
        return torch.from_numpy(np.stack(found).astype(np.float32))

    def texts(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Returns states (w, longest, width), inputs and owners of the windows of `rows`, which all have a text."""
        spans: list[tuple[Shard, int, int]] = []
        owners: list[int] = []
        for place, row in enumerate(rows.tolist()):
            number = self._shard_of[row]
            shard, first = self._shards[number], self._text_first[number]
            here = np.flatnonzero(shard.owners == row - self._first[number])
            spans += [(shard, int(first[window]), int(first[window + 1])) for window in here]
            owners += [place] * len(here)
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


def keep_activations(
    catalog: Catalog,
    frozen: Frozen,
    folder: Path,
    *,
    on_products: Callable[[int], None] | None = None,
) -> Activations:
    """Computes the states of a catalog, or finds them where an earlier call has kept them.

    Args:
        catalog: the products.
        frozen: what computes.
        folder: of the shards.
        on_products: called after each shard with its number of products.
    """
    shards = []
    with ThreadPoolExecutor(cores(), thread_name_prefix="photos") as pool:

        def load(products: Products, known: Container[bytes] | None) -> list[Loaded]:
            rows = zip(products.ids, products.photos, products.texts, strict=True)
            futures = [pool.submit(load_product, catalog, frozen.encoder, known, *row) for row in rows]
            return [future.result() for future in futures]

        for products in catalog.batches(CHUNK_PRODUCTS):
            name = blake2b(frozen.fingerprint.encode(), digest_size=16)
            for item in load(products, _EVERYTHING):  # digests only: nothing is decoded
                name.update(item.digest)
            path = folder / name.hexdigest()
            if not path.exists():
                frozen.shard(catalog, products.texts, load(products, None)).save(path)
            shards.append(Shard.load(path))
            if on_products:
                on_products(len(products))
    return Activations(shards)


def bytes_needed(catalog: Catalog, frozen: Frozen) -> int:
    """Returns about how many bytes the states of a catalog will take, judged by its first products."""
    for products in catalog.batches(_SAMPLE):
        rows = zip(products.ids, products.photos, products.texts, strict=True)
        loaded = [load_product(catalog, frozen.encoder, None, *row) for row in rows]
        shard = frozen.shard(catalog, products.texts, loaded)
        return (shard.image.nbytes + shard.text.nbytes) * len(catalog) // len(products)
    return 0


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


_EVERYTHING = _Everything()
