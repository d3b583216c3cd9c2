"""Models of transformers (`hf:`): their files, image processors and tokenizers, all without torch.

A model is a folder as `save_pretrained` writes it, or a repository of the hub. Its own image processor and tokenizer
prepare, so vectors are those of `AutoProcessor` and `AutoModel`, except that

- images are always resized by Pillow, as torchvision rounds differently;
- an image of the size of the tower counts as prepared, which is what the processors of known families do;
- the name of a special token in a text is plain text;
- code that comes with a model is never run, and missing weights are an error.
"""

import hashlib
import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from product_classificator.encoders.base import EncoderSpec
from product_classificator.encoders.preprocessing import Ids, Inputs, Saved, Windows, as_rgb, letterboxed, shrunk
from product_classificator.errors import ArtifactError, DataError, culprits
from product_classificator.files import sha256_of

_CONFIGS = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
)
_SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_UNSAFE_TENSORS = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # see `refuse_invented`
LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_MAX_RATIO = 16  # of the sides of an image that is enlarged before it is cropped: a line would fill the memory


def open_hub_model(spec: EncoderSpec) -> tuple[Path, EncoderSpec]:
    """Find or fetch the model of a name `hf:<repository or folder>`.

    Returns:
        Its folder, and the name with the absolute folder.

    Raises:
        DataError: there is nothing after `hf:`.
        ArtifactError: there is no such folder, and the repository cannot be fetched.
    """
    name = spec.base.removeprefix("hf:")
    if not name:
        raise DataError(f"hf: is followed by a repository of the hub or a folder, got {str(spec)!r}")
    if Path(name).is_dir():
        folder = Path(name).resolve()
        return folder, replace(spec, base=f"hf:{folder}")
    return fetch_model(name), spec


def fetch_model(repository: str, *more: str) -> Path:
    """Fetch configuration, tokenizer and weights of a repository, and files that match `more`.

    Weights in the older format are fetched only if there are no safetensors.

    Raises:
        ArtifactError: the hub cannot be reached, or has no such repository.
    """
    folder = fetch_repository(repository, (*_CONFIGS, *more, *_SAFETENSORS))
    if any(path for pattern in _SAFETENSORS for path in folder.glob(pattern)):  # not those of parts, in folders
        return folder
    return fetch_repository(repository, (*_CONFIGS, *more, *_UNSAFE_TENSORS))


def fetch_repository(repository: str, patterns: tuple[str, ...], folder: Path | None = None) -> Path:
    """Fetch files of a repository that are not here yet, to `folder` or the hub's cache.

    Raises:
        ArtifactError: the hub cannot be reached, or has no such repository.
    """
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), local_dir=folder))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise unfetched(repository, str(error).split("\n", 1)[0]) from error


def unfetched(repository: str, reason: str) -> ArtifactError:
    """Return the error for a repository that is not here and cannot be fetched."""
    return ArtifactError(
        f"{repository} is not on this machine and cannot be fetched from the hub ({reason}): "
        "name a folder that holds its files instead, or use the encoder 'lite', which needs no network"
    )


def model_files(folder: Path) -> list[Path]:
    """Return the files that decide the vectors of a model: those `from_pretrained` reads."""
    configs = [path for pattern in _CONFIGS for path in folder.glob(pattern)]
    return configs + (_weight_files(folder, _SAFETENSORS) or _weight_files(folder, _UNSAFE_TENSORS))


def _weight_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files that match the patterns, and those that an index among them names."""
    paths = {path for pattern in patterns for path in folder.glob(pattern)}
    if folder / patterns[0] not in paths:  # with all weights in one file, an index is not read
        for index in [path for path in paths if path.suffix == ".json"]:
            paths |= {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    return list(paths)


def fingerprint_of(kind: str, folder: Path, files: Iterable[Path], preparation: str) -> str:
    """Return `<kind>-<digest>` of files and preparation, wherever the folder lies."""
    contents = [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in sorted(files)]
    return f"{kind}-{hashlib.blake2b(repr((contents, preparation)).encode(), digest_size=8).hexdigest()}"


def unreadable(folder: Path, kind: str, error: Exception) -> ArtifactError:
    """Return the error for a folder that a library could not read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, pickle.UnpicklingError):  # its message explains how to read it all the same
        reason = "its weights hold more than numbers"
    return ArtifactError(
        f"{folder} must hold {kind}, with configuration, weights and tokenizer and without code of its own; "
        f"reading it failed ({reason}): fetch or save it again, or name another"
    )


def refuse_invented(folder: Path, report: Mapping[str, Any]) -> None:
    """Raise `ArtifactError` if transformers drew weights at random, as they were missing or of another shape."""
    invented = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    # Text encoders are mostly saved without the pooler of their network, which they do not use.
    if invented := {name for name in invented if not name.startswith("pooler.")}:
        raise ArtifactError(
            "the files of a model must hold each weight in the shape that its config.json calls for, "
            f"those of {folder} do not hold {culprits(sorted(invented))}: fetch or save it again"
        )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers from drawing progress bars and giving advice at every load."""
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


class ProcessedImages:
    """Images by an image processor of transformers; see `ImagePreparation`.

    Args:
        processor: works on Pillow's images.
        letterbox: images are padded to a white square first, so that the processor crops and squeezes nothing.

    Raises:
        DataError: `letterbox`, but the processor makes no squares.
    """

    def __init__(self, processor: BaseImageProcessor, letterbox: bool = False) -> None:
        self.processor = processor
        self.letterbox = letterbox
        sizes = {self._processed(Image.new("RGB", size)).size for size in ((96, 32), (32, 96))}
        # None: the size depends on the image, as in SigLIP 2 of the "naflex" kind, which keeps the aspect ratio.
        self._size = sizes.pop() if len(sizes) == 1 else None
        if letterbox and not (self._size and self._size[0] == self._size[1]):
            raise DataError(
                "+letterbox pads photos to the square that a model reads, "
                f"this one reads {self._size or 'photos in a shape near their own'}: leave it out"
            )

    def __str__(self) -> str:
        return f"photos {'letterboxed' if self.letterbox else 'as processed'}"

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size at which both sides have twice that of the tower; `size` where the tower follows it."""
        return shrunk(size, 2 * max(self._size) / min(size)) if self._size else size

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the RGB image, resized and cropped by the processor."""
        image = as_rgb(image)
        if image.size == self._size:
            return image
        if self.letterbox and self._size:
            return letterboxed(image, self._size[0])
        prepared = self._processed(image)
        # Where the size depends on the image, the smallest (1 or 2 pixels) settle in two steps.
        return prepared if self._size or prepared.size == image.size else self.prepare(prepared)

    def inputs(self, images: Sequence[Image.Image]) -> Inputs:
        """Return the processor's arrays: `pixel_values`, and for some models masks and shapes of the patches."""
        prepared = [self.prepare(image) for image in images]
        arrays = self.processor(prepared, do_resize=False, do_center_crop=False, return_tensors="np")
        return {name: np.asarray(values) for name, values in arrays.items()}

    def save(self, folder: Path) -> Saved:
        """Write the files of the processor."""
        self.processor.save_pretrained(folder)
        return "hf", {"letterbox": self.letterbox}

    @classmethod
    def load(cls, folder: Path, letterbox: bool) -> "ProcessedImages":
        """Read the processor of a folder."""
        return cls(AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL_ONLY), letterbox)

    def _processed(self, image: Image.Image) -> Image.Image:
        """Resize and crop, leaving the scaling of pixels to `inputs`."""
        longest = _MAX_RATIO * min(image.size)
        if getattr(self.processor, "do_center_crop", None) and max(image.size) > longest:
            width, height = min(image.width, longest), min(image.height, longest)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        arrays = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        pixels = np.asarray(arrays["pixel_values"])[0]
        if "spatial_shapes" in arrays:  # (patches, side * side * 3), the patches row by row
            rows, columns = np.asarray(arrays["spatial_shapes"])[0]
            side = isqrt(pixels.shape[1] // 3)
            patches = pixels[: rows * columns].reshape(rows, columns, side, side, 3)
            pixels = patches.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
        else:
            pixels = np.moveaxis(pixels, 0, -1)
        return Image.fromarray(pixels.astype(np.uint8))


class TokenizedTexts:
    """Texts by a tokenizer of transformers; see `TextPreparation`.

    Args:
        tokenizer: is changed.
        max_tokens: of a window, special tokens included.
        max_windows: how many windows of a text are read.
        pads_to_max: whether windows are padded to `max_tokens` instead of to the longest of their batch.

    Raises:
        ValueError: the tokenizer has no vocabulary.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, max_windows: int, pads_to_max: bool
    ) -> None:
        tokenizer.split_special_tokens = True
        # Without the file of its vocabulary, transformers silently makes a tokenizer without words.
        if not set(tokenizer("a я 中 1", add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}:
            raise ValueError("its tokenizer has no vocabulary")
        probe = tokenizer("a", return_special_tokens_mask=True)
        ids: Ids = list(probe["input_ids"])
        plain = [position for position, is_special in enumerate(probe["special_tokens_mask"]) if not is_special]
        self._before, self._after = ids[: plain[0]], ids[plain[-1] + 1 :]
        self.tokenizer = tokenizer
        # Some vocabularies hold the names of special tokens as words, and find them in texts.
        self._reserved = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self.max_tokens = max_tokens
        self.max_windows = max_windows
        self.padded_to = max_tokens if pads_to_max else 0

    def __str__(self) -> str:
        padding = "the last" if self.padded_to else "the longest"
        return f"{self.max_tokens} tokens, {self.max_windows} window(s), filled up to {padding}"

    def windows(self, texts: Sequence[str]) -> Windows:
        """Return token ids and texts of all windows."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        room = self.max_tokens - len(self._before) - len(self._after)
        windows: list[Ids] = []
        owners: list[int] = []
        for number, tokens in enumerate(encoded):
            ids = [token for token in tokens if token not in self._reserved]
            starts = range(0, max(1, len(ids)), room)[: self.max_windows]
            windows += [[*self._before, *ids[start : start + room], *self._after] for start in starts]
            owners += [number] * len(starts)
        return windows, np.array(owners, dtype=np.int64)

    def inputs(self, windows: Sequence[Ids]) -> Inputs:
        """Return `input_ids` (n, longest) int64, and `attention_mask` of the same shape if the tower wants one."""
        padding = {"padding": "max_length", "max_length": self.max_tokens} if self.padded_to else {"padding": True}
        arrays = self.tokenizer.pad({"input_ids": list(windows)}, return_tensors="np", **padding)
        return {name: np.asarray(values, dtype=np.int64) for name, values in arrays.items()}

    def save(self, folder: Path) -> Saved:
        """Write the files of the tokenizer."""
        self.tokenizer.save_pretrained(folder)
        limits = {"max_tokens": self.max_tokens, "max_windows": self.max_windows}
        return "hf", {**limits, "pads_to_max": self.padded_to > 0}

    @classmethod
    def load(cls, folder: Path, **limits: Any) -> "TokenizedTexts":
        """Read the tokenizer of a folder; `limits` are the other arguments."""
        return cls(load_tokenizer(folder), **limits)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a folder, a fast one if there is one."""
    has_fast = (folder / "tokenizer.json").is_file()
    tokenizer: Any = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY)
    except ImportError:
        if not has_fast:
            raise
    if has_fast and not (tokenizer and tokenizer.is_fast):
        # SigLIP's class needs SentencePiece, but its tokenizer.json has the same content.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **LOCAL_ONLY)
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded
