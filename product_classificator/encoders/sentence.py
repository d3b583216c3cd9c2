"""A model of sentence-transformers as a text encoder beside any image tower: `+st:<repository or folder>`.

Models for images and texts read 64 or 77 tokens, and descriptions of products run to hundreds of words: a text encoder
of its own reads as many tokens as its model was saved for, mostly 512. The price is that texts and photos no longer
share a space. The library is an extra. Code that comes with a model is not run, and a text stays a text, even where it
names a photo that the model could fetch.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel

from product_classificator.encoders.base import Dtype, cores, unit_rows
from product_classificator.encoders.huggingface import (
    REPORTED,
    fetch_model,
    fingerprint_of,
    model_files,
    refuse_invented,
    silent_loading,
    unreadable,
)
from product_classificator.encoders.torch_clip import Compute, computing
from product_classificator.errors import MissingExtraError, ProductClassificatorError
from product_classificator.types import Floats

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

_LIST = "modules.json"
_CONFIGS = (_LIST, "config_sentence_transformers.json", "sentence_*_config.json")
_PARTS = ("*/*.json", "*/*.txt", "*/*.model", "*/model*.safetensors", "*/pytorch_model*.bin")


class SentenceTexts:
    """Texts into vectors by a model of sentence-transformers; see `TextTower`.

    Args:
        model: is loaded.
        fingerprint: names its files.
        threads: of the CPU.
    """

    def __init__(self, model: "SentenceTransformer", fingerprint: str, threads: int) -> None:
        self._model = model
        self._threads = threads
        self.fingerprint = fingerprint
        self.dim = 0
        self.dim = self.encode(["", "a"]).shape[1]

    def encode(self, texts: Sequence[str]) -> Floats:
        """Returns the (n, dim) float32 vectors of raw texts; rows have unit length."""
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        # Lone surrogates cannot be encoded as UTF-8, which every tokenizer needs.
        inputs = [text.encode("utf-8", "ignore").decode() for text in texts]
        # Bare strings that look like an address of a photo would be fetched by a model that reads photos, too.
        named = inputs if self._model.modalities == ["text"] else [{"text": text} for text in inputs]
        with computing(self._threads):
            vectors = self._model.encode(named, show_progress_bar=False)
        return unit_rows(vectors.astype(np.float32))


def load_sentence_encoder(
    name: str, *, device: str = "cpu", threads: int | None = None, dtype: Dtype = "auto"
) -> SentenceTexts:
    """Loads a text encoder.

    Args:
        name: a folder, or a repository of the hub.
        device: as for `load_encoder`.
        threads: CPU threads; `None`: the cores this process may use.
        dtype: as for `load_encoder`.

    Raises:
        ArtifactError: the model is not on this machine and cannot be fetched, is damaged, or brings code of its own.
        DataError: there is no such device or precision, or there are fewer cores.
        MissingExtraError: sentence-transformers is not installed.
    """
    compute = Compute(device, dtype, threads)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError(f"a text encoder of its own (+st:{name})", "sentence-transformers") from error
    folder = Path(name).resolve() if Path(name).is_dir() else fetch_model(name, *_CONFIGS, *_PARTS)
    try:
        with silent_loading():
            model = SentenceTransformer(
                str(folder),
                device=compute.device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": compute.load_dtype},
            )
            modules = _modules(folder)
            _check_weights(modules[0], model)
        files = {*model_files(folder), *_own_files(folder, modules)}
        fingerprint = fingerprint_of("st", folder, files, f"{model.max_seq_length} tokens")
        return SentenceTexts(model, fingerprint, compute.threads or cores())
    except ProductClassificatorError:
        raise
    except Exception as error:  # what is wrong with a foreign folder surfaces as any of two dozen classes
        raise unreadable(folder, "a model of sentence-transformers", error) from error


def _modules(folder: Path) -> list[Path]:
    """Returns the folders of the modules, one after the other; a bare model of transformers is its own only one."""
    if not (folder / _LIST).is_file():
        logger.warning("%s has no %s: the vectors of its tokens are averaged", folder, _LIST)
        return [folder]
    return [folder / module["path"] for module in json.loads((folder / _LIST).read_text(encoding="utf-8"))]


def _own_files(folder: Path, modules: list[Path]) -> list[Path]:
    """Returns the files that a model of sentence-transformers has beside those of transformers."""
    found = [path for pattern in _CONFIGS for path in folder.glob(pattern)]
    inner = [module for module in modules if module != folder]
    return found + [path for module in inner for path in module.rglob("*") if path.is_file()]


def _check_weights(folder: Path, model: "SentenceTransformer") -> None:
    """Refuses a network with missing weights; the library does not tell of them, so the network is read again."""
    network = model.transformers_model
    if isinstance(network, PreTrainedModel) and (folder / "config.json").is_file():
        _, report = type(network).from_pretrained(folder, dtype=network.dtype, local_files_only=True, **REPORTED)
        refuse_invented(folder, report)
