"""A model of sentence-transformers as the text tower of any encoder: `+st:<repository or folder>`.

It reads as many tokens as its model was saved for, mostly 512, where CLIP-like models read 64 or 77; in exchange, texts
and images no longer share a space. The library is an extra. Code that comes with a model is not run, and a text stays a
text, even if it is the address of an image that the model could fetch.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from product_classificator.encoders.base import Dtype, unit_rows
from product_classificator.encoders.huggingface import (
    REPORTED,
    fetch_model,
    fingerprint_of,
    foreign,
    model_files,
    refuse_invented,
)
from product_classificator.encoders.torch_clip import Compute, computing
from product_classificator.errors import MissingExtraError
from product_classificator.types import Floats

logger = logging.getLogger(__name__)

_LIST = "modules.json"
_CONFIGS = (_LIST, "config_sentence_transformers.json", "sentence_*_config.json")
_PARTS = ("*/*.json", "*/*.txt", "*/*.model", "*/model*.safetensors", "*/pytorch_model*.bin")


class SentenceTexts:
    """The text tower; `model` is a `SentenceTransformer`."""

    def __init__(self, model: Any, fingerprint: str, threads: int) -> None:
        self._model, self._threads = model, threads
        self.fingerprint, self.dim = fingerprint, 0
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
    """Load a text tower by its folder or repository; other arguments as in `load_encoder`.

    Raises:
        ArtifactError: the model is not on this machine and cannot be fetched, is damaged, or brings code of its own.
        DataError: there is no such device.
        MissingExtraError: sentence-transformers is not installed.
    """
    compute = Compute(device, dtype, threads)
    try:
        from sentence_transformers import SentenceTransformer  # an extra
    except ImportError as error:
        raise MissingExtraError(f"a text encoder of its own (+st:{name})", "sentence-transformers") from error
    folder = Path(name).resolve() if Path(name).is_dir() else fetch_model(name, *_CONFIGS, *_PARTS)
    with foreign(folder, "a model of sentence-transformers"):
        model = SentenceTransformer(
            str(folder),
            device=compute.device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": compute.load_dtype},
        )
        modules = _modules(folder)
        network = model.transformers_model
        if isinstance(network, PreTrainedModel) and (modules[0] / "config.json").is_file():
            # The library does not report missing weights, so the network is read again.
            options = {"dtype": network.dtype, "local_files_only": True, **REPORTED}
            refuse_invented(modules[0], type(network).from_pretrained(modules[0], **options)[1])
        configs = [path for pattern in _CONFIGS for path in folder.glob(pattern)]
        parts = [path for module in modules if module != folder for path in module.rglob("*") if path.is_file()]
        files = {*model_files(folder), *configs, *parts}
        fingerprint = fingerprint_of("st", folder, files, f"{model.max_seq_length} tokens")
        return SentenceTexts(model, fingerprint, compute.threads)


def _modules(folder: Path) -> list[Path]:
    """Return the folders of the modules in order; a bare model of transformers is its only one."""
    if not (folder / _LIST).is_file():
        logger.warning("%s has no %s: the vectors of its tokens are averaged", folder, _LIST)
        return [folder]
    return [folder / module["path"] for module in json.loads((folder / _LIST).read_text(encoding="utf-8"))]
