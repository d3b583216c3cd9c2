"""Any CLIP-like model of transformers as an encoder: CLIP, SigLIP, SigLIP 2, Chinese-CLIP, AltCLIP and their like.

A model is a folder as `save_pretrained` leaves it, or a repository of the hub. Its own image processor and tokenizer
prepare photos and texts, so the vectors are those of `AutoProcessor` and `AutoModel`. What differs, and why:

- Photos are resized by Pillow even where torchvision is installed, which rounds otherwise: one model, one answer.
- A photo that has the size of the tower is taken as prepared; for the families above that is what their processors do.
- The name of a special token, written into a text, does not become that token.
- Code that comes with a model is never run, and weights that are not there are never made up: both are errors.

Two photos and texts are encoded while loading. That costs a second for the largest models, and tells the width of the
features, and that network, processor and tokenizer belong together.
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
import numpy.typing as npt
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
from product_classificator.encoders.preprocessing import (
    Ids,
    Inputs,
    Saved,
    as_rgb,
    cut_into_windows,
    letterboxed,
    middle_of,
    shrunk,
)
from product_classificator.errors import ArtifactError, DataError, culprits
from product_classificator.files import sha256_of

_CONFIGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
_SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_UNSAFE_TENSORS = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # see `refuse_invented`
LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def open_hub_model(spec: EncoderSpec) -> tuple[Path, EncoderSpec]:
    """Finds, or fetches, the model of a name `hf:<repository or folder>`.

    Returns:
        Its folder, and the name with the folder in full.

    Raises:
        DataError: nothing stands after `hf:`.
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
    """Fetches configuration, tokenizer and weights of a repository, and files that fit the patterns of `more`.

    Weights in the older format are fetched only where there are none as safetensors.

    Raises:
        ArtifactError: the hub cannot be reached, or has no such repository.
    """
    folder = fetch_repository(repository, (*_CONFIGS, *more, *_SAFETENSORS))
    if any(path for pattern in _SAFETENSORS for path in folder.glob(pattern)):  # those in folders are of other parts
        return folder
    return fetch_repository(repository, (*_CONFIGS, *more, *_UNSAFE_TENSORS))


def model_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that decide what its model answers: those `from_pretrained` would read."""
    found = [path for pattern in _CONFIGS for path in folder.glob(pattern)]
    return found + (_weight_files(folder, _SAFETENSORS) or _weight_files(folder, _UNSAFE_TENSORS))


def _weight_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Returns the files that fit the patterns, and those that an index among them names, whatever they are called."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    if not found & {folder / patterns[0]}:  # with all weights in one file, an index is not read
        for index in [path for path in found if path.suffix == ".json"]:
            found |= {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    return list(found)


def fingerprint_of(kind: str, folder: Path, files: Iterable[Path], known: str) -> str:
    """Returns `<kind>-<digest>` of the files below a folder, wherever it lies, and of what else is known."""
    contents = [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in sorted(files)]
    return f"{kind}-{hashlib.blake2b(repr((contents, known)).encode(), digest_size=8).hexdigest()}"


def unreadable(folder: Path, what: str, error: Exception) -> ArtifactError:
    """Returns the error for a folder that a library could not read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, pickle.UnpicklingError):  # says in colours how to read it all the same
        reason = "its weights hold more than numbers"
    return ArtifactError(
        f"{folder} must hold {what}, with configuration, weights and tokenizer and without code of its own; "
        f"reading it failed ({reason}): fetch or save it anew, or name another"
    )


def refuse_invented(folder: Path, report: Mapping[str, Any]) -> None:
    """Refuses what transformers goes on with: weights drawn at random, as they were missing or of another shape.

    Raises:
        ArtifactError: the report of the loading names such weights.
    """
    invented = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    # Text encoders are mostly saved without the pooler of their network, which they do not use.
    if invented := {name for name in invented if not name.startswith("pooler.")}:
        raise ArtifactError(
            "the files of a model must hold each weight in the shape that its config.json calls for, "
            f"those of {folder} do not hold {culprits(sorted(invented))}: fetch or save it anew"
        )


@contextmanager
def silent_loading() -> Iterator[None]:
    """Keeps transformers from drawing bars and from advising, at every load, what cannot be changed."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with quiet_loading():
            yield
    finally:
        transformers_logging.set_verbosity(level)


class ProcessedImages:
    """Photos by an image processor of transformers; see `ImagePreparation`.

    Args:
        processor: works on Pillow's images.
        letterbox: photos are padded to a white square first, so that the processor crops and squeezes nothing.

    Raises:
        DataError: `letterbox`, and the processor fills no square.
    """

    def __init__(self, processor: BaseImageProcessor, letterbox: bool = False) -> None:
        self.processor = processor
        self.letterbox = letterbox
        sizes = {self._processed(Image.new("RGB", size)).size for size in ((96, 32), (32, 96))}
        # None: the size depends on the photo, as in SigLIP 2 of the "naflex" kind, which keeps the shape of photos.
        self._size = sizes.pop() if len(sizes) == 1 else None
        if letterbox and not (self._size and self._size[0] == self._size[1]):
            raise DataError(
                "+letterbox pads photos to the square that a model reads, "
                f"this one reads {self._size or 'photos in a shape near their own'}: leave it out"
            )

    def __str__(self) -> str:
        return f"photos {'letterboxed' if self.letterbox else 'as processed'}"

    def min_decode_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size at which no side is under twice that of the tower; its own where that follows from it."""
        return shrunk(size, 2 * max(self._size) / min(size)) if self._size else size

    def prepare(self, image: Image.Image) -> Image.Image:
        """Returns the photo as an RGB image of the size that the processor makes of it."""
        image = as_rgb(image)
        if image.size == self._size:
            return image
        if self.letterbox and self._size:
            return letterboxed(image, self._size[0])
        prepared = self._processed(image)
        # Where the photo's size decides, the smallest (1 or 2 pixels) reach the size that stays in two steps.
        return prepared if self._size or prepared.size == image.size else self.prepare(prepared)

    def inputs(self, images: Sequence[Image.Image]) -> Inputs:
        """Returns the processor's arrays: `pixel_values`, and for some models masks and shapes of the patches."""
        prepared = [self.prepare(image) for image in images]
        found = self.processor(prepared, do_resize=False, do_center_crop=False, return_tensors="np")
        return {name: np.asarray(values) for name, values in found.items()}

    def save(self, folder: Path) -> Saved:
        """Write the files of the processor, and return the other argument."""
        self.processor.save_pretrained(folder)
        return "hf", {"letterbox": self.letterbox}

    @classmethod
    def load(cls, folder: Path, letterbox: bool) -> "ProcessedImages":
        """Read the processor of a folder."""
        return cls(AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL_ONLY), letterbox)

    def _processed(self, image: Image.Image) -> Image.Image:
        """Resizes and crops, and leaves the scaling of the pixels to `inputs`."""
        if getattr(self.processor, "do_center_crop", None):
            image = middle_of(image)
        found = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        pixels = np.asarray(found["pixel_values"])[0]
        if "spatial_shapes" in found:  # (patches, side * side * 3), the patches row by row
            rows, columns = np.asarray(found["spatial_shapes"])[0]
            side = isqrt(pixels.shape[1] // 3)
            patches = pixels[: rows * columns].reshape(rows, columns, side, side, 3)
            pixels = patches.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
        else:
            pixels = np.moveaxis(pixels, 0, -1)
        return Image.fromarray(pixels.astype(np.uint8))


class TokenizedTexts:
    """Texts by a tokenizer of transformers; see `TextPreparation`.

    Args:
        tokenizer: is changed, and must be nobody else's.
        max_tokens: of a window, special tokens included.
        max_windows: how many windows of a text are read.
        pads_to_max: whether every window is filled up to `max_tokens`, not only to the longest of its batch.

    Raises:
        ValueError: the tokenizer knows no words.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, max_windows: int, pads_to_max: bool
    ) -> None:
        tokenizer.split_special_tokens = True
        # Without the file of its vocabulary, transformers makes a tokenizer that knows no word, and says nothing.
        if not set(tokenizer("a я 中 1", add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}:
            raise ValueError("its tokenizer has no vocabulary")
        probe = tokenizer("a", return_special_tokens_mask=True)
        ids: Ids = list(probe["input_ids"])
        own = [place for place, is_special in enumerate(probe["special_tokens_mask"]) if not is_special]
        self.before, self.after = ids[: own[0]], ids[own[-1] + 1 :]
        self.tokenizer = tokenizer
        # Some vocabularies hold the names of special tokens as words, and find them in texts.
        self.reserved = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self.max_tokens = max_tokens
        self.max_windows = max_windows
        self.padded_to = max_tokens if pads_to_max else 0

    def __str__(self) -> str:
        filled = "the last" if self.padded_to else "the longest"
        return f"{self.max_tokens} tokens, {self.max_windows} window(s), filled up to {filled}"

    def windows(self, texts: Sequence[str]) -> tuple[list[Ids], npt.NDArray[np.int64]]:
        """Returns the ids of all windows with their special tokens, and the number of each one's text."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        known = ([token for token in ids if token not in self.reserved] for ids in encoded)
        return cut_into_windows(known, self.before, self.after, self.max_tokens, self.max_windows)

    def inputs(self, windows: Sequence[Ids]) -> Inputs:
        """Returns `input_ids` (n, longest) int64, and `attention_mask` of the same shape where the tower wants one."""
        padding = {"padding": "max_length", "max_length": self.max_tokens} if self.padded_to else {"padding": True}
        found = self.tokenizer.pad({"input_ids": list(windows)}, return_tensors="np", **padding)
        return {name: np.asarray(values, dtype=np.int64) for name, values in found.items()}

    def save(self, folder: Path) -> Saved:
        """Write the files of the tokenizer, and return the other arguments."""
        self.tokenizer.save_pretrained(folder)
        limits = {"max_tokens": self.max_tokens, "max_windows": self.max_windows}
        return "hf", {**limits, "pads_to_max": self.padded_to > 0}

    @classmethod
    def load(cls, folder: Path, **limits: Any) -> "TokenizedTexts":
        """Read the tokenizer of a folder; `limits` as `save` returned them."""
        return cls(load_tokenizer(folder), **limits)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a folder, a fast one where there is one."""
    has_fast = (folder / "tokenizer.json").is_file()
    tokenizer: Any = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY)
    except ImportError:
        if not has_fast:
            raise
    if has_fast and not (tokenizer and tokenizer.is_fast):
        # SigLIP's class needs SentencePiece; its tokenizer.json says the same and needs nothing.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **LOCAL_ONLY)
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def fetch_repository(repository: str, patterns: tuple[str, ...], folder: Path | None = None) -> Path:
    """Fetches files of a repository of the hub, to `folder` or the hub's cache; those that are there are kept.

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


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers from drawing a progress bar over weights that load in a second."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
