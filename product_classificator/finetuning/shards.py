"""Turns products into the states that go into the last blocks of an encoder.

What lies before the last blocks does not change while these are trained, so its answers can be kept. A photo of
ViT-B/32 at 224 px takes 77 kB, of ViT-B/16 at 384 px 886 kB, a text of 40 tokens 41 kB.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from product_classificator.catalog.catalog import Catalog
from product_classificator.embeddings.embed import Loaded
from product_classificator.encoders import Encoder
from product_classificator.encoders.clip import clip_towers, token_windows
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.encoders.torch_clip import computing, torch_network_of
from product_classificator.files import replacing_folder
from product_classificator.finetuning.blocks import Side, hidden_states
from product_classificator.finetuning.distributed import Distributed
from product_classificator.text import clean
from product_classificator.types import Rows, Strings, strings

Halves: TypeAlias = npt.NDArray[np.float16]
Integers: TypeAlias = npt.NDArray[Any]

_BATCH = 32


@dataclass(frozen=True)
class Shard:
    """States of some products of a catalog, in memory or mapped from a file.

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

    def __len__(self) -> int:
        return len(self.image_keys)

    @cached_property
    def image_place(self) -> Rows:
        """(n,) where in `image` a product's photo is."""
        return np.cumsum(self.image_status == "ok") - 1

    @cached_property
    def text_first(self) -> Rows:
        """(windows + 1,) where in `text` a window begins."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

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
        return cls(
            image=_mapped(folder / "image.npy"),
            text=_mapped(folder / "text.npy"),
            inputs={path.stem.removeprefix("input."): _mapped(path) for path in folder.glob("input.*.npy")},
            lengths=np.load(folder / "lengths.npy"),
            owners=np.load(folder / "owners.npy"),
            image_keys=np.load(folder / "image_keys.npy"),
            image_status=strings(status["image"]),
            text_status=strings(status["text"]),
        )


def _mapped(path: Path) -> npt.NDArray[Any]:
    """Maps an array into memory; `np.load` would keep its file open, and a process may often open 1,024 only."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        first_byte = file.tell()
    every: npt.NDArray[np.uint8] = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8).numpy()
    return every[first_byte:].view(dtype).reshape(shape)


class Frozen:
    """The part of an encoder that comes before its last blocks.

    Args:
        encoder: a CLIP-like encoder that computes with PyTorch, perhaps with cleaned texts.
        last_blocks: how many blocks of each tower come after.
        distributed: in whose precision it computes.

    Raises:
        DataError: the encoder has no towers, or these have fewer blocks.
    """

    def __init__(self, encoder: Encoder, last_blocks: int, distributed: Distributed) -> None:
        self.encoder = encoder
        self.last_blocks = last_blocks
        self.distributed = distributed
        self.fingerprint = f"{encoder.fingerprint}-{last_blocks}-{distributed.precision}"
        self._network = torch_network_of(encoder)
        self._image, self._text = clip_towers(encoder)

    def shard(self, catalog: Catalog, texts: Sequence[str], loaded: Sequence[Loaded]) -> Shard:
        """Computes the states of products whose photos are decoded."""
        known = [row for row, text in enumerate(texts) if clean(text)]
        text, inputs, lengths, owners = self._of_texts([texts[row] for row in known])
        outline = self.outline(catalog, texts, loaded)
        image = self._of_images([item.image for item in loaded if item.image is not None])
        owners = np.array(known, dtype=np.int64)[owners]
        return replace(outline, image=image, text=text, inputs=inputs, lengths=lengths, owners=owners)

    def outline(self, catalog: Catalog, texts: Sequence[str], loaded: Sequence[Loaded]) -> Shard:
        """Returns the shard of products without their states."""
        no_text = "empty" if catalog.columns.text else "unused"
        return Shard(
            image=np.zeros((0, 0, 0), np.float16),
            text=np.zeros((0, 0), np.float16),
            inputs={},
            lengths=np.zeros(0, np.int64),
            owners=np.zeros(0, np.int64),
            image_keys=np.array([item.image_key for item in loaded], dtype=np.uint64),
            image_status=strings([item.image_status for item in loaded]),
            text_status=strings(["ok" if clean(text) else no_text for text in texts]),
        )

    def _of_images(self, images: Sequence[Image.Image]) -> Halves:
        found = [
            self._states("image", self._image.preparation.inputs(images[start : start + _BATCH]))
            for start in range(0, len(images), _BATCH)
        ]
        return np.concatenate(found) if found else np.zeros((0, 0, 0), dtype=np.float16)

    def _of_texts(self, texts: Sequence[str]) -> tuple[Halves, dict[str, Integers], Integers, Integers]:
        windows, owners = token_windows(self.encoder.text, texts)
        order = np.argsort([len(window) for window in windows], kind="stable")
        states: dict[int, Halves] = {}
        inputs: dict[int, dict[str, Integers]] = {}
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH].tolist()
            arrays = self._text.preparation.inputs([windows[row] for row in rows])
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
        with computing(self._network.threads), self.distributed.autocast():
            found = hidden_states(self._network.model, side, self._network.tensors(inputs), self.last_blocks)
            states: Halves = found.to(torch.float16).cpu().numpy()
        return states
