"""Models of transformers (`hf:`) and sentence-transformers (`+st:`): fetch their files, load and save them.

A model is a folder as `save_pretrained` writes it, or a repository of the hub. Its own image processor and tokenizer
prepare, so vectors are those of `AutoProcessor` and `AutoModel`, except that images are always resized by Pillow, an
image of the size of the tower counts as prepared, and the name of a special token in a text is plain text. Code that
comes with a model is never run, and missing weights are an error.

EmbeddingGemma 2 reads a row of tokens, those of an image before those of a text: its text part of a product with both
is their common vector (docs/design/decisions.md).

A model of sentence-transformers (an extra) can be the text tower of any encoder: it reads mostly 512 tokens, where
CLIP-like models read 64 or 77, but texts and images no longer share a space.
"""

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from product_classificator.encoders.base import Dtype, Encoder, EncoderSpec, unit_rows
from product_classificator.encoders.clip import ClipImages, ClipTexts
from product_classificator.encoders.preprocessing import MAX_WINDOWS, Inputs, ProcessedImages, TextPreparation
from product_classificator.encoders.torch_clip import Compute, PairNetwork, TorchNetwork, computing, torch_network_of
from product_classificator.errors import ArtifactError, DataError, MissingExtraError, culprits
from product_classificator.files import fetch_files, replacing_folder, sha256_of
from product_classificator.types import Floats

logger = logging.getLogger(__name__)

_CONFIGS = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
)
_SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_UNSAFE_TENSORS = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
_REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # see `refuse_invented`
_LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_MODULES = "modules.json"
_SENTENCE_CONFIGS = (_MODULES, "config_sentence_transformers.json", "sentence_*_config.json")
_SENTENCE_PARTS = ("*/*.json", "*/*.txt", "*/*.model", "*/model*.safetensors", "*/pytorch_model*.bin")
_PAIR_MODEL = "embedding_gemma2"
_MAX_TOKENS = 512  # where neither tokenizer nor network names a limit


def fetch_model(repository: str, *more: str) -> Path:
    """Fetch configuration, tokenizer and weights of a repository, and files that match `more`.

    Weights in the older format are fetched only if there are no safetensors. Raises `ArtifactError` if the hub cannot
    be reached, or has no such repository.
    """
    folder = fetch_files(repository, (*_CONFIGS, *more, *_SAFETENSORS))
    has_weights = bool(_matching(folder, _SAFETENSORS))  # not those of parts, in folders
    return folder if has_weights else fetch_files(repository, (*_CONFIGS, *more, *_UNSAFE_TENSORS))


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _model_files(folder: Path) -> list[Path]:
    """Return the files that decide the vectors of a model, those of an index included."""
    weights = "*.safetensors" if any(folder.glob("model*.safetensors*")) else "*.bin"
    return [*_matching(folder, (*_CONFIGS, f"{weights}.index.json")), *folder.rglob(weights)]


def fingerprint_of(kind: str, folder: Path, files: Iterable[Path], preparation: str) -> str:
    """Return `<kind>-<digest>` of files and preparation, wherever the folder lies."""
    contents = [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in sorted(files)]
    return f"{kind}-{hashlib.blake2b(repr((contents, preparation)).encode(), digest_size=8).hexdigest()}"


@contextmanager
def foreign(folder: Path, kind: str) -> Iterator[None]:
    """Read a foreign folder with a library: no progress bars and advice, and any error becomes an `ArtifactError`."""
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (ArtifactError, DataError):
        raise
    except Exception as error:  # what is wrong with a foreign folder surfaces as any of two dozen classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # its message explains how to read it all the same
            reason = "its weights hold more than numbers"
        raise ArtifactError(
            f"{folder} must hold {kind}, with configuration, weights and tokenizer and without code of its own; "
            f"reading it failed ({reason}): fetch or save it again, or name another"
        ) from error
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


def refuse_invented(folder: Path, report: Mapping[str, Any]) -> None:
    """Raise `ArtifactError` if transformers drew weights at random, as they were missing or of another shape."""
    invented = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    # Text encoders are mostly saved without the pooler of their network, which they do not use.
    if invented := {name for name in invented if not name.startswith("pooler.")}:
        raise ArtifactError(
            "the files of a model must hold each weight in the shape that its config.json calls for, "
            f"those of {folder} do not hold {culprits(sorted(invented))}: fetch or save it again"
        )


class PairImages(ProcessedImages):
    """Images as tokens of a row of text, as `PairNetwork` takes them; the text of an image follows it."""

    def __init__(self, processor: Any, letterbox: bool, texts: TextPreparation, config: Any) -> None:
        super().__init__(processor, letterbox)
        self._texts, self._config = texts, config
        self._n_first = texts.tokenizer.encode("a").special_tokens_mask.index(0)  # special tokens before the text

    def inputs(self, images: Sequence[Image.Image], texts: Sequence[str] | None = None) -> Inputs:
        arrays, first, config = super().inputs(images), self._n_first, self._config
        windows, _ = self._texts.windows(texts or [""] * len(images))
        rows = []
        for window, n_tokens in zip(windows, arrays["num_soft_tokens_per_image"].tolist(), strict=True):
            tokens = (config.boi_token_id, *[config.image_token_id] * n_tokens, config.eoi_token_id)
            rows.append([*window[:first], *tokens, *window[first:]])
        pixels = {name: arrays[name] for name in ("pixel_values", "image_position_ids")}
        return {**pixels, **self._texts.inputs(rows)}


@dataclass(frozen=True)
class PairTexts(ClipTexts):
    """The text tower of a model that reads images and texts in one row; `images` prepares both."""

    images: PairImages

    def encode_pairs(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Floats:
        n = self.network.images_per_batch
        batches = [slice(start, start + n) for start in range(0, len(images), n)]
        features = [self.network.features("image", self.images.inputs(images[rows], texts[rows])) for rows in batches]
        return unit_rows(np.concatenate(features))


def load_hub_clip(folder: Path, spec: EncoderSpec, compute: Compute) -> tuple[ClipImages, ClipTexts]:
    """Load the towers of a CLIP-like model of transformers, or of one for pairs; errors as in `load_encoder`."""
    with foreign(folder, "a CLIP-like model of transformers"):
        model, report = AutoModel.from_pretrained(folder, dtype=compute.load_dtype, **_REPORTED, **_LOCAL_ONLY)
        reads_pairs = model.config.model_type == _PAIR_MODEL
        if not (reads_pairs or (hasattr(model, "get_image_features") and hasattr(model, "get_text_features"))):
            raise ArtifactError(
                f"a CLIP-like model has an image tower and a text tower, {folder} holds a {type(model).__name__}: "
                "name a model for images and texts, such as CLIP or SigLIP"
            )
        refuse_invented(folder, report)
        images = ProcessedImages.load(folder, spec.letterbox)
        texts = _text_preparation(folder, model, MAX_WINDOWS if spec.windows else 1)
        if reads_pairs:
            if spec.windows or spec.clean:
                raise DataError(
                    f"a model that reads photo and text together takes neither +windows nor +clean, got {spec}"
                )
            images = PairImages(images.processor, spec.letterbox, texts, model.config)
        network = (PairNetwork if reads_pairs else TorchNetwork)(model, 0, compute, folder)
        # This also shows that network, processor and tokenizer fit together, for any shape and length.
        inputs = images.inputs([Image.new("RGB", size, "white") for size in ((96, 64), (64, 96))])
        shapes = network.dry_run("image", inputs), network.dry_run("text", texts.inputs(texts.windows(["", "a"])[0]))
        if shapes[0] != shapes[1] or len(shapes[0]) != 2:
            raise ArtifactError(
                "the towers of a CLIP-like model answer vectors of one width, "
                f"found shapes {shapes[0]} for photos and {shapes[1]} for texts: name another model"
            )
        network.dim = shapes[0][1]
        fingerprint = fingerprint_of("hub", folder, _model_files(folder), f"{images} {texts}")
    image = ClipImages(fingerprint, network, images)
    if isinstance(images, PairImages):
        return image, PairTexts(fingerprint, network, texts, images)
    return image, ClipTexts(fingerprint, network, texts)


def _text_preparation(folder: Path, model: PreTrainedModel, max_windows: int) -> TextPreparation:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL_ONLY)
    except ImportError:
        tokenizer = None
    if tokenizer is None or not tokenizer.is_fast:
        # SigLIP's class needs SentencePiece, but its tokenizer.json has the same content.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **_LOCAL_ONLY)
    # Without the file of its vocabulary, transformers silently makes a tokenizer without words.
    if not set(tokenizer("a я 中 1", add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}:
        raise ValueError("its tokenizer has no vocabulary")
    if tokenizer.pad_token_id is None or tokenizer.padding_side != "right":
        raise ValueError("its tokenizer does not pad on the right")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _MAX_TOKENS
    for name, module in model.named_modules():
        # Towers of RoBERTa's kind number their positions from behind the id of the padding token.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    max_tokens = min(tokenizer.model_max_length, positions)
    return TextPreparation(
        tokenizer.backend_tokenizer,
        tokenizer.pad_token_id,
        max_tokens,
        max_windows,
        # SigLIP was trained on texts filled up to the last position, where it reads its features.
        padded_to=max_tokens if model.config.model_type.startswith("siglip") else 0,
        reserved=sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}),
        has_mask="attention_mask" in tokenizer.model_input_names,
    )


def save_encoder(encoder: Encoder, weights: Mapping[str, Tensor], folder: Path) -> str:
    """Write a CLIP-like encoder, with some weights replaced, as a folder that `load_encoder` and transformers read.

    The folder that it was loaded from must still be there. Returns its name, for `load_encoder`; raises `DataError` if
    the encoder is not CLIP-like.
    """
    network = torch_network_of(encoder)
    state = {**network.model.state_dict(), **weights}
    parts = {name: weight.float().cpu().contiguous().clone() for name, weight in state.items()}
    with replacing_folder(folder) as new:
        for path in _matching(network.folder, _CONFIGS):
            shutil.copyfile(path, new / path.name)
        network.model.config.save_pretrained(new)
        save_file(parts, new / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(new / "config.json", new / "model.safetensors")  # safetensors lets only the owner read
    return str(replace(EncoderSpec.parse(encoder.name), base=str(folder.resolve())))


class SentenceTexts:
    """The text tower; `model` is a `SentenceTransformer`."""

    def __init__(self, model: Any, fingerprint: str, threads: int) -> None:
        self._model, self.fingerprint, self._threads, self.dim = model, fingerprint, threads, 0
        self.dim = self.encode(["", "a"]).shape[1]

    def encode(self, texts: Sequence[str]) -> Floats:
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        # Lone surrogates cannot be encoded as UTF-8, which every tokenizer needs.
        inputs = [text.encode("utf-8", "ignore").decode() for text in texts]
        # A model that also reads images would fetch bare strings that look like the address of one.
        named = inputs if self._model.modalities == ["text"] else [{"text": text} for text in inputs]
        with computing(self._threads):
            vectors = self._model.encode(named, show_progress_bar=False)
        return unit_rows(vectors.astype(np.float32))


def load_sentence_texts(name: str, device: str = "cpu", dtype: Dtype = "auto", threads: int = 1) -> SentenceTexts:
    """Load a text tower by its folder or repository; other arguments and errors as in `load_encoder`."""
    compute = Compute(device, dtype, threads)
    try:
        from sentence_transformers import SentenceTransformer  # an extra
    except ImportError as error:
        raise MissingExtraError(f"a text encoder of its own (+st:{name})", "sentence-transformers") from error
    folder = Path(name).resolve() if Path(name).is_dir() else fetch_model(name, *_SENTENCE_CONFIGS, *_SENTENCE_PARTS)
    with foreign(folder, "a model of sentence-transformers"):
        kwargs = {"dtype": compute.load_dtype}
        model = SentenceTransformer(str(folder), device=compute.device, model_kwargs=kwargs, **_LOCAL_ONLY)
        modules = [folder]  # a bare model of transformers is its only module
        if (folder / _MODULES).is_file():
            listed = json.loads((folder / _MODULES).read_text(encoding="utf-8"))
            modules = [folder / module["path"] for module in listed]
        else:
            logger.warning("%s has no %s: the vectors of its tokens are averaged", folder, _MODULES)
        network = model.transformers_model
        if isinstance(network, PreTrainedModel) and (modules[0] / "config.json").is_file():
            # The library does not report missing weights, so the network is read again.
            again = type(network).from_pretrained(modules[0], dtype=network.dtype, local_files_only=True, **_REPORTED)
            refuse_invented(modules[0], again[1])
        parts = [path for module in modules if module != folder for path in module.rglob("*") if path.is_file()]
        files = {*_model_files(folder), *_matching(folder, _SENTENCE_CONFIGS), *parts}
        fingerprint = fingerprint_of("st", folder, files, f"{model.max_seq_length} tokens")
        return SentenceTexts(model, fingerprint, threads)
