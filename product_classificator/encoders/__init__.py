"""From raw texts and images to vectors: `load_encoder` opens every encoder by name, an `Encoder` is two towers."""

import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

from product_classificator.encoders.base import (
    ENCODERS,
    OPTIONS,
    RUCLIP_MODELS,
    CleanedTexts,
    Dtype,
    Encoder,
    EncoderSpec,
    ImageTower,
    PairTower,
    TextTower,
    cores,
    embed_labels,
    is_exported,
)
from product_classificator.errors import ArtifactError, DataError, nearest

__all__ = [
    "ENCODERS",
    "OPTIONS",
    "RUCLIP_MODELS",
    "Encoder",
    "EncoderSpec",
    "PairTower",
    "cores",
    "embed_labels",
    "load_encoder",
]


def load_encoder(
    name: str = "lite",
    *,
    device: str = "cpu",
    dtype: Dtype = "auto",
    cache_dir: str | Path | None = None,
    threads: int | None = None,
) -> Encoder:
    """Load an encoder by name.

    Args:
        name: one of `ENCODERS`, followed by any of `OPTIONS`; or the folder of an export.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the GPU where there is one; `lite` uses the CPU.
        dtype: number format; int8 is for the CPU; "auto" is bfloat16 on CUDA, on the CPU the fastest its instruction
            set allows, if the first vectors agree with those of float32 (cosine 0.99).
        cache_dir: where a ruCLIP model lies, or is fetched to, in a folder of its name; `None`: the hub's cache.
        threads: CPU threads; `None`: the cores this process may use.

    Raises:
        DataError: there is no such encoder, option, device or number format, or there are fewer cores than threads.
        ArtifactError: the weights are not on this machine and cannot be fetched, or are damaged.
        MissingExtraError: a text encoder needs an extra that is not installed.
    """
    # Each family imports its libraries only here: torch costs seconds, which `lite` and exports do without.
    spec = EncoderSpec.parse(name)
    if dtype not in get_args(Dtype):
        raise DataError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")
    if threads is not None and not 1 <= threads <= cores():
        raise DataError(f"threads must lie between 1 and the {cores()} cores (more slow it down), got {threads}")
    threads = threads or cores()
    if is_exported(Path(name)):
        from product_classificator.encoders.onnx import load_exported

        if dtype not in ("auto", "float32"):
            raise DataError(f"exported encoders compute in float32, got dtype {dtype!r}: leave it out")
        return load_exported(Path(name), device, threads)
    if spec.base == "lite":
        from product_classificator.encoders.lite import load_lite

        if device not in ("cpu", "auto") and not spec.text_encoder:
            raise DataError(f"the encoder {name!r} computes on the CPU, got device {device!r}: leave device out")
        if spec.letterbox or spec.windows:
            raise DataError(f"the encoder 'lite' pads photos and reads long texts already, got {name!r}: leave it out")
        image, text = load_lite(threads)
    else:
        spec, image, text = _load_clip(spec, cache_dir, device, dtype, threads)
        if device != "cpu":
            from product_classificator.encoders.gpu import on_gpu

            image = on_gpu(image)
    shares_space = spec.base != "lite"
    if spec.e5 or spec.text_encoder:
        shares_space, (spec, text) = False, _load_texts(spec, device, dtype, threads)
    return Encoder(str(spec), image, CleanedTexts(text) if spec.clean else text, shares_space)


def _load_texts(spec: EncoderSpec, device: str, dtype: Dtype, threads: int) -> tuple[EncoderSpec, TextTower]:
    """Load the text tower of an option; the spec that comes back names folders by their absolute path."""
    if spec.text_encoder is None:
        from product_classificator.encoders.clip import ClipTexts
        from product_classificator.encoders.e5 import read_e5
        from product_classificator.encoders.onnx import OnnxNetwork

        fingerprint, network, preparation = read_e5()
        return spec, ClipTexts(fingerprint, OnnxNetwork("text", network, "cpu", threads), preparation)
    from product_classificator.encoders.huggingface import load_sentence_texts

    if Path(spec.text_encoder).is_dir():
        spec = replace(spec, text_encoder=str(Path(spec.text_encoder).resolve()))
    return spec, load_sentence_texts(str(spec.text_encoder), device, dtype, threads)


def _load_clip(
    spec: EncoderSpec, cache_dir: str | Path | None, device: str, dtype: Dtype, threads: int
) -> tuple[EncoderSpec, ImageTower, TextTower]:
    """Load the towers of a CLIP-like encoder; the spec that comes back names folders by their absolute path."""
    from product_classificator.encoders.huggingface import fetch_model, load_hub_clip
    from product_classificator.encoders.ruclip import RUCLIP_FILES, fetch_ruclip, is_ruclip, load_ruclip
    from product_classificator.encoders.torch_clip import Compute

    compute = Compute(device, dtype, threads)
    prefix = "hf:" if spec.base.startswith("hf:") else ""
    if not (name := spec.base.removeprefix(prefix)):
        raise DataError(f"hf: is followed by a repository of the hub or a folder, got {str(spec)!r}")
    if name in RUCLIP_MODELS and not prefix:
        folder, is_name = fetch_ruclip(name, cache_dir), cache_dir is None
    elif Path(name).is_dir():
        folder, is_name = Path(name), False
    elif prefix:
        folder, is_name = fetch_model(name), True
    else:
        raise DataError(
            f"there is no encoder {name!r}, nor a folder of that name (if it has moved, say where it is now: "
            f"--encoder, model_name): {nearest(name, ENCODERS)}"
        )
    if not is_name:
        spec = replace(spec, base=prefix + os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
    if is_ruclip(folder):
        return spec, *load_ruclip(folder, spec, compute)
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"an encoder's folder holds {', '.join(RUCLIP_FILES)}, or a model of transformers: {folder} holds neither"
        )
    return spec, *load_hub_clip(folder, spec, compute)
