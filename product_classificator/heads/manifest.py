"""Read and write the folder of a bundle: `manifest.json`, `weights.safetensors`, `words.json`; no pickle.

Everything is validated: the manifest field by field, the other two files against its sha256, weights against the
shapes that the manifest calls for. Reading opens these three files and nothing else.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from product_classificator.errors import ArtifactError, culprits
from product_classificator.files import LEFT_BY_DESKTOPS, read_checked_format, sha256_of
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.calibration import Characteristic
from product_classificator.heads.hierarchy import Hierarchy
from product_classificator.heads.network import Network, NetworkShape
from product_classificator.heads.novelty import NoveltyDetector
from product_classificator.types import Floats

Bundle = TypeVar("Bundle")

FORMAT = 1
MANIFEST, WEIGHTS, WORDS = "manifest.json", "weights.safetensors", "words.json"
_IDF = "vocabulary.idf"
_CENTRES = ("novelty.image", "novelty.text")
_STORED_AS_THEY_ARE = ("encoder_name", "encoder_fingerprint", "characteristics", "hierarchy", "facts")


class Manifest(BaseModel):
    """The content of `manifest.json`: fields of `HeadBundle`, and the sha256 of the other files."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int = FORMAT
    encoder_name: str
    encoder_fingerprint: str
    characteristics: tuple[Characteristic, ...]
    hierarchy: Hierarchy
    network: NetworkShape
    has_title: bool
    has_leading_words: bool
    novelty_limits: tuple[float, float, float] | None
    facts: dict[str, Any]
    sha256: dict[str, str]


def write_bundle(
    folder: Path, network: Network, vocabulary: Vocabulary, novelty: NoveltyDetector | None, **values: Any
) -> None:
    """Write a bundle into an empty folder, the manifest last; `values` are its fields that no other argument gives."""
    save_file({**weights_of(network, novelty), _IDF: vocabulary.idf}, folder / WEIGHTS)
    (folder / WORDS).write_text(json.dumps(vocabulary.words, ensure_ascii=False), encoding="utf-8")
    shutil.copymode(folder / WORDS, folder / WEIGHTS)  # safetensors lets only the owner read
    manifest = {
        "format": FORMAT,
        **values,
        "network": asdict(network.shape),
        "has_title": vocabulary.has_title,
        "has_leading_words": vocabulary.has_leading_words,
        "novelty_limits": novelty and novelty.limits,
        "sha256": {name: sha256_of(folder / name) for name in (WEIGHTS, WORDS)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8")


def read_bundle(folder: Path, make: Callable[..., Bundle]) -> Bundle:
    """Read what `write_bundle` wrote; `make` takes the fields of `HeadBundle`.

    Raises:
        ArtifactError: the folder is not a bundle, is damaged, or was written by another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"no bundle of heads at {folder}: {MANIFEST} is missing")
    content = read_checked_format(path, FORMAT, "fit the heads again")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValueError as error:  # pydantic's ValidationError is one
        raise ArtifactError(f"{path} is not the manifest of a bundle of heads: {error}") from error
    weights_bytes, words_bytes = (_read_checked(folder / name, manifest.sha256.get(name)) for name in (WEIGHTS, WORDS))
    try:
        weights, limits = load(weights_bytes), manifest.novelty_limits
        idf, options = weights.pop(_IDF), (manifest.has_title, manifest.has_leading_words)
        return make(
            vocabulary=Vocabulary(tuple(json.loads(words_bytes)), idf, *options),
            novelty=limits and NoveltyDetector(weights.pop(_CENTRES[0]), weights.pop(_CENTRES[1]), limits),
            network=Network(manifest.network, weights),
            **{name: getattr(manifest, name) for name in _STORED_AS_THEY_ARE},
        )
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"the files of {folder} do not fit together ({error}): fit the heads again") from error


def _read_checked(path: Path, sha256: str | None) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(f"{path} is missing or was changed after it was written: copy the bundle again")
    return content


def weights_of(network: Network, novelty: NoveltyDetector | None) -> dict[str, Floats]:
    """Return name -> array of everything that a bundle stores as arrays, except the idf."""
    centres = dict(zip(_CENTRES, (novelty.image, novelty.text), strict=True)) if novelty else {}
    return {name: np.asarray(weight, order="C") for name, weight in {**network.weights, **centres}.items()}


def check_parts(network: Network, vocabulary: Vocabulary, novelty: NoveltyDetector | None) -> None:
    """Raise `ValueError` unless the parts of a bundle fit together: whatever is saved can be loaded."""
    arrays = {**weights_of(network, novelty), _IDF: vocabulary.idf}
    wrong = [name for name, weight in arrays.items() if not np.isfinite(weight).all()]
    if wrong:
        raise ValueError(f"weights must be finite, {culprits(wrong)} are not")
    if not (network.weights["scale"] > 0).all():
        raise ValueError("inputs need positive scales")
    if len(vocabulary) != network.shape.n_words:
        raise ValueError(f"the network has {network.shape.n_words} words, the vocabulary {len(vocabulary)}")
    for name, width in zip(_CENTRES, (network.shape.image_dim, network.shape.text_dim), strict=True):
        if novelty and len(arrays[name]) and arrays[name].shape[1:] != (width,):
            raise ValueError(f"centres of training products must be {width} wide, found {arrays[name].shape}")


def check_target(folder: Path) -> None:
    """Raise `ArtifactError` if saving a bundle there would replace anything but a bundle."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = [folder.name] if folder.is_file() else sorted(names - {MANIFEST, WEIGHTS, WORDS} - LEFT_BY_DESKTOPS)
    if others:
        raise ArtifactError(
            f"a bundle is saved as a folder of its own, but {folder} holds other things: {culprits(others)}"
        )
