"""Writes a classificator as a folder for `runtime`, and keeps it only if it answers as the classificator does.

The folder is made under a temporary name, its manifest last, and renamed: it is there whole or not at all.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from product_classificator.classificator import Classificator
from product_classificator.errors import ArtifactError, culprits
from product_classificator.export.encoder import export_encoder
from product_classificator.export.networks import heads_onnx
from product_classificator.files import replacing_folder, sha256_of, write_bytes
from product_classificator.heads import HeadBundle
from product_classificator.runtime import Exported
from product_classificator.runtime.manifest import (
    FILES,
    HEADS,
    MANIFEST,
    RARITIES,
    REQUIREMENTS,
    SEEN_IMAGE,
    SEEN_TEXT,
    WEIGHTS,
    WORDS,
    Manifest,
)

_LARGEST_DIFFERENCE = 1e-3  # rounding of large logits at a low temperature reached 1.3e-4
_SAMPLE_TEXTS = ("Футболка женская, хлопок 100 %", None, "Blue ceramic mug, 0.3 l", "фвапр джлорп")


def export_classificator(classificator: Classificator, folder: str | Path) -> Exported:
    """Writes a classificator as a new folder, or in place of an older export there.

    Args:
        classificator: computes in float32.
        folder: holds networks in ONNX, labels, words, tokenizer and manifest in the end.

    Returns:
        The folder, opened by the runtime.

    Raises:
        DataError: its encoder cannot be exported.
        ArtifactError: `folder` holds other things, or the exported networks answer otherwise.
        MissingExtraError: the exporter of networks is not installed (CLIP-like encoders: extra `onnx-export`).
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and {path.name for path in folder.iterdir()} - FILES - {MANIFEST}):
        raise ArtifactError(f"an export is a folder of its own, but {folder} holds other things: name another")
    bundle = classificator.bundle
    with replacing_folder(folder) as new:
        uses = {"uses_image": bundle.image_dim > 0, "uses_text": bundle.text_dim > 0}
        encoder, packages = export_encoder(classificator.encoder, new, **uses)
        _write_heads(bundle, new)
        requires = {package: version(package) for package in sorted(packages)}
        _write_requirements(new, requires)
        manifest = Manifest(
            made_by=f"product_classificator {version('product_classificator')}",
            encoder=encoder,
            channels=classificator.channels,
            image_dim=bundle.image_dim,
            text_dim=bundle.text_dim,
            labels=bundle.labels,
            temperatures=bundle.temperatures,
            exponents=bundle.exponents,
            thresholds=bundle.thresholds,
            novelty_limits=bundle.novelty.limits if bundle.novelty else None,
            hierarchy=bundle.hierarchy,
            decision_thresholds=bundle.decision_thresholds,
            has_title=bundle.vocabulary.has_title,
            has_leading_words=bundle.vocabulary.has_leading_words,
            requires=requires,
            sha256={path.name: sha256_of(path) for path in sorted(new.iterdir())},
        )
        manifest.write(new)
        _check(classificator, Exported.load(new))
    return Exported.load(folder)


def _write_heads(bundle: HeadBundle, folder: Path) -> None:
    write_bytes(folder / HEADS, heads_onnx(bundle.network))
    if bundle.network.reads_words:
        write_bytes(folder / WORDS, json.dumps(bundle.vocabulary.words, ensure_ascii=False).encode())
        np.save(folder / RARITIES, bundle.vocabulary.idf)
        np.save(folder / WEIGHTS, bundle.network.word_weights)
    if bundle.novelty:
        np.save(folder / SEEN_IMAGE, bundle.novelty.image)
        np.save(folder / SEEN_TEXT, bundle.novelty.text)


def _write_requirements(folder: Path, requires: dict[str, str]) -> None:
    lines = [f"{package}=={number}" for package, number in requires.items()]
    write_bytes(folder / REQUIREMENTS, "".join(f"{line}\n" for line in lines).encode())


def _check(classificator: Classificator, exported: Exported) -> None:
    """Raises `ArtifactError` if both answer otherwise to texts, a photo, and products without one of them."""
    products = [(text, photo) for text in _SAMPLE_TEXTS for photo in (_photo(), None)]
    uses_image, uses_text = classificator.bundle.image_dim > 0, classificator.bundle.text_dim > 0
    products = [(text, photo) for text, photo in products if (text and uses_text) or (photo and uses_image)]
    texts, photos = [text for text, _ in products], [photo for _, photo in products]
    known, found = classificator.predict(texts, photos, list(classificator.labels)), exported.predict(texts, photos)
    different = [
        name
        for name in known.characteristics
        if not np.allclose(
            known.probabilities[name], found.probabilities[name], rtol=0, atol=_LARGEST_DIFFERENCE, equal_nan=True
        )
    ]
    if different:
        raise ArtifactError(
            f"exported probabilities must be within {_LARGEST_DIFFERENCE} of the package's, they are not for "
            f"{culprits(different)}: nothing was written; report this"
        )


def _photo() -> Image.Image:
    """Returns an image in which every pixel differs from its neighbours."""
    rows, columns = np.mgrid[0:96, 0:128]
    return Image.fromarray(np.stack([rows * 2, columns, (rows * columns) % 256], -1).astype(np.uint8))
