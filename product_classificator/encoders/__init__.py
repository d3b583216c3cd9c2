"""From raw text and image to vectors.

`load_encoder` opens every encoder by name; an `Encoder` is an image tower and a text tower.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from product_classificator.encoders.base import CleanedTexts, Dtype, Encoder, check_dtype, cores, embed_labels
from product_classificator.encoders.spec import ENCODERS, OPTIONS, RUCLIP_MODELS, EncoderSpec, is_exported
from product_classificator.errors import ArtifactError, DataError, nearest

if TYPE_CHECKING:
    from product_classificator.encoders.torch_clip import Compute

__all__ = ["ENCODERS", "OPTIONS", "RUCLIP_MODELS", "Encoder", "EncoderSpec", "cores", "embed_labels", "load_encoder"]


def load_encoder(
    name: str = "lite",
    *,
    device: str = "cpu",
    dtype: Dtype = "auto",
    threads: int | None = None,
    cache_dir: str | Path | None = None,
) -> Encoder:
    """Loads an encoder by name.

    Args:
        name: one of `ENCODERS`, with options after it (`OPTIONS`).
        device: where it computes: "cpu", "cuda", "cuda:1", "mps", or "auto" for the GPU where there is one; `lite`
            computes on the CPU.
        dtype: number format: "float32", "bfloat16", "float16", "int8" (CPU), or "auto": bfloat16 on CUDA; on the CPU
            the fastest its instruction set allows, if the first vectors agree with those of float32 (cosine 0.99).
        threads: CPU threads; `None`: the cores this process may use.
        cache_dir: where a ruCLIP model lies, or is fetched to, in a folder of its name; `None`: the hub's cache.

    Raises:
        DataError: there is no such encoder, option, device or number format.
        ArtifactError: the weights are not on this machine and cannot be fetched, or are damaged.
        MissingExtraError: a text encoder is asked for without the extra that it needs.
    """
    spec = EncoderSpec.parse(name)
    check_dtype(dtype)
    # Torch costs seconds, and listing the encoders needs none of it: what needs it is imported late.
    if is_exported(Path(name)):
        if dtype not in ("auto", "float32"):
            raise DataError(f"exported encoders compute in float32, got dtype {dtype!r}: leave it out")
        from product_classificator.encoders.onnx import load_exported

        return load_exported(Path(name), device, threads)
    if spec.base == "lite":
        encoder = _load_lite(spec, device, threads)
    else:
        from product_classificator.encoders.torch_clip import Compute

        spec, encoder = _load_clip(spec, Compute(device, dtype, threads), cache_dir)
    text, shares_space = encoder.text, encoder.shares_space
    if spec.text_encoder:
        from product_classificator.encoders.sentence import load_sentence_encoder

        text, shares_space = (
            load_sentence_encoder(spec.text_encoder, device=device, dtype=dtype, threads=threads),
            False,
        )
        if Path(spec.text_encoder).is_dir():
            spec = replace(spec, text_encoder=str(Path(spec.text_encoder).resolve()))
    return Encoder(str(spec), encoder.image, CleanedTexts(text) if spec.clean else text, shares_space)


def _load_lite(spec: EncoderSpec, device: str, threads: int | None) -> Encoder:
    if device not in ("cpu", "auto") and not spec.text_encoder:
        raise DataError(f"the encoder 'lite' computes on the CPU, got device {device!r}: leave device out")
    if spec.letterbox or spec.windows:
        raise DataError(f"the encoder 'lite' pads photos and reads long texts already, got {str(spec)!r}: leave it out")
    from product_classificator.encoders.lite import load_lite

    return load_lite(threads)


def _load_clip(spec: EncoderSpec, compute: "Compute", cache_dir: str | Path | None) -> tuple[EncoderSpec, Encoder]:
    """Returns the encoder without its `+clean` and `+st:`, and its name with the folder in full."""
    from product_classificator.encoders import checkpoint
    from product_classificator.encoders.ruclip import load_ruclip

    if spec.base in RUCLIP_MODELS:
        folder = checkpoint.fetch(spec.base, cache_dir)
        if cache_dir is not None:  # the name alone would lead to the cache of the hub
            spec = replace(spec, base=os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links to other names
        return spec, load_ruclip(folder, spec, compute)
    if spec.base.startswith("hf:"):
        from product_classificator.encoders.huggingface import open_hub_model
        from product_classificator.encoders.torch_clip import load_hub_model

        folder, spec = open_hub_model(spec)
        return spec, load_hub_model(folder, spec, compute)
    folder = Path(spec.base)
    if not folder.is_dir():
        raise DataError(
            f"there is no encoder {spec.base!r}, nor a folder of that name (if it has moved, say where it is now: "
            f"--encoder, model_name): {nearest(spec.base, ENCODERS)}"
        )
    spec = replace(spec, base=os.path.abspath(folder))  # noqa: PTH100
    if checkpoint.is_checkpoint(folder) or (folder / checkpoint.MARKER).is_file():
        return spec, load_ruclip(folder, spec, compute)
    if (folder / "config.json").is_file():
        from product_classificator.encoders.torch_clip import load_hub_model

        return spec, load_hub_model(folder, spec, compute)
    raise ArtifactError(
        f"an encoder's folder holds {', '.join(checkpoint.FILES)}, or a model of transformers: {folder} holds neither"
    )
