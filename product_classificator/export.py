"""Write a classificator as an export: a bundle with the encoder's ONNX towers, for NumPy and ONNX Runtime alone.

`Classificator(heads_ver=folder)` opens it. The folder is complete or absent, and kept only if both encoders agree.
"""

from importlib.metadata import version
from pathlib import Path

from product_classificator.classificator import Classificator
from product_classificator.classificator.opening import ENCODER, EXPORT, EXPORT_FORMAT, REQUIREMENTS, ExportFacts
from product_classificator.encoders.onnx_export import export_encoder
from product_classificator.errors import ArtifactError
from product_classificator.files import LEFT_BY_DESKTOPS, replacing_folder, write_text

_PACKAGES = ("lazy-loader", "numpy", "onnxruntime", "pillow", "pydantic", "safetensors")
_FILES = {"manifest.json", "weights.safetensors", "words.json", ENCODER, EXPORT, REQUIREMENTS}


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
        packages = {*_PACKAGES, *export_encoder(classificator.encoder, new / ENCODER)}
        requires = {package: version(package) for package in sorted(packages)}
        write_text(new / REQUIREMENTS, "".join(f"{package}=={number}\n" for package, number in requires.items()))
        facts = ExportFacts(
            format=EXPORT_FORMAT,
            made_by=f"product_classificator {version('product_classificator')}",
            channels=classificator.channels,
            requires=requires,
        )
        write_text(new / EXPORT, facts.model_dump_json(indent=1))
    return Classificator(heads_ver=folder)
