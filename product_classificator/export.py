"""Write a classificator as an export: a bundle with the encoder's ONNX towers, for NumPy and ONNX Runtime alone.

`Classificator(heads_ver=folder)` opens it. The folder is complete or absent, and kept only if its answers agree.
"""

from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from product_classificator.classificator import Classificator
from product_classificator.classificator.opening import ENCODER, EXPORT, EXPORT_FORMAT, REQUIREMENTS, ExportFacts
from product_classificator.encoders.onnx_export import export_encoder
from product_classificator.errors import ArtifactError, culprits
from product_classificator.files import LEFT_BY_DESKTOPS, replacing_folder, sha256_of, write_text

_MAX_DIFFERENCE = 1e-3  # rounding of large logits at a low temperature reached 1.3e-4
_PACKAGES = ("lazy-loader", "numpy", "onnxruntime", "pillow", "pydantic", "safetensors")
_FILES = {"manifest.json", "weights.safetensors", "words.json", ENCODER, EXPORT, REQUIREMENTS}
_SAMPLE_TEXTS = ["Футболка женская, хлопок 100 %", None, "Blue ceramic mug, 0.3 l", "фвапр джлорп"]


def export_classificator(classificator: Classificator, folder: str | Path) -> Classificator:
    """Write a classificator as a new folder, or in place of an older export there.

    The folder receives heads, ONNX towers, tokenizer, `requirements.txt` and `export.json`. Returns the export, opened.

    Raises:
        DataError: the encoder cannot be exported, or does not compute in float32.
        ArtifactError: `folder` holds other files, or the exported towers answer differently.
        MissingExtraError: the ONNX exporter is not installed (CLIP-like encoders: extra `onnx-export`).
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or names - _FILES - LEFT_BY_DESKTOPS:
        raise ArtifactError(f"an export needs a folder of its own, but {folder} holds other files: name another")
    with replacing_folder(folder) as new:
        classificator.bundle.save(new)
        packages = export_encoder(classificator.encoder, new / ENCODER)
        requires = {package: version(package) for package in sorted({*_PACKAGES, *packages})}
        write_text(new / REQUIREMENTS, "".join(f"{package}=={number}\n" for package, number in requires.items()))
        facts = ExportFacts(
            format=EXPORT_FORMAT,
            made_by=f"product_classificator {version('product_classificator')}",
            channels=classificator.channels,
            requires=requires,
            sha256={path.relative_to(new).as_posix(): sha256_of(path) for path in new.rglob("*") if path.is_file()},
        )
        write_text(new / EXPORT, facts.model_dump_json(indent=1))
        _check(classificator, Classificator(heads_ver=new))
    return Classificator(heads_ver=folder)


def _check(original: Classificator, exported: Classificator) -> None:
    """Raise `ArtifactError` if both answer differently to texts, an image, and products without one of them."""
    rows, columns = np.mgrid[0:96, 0:128]
    image = np.stack([rows * 2, columns, (rows * columns) % 256], -1).astype(np.uint8)  # neighbouring pixels differ
    products = [*_SAMPLE_TEXTS, *_SAMPLE_TEXTS], [image] * len(_SAMPLE_TEXTS) + [None] * len(_SAMPLE_TEXTS)
    expected, actual = (
        classificator.predict(*products, list(original.labels), errors="status").probabilities
        for classificator in (original, exported)
    )
    agree = partial(np.allclose, rtol=0, atol=_MAX_DIFFERENCE, equal_nan=True)
    if different := [name for name in expected if not agree(expected[name], actual[name])]:
        raise ArtifactError(
            f"exported probabilities must be within {_MAX_DIFFERENCE} of the original ones; they are not for "
            f"{culprits(different)}: nothing was written; please report this"
        )
