"""The towers of CLIP-like models (ruCLIP, CLIP, SigLIP, ...): prepare inputs, run a network, normalise.

Families differ in how they prepare (`preprocessing`) and which network computes: PyTorch's or ONNX Runtime's. Both
towers of an encoder share the network. Nothing here imports torch.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from product_classificator.encoders.base import Encoder, uncleaned, unit_rows
from product_classificator.encoders.preprocessing import ImagePreparation, Inputs, TextPreparation
from product_classificator.errors import DataError
from product_classificator.types import Floats

Side = Literal["image", "text"]

_COMMON_PATCHES = 196  # 16 px patches in an image of 224 px
_MAX_PADDED, _SLACK = 1.25, 4
_PREPARED_AHEAD = 2


class ClipNetwork(Protocol):
    """Computes the features of both towers, `dim` wide, best this many at once, in the number format `dtype`."""

    dim: int
    dtype: str
    tokens_per_batch: int
    images_per_batch: int

    def features(self, side: Side, inputs: Inputs) -> Floats:
        """Return the (n, dim) float32 features of images or texts, of any length."""


@dataclass(frozen=True)
class ClipImages:
    """The image tower of a CLIP-like encoder."""

    fingerprint: str
    network: ClipNetwork
    preparation: ImagePreparation

    @property
    def dim(self) -> int:
        return self.network.dim

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.preparation.min_decode_size(size)

    def prepare(self, image: Image.Image) -> Image.Image:
        return self.preparation.prepare(image)

    def encode(self, images: Sequence[Image.Image]) -> Floats:
        at_once = self.network.images_per_batch
        batches = [images[start : start + at_once] for start in range(0, len(images), at_once)]
        features = [self.network.features("image", inputs) for inputs in self._inputs_ahead(batches)]
        return unit_rows(np.concatenate([np.empty((0, self.dim), dtype=np.float32), *features]))

    def _inputs_ahead(self, batches: Iterable[Sequence[Image.Image]]) -> Iterator[Inputs]:
        """Yield the inputs of batches, preparing the next few while the network computes: a GPU would wait for them."""
        with ThreadPoolExecutor(_PREPARED_AHEAD, thread_name_prefix="inputs") as pool:
            waiting: deque[Future[Inputs]] = deque()
            for batch in batches:
                waiting.append(pool.submit(self.preparation.inputs, batch))
                if len(waiting) > _PREPARED_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


@dataclass(frozen=True)
class ClipTexts:
    """The text tower of a CLIP-like encoder.

    Windows are batched with others of similar length, so that little padding is computed; the vectors of the windows of
    one text are averaged.
    """

    fingerprint: str
    network: ClipNetwork
    preparation: TextPreparation

    @property
    def dim(self) -> int:
        return self.network.dim

    def encode(self, texts: Sequence[str]) -> Floats:
        windows, owners = self.preparation.windows(texts)
        features = np.zeros((len(windows), self.dim), dtype=np.float32)
        lengths = [self.preparation.padded_to or len(window) for window in windows]
        for rows in batches_of(lengths, self.network.tokens_per_batch):
            inputs = self.preparation.inputs([windows[row] for row in rows])
            features[rows] = self.network.features("text", inputs)
        vectors = unit_rows(features)
        if len(windows) == len(texts):
            return vectors
        sums = np.zeros((len(texts), self.dim), dtype=np.float32)
        np.add.at(sums, owners, vectors)
        return unit_rows(sums)


def clip_towers(encoder: Encoder) -> tuple[ClipImages, ClipTexts]:
    """Return the towers of a CLIP-like encoder, without cleaning; raises `DataError` if one is not CLIP-like."""
    text = uncleaned(encoder.text)
    is_one_model = encoder.image.fingerprint == text.fingerprint  # not with `+e5`
    if is_one_model and isinstance(encoder.image, ClipImages) and isinstance(text, ClipTexts):
        return encoder.image, text
    raise DataError(f"only CLIP-like encoders can be exported or fine-tuned, {encoder.name!r} is not one")


def dtype_of(encoder: Encoder) -> str | None:
    """Return the number format of a CLIP-like image tower; `None` for other encoders."""
    return encoder.image.network.dtype if isinstance(encoder.image, ClipImages) else None


def batch_sizes(device: str, patches: int | None) -> tuple[int, int]:
    """Return how many text tokens, and images of so many patches (`None`: unknown), are best computed at once.

    On a CPU the activations must stay in the cache; a GPU needs large batches (docs/design/decisions.md).
    """
    tokens = 600 if device == "cpu" else 20_000
    return tokens, max(1, tokens // (patches or _COMMON_PATCHES))


def batches_of(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of window numbers; the longest window has at most 5/4 of the shortest and 4 more tokens.

    A batch has at most `max_tokens`, padding included; a longer window is a batch of its own.

    >>> list(batches_of([40, 7, 8, 38, 9], max_tokens=20))
    [[1, 2], [4], [3], [0]]
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        is_full = lengths[row] * (len(batch) + 1) > max_tokens
        if batch and (is_full or lengths[row] > _MAX_PADDED * lengths[batch[0]] + _SLACK):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
