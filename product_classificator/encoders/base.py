"""An encoder is two towers, one for images and one for texts, and the name it is loaded by."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from product_classificator.errors import DataError, culprits
from product_classificator.text import clean_published
from product_classificator.types import Floats

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
"""Number format that a network computes in."""

TEMPLATES = ("{}", "это {}", "на картинке {}")
"""Sentences for label names, those of ruCLIP."""

RUCLIP_MODELS = (
    "ruclip-vit-base-patch32-224",
    "ruclip-vit-base-patch16-224",
    "ruclip-vit-large-patch14-224",
    "ruclip-vit-base-patch32-384",
    "ruclip-vit-large-patch14-336",
    "ruclip-vit-base-patch16-384",
)
"""The published ruCLIP models (Sber AI, 2022), the fastest first."""

ENCODERS: Mapping[str, str] = {
    "lite": "embedded default: EfficientNet-Lite0 and colours (1872-d), multilingual USE v3 (512-d), offline, CPU",
    **dict.fromkeys(RUCLIP_MODELS, "ruCLIP, fetched from the hub at first use"),
    "<folder>": "a ruCLIP checkpoint (bpe.model, config.json, pytorch_model.bin), or what training left of one",
    "hf:<repository or folder>": "any CLIP-like model of transformers (CLIP, SigLIP, Chinese-CLIP, AltCLIP, ...), "
    "or EmbeddingGemma 2, which reads photo and text together",
}
"""Names that `load_encoder` takes -> descriptions."""

OPTIONS: Mapping[str, str] = {
    "+letterbox": "photos are padded to a square instead of cropped (ruCLIP, hf:)",
    "+windows": "long texts are read in several windows, averaged (ruCLIP, hf:)",
    "+clean": "texts are cleaned as in the published system",
    "+e5": "texts go through multilingual-e5-small instead (384-d, CPU; extra `e5`)",
    "+st:<repository or folder>": "texts go through a model of sentence-transformers instead",
}
"""Options that may follow the name -> what they do."""

_SWITCHES = ("+letterbox", "+windows", "+clean", "+e5")
EXPORTED = "encoder.json"


def is_exported(folder: Path) -> bool:
    """Return whether a folder holds an exported encoder."""
    return (folder / EXPORTED).is_file()


@dataclass(frozen=True)
class EncoderSpec:
    """The name of an encoder: `<encoder>[+letterbox][+windows][+clean][+e5][+st:<text encoder>]`; see `OPTIONS`.

    Options change the vectors, so they are part of the name that runs and stores keep: training and use cannot differ.
    """

    base: str
    letterbox: bool = False
    windows: bool = False
    clean: bool = False
    e5: bool = False
    text_encoder: str | None = None

    @classmethod
    def parse(cls, name: str) -> "EncoderSpec":
        """Parse a name; raises `DataError` if there is nothing before the options, or an option comes twice.

        >>> EncoderSpec.parse("ruclip-vit-base-patch32-224+windows").windows
        True
        """
        parts = re.fullmatch(r"(.+?)((?:\+(?:letterbox|windows|clean|e5))*)(?:\+st:(.+))?", name, re.DOTALL)
        if parts is None or parts[1].startswith(_SWITCHES) or name.endswith("+st:"):
            raise DataError(f"an encoder is written <encoder>{''.join(f'[{o}]' for o in OPTIONS)}, got {name!r}")
        options = parts[2].split("+")[1:]
        if twice := {option for option in options if options.count(option) > 1}:
            raise DataError(f"an option of an encoder is given once, found {'+' + twice.pop()!r} twice in {name!r}")
        if "e5" in options and parts[3]:
            raise DataError(f"+e5 and +st: both replace the text encoder, got {name!r}: leave one out")
        return cls(parts[1], text_encoder=parts[3], **dict.fromkeys(options, True))

    def __str__(self) -> str:
        options = [option for option in _SWITCHES if getattr(self, option.removeprefix("+"))]
        return "".join([self.base, *options, *([f"+st:{self.text_encoder}"] if self.text_encoder else [])])


class DeviceImage(NamedTuple):
    """A prepared image on a device: (3, height, width) uint8 `pixels`, a tensor, and its (192,) uint8 `thumbnail`."""

    pixels: Any
    thumbnail: npt.NDArray[np.uint8]


PreparedImage: TypeAlias = Image.Image | DeviceImage


class Tower(Protocol):
    """Turns images or texts into vectors of length `dim`; equal fingerprints mean equal vectors."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def dim(self) -> int: ...


class ImageTower(Tower, Protocol):
    """Turns images into vectors."""

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the smallest (width, height) an image of `size` may be decoded at: twice what the tower needs."""

    def prepare(self, image: Image.Image) -> Image.Image:
        """Shrink an RGB image to what the tower needs; preparing twice changes nothing.

        Callers may do this early and in other threads, so that large images do not wait in memory.
        """

    def encode(self, images: Sequence[Image.Image]) -> Floats:
        """Return the (n, dim) float32 unit vectors of RGB images, prepared or not."""


class TextTower(Tower, Protocol):
    """Turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return the (n, dim) float32 unit vectors of raw texts."""


@runtime_checkable
class PairTower(TextTower, Protocol):
    """A text tower that can read each text together with an image, into vectors of the same space."""

    def encode_pairs(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Floats:
        """Return the (n, dim) float32 unit vectors of n texts, each with its image, prepared or not."""


@dataclass(frozen=True)
class Encoder:
    """Two towers under one name.

    Attributes:
        name: what `load_encoder` was called with, folders as absolute paths.
        shares_space: whether the cosine of an image vector and a text vector measures how well they match.
    """

    name: str
    image: ImageTower
    text: TextTower
    shares_space: bool = False

    @property
    def fingerprint(self) -> str:
        """Identifies both towers: that of the image tower if the text tower has the same."""
        image, text = self.image.fingerprint, self.text.fingerprint
        return image if image == text else f"pair-{blake2b(f'{image} {text}'.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True)
class CleanedTexts:
    """A text tower that reads texts cleaned as in the published system."""

    inner: TextTower

    @property
    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint}-cleaned"

    @property
    def dim(self) -> int:
        return self.inner.dim

    def encode(self, texts: Sequence[str]) -> Floats:
        return self.inner.encode([clean_published(text) for text in texts])


def uncleaned(tower: TextTower) -> TextTower:
    """Return a text tower without its cleaning."""
    return tower.inner if isinstance(tower, CleanedTexts) else tower


def embed_labels(encoder: Encoder, labels: Sequence[str], templates: Sequence[str] | None = None) -> Floats:
    """Embed the names of labels, so that products can be compared with labels that have no examples.

    Each name goes into several sentences (with `{}` for the name; `None`: `TEMPLATES`) whose vectors are averaged,
    since text towers are trained on sentences (Radford et al. 2021). Names are never cleaned: they are not shop texts.
    Returns (k, dim) float32 unit vectors; no or blank labels, and templates without `{}`, are a `DataError`.
    """
    unnamed = [repr(label) for label in labels if not (isinstance(label, str) and label.strip())]
    if unnamed or len(labels) == 0 or isinstance(labels, str):
        found = repr(labels) if isinstance(labels, str) else culprits(unnamed) if unnamed else "an empty list"
        raise DataError(f"labels are a list of names, each a text that is not blank, found {found}: name each label")
    templates = TEMPLATES if templates is None else tuple(templates)
    invalid = [template for template in templates if "{}" not in template]
    if invalid or not templates:
        raise DataError(f"a template is a sentence with {{}} for the label, found {culprits(invalid)}")
    sentences = [template.replace("{}", label) for label in labels for template in templates]
    return unit_rows(uncleaned(encoder.text).encode(sentences).reshape(len(labels), len(templates), -1).mean(1))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def unit_rows(vectors: Floats) -> Floats:
    """Return vectors scaled to unit length; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit
