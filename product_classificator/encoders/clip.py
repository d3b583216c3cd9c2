"""Turns photos and texts into vectors by the two towers of a CLIP-like network.

What differs between ruCLIP, CLIP, SigLIP and others is how they prepare (see `preparation`) and which towers compute
(see `towers`); this class brings both together. Windows are batched with others of about their length, so that little
padding is computed; those of one text are averaged.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from product_classificator.encoders.base import unit_rows
from product_classificator.encoders.preprocessing import ImagePreparation, Inputs, TextPreparation
from product_classificator.types import Floats

if TYPE_CHECKING:
    from product_classificator.encoders.towers import Towers

Images: TypeAlias = Sequence[Image.Image]

_MOST_PADDED, _SLACK = 1.25, 4
_PREPARED_AHEAD = 2


@dataclass
class ClipEncoder:
    """An encoder with two towers into one space; see `Encoder`.

    Attributes:
        name: what `load_encoder` was asked for.
        fingerprint: names weights and preparation.
        towers: compute; they may be replaced by equal ones, of another device or engine.
        images: prepares photos.
        texts: prepares texts.
    """

    name: str
    fingerprint: str
    towers: "Towers"
    images: ImagePreparation
    texts: TextPreparation
    shares_space: bool = True

    @property
    def image_dim(self) -> int:
        """Length of an image vector."""
        return self.towers.image_dim

    @property
    def text_dim(self) -> int:
        """Length of a text vector."""
        return self.towers.text_dim

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size under which a photo of `size` should not be decoded."""
        return self.images.min_decode_size(size)

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """Shrinks a photo to what the image tower takes."""
        return self.images.prepare(image)

    def encode_images(self, images: Sequence[Image.Image]) -> Floats:
        """Returns (n, image_dim) float32 vectors of unit length."""
        at_once = self.towers.photos_per_batch
        batches = [images[start : start + at_once] for start in range(0, len(images), at_once)]
        vectors = [self.towers.of_images(inputs) for inputs in _ahead(self.images.inputs, batches)]
        return unit_rows(np.concatenate([np.empty((0, self.image_dim), dtype=np.float32), *vectors]))

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Returns (n, text_dim) float32 vectors of unit length."""
        windows, owners = self.texts.windows([readable(text) for text in texts])
        found = np.zeros((len(windows), self.text_dim), dtype=np.float32)
        lengths = [self.texts.padded_to or len(window) for window in windows]
        for rows in batches_of(lengths, self.towers.tokens_per_batch):
            found[rows] = self.towers.of_texts(self.texts.inputs([windows[row] for row in rows]))
        if len(windows) == len(texts):
            return unit_rows(found)
        sums = np.zeros((len(texts), self.text_dim), dtype=np.float32)
        np.add.at(sums, owners, unit_rows(found))
        return unit_rows(sums)


def _ahead(prepare: Callable[[Images], Inputs], batches: Iterable[Images]) -> Iterator[Inputs]:
    """Yields the inputs of batches, of which a few are prepared while the tower computes: a GPU would wait for them."""
    with ThreadPoolExecutor(_PREPARED_AHEAD, thread_name_prefix="inputs") as pool:
        waiting: deque[Future[Inputs]] = deque()
        for batch in batches:
            waiting.append(pool.submit(prepare, batch))
            if len(waiting) > _PREPARED_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batches_of(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Yields the numbers of windows, batch after batch: the longest has at most 5/4 of the shortest and 4 more tokens.

    Args:
        lengths: of the windows, in tokens.
        most_tokens: of a batch, padding among them; a longer window is a batch of its own.

    >>> list(batches_of([40, 7, 8, 38, 9], most_tokens=20))
    [[1, 2], [4], [3], [0]]
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        is_full = lengths[row] * (len(batch) + 1) > most_tokens
        if batch and (is_full or lengths[row] > _MOST_PADDED * lengths[batch[0]] + _SLACK):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def readable(text: str) -> str:
    """Returns a text without lone surrogates: they cannot be encoded as UTF-8, which every tokenizer needs."""
    return text.encode("utf-8", "ignore").decode()
