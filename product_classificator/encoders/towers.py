"""The two towers of a CLIP-like network: prepared inputs in, features out, on the device they were put on.

`TorchTowers` computes with PyTorch; `onnx` holds the same door with ONNX Runtime.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from product_classificator.encoders.base import Dtype, check_dtype, cores, photos_per_batch, tokens_per_batch
from product_classificator.encoders.pooled import features_of
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.errors import ArtifactError, DataError
from product_classificator.types import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Towers(Protocol):
    """Computes features.

    Attributes:
        image_dim: width of the features of photos.
        text_dim: width of the features of texts.
        tokens_per_batch: how many tokens of texts are best computed at once.
        photos_per_batch: how many photos.
    """

    image_dim: int
    text_dim: int
    tokens_per_batch: int
    photos_per_batch: int

    def of_images(self, inputs: Inputs) -> Floats:
        """Returns (n, image_dim) float32, of any length."""

    def of_texts(self, inputs: Inputs) -> Floats:
        """Returns (n, text_dim) float32, of any length."""


class HasTowers(Protocol):
    """What is made of two towers."""

    @property
    def towers(self) -> Towers: ...  # noqa: D102 - said above


@dataclass(frozen=True)
class Compute:
    """Where and how towers compute, checked.

    Attributes:
        device: as torch names it; "auto" becomes the GPU where there is one.
        dtype: "auto" is bfloat16 on CUDA, float32 elsewhere until another has proved as good (`precision`); "int8"
            is for the CPU.
        threads: CPU threads; `None`: the cores this process may use.

    Raises:
        DataError: there is no such device or precision, or there are fewer cores.
    """

    device: str = "cpu"
    dtype: Dtype = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.threads is not None and not 1 <= self.threads <= cores():
            raise DataError(
                f"threads must lie between 1 and the {cores()} cores (more slow it down), got {self.threads}"
            )
        object.__setattr__(self, "device", _device(self.device))
        if self.dtype == "int8" and self.device != "cpu":
            raise DataError(f"int8 is for the CPU, got device {self.device!r}: take bfloat16 there")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        if self.dtype == "auto":
            return torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        if self.dtype == "int8":  # made of float32
            return torch.float32
        found: torch.dtype = getattr(torch, self.dtype)
        return found


def _device(device: str) -> str:
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DataError(f"there is no device {device!r} on this machine ({error}): use 'cpu' or 'auto'") from error
    return device


class TorchTowers:
    """Towers of a model of transformers; those of CLIP are computed by `pooled`, others by the model itself.

    Args:
        model: has `get_image_features` and `get_text_features`; both answer `dim` columns.
        dim: width of the features.
        compute: device, precision and threads.

    Attributes:
        precision: what it computes in now.
        is_open: whether it may change to another precision that proves as good.
        is_chosen: whether it has so changed, instead of being told its precision.
    """

    def __init__(self, model: "PreTrainedModel", dim: int, compute: Compute) -> None:
        self.model = model.eval().to(compute.device)
        self.image_dim = self.text_dim = dim
        self.device = compute.device
        self.tokens_per_batch = tokens_per_batch(compute.device)
        self.photos_per_batch = photos_per_batch(compute.device, _patches(model))
        self.threads = compute.threads or cores()
        self.precision = str(compute.torch_dtype).removeprefix("torch.")
        self.is_open = compute.dtype == "auto" and compute.device == "cpu"
        self.is_chosen = False
        if compute.dtype == "int8":
            self.quantise()

    def quantise(self) -> None:
        """Keeps the weights of linear layers as 8-bit integers, and rounds what goes in as it comes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's plans to move this to another package
            torch.ao.quantization.quantize_dynamic(self.model, {nn.Linear}, torch.qint8, inplace=True)  # type: ignore[no-untyped-call]
        self.precision = "int8"

    def of_images(self, inputs: Inputs) -> Floats:
        """Returns (n, image_dim) float32."""
        with computing(self.threads):
            tensors = self.tensors(inputs)
            found = features_of(self.model, tensors)
            return _features(self.model.get_image_features(**tensors) if found is None else found)

    def of_texts(self, inputs: Inputs) -> Floats:
        """Returns (n, text_dim) float32."""
        with computing(self.threads):
            tensors = self.tensors(inputs)
            found = features_of(self.model, tensors)
            return _features(self.model.get_text_features(**tensors) if found is None else found)

    def tensors(self, inputs: Inputs) -> dict[str, Tensor]:
        """Returns inputs as tensors on the device, fractions in the precision of the model."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        return {
            name: tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in tensors.items()
        }


@dataclass
class _Overlapping:
    """Calls that compute at the moment, and how many threads PyTorch had before the first of them."""

    calls: int = 0
    threads_before: int = 1
    lock: Lock = field(default_factory=Lock)


_OVERLAPPING = _Overlapping()


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Lets PyTorch compute, and only compute, on so many threads of the CPU; the number from before comes back.

    Calls of several threads may overlap, but one is not made within another: the number is one of the whole process,
    and what comes back is what the first call found.
    """
    with _OVERLAPPING.lock:
        if not _OVERLAPPING.calls:
            _OVERLAPPING.threads_before = torch.get_num_threads()
        _OVERLAPPING.calls += 1
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        with _OVERLAPPING.lock:
            _OVERLAPPING.calls -= 1
            torch.set_num_threads(_OVERLAPPING.threads_before)


def _patches(model: "PreTrainedModel") -> int | None:
    """Returns how many patches a photo is cut into, `None` where the model does not say."""
    vision = getattr(model.config, "vision_config", None)
    image_px, patch_px = (getattr(vision, f"{name}_size", None) for name in ("image", "patch"))
    if not isinstance(image_px, int) or not isinstance(patch_px, int):
        return None
    return max(1, image_px // patch_px) ** 2


def _features(output: object) -> Floats:
    """Returns the projected features: models of transformers answer them bare, or as the pooled output."""
    found = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    if not isinstance(found, Tensor):
        raise ArtifactError(f"a CLIP-like model must answer one vector per input, got {type(output).__name__}")
    features: Floats = found.float().cpu().numpy()
    return features


def torch_towers_of(clip: HasTowers) -> TorchTowers:
    """Returns the towers of a CLIP-like encoder that computes with PyTorch.

    Raises:
        DataError: it computes otherwise now.
    """
    if not isinstance(clip.towers, TorchTowers):
        raise DataError("towers are exported and tuned in PyTorch, these are exported already: load the encoder anew")
    if clip.towers.precision == "int8":
        raise DataError("towers in int8 can be neither exported nor tuned: load the encoder in float32")
    return clip.towers
