"""ruCLIP models: fetch, load, and save them fine-tuned.

Preparation is that of the published system unless the name has options; it is part of the fingerprint. Device and
number format are not: they change vectors by rounding only.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel

from product_classificator.encoders.base import ENCODERS, RUCLIP_MODELS, Dtype, Encoder, EncoderSpec
from product_classificator.encoders.checkpoint import FILES, PAD_ID, Rgb, RgbSpread, read_checkpoint
from product_classificator.encoders.clip import ClipImages, ClipTexts, clip_towers
from product_classificator.encoders.huggingface import fetch_repository, open_hub_model, quiet_loading, unfetched
from product_classificator.encoders.preprocessing import MAX_WINDOWS, SquarePreparation, TokenPreparation
from product_classificator.encoders.torch_clip import Compute, TorchNetwork, load_hub_model, torch_network_of
from product_classificator.errors import ArtifactError, DataError, culprits, nearest
from product_classificator.files import replacing_folder, sha256_of

logger = logging.getLogger(__name__)

MARKER = "ruclip.json"
_CONVERTED = "converted"
_CONVERTED_FILES = ("model.safetensors", "tokenizer.json", "config.json")
FORMAT = 1
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Marker(BaseModel):
    """`ruclip.json` of a converted checkpoint.

    Attributes:
        format: number of this layout.
        size_px: side of the square that the image tower takes.
        mean: of the pixels, red, green and blue, as shares of 255; likewise `std`.
        max_tokens: of a text window.
        sha256: of weights, tokenizer and configuration.
        source: file of the checkpoint -> its size in bytes and modification time in ns.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    format: int
    size_px: PositiveInt
    mean: Rgb
    std: RgbSpread
    max_tokens: PositiveInt
    sha256: dict[str, str]
    source: dict[str, tuple[int, int]] = {}


def load_clip(
    spec: EncoderSpec, device: str, dtype: Dtype, threads: int | None, cache_dir: str | Path | None
) -> Encoder:
    """Load any CLIP-like encoder, without its `+clean` and `+st:`; arguments and errors as in `load_encoder`.

    Returns:
        The encoder, named with the absolute path of its folder.
    """
    compute = Compute(device, dtype, threads)
    if spec.base in RUCLIP_MODELS:
        folder = fetch(spec.base, cache_dir)
        if cache_dir is not None:  # the name alone would lead to the cache of the hub
            spec = replace(spec, base=os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
        return load_ruclip(folder, spec, compute)
    if spec.base.startswith("hf:"):
        folder, spec = open_hub_model(spec)
        return load_hub_model(folder, spec, compute)
    folder = Path(spec.base)
    if not folder.is_dir():
        raise DataError(
            f"there is no encoder {spec.base!r}, nor a folder of that name (if it has moved, say where it is now: "
            f"--encoder, model_name): {nearest(spec.base, ENCODERS)}"
        )
    spec = replace(spec, base=os.path.abspath(folder))  # noqa: PTH100
    if is_checkpoint(folder) or (folder / MARKER).is_file():
        return load_ruclip(folder, spec, compute)
    if (folder / "config.json").is_file():
        return load_hub_model(folder, spec, compute)
    raise ArtifactError(
        f"an encoder's folder holds {', '.join(FILES)}, or a model of transformers: {folder} holds neither"
    )


def load_ruclip(folder: Path, spec: EncoderSpec, compute: Compute) -> Encoder:
    """Load a ruCLIP checkpoint, converted or not.

    Raises:
        ArtifactError: the checkpoint is damaged or of another kind.
    """
    if (folder / MARKER).is_file():
        return _load_converted(folder, read_marker(folder), spec, compute)
    with converted(folder) as (ready, marker):
        return _load_converted(ready, marker, spec, compute)


def _load_converted(folder: Path, marker: Marker, spec: EncoderSpec, compute: Compute) -> Encoder:
    images = SquarePreparation(marker.size_px, marker.mean, marker.std, "letterbox" if spec.letterbox else "crop")
    max_windows = MAX_WINDOWS if spec.windows else 1
    texts = TokenPreparation.load(folder, pad_id=PAD_ID, max_tokens=marker.max_tokens, max_windows=max_windows)
    identity = repr((sorted(marker.sha256.items()), images, str(texts)))
    fingerprint = f"ruclip-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}"
    with quiet_loading():
        model = CLIPModel.from_pretrained(folder, dtype=compute.load_dtype)
    network = TorchNetwork(model, model.config.projection_dim, compute)
    image, text = ClipImages(fingerprint, network, images), ClipTexts(fingerprint, network, texts)
    return Encoder(str(spec), image, text, shares_space=True)


def load(name: str = "ruclip-vit-base-patch16-384", cache_dir: str | Path | None = None) -> Path:
    """Fetch a ruCLIP model, unless it is there, and convert it.

    Args:
        name: one of `RUCLIP_MODELS`.
        cache_dir: the model lies in `<cache_dir>/<name>`; `None`: in the cache of the hub.

    Returns:
        The folder of the checkpoint.

    Raises:
        DataError: there is no such model.
        ArtifactError: it is not on this machine and cannot be fetched, or it is damaged.
    """
    folder = fetch(name, cache_dir)
    with converted(folder):
        return folder


def fetch(name: str, cache_dir: str | Path | None = None) -> Path:
    """Return the folder of a ruCLIP model, fetching it if need be; arguments and errors as in `load`."""
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


def delete_model(name: str, cache_dir: str | Path | None = None) -> None:
    """Delete a fetched ruCLIP model, if it is there; arguments as in `load`."""
    if cache_dir is not None:
        shutil.rmtree(Path(cache_dir) / name, ignore_errors=True)
        return
    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return
    revisions = [r.commit_hash for repo in cache.repos if repo.repo_id == f"ai-forever/{name}" for r in repo.revisions]
    cache.delete_revisions(*revisions).execute()


def save_encoder(encoder: Encoder, weights: Mapping[str, Tensor], folder: Path) -> str:
    """Write a CLIP-like encoder, with some weights replaced, as a folder that `load_encoder` and transformers read.

    Args:
        encoder: computes with PyTorch; it is not changed.
        weights: parameters of its model by name.
        folder: takes the place of an older one.

    Returns:
        The name to give to `load_encoder`, with the options of `encoder`.

    Raises:
        DataError: the encoder is not CLIP-like, or its model has no such weights.
    """
    image, text = (tower.preparation for tower in clip_towers(encoder))
    model = torch_network_of(encoder).model
    unknown = set(weights) - set(model.state_dict())
    if unknown:
        raise DataError(f"weights replace those of the model, it has no {sorted(unknown)}")
    state = {**model.state_dict(), **weights}
    with replacing_folder(folder) as new:
        parts = {name: weight.float().cpu().contiguous().clone() for name, weight in state.items()}
        save_file(parts, new / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(new)
        shutil.copymode(new / "config.json", new / "model.safetensors")  # safetensors lets only the owner read
        image.save(new)
        _, limits = text.save(new)
        if isinstance(image, SquarePreparation):
            marker = Marker(
                format=FORMAT,
                size_px=image.size_px,
                mean=image.mean,
                std=image.std,
                max_tokens=limits["max_tokens"],
                sha256={},
            )
            write_marker(new, marker)
    return str(replace(EncoderSpec.parse(encoder.name), base=str(folder.resolve())))


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds a ruCLIP checkpoint."""
    return all((folder / name).is_file() for name in FILES)


@contextmanager
def converted(folder: Path) -> Iterator[tuple[Path, Marker]]:
    """Yield the folder of a converted checkpoint and its marker, valid within the context.

    Raises:
        ArtifactError: the checkpoint is damaged or foreign.
    """
    target = folder / _CONVERTED
    is_writable = os.access(folder, os.W_OK)
    with (
        FileLock(folder / f".{_CONVERTED}.lock") if is_writable else nullcontext()
    ):  # one process converts, others wait
        marker = _current(folder, target)
        if marker is None and is_writable:
            logger.info("converting %s", folder)
            with replacing_folder(target) as new:
                marker = _convert(folder, new)
    if marker is not None:
        yield target, marker
        return
    logger.info("%s is read-only: its conversion is not kept", folder)
    with tempfile.TemporaryDirectory(prefix="ruclip.") as temporary:
        yield Path(temporary), _convert(folder, Path(temporary))


def read_marker(folder: Path) -> Marker:
    """Read the marker of a converted checkpoint, and check the files against it.

    Raises:
        ArtifactError: the folder is not a converted checkpoint, or was changed.
    """
    try:
        marker = Marker.model_validate_json((folder / MARKER).read_bytes())
        if marker.format > FORMAT:
            raise ArtifactError(f"{folder} has format {marker.format}, this version reads {FORMAT}: upgrade")
        wrong = [name for name in _CONVERTED_FILES if sha256_of(folder / name) != marker.sha256.get(name)]
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{folder} is not a converted ruCLIP checkpoint ({error}): delete the folder") from error
    if wrong:
        raise ArtifactError(f"{culprits(wrong)} of {folder} was changed after it was written: delete the folder")
    return marker


def write_marker(folder: Path, marker: Marker) -> Marker:
    """Write `ruclip.json` with the sha256 of the files next to it, and return it."""
    complete = marker.model_copy(update={"sha256": {name: sha256_of(folder / name) for name in _CONVERTED_FILES}})
    (folder / MARKER).write_text(complete.model_dump_json(indent=1), encoding="utf-8")
    return complete


def _source(folder: Path) -> dict[str, tuple[int, int]]:
    return {name: ((folder / name).stat().st_size, (folder / name).stat().st_mtime_ns) for name in FILES}


def _current(folder: Path, target: Path) -> Marker | None:
    """Return the marker of an earlier conversion; `None` if it is missing, damaged, or older than the checkpoint."""
    if not target.exists():
        return None
    try:
        marker = read_marker(target)
    except ArtifactError as error:
        logger.warning("%s is converted again: %s", folder, error)
        return None
    return marker if marker.source == _source(folder) else None


def _convert(folder: Path, target: Path) -> Marker:
    config, tokenizer, weights = read_checkpoint(folder)
    parts = {name: weight.float().clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}
    save_file(parts, target / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(target / "tokenizer.json"))
    # safetensors makes its file readable for the owner only
    shutil.copymode(target / "tokenizer.json", target / "model.safetensors")
    model_config = config.of_transformers()
    model_config.architectures = ["CLIPModel"]
    model_config.save_pretrained(target)
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
