"""The files of a bundle of heads: what its manifest says, and whether it may be believed.

The manifest is checked field by field, files against their sha256, weights against the shapes that the manifest calls
for. Loading reads the three names below and nothing else.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from product_classificator.errors import ArtifactError
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.hierarchy import Hierarchy, Refinement
from product_classificator.heads.novelty import NoveltyDetector
from product_classificator.types import Floats

FORMAT = 4
"""Bundles of earlier formats are read as they are: 1 has words without beginnings; 1 and 2 know neither several labels
nor titles; up to 3 openings do not count, and no layer leads straight from the parts to the labels."""
MANIFEST, WEIGHTS, WORDS = "manifest.json", "weights.safetensors", "words.json"
NAMES = {MANIFEST, WEIGHTS, WORDS}
IDF = "vocabulary.idf"
SEEN = ("seen.image", "seen.text")


class ShapeFacts(BaseModel):
    """A `NetworkShape`, but for the numbers of labels."""

    model_config = ConfigDict(extra="forbid", strict=True)
    recipe: str
    image_dim: int
    text_dim: int
    n_words: int
    hidden: int
    dropout: float
    projected: int = 0
    name_dim: int = 0
    shares_space: bool = False


class RefinementFacts(BaseModel):
    """A `Refinement`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    child: str
    parent: str
    parents: dict[str, str]


class Manifest(BaseModel):
    """What `manifest.json` holds; the fields are those of `HeadBundle`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    encoder_name: str = ""
    encoder_fingerprint: str
    labels: dict[str, list[str]]
    temperatures: list[float]
    exponents: list[float] = []
    thresholds: dict[str, list[list[float]]] = {}
    novelty_limits: list[float] | None = None
    hierarchy: list[RefinementFacts] = []
    decision_thresholds: dict[str, list[float]] = {}
    has_title: bool = False
    has_leading_words: bool = False
    network: ShapeFacts
    facts: dict[str, Any]
    sha256: dict[str, str]


def novelty_of(manifest: Manifest, weights: dict[str, Floats]) -> NoveltyDetector | None:
    """Takes the centres of the training products out of the weights."""
    if manifest.novelty_limits is None:
        return None
    image, text = (weights.pop(name) for name in SEEN)
    for centres, width in ((image, manifest.network.image_dim), (text, manifest.network.text_dim)):
        if len(centres) and (centres.shape[1:] != (width,) or not np.isfinite(centres).all()):
            raise ValueError(f"centres of training products must be finite and {width} wide")
    photo, distance, share = manifest.novelty_limits
    return NoveltyDetector(image, text, (photo, distance, share))


def missing_weights(manifest: Manifest) -> dict[str, Floats]:
    """Returns what today's network has beyond that of the bundle's format, as it changes nothing."""
    shape = manifest.network
    if manifest.format > 3 or shape.recipe != "joint" or shape.n_words:
        return {}
    n_labels = sum(map(len, manifest.labels.values()))
    return {"straight.weight": np.zeros((n_labels, shape.image_dim + shape.text_dim), np.float32)}


def check_values(manifest: Manifest, vocabulary: Vocabulary, weights: Mapping[str, Floats]) -> None:
    """Raises `ValueError` where sizes agree but values cannot be."""
    if len(vocabulary.idf) != len(vocabulary) or len(vocabulary) != manifest.network.n_words:
        raise ValueError(
            f"{manifest.network.n_words} words are promised, found {len(vocabulary)} and {len(vocabulary.idf)} rarities"
        )
    if not all(np.isfinite(weight).all() for weight in weights.values()) or not np.isfinite(vocabulary.idf).all():
        raise ValueError("some weights are not finite")
    if "scale" in weights and not (weights["scale"] > 0).all():
        raise ValueError("inputs need positive scales")


def hierarchy_of(manifest: Manifest) -> Hierarchy:
    """Returns which characteristic refines which."""
    return tuple(Refinement(**each.model_dump()) for each in manifest.hierarchy)


def read_manifest(folder: Path) -> Manifest:
    """Reads `manifest.json`, or raises `ArtifactError` if it is missing, damaged or of a newer version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"no bundle of heads at {folder}: {MANIFEST} is missing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        number = found.get("format") if isinstance(found, dict) else None
        if isinstance(number, int) and number > FORMAT:
            raise ArtifactError(
                f"{folder} has format {number}, this version reads up to {FORMAT}: upgrade product_classificator"
            )
        return Manifest.model_validate(found)
    except (ValueError, ValidationError, RecursionError) as error:
        raise ArtifactError(f"{path} is not the manifest of a bundle of heads: {error}") from error


def read_checked(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Reads another file, or raises `ArtifactError` if it is not the one that was written."""
    path = folder / name
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.sha256.get(name):
        raise ArtifactError(f"{path} is missing or was changed after it was written: copy the bundle anew")
    return content
