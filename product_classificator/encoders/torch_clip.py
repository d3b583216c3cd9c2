"""The network behind CLIP-like towers, computed by PyTorch: prepared inputs in, features out."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from product_classificator.encoders.base import Dtype, Encoder, unit_rows
from product_classificator.encoders.clip import ClipNetwork, Side, batch_sizes, clip_towers
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.errors import ArtifactError, DataError
from product_classificator.types import Floats

logger = logging.getLogger(__name__)

MIN_COSINE = 0.99  # between a vector and that of float32; below it, a number format is not used
MIN_PARAMETERS = 10_000_000  # smaller networks gain nothing from another format, and tests answer alike on every CPU
METHODS: Mapping[Side, str] = {"image": "get_image_features", "text": "get_text_features"}


@dataclass(frozen=True)
class Compute:
    """Where and how a network computes, checked: raises `DataError`; "auto" becomes the GPU where there is one."""

    device: str
    dtype: Dtype = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.device == "auto":
            found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
            object.__setattr__(self, "device", found)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            rule = f"there is no device {self.device!r} on this machine ({error}): use 'cpu' or 'auto'"
            raise DataError(rule) from error
        if self.dtype == "int8" and self.device != "cpu":
            raise DataError(f"int8 is for the CPU, got device {self.device!r}: take bfloat16 there")

    @property
    def load_dtype(self) -> torch.dtype:
        """The format to load weights in: on the CPU "auto" and "int8" start from float32."""
        if self.dtype == "auto":
            return torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        dtype: torch.dtype = getattr(torch, "float32" if self.dtype == "int8" else self.dtype)
        return dtype


def fastest_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> Dtype:
    """Return the number format that is fastest on this CPU, by the flags that Linux gives; elsewhere float32."""
    lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines() if cpuinfo.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    if "amx_bf16" in flags:
        return "bfloat16"
    return "int8" if "avx2" in flags and "fbgemm" in torch.backends.quantized.supported_engines else "float32"


class TorchNetwork:
    """A CLIP-like model of transformers, which was read from `folder`.

    With dtype "auto" on the CPU it computes in `fastest_dtype`, unless it is tiny. The first batch of each tower is
    computed in float32 as well: if a vector differs (`MIN_COSINE`), the network returns to float32.
    """

    def __init__(self, model: PreTrainedModel, dim: int, compute: Compute, folder: Path) -> None:
        self.model = model.eval().to(compute.device)
        self.dim, self.folder, self.device, self.threads = dim, folder, compute.device, compute.threads
        self.tokens_per_batch, self.images_per_batch = batch_sizes(compute.device, _patches(model))
        self.dtype = str(compute.load_dtype).removeprefix("torch.")
        self._exact: PreTrainedModel | None = None
        self._unchecked: set[Side] = {"image", "text"}
        dtype = compute.dtype
        if dtype == "auto" and compute.device == "cpu" and model.num_parameters() >= MIN_PARAMETERS:
            dtype = fastest_dtype()
            self._exact = None if dtype == "float32" else copy.deepcopy(self.model)
        if dtype == "int8":  # linear layers keep 8-bit weights and round their inputs as they come
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch plans to move this to another package
                torch.ao.quantization.quantize_dynamic(self.model, {nn.Linear}, torch.qint8, inplace=True)  # type: ignore[no-untyped-call]
            self.dtype = dtype
        elif dtype != "auto":
            self.model.to(getattr(torch, dtype))
            self.dtype = dtype

    def features(self, side: Side, inputs: Inputs) -> Floats:
        with computing(self.threads):
            if self._exact is not None and side in self._unchecked:
                self._check(self._exact, side, inputs)
            return self._run(self.model, side, inputs)

    def dry_run(self, side: Side, inputs: Inputs) -> tuple[int, ...]:
        """Return the shape of the features, computed in float32 if that is still here."""
        with computing(self.threads):
            return self._run(self._exact or self.model, side, inputs).shape

    def _check(self, exact: PreTrainedModel, side: Side, inputs: Inputs) -> None:
        """Compare the first batch of a tower with float32, which is dropped once both towers agree."""
        self._unchecked.remove(side)
        vectors, rounded = (unit_rows(self._run(model, side, inputs)) for model in (exact, self.model))
        cosine = float((vectors * rounded).sum(1).min())
        if not cosine >= MIN_COSINE:
            logger.warning("computing in float32: %s gave a vector with cosine %.4f", self.dtype, cosine)
            self.model, self.dtype, self._exact = exact, "float32", None
        elif not self._unchecked:
            self._exact = None

    def _run(self, model: PreTrainedModel, side: Side, inputs: Inputs) -> Floats:
        output = getattr(model, METHODS[side])(**self.tensors(inputs, model.dtype))
        features: Floats = pooled(output).float().cpu().numpy()
        return features

    def tensors(self, inputs: Inputs, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return inputs as tensors on the device, fractions in `dtype` (`None`: that of the model)."""
        tensors = {
            name: array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
            for name, array in inputs.items()
        }
        kinds = {name: dtype or self.model.dtype for name, tensor in tensors.items() if tensor.is_floating_point()}
        return {name: tensor.to(self.device, kinds.get(name)) for name, tensor in tensors.items()}


class PairNetwork(TorchNetwork):
    """A model that reads the tokens of images and texts in one row; the vectors of all its tokens are averaged."""

    def _run(self, model: PreTrainedModel, side: Side, inputs: Inputs) -> Floats:
        tensors = self.tensors(inputs, model.dtype)
        is_token = tensors["attention_mask"][..., None]
        sums = (model(**tensors).last_hidden_state.float() * is_token).sum(1)
        features: Floats = (sums / is_token.sum(1)).cpu().numpy()
        return features


def pooled(output: object) -> Tensor:
    """Return the features that a model of transformers returned, bare or as the pooled output."""
    features = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    if not isinstance(features, Tensor):
        raise ArtifactError(f"a CLIP-like model must return one vector per input, got {type(output).__name__}")
    return features


def torch_network_of(encoder: Encoder) -> TorchNetwork:
    """Return the network of a CLIP-like encoder, to fine-tune it; raises `DataError` as `clip_towers`, `exportable`."""
    return exportable(clip_towers(encoder)[0].network)


def exportable(network: ClipNetwork) -> TorchNetwork:
    """Return a network if PyTorch computes it with weights that are not rounded to int8; else raise `DataError`."""
    if not isinstance(network, TorchNetwork):
        raise DataError("this encoder is exported already: only models of PyTorch can be exported or fine-tuned")
    if isinstance(network, PairNetwork):
        raise DataError("a model that reads photo and text together can be neither exported nor fine-tuned: use CLIP")
    if network.dtype == "int8":
        raise DataError("int8 weights can be neither exported nor fine-tuned: load the encoder with dtype='float32'")
    return network


def _patches(model: PreTrainedModel) -> int | None:
    """Return how many patches an image is cut into, `None` where the model does not say."""
    vision = getattr(model.config, "vision_config", None)
    image_px, patch_px = (getattr(vision, f"{name}_size", None) for name in ("image", "patch"))
    return max(1, image_px // patch_px) ** 2 if isinstance(image_px, int) and isinstance(patch_px, int) else None


_COMPUTING = RLock()


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Let PyTorch infer on `threads` CPU threads; calls take turns, since the number is global to the process."""
    with _COMPUTING, torch.inference_mode():
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
