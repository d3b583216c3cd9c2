"""Fetches the checkpoints of ruCLIP and converts them, once, to what transformers reads.

A checkpoint is a folder with `bpe.model`, `config.json` and `pytorch_model.bin`. Its conversion lies in the folder
`converted` beside them: `config.json` and `model.safetensors` for `transformers.CLIPModel`, `tokenizer.json`, and
`ruclip.json` with the preparation and the sha256 of the others. It is made under a temporary name and
renamed, and made again when the checkpoint changes; where the folder cannot be written to, in a temporary folder each
time.

ruCLIP is OpenAI's CLIP with another tokenizer and end token (Shonenkov et al. 2022), so its weights only change their
names; query, key and value, one matrix there, are three in transformers. Nothing is believed: weights are read without
unpickling objects, and their shapes are compared with those that the configuration calls for before they are used.
"""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from filelock import FileLock
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound, StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from product_classificator.encoders.huggingface import fetch_repository, unfetched
from product_classificator.encoders.spec import RUCLIP_MODELS
from product_classificator.encoders.tokenizer import BEGIN_ID, END_ID, PAD_ID, read_bpe
from product_classificator.errors import ArtifactError, DataError, culprits, nearest
from product_classificator.files import replacing_folder, sha256_of

logger = logging.getLogger(__name__)

FILES = ("bpe.model", "config.json", "pytorch_model.bin")
MARKER = "ruclip.json"
_CONVERTED = "converted"
_CONVERTED_FILES = ("model.safetensors", "tokenizer.json", "config.json")
FORMAT = 1
_HEAD_WIDTH = 64  # of the image tower; the configuration names only the heads of the text tower
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Spread = Annotated[float, Field(gt=0)]
Rgb = tuple[float, float, float]
RgbSpread = tuple[Spread, Spread, Spread]
Weights = dict[str, Tensor]
Size = Annotated[int, Field(gt=0, le=16_384)]
Layers = Annotated[int, Field(gt=0, le=256)]


class _Config(BaseModel):
    """`config.json` of a ruCLIP checkpoint; what else it holds is not used."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    embed_dim: Size
    image_resolution: Size
    vision_layers: Layers
    vision_width: Size = Field(multiple_of=_HEAD_WIDTH)
    vision_patch_size: Size
    context_length: Size = Field(ge=3)
    vocab_size: int = Field(gt=0, le=2_000_000)
    transformer_width: Size
    transformer_heads: Size
    transformer_layers: Layers
    mean: Rgb | None = None
    std: RgbSpread | None = None

    def of_transformers(self) -> CLIPConfig:
        """Returns the configuration of the same network in transformers."""
        return CLIPConfig(
            text_config={
                "vocab_size": self.vocab_size,
                "hidden_size": self.transformer_width,
                "intermediate_size": 4 * self.transformer_width,
                "num_hidden_layers": self.transformer_layers,
                "num_attention_heads": self.transformer_heads,
                "max_position_embeddings": self.context_length,
                "projection_dim": self.embed_dim,
                "hidden_act": "quick_gelu",
                "pad_token_id": PAD_ID,
                "bos_token_id": BEGIN_ID,
                "eos_token_id": END_ID,
            },
            vision_config={
                "hidden_size": self.vision_width,
                "intermediate_size": 4 * self.vision_width,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_width // _HEAD_WIDTH,
                "image_size": self.image_resolution,
                "patch_size": self.vision_patch_size,
                "projection_dim": self.embed_dim,
                "hidden_act": "quick_gelu",
            },
            projection_dim=self.embed_dim,
        )


class Marker(BaseModel):
    """`ruclip.json` of a converted checkpoint.

    Attributes:
        format: number of this layout.
        size_px: side of the square the image tower takes.
        mean: of the pixels; likewise `std`.
        max_tokens: of a window of text.
        sha256: of the weights, the tokenizer and the configuration.
        source: file of the checkpoint -> its size in bytes and the time of its last change in ns.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    format: int
    size_px: PositiveInt
    mean: Rgb
    std: RgbSpread
    max_tokens: PositiveInt
    sha256: dict[str, str]
    source: dict[str, tuple[int, int]] = {}


def load(name: str = "ruclip-vit-base-patch16-384", cache_dir: str | Path | None = None) -> Path:
    """Fetches a ruCLIP model, unless it is there, and converts it.

    Args:
        name: one of `RUCLIP_MODELS`.
        cache_dir: the model lies, or will lie, in `<cache_dir>/<name>`; `None`: in the cache of the hub.

    Returns:
        The folder of the checkpoint.

    Raises:
        DataError: there is no such model.
        ArtifactError: it is not on this machine and cannot be fetched, or what is there is damaged.
    """
    folder = fetch(name, cache_dir)
    with converted(folder):
        return folder


def fetch(name: str, cache_dir: str | Path | None = None) -> Path:
    """Returns the folder of a ruCLIP model, fetched if need be; arguments and errors as in `load`."""
    if name not in RUCLIP_MODELS:
        raise DataError(f"there is no ruCLIP model {name!r}: {nearest(name, RUCLIP_MODELS)}")
    folder = None if cache_dir is None else Path(cache_dir) / name
    if folder is not None and is_checkpoint(folder):
        return folder
    repository = f"ai-forever/{name}"
    folder = fetch_repository(repository, FILES, folder)
    if missing := [file for file in FILES if not (folder / file).is_file()]:  # fetched in part, and offline now
        raise unfetched(repository, f"of its files are missing: {culprits(missing)}")
    return folder


def forget(name: str, cache_dir: str | Path | None = None) -> None:
    """Deletes a fetched ruCLIP model, if it is there; arguments as in `load`."""
    if cache_dir is not None:
        shutil.rmtree(Path(cache_dir) / name, ignore_errors=True)
        return
    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return
    revisions = [r.commit_hash for repo in cache.repos if repo.repo_id == f"ai-forever/{name}" for r in repo.revisions]
    cache.delete_revisions(*revisions).execute()


def is_checkpoint(folder: Path) -> bool:
    """Says whether a folder holds a ruCLIP checkpoint."""
    return all((folder / name).is_file() for name in FILES)


@contextmanager
def converted(folder: Path) -> Iterator[tuple[Path, Marker]]:
    """Gives the converted form of a checkpoint and what it says of itself, for as long as the context lasts.

    Raises:
        ArtifactError: the checkpoint is damaged or foreign.
    """
    target = folder / _CONVERTED
    if os.access(folder, os.W_OK):
        with FileLock(folder / f".{_CONVERTED}.lock"):  # of several processes one converts, the others wait
            marker = _current(folder, target)
            if marker is None:
                logger.info("converting %s", folder)
                with replacing_folder(target) as new:
                    marker = _convert(folder, new)
        yield target, marker
        return
    if (marker := _current(folder, target)) is not None:
        yield target, marker
        return
    logger.info("%s cannot be written to: its conversion is not kept", folder)
    with tempfile.TemporaryDirectory(prefix="ruclip.") as temporary:
        yield Path(temporary), _convert(folder, Path(temporary))


def read_marker(folder: Path) -> Marker:
    """Reads what a converted checkpoint says of itself, and checks that its files are those it speaks of.

    Raises:
        ArtifactError: the folder is no converted checkpoint, or was changed.
    """
    try:
        marker = Marker.model_validate_json((folder / MARKER).read_bytes())
        if marker.format > FORMAT:
            raise ArtifactError(f"{folder} has format {marker.format}, this version reads {FORMAT}: upgrade")
        wrong = [name for name in _CONVERTED_FILES if sha256_of(folder / name) != marker.sha256.get(name)]
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{folder} is not a converted ruCLIP checkpoint ({error}): convert it anew") from error
    if wrong:
        raise ArtifactError(f"{culprits(wrong)} of {folder} was changed after it was written: delete the folder")
    return marker


def write_marker(folder: Path, marker: Marker) -> Marker:
    """Writes `ruclip.json`, with the sha256 of the files that lie beside it, and returns it."""
    known = marker.model_copy(update={"sha256": {name: sha256_of(folder / name) for name in _CONVERTED_FILES}})
    (folder / MARKER).write_text(known.model_dump_json(indent=1), encoding="utf-8")
    return known


def _source(folder: Path) -> dict[str, tuple[int, int]]:
    return {name: ((folder / name).stat().st_size, (folder / name).stat().st_mtime_ns) for name in FILES}


def _current(folder: Path, target: Path) -> Marker | None:
    """Returns the marker of an earlier conversion, unless there is none, it is damaged, or the checkpoint changed."""
    if not target.exists():
        return None
    try:
        marker = read_marker(target)
    except ArtifactError as error:
        logger.warning("%s is converted again: %s", folder, error)
        return None
    return marker if marker.source == _source(folder) else None


def _convert(folder: Path, target: Path) -> Marker:
    try:
        config = _Config.model_validate_json((folder / "config.json").read_bytes())
        of_transformers = config.of_transformers()
        with torch.device("meta"):
            expected = {name: weight.shape for name, weight in CLIPModel(of_transformers).state_dict().items()}
    except (OSError, ValidationError, StrictDataclassError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder / 'config.json'} is not the configuration of a ruCLIP model: {error}") from error
    tokenizer = read_bpe(folder / "bpe.model")
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        found = f"bpe.model has ids up to {largest}, config.json {config.vocab_size} tokens"
        raise ArtifactError(f"the files of {folder} do not belong together: {found}")
    weights = _renamed(_read_weights(folder / "pytorch_model.bin"))
    wrong = [
        f"{name} {tuple(weights[name].shape) if name in weights else 'missing'}"
        for name, shape in expected.items()
        if name not in weights or weights[name].shape != shape
    ] + [f"{name} is too many" for name in weights if name not in expected]
    if wrong:
        raise ArtifactError(
            f"the weights of {folder} must have the shapes its config.json calls for: {culprits(wrong)}"
        )
    parts = {name: weight.float().clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}
    save_file(parts, target / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(target / "tokenizer.json"))
    shutil.copymode(target / "tokenizer.json", target / "model.safetensors")  # safetensors lets only the owner read
    of_transformers.architectures = ["CLIPModel"]
    of_transformers.save_pretrained(target)
    marker = Marker(
        format=FORMAT,
        size_px=config.image_resolution,
        mean=config.mean or _MEAN,
        std=config.std or _STD,
        max_tokens=config.context_length,
        sha256={},
        source=_source(folder),
    )
    return write_marker(target, marker)


def _read_weights(path: Path) -> Weights:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on hostile bytes torch.load lets almost any exception out
        reason = (str(error) or type(error).__name__).split("\n", 1)[0]
        raise ArtifactError(f"{path} is damaged, or holds more than weights ({reason}): fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise ArtifactError(f"{path} must hold named weights and nothing else, found a {type(state).__name__}")
    if wrong := [name for name, weight in state.items() if not (isinstance(name, str) and _is_plain(weight))]:
        raise ArtifactError(
            f"weights must have names, and be dense, real and finite, those of {path} are otherwise: "
            f"{culprits(wrong)}: fetch it again"
        )
    return state


def _is_plain(weight: Tensor) -> bool:
    """Says whether a tensor holds a finite number of its own for each place: a view may repeat few bytes endlessly."""
    return (
        weight.dtype in _REAL
        and weight.device.type == "cpu"
        and weight.layout == torch.strided
        and not weight.is_nested
        and weight.untyped_storage().nbytes() >= weight.numel() * weight.element_size()
        and bool(weight.float().isfinite().all())
    )


_RENAMED = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
)


def _renamed(state: Weights) -> Weights:
    """Returns the weights of ruCLIP under the names of `transformers.CLIPModel`."""
    weights: Weights = {}
    for name, weight in state.items():
        new = name
        for pattern, replacement in _RENAMED:
            new = re.sub(pattern, replacement, new)
        if ".in_proj_" in new and weight.ndim and len(weight) % 3 == 0:
            for part, share in zip("qkv", weight.chunk(3), strict=True):
                weights[new.replace(".in_proj_", f".{part}_proj.")] = share
        else:
            is_transposed = new in ("visual_projection.weight", "text_projection.weight") and weight.ndim == 2
            weights[new] = weight.T if is_transposed else weight
    return weights
