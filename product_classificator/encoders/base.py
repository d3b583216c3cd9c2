"""The door every encoder stands behind: raw images and texts in, unit vectors out."""

import os
from collections.abc import Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from PIL import Image

from product_classificator.errors import DataError
from product_classificator.types import Floats

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
"""Precision that a network computes in."""

_COMMON_PATCHES = 196  # of 16 px in a photo of 224 px


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_dtype(dtype: str) -> None:
    """Raises `DataError` if there is no such precision."""
    if dtype not in get_args(Dtype):
        raise DataError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")


def tokens_per_batch(device: str) -> int:
    """Returns how many tokens, of texts or patches of photos, a tower should be given at once.

    On a CPU what it computes on must stay in the cache. Two Zen 3 cores: 1.3 times as many texts a second as in batches
    of 2,000 tokens, and 1.4 times as many photos of 576 patches one by one as in eights. A GPU wants enough to do: an
    H200 took 2.5 to 4.4 times as many photos of 49 patches in batches of 128 as in those of 32.
    """
    return 600 if device == "cpu" else 20_000


def photos_per_batch(device: str, patches: int | None) -> int:
    """Returns how many photos an image tower should be given at once, by the patches of each; `None`: nobody knows."""
    return max(1, tokens_per_batch(device) // (patches or _COMMON_PATCHES))


def unit_rows(vectors: Floats) -> Floats:
    """Returns vectors at unit length; rows of zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit


@runtime_checkable
class Encoder(Protocol):
    """Turns photos and texts into embeddings; how it prepares them is its own business.

    Attributes:
        name: what `load_encoder` was asked for.
        fingerprint: names weights and preparation: two encoders agree iff their fingerprints do.
        image_dim: length of an image vector.
        text_dim: length of a text vector.
        shares_space: whether the cosine of an image vector and a text vector says how well they fit.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - said above

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def image_dim(self) -> int: ...  # noqa: D102

    @property
    def text_dim(self) -> int: ...  # noqa: D102

    @property
    def shares_space(self) -> bool: ...  # noqa: D102

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns width and height under which a photo of `size` should not be decoded: twice what is needed."""

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """Shrinks an RGB image to what the encoder needs; preparing twice changes nothing.

        Callers may do this early, in other threads, so that big photos do not wait in memory.
        """

    def encode_images(self, images: Sequence[Image.Image]) -> Floats:
        """Returns the (n, image_dim) float32 vectors of RGB images, prepared or not; rows have unit length."""

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Returns the (n, text_dim) float32 vectors of raw texts; rows have unit length."""
