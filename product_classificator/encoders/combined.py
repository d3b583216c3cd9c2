"""Encoders made of others: with cleaned texts, or with a text encoder beside the image tower."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from product_classificator.encoders.base import Encoder
from product_classificator.encoders.clip import ClipEncoder, readable
from product_classificator.errors import DataError
from product_classificator.text import clean_published
from product_classificator.types import Floats


class TextEncoder(Protocol):
    """Turns texts into vectors; attributes as those of `Encoder`."""

    @property
    def fingerprint(self) -> str: ...  # noqa: D102 - said above

    @property
    def text_dim(self) -> int: ...  # noqa: D102

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Returns the (n, text_dim) float32 vectors of raw texts; rows have unit length."""


@dataclass(frozen=True)
class _PhotosOf:
    """Photos as another encoder sees them."""

    name: str
    encoder: Encoder

    @property
    def image_dim(self) -> int:
        """Length of an image vector."""
        return self.encoder.image_dim

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size under which a photo of `size` should not be decoded."""
        return self.encoder.min_decode_size(size)

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """Shrinks a photo to what the image tower takes."""
        return self.encoder.prepare_image(image)

    def encode_images(self, images: Sequence[Image.Image]) -> Floats:
        """Returns (n, image_dim) float32 vectors of unit length."""
        return self.encoder.encode_images(images)


@dataclass(frozen=True)
class PairedEncoder(_PhotosOf):
    """Photos through one encoder, texts through another; see `Encoder`."""

    texts: TextEncoder
    shares_space: bool = False

    @property
    def fingerprint(self) -> str:
        """One for the pair."""
        known = f"{self.encoder.fingerprint} {self.texts.fingerprint}"
        return f"pair-{hashlib.blake2b(known.encode(), digest_size=8).hexdigest()}"

    @property
    def text_dim(self) -> int:
        """Length of a text vector."""
        return self.texts.text_dim

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Returns (n, text_dim) float32 vectors of unit length."""
        return self.texts.encode_texts(texts)


@dataclass(frozen=True)
class CleaningEncoder(_PhotosOf):
    """Any encoder, its texts cleaned as in the published system; see `Encoder`."""

    @property
    def fingerprint(self) -> str:
        """That of the encoder, marked."""
        return f"{self.encoder.fingerprint}-clean"

    @property
    def shares_space(self) -> bool:
        """As the encoder's."""
        return self.encoder.shares_space

    @property
    def text_dim(self) -> int:
        """Length of a text vector."""
        return self.encoder.text_dim

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Returns (n, text_dim) float32 vectors of unit length."""
        return self.encoder.encode_texts([clean_published(text) for text in texts])


def clip_within(encoder: Encoder) -> ClipEncoder | None:
    """Returns the CLIP-like encoder that an encoder is, or asks for its photos; `None`: there is none."""
    while isinstance(encoder, CleaningEncoder | PairedEncoder):
        encoder = encoder.encoder
    return encoder if isinstance(encoder, ClipEncoder) else None


def clip_of(encoder: Encoder) -> ClipEncoder:
    """Returns the CLIP-like encoder that an encoder is, or cleans texts for.

    Raises:
        DataError: it is none, so it has no towers.
    """
    inner = encoder.encoder if isinstance(encoder, CleaningEncoder) else encoder
    if not isinstance(inner, ClipEncoder):
        raise DataError(f"only CLIP-like encoders have towers to export or to tune, {encoder.name!r} is none")
    return inner


def prepared_texts(encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """Returns texts as the tokenizer of an encoder's towers gets them."""
    if isinstance(encoder, CleaningEncoder):
        texts = [clean_published(text) for text in texts]
    return [readable(text) for text in texts]
