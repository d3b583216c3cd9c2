"""The image tower of a network on a GPU: photos are decoded, cropped, resized and normalised there.

JPEGs are decoded by nvJPEG (torchcodec, the extra `gpu`) in batches, on a CUDA stream of their own, while the network
computes. Whatever else a photo is (another format, rotated, CMYK, truncated), and a batch in which a file fails, is
decoded on the CPU. Vectors have a cosine of .999 with those of photos that the CPU has prepared.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import BytesIO
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from product_classificator.encoders.base import DeviceImage, ImageTower, unit_rows
from product_classificator.encoders.clip import ClipImages
from product_classificator.encoders.preprocessing import SquarePreparation
from product_classificator.encoders.torch_clip import TorchNetwork
from product_classificator.types import Floats

logger = logging.getLogger(__name__)

DecodeJpegs: TypeAlias = Callable[[list[bytes]], list[Tensor]]
"""Turns JPEG files into (3, height, width) uint8 tensors on a device; one file that fails is an exception."""

_BATCH = 64
_THUMBNAIL_PX = 8


def on_gpu(tower: ImageTower) -> ImageTower:
    """Return a tower that decodes on the GPU if its network computes on one; else the tower itself."""
    if not isinstance(tower, ClipImages) or not isinstance(tower.preparation, SquarePreparation):
        return tower
    network, preparation, batches = tower.network, tower.preparation, None
    if not isinstance(network, TorchNetwork) or not network.device.startswith("cuda"):
        return tower
    try:
        decode = partial(import_module("torchcodec.decoders").decode_jpeg, device=network.device)  # an extra
        file = BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG")
        decode([file.getvalue()])
        batches = JpegBatches(decode, preparation, network.device)
    except Exception as error:  # no such package, a build without nvJPEG, another driver
        logger.info("photos are decoded on the CPU, nvJPEG (the extra gpu) cannot be used: %s", error)
    return DeviceImages(tower.fingerprint, network, preparation, batches)


class JpegBatches:
    """Decodes the JPEGs of many threads in batches; a call waits for its file, and returns nothing if the batch failed.

    A batch is what has come in while the one before was decoded.
    """

    def __init__(self, decode: DecodeJpegs, preparation: SquarePreparation, device: str) -> None:
        self._decode, self._preparation = decode, preparation
        self._stream: Any = torch.cuda.Stream(device) if device.startswith("cuda") else None  # type: ignore[no-untyped-call]
        self._files = SimpleQueue[tuple[bytes, bool, Future[DeviceImage | None]]]()
        Thread(target=self._work, name="jpegs", daemon=True).start()

    def __call__(self, data: bytes, *, is_bgr: bool) -> DeviceImage | None:
        future = Future[DeviceImage | None]()
        self._files.put((data, is_bgr, future))
        return future.result()

    def _work(self) -> None:
        while True:
            batch = [self._files.get()]
            with suppress(Empty):
                while len(batch) < _BATCH:
                    batch.append(self._files.get_nowait())
            files, are_bgr, futures = zip(*batch, strict=True)
            try:
                images: list[DeviceImage | None] = [*self._images(list(files), are_bgr)]
            except Exception as error:  # one file fails all; memory may be short, too
                logger.info("%d photos are decoded on the CPU: %s", len(batch), error)
                images = [None] * len(batch)
            for future, image in zip(futures, images, strict=True):
                future.set_result(image)

    @torch.inference_mode()
    def _images(self, files: list[bytes], are_bgr: Sequence[bool]) -> list[DeviceImage]:
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            decoded = zip(self._decode(files), are_bgr, strict=True)
            squares = torch.stack(
                [square(pixels.flip(0) if bgr else pixels, self._preparation) for pixels, bgr in decoded]
            )
            small = functional.adaptive_avg_pool2d(squares.float(), _THUMBNAIL_PX).round().to(torch.uint8)
            thumbnails = small.permute(0, 2, 3, 1).flatten(1).cpu().numpy()  # waits for the stream
        if self._stream:  # the stream must not reuse their memory while the network reads it
            squares.record_stream(torch.cuda.default_stream(squares.device))
        return [DeviceImage(*parts) for parts in zip(squares, thumbnails, strict=True)]


def square(pixels: Tensor, preparation: SquarePreparation) -> Tensor:
    """Return (3, size_px, size_px) uint8 as `SquarePreparation.prepare` does, but for a level where it rounds twice."""
    size_px, (height, width) = preparation.size_px, pixels.shape[1:]
    if preparation.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _resized(pixels[:, top : top + side, left : left + side], (size_px, size_px), "bilinear")
    scale = size_px / max(height, width)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size_px - height) // 2, (size_px - width) // 2
    white = pixels.new_full((3, size_px, size_px), 255)
    white[:, top : top + height, left : left + width] = _resized(pixels, (height, width), "bicubic")
    return white


def _resized(pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    resized = functional.interpolate(pixels[None].float(), size, mode=mode, antialias=True)
    return resized[0].round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class DeviceImages(ClipImages):
    """An image tower that takes pixels on its device as well as images; without `batches` all come from the CPU."""

    network: TorchNetwork
    preparation: SquarePreparation
    batches: JpegBatches | None = None

    def encode(self, images: Sequence[Any]) -> Floats:
        at_once = self.network.images_per_batch
        features = [np.empty((0, self.dim), dtype=np.float32)]
        for start in range(0, len(images), at_once):
            pixels = torch.stack([self._pixels(image) for image in images[start : start + at_once]])
            features.append(self.network.features("image", {"pixel_values": self._normalised(pixels)}))
        return unit_rows(np.concatenate(features))

    def _pixels(self, image: DeviceImage | Image.Image) -> Tensor:
        if isinstance(image, DeviceImage):
            pixels: Tensor = image.pixels
            return pixels
        host = torch.from_numpy(np.array(self.prepare(image))).permute(2, 0, 1)
        is_cuda = self.network.device.startswith("cuda")
        return host.pin_memory().to(self.network.device, non_blocking=True) if is_cuda else host

    def _normalised(self, pixels: Tensor) -> Any:
        mean, std = (
            torch.tensor(c, device=pixels.device)[:, None, None] for c in (self.preparation.mean, self.preparation.std)
        )
        return pixels.float().div_(255).sub_(mean).div_(std)
