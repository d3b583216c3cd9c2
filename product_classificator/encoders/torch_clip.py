"""The network behind CLIP-like towers, computed by PyTorch: prepared inputs in, features out."""

import copy
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from product_classificator.encoders.base import Dtype, Encoder, EncoderSpec, check_dtype, check_threads, unit_rows
from product_classificator.encoders.clip import (
    ClipImages,
    ClipTexts,
    Network,
    clip_towers,
    images_per_batch,
    tokens_per_batch,
)
from product_classificator.encoders.huggingface import (
    LOCAL_ONLY,
    REPORTED,
    ProcessedImages,
    TokenizedTexts,
    fingerprint_of,
    load_tokenizer,
    model_files,
    quiet_loading,
    refuse_invented,
    unreadable,
)
from product_classificator.encoders.preprocessing import MAX_WINDOWS, Inputs
from product_classificator.errors import ArtifactError, DataError, ProductClassificatorError
from product_classificator.types import Floats

logger = logging.getLogger(__name__)

MIN_COSINE = 0.99
"""Below this cosine between a vector and that of float32, a number format is not used."""

MIN_PARAMETERS = 10_000_000
"""Smaller networks gain nothing from another number format, and tests with tiny ones answer alike on every CPU."""

_MAX_TOKENS = 512  # where neither tokenizer nor network names a limit
_METHODS = ("get_image_features", "get_text_features")


@dataclass(frozen=True)
class Compute:
    """Where and how a network computes, checked.

    Attributes:
        device: as torch names it; "auto" becomes the GPU where there is one.
        dtype: "auto" is bfloat16 on CUDA and `fastest_dtype` on the CPU; "int8" is for the CPU.
        threads: CPU threads; `None`: the cores this process may use.

    Raises:
        DataError: there is no such device or number format, or there are fewer cores.
    """

    device: str = "cpu"
    dtype: Dtype = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        check_threads(self.threads)
        object.__setattr__(self, "device", _device(self.device))
        if self.dtype == "int8" and self.device != "cpu":
            raise DataError(f"int8 is for the CPU, got device {self.device!r}: take bfloat16 there")

    @property
    def load_dtype(self) -> torch.dtype:
        """The format to load weights in: on the CPU "auto" and "int8" start from float32."""
        if self.dtype == "auto":
            return torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        dtype: torch.dtype = getattr(torch, "float32" if self.dtype == "int8" else self.dtype)
        return dtype


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


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the instruction sets of the CPU as Linux names them; empty on other systems."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def fastest_dtype(flags: Collection[str]) -> Dtype:
    """Return the number format that is fastest on a CPU with these instruction sets.

    ViT-B/32, images a second: on one AMX core float32 19, int8 39, bfloat16 69; on Zen 3 (AVX2, no VNNI) int8 took 1.6
    times as many as float32.
    """
    if "amx_bf16" in flags:
        return "bfloat16"
    return "int8" if "avx2" in flags and "fbgemm" in torch.backends.quantized.supported_engines else "float32"


class TorchNetwork:
    """A CLIP-like model of transformers; see `Network`.

    With dtype "auto" on the CPU it computes in `fastest_dtype`, unless it is tiny. The first batch of each tower is
    computed in float32 as well: if a vector differs (`MIN_COSINE`), the network returns to float32.

    Args:
        model: has `get_image_features` and `get_text_features`, both with `dim` columns.
        dim: width of the features.
        compute: device, number format and threads.
    """

    def __init__(self, model: PreTrainedModel, dim: int, compute: Compute) -> None:
        self.model = model.eval().to(compute.device)
        self.dim = dim
        self.device = compute.device
        self.tokens_per_batch = tokens_per_batch(compute.device)
        self.images_per_batch = images_per_batch(compute.device, _patches(model))
        self.threads = check_threads(compute.threads)
        self.dtype = str(compute.load_dtype).removeprefix("torch.")
        self._exact: PreTrainedModel | None = None
        self._checked: set[str] = set()
        self._lock = Lock()
        if compute.dtype == "int8":
            self._convert("int8")
        elif compute.dtype == "auto" and compute.device == "cpu" and model.num_parameters() >= MIN_PARAMETERS:
            dtype = fastest_dtype(cpu_flags())
            if dtype != "float32":
                self._exact = copy.deepcopy(self.model)
                self._convert(dtype)

    def _convert(self, dtype: Dtype) -> None:
        """Change the weights of the model in place, from float32."""
        self.dtype = dtype
        if dtype == "int8":  # linear layers keep 8-bit weights and round their inputs as they come
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch plans to move this to another package
                torch.ao.quantization.quantize_dynamic(self.model, {nn.Linear}, torch.qint8, inplace=True)  # type: ignore[no-untyped-call]
        else:
            self.model.to(getattr(torch, dtype))

    def image_features(self, inputs: Inputs) -> Floats:
        """Return (n, dim) float32."""
        return self._features("get_image_features", inputs)

    def text_features(self, inputs: Inputs) -> Floats:
        """Return (n, dim) float32."""
        return self._features("get_text_features", inputs)

    def _features(self, method: str, inputs: Inputs) -> Floats:
        with computing(self.threads):
            if self._exact is not None:
                self._check(method, inputs)
            return self.run(method, inputs)

    def _check(self, method: str, inputs: Inputs) -> None:
        """Compare the first batch of a tower with float32, which is dropped once both towers agree."""
        with self._lock:
            if self._exact is None or method in self._checked:
                return
            exact, rounded = (unit_rows(self.run(method, inputs, exact=exact)) for exact in (True, False))
            cosine = float((exact * rounded).sum(1).min())
            self._checked.add(method)
            if not cosine >= MIN_COSINE:
                logger.warning("computing in float32: %s gave a vector with cosine %.4f", self.dtype, cosine)
                self.model, self.dtype, self._exact = self._exact, "float32", None
            elif len(self._checked) == len(_METHODS):
                self._exact = None

    def run(self, method: str, inputs: Inputs, *, exact: bool = False) -> Floats:
        """Return the (n, dim) features of one of `_METHODS`, unchecked; `exact`: in float32 if that is still here."""
        model = self._exact if exact and self._exact is not None else self.model
        output = getattr(model, method)(**self.tensors(inputs, model.dtype))
        # Models of transformers return features bare, or as the pooled output.
        features = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
        if not isinstance(features, Tensor):
            raise ArtifactError(f"a CLIP-like model must return one vector per input, got {type(output).__name__}")
        array: Floats = features.float().cpu().numpy()
        return array

    def tensors(self, inputs: Inputs, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return inputs as tensors on the device, fractions in `dtype` (`None`: that of the model)."""
        dtype = dtype or self.model.dtype
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        return {
            name: tensor.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in tensors.items()
        }


def torch_network_of(encoder: Encoder) -> TorchNetwork:
    """Return the network of a CLIP-like encoder, to export or fine-tune it.

    Raises:
        DataError: the encoder is not CLIP-like, ONNX Runtime computes it, or its weights are rounded to int8.
    """
    return exportable(clip_towers(encoder)[0].network)


def exportable(network: Network) -> TorchNetwork:
    """Return a network if PyTorch computes it with weights that are not rounded to int8; else raise `DataError`."""
    if not isinstance(network, TorchNetwork):
        raise DataError("this encoder is exported already: only models of PyTorch can be exported or fine-tuned")
    if network.dtype == "int8":
        raise DataError("int8 weights can be neither exported nor fine-tuned: load the encoder with dtype='float32'")
    return network


def _patches(model: PreTrainedModel) -> int | None:
    """Return how many patches an image is cut into, `None` where the model does not say."""
    vision = getattr(model.config, "vision_config", None)
    image_px, patch_px = (getattr(vision, f"{name}_size", None) for name in ("image", "patch"))
    if not isinstance(image_px, int) or not isinstance(patch_px, int):
        return None
    return max(1, image_px // patch_px) ** 2


@dataclass
class _Overlapping:
    """Calls that are computing, and how many threads PyTorch had before the first of them."""

    calls: int = 0
    threads_before: int = 1
    lock: Lock = field(default_factory=Lock)


_OVERLAPPING = _Overlapping()


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Let PyTorch infer on `threads` CPU threads, and restore the number from before.

    Calls in several threads may overlap, but not nest: the number is global to the process, and what is restored is
    what the first call found.
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


def load_hub_model(folder: Path, spec: EncoderSpec, compute: Compute) -> Encoder:
    """Load a CLIP-like model that transformers can read.

    Raises:
        ArtifactError: the folder holds no CLIP-like model, or one that is damaged or needs code of its own.
        DataError: `+letterbox` with a model that does not read squares.
    """
    try:
        with quiet_loading():
            model = _load_network(folder, compute)
            images = ProcessedImages.load(folder, spec.letterbox)
            texts = _load_texts(folder, model, MAX_WINDOWS if spec.windows else 1)
            network = TorchNetwork(model, 0, compute)
            network.dim = _width(network, images, texts)
            fingerprint = fingerprint_of("hub", folder, model_files(folder), f"{images} {texts}")
    except ProductClassificatorError:
        raise
    except Exception as error:  # what is wrong with a foreign folder surfaces as any of two dozen classes
        raise unreadable(folder, "a CLIP-like model of transformers", error) from error
    image, text = ClipImages(fingerprint, network, images), ClipTexts(fingerprint, network, texts)
    return Encoder(str(spec), image, text, shares_space=True)


def _load_network(folder: Path, compute: Compute) -> PreTrainedModel:
    model, report = AutoModel.from_pretrained(folder, dtype=compute.load_dtype, **REPORTED, **LOCAL_ONLY)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ArtifactError(
            f"a CLIP-like model has an image tower and a text tower, {folder} holds a {type(model).__name__}: "
            "name a model for images and texts, such as CLIP or SigLIP"
        )
    refuse_invented(folder, report)
    network: PreTrainedModel = model
    return network


def _load_texts(folder: Path, model: PreTrainedModel, max_windows: int) -> TokenizedTexts:
    tokenizer = load_tokenizer(folder)
    return TokenizedTexts(
        tokenizer,
        max_tokens=min(tokenizer.model_max_length, _positions(model)),
        max_windows=max_windows,
        # SigLIP was trained on texts filled up to the last position, where it reads its features.
        pads_to_max=model.config.model_type.startswith("siglip"),
    )


def _positions(model: PreTrainedModel) -> int:
    """Returns how many tokens the text tower has positions for."""
    positions: int = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _MAX_TOKENS
    for name, module in model.named_modules():
        # Towers of RoBERTa's kind number their positions from behind the id of the padding token.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    return positions


def _width(network: TorchNetwork, images: ProcessedImages, texts: TokenizedTexts) -> int:
    """Return the width of the features, of a wide and a high image and of texts of different lengths.

    This also shows that network, processor and tokenizer fit together.
    """
    pictures = images.inputs([Image.new("RGB", size, "white") for size in ((96, 64), (64, 96))])
    sentences = texts.inputs(texts.windows(["", "a a a"])[0])
    inputs = zip(_METHODS, (pictures, sentences), strict=True)
    with computing(network.threads):
        shapes = [network.run(method, arrays, exact=True).shape for method, arrays in inputs]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ArtifactError(
            "the towers of a CLIP-like model answer vectors of one width, "
            f"found shapes {shapes[0]} for photos and {shapes[1]} for texts: name another model"
        )
    return int(shapes[0][1])
