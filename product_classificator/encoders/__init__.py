"""From raw texts and images to vectors: `load_encoder` opens every encoder by name, an `Encoder` is two towers."""

from dataclasses import replace
from pathlib import Path

from product_classificator.encoders.base import (
    ENCODERS,
    OPTIONS,
    RUCLIP_MODELS,
    CleanedTexts,
    Dtype,
    Encoder,
    EncoderSpec,
    check_dtype,
    cores,
    embed_labels,
    is_exported,
)
from product_classificator.errors import DataError

__all__ = ["ENCODERS", "OPTIONS", "RUCLIP_MODELS", "Encoder", "EncoderSpec", "cores", "embed_labels", "load_encoder"]


def load_encoder(
    name: str = "lite",
    *,
    device: str = "cpu",
    dtype: Dtype = "auto",
    threads: int | None = None,
    cache_dir: str | Path | None = None,
) -> Encoder:
    """Load an encoder by name.

    Args:
        name: one of `ENCODERS`, followed by any of `OPTIONS`; or the folder of an export.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the GPU where there is one; `lite` uses the CPU.
        dtype: number format: "float32", "bfloat16", "float16", "int8" (CPU), or "auto": bfloat16 on CUDA; on the CPU
            the fastest its instruction set allows, if the first vectors agree with those of float32 (cosine 0.99).
        threads: CPU threads; `None`: the cores this process may use.
        cache_dir: where a ruCLIP model lies, or is fetched to, in a folder of its name; `None`: the hub's cache.

    Raises:
        DataError: there is no such encoder, option, device or number format.
        ArtifactError: the weights are not on this machine and cannot be fetched, or are damaged.
        MissingExtraError: a text encoder needs an extra that is not installed.
    """
    # Each family imports its libraries only here: torch costs seconds, which `lite` and exports do without.
    spec = EncoderSpec.parse(name)
    check_dtype(dtype)
    if is_exported(Path(name)):
        from product_classificator.encoders.onnx import load_exported

        if dtype not in ("auto", "float32"):
            raise DataError(f"exported encoders compute in float32, got dtype {dtype!r}: leave it out")
        return load_exported(Path(name), device, threads)
    if spec.base == "lite":
        encoder = _load_lite(spec, device, threads)
    else:
        from product_classificator.encoders.ruclip import load_clip

        encoder = load_clip(spec, device, dtype, threads, cache_dir)
        spec = replace(spec, base=EncoderSpec.parse(encoder.name).base)
    text = encoder.text
    if spec.text_encoder:
        from product_classificator.encoders.sentence import load_sentence_encoder

        text = load_sentence_encoder(spec.text_encoder, device=device, dtype=dtype, threads=threads)
        if Path(spec.text_encoder).is_dir():
            spec = replace(spec, text_encoder=str(Path(spec.text_encoder).resolve()))
    shares_space = encoder.shares_space and not spec.text_encoder
    return Encoder(str(spec), encoder.image, CleanedTexts(text) if spec.clean else text, shares_space)


def _load_lite(spec: EncoderSpec, device: str, threads: int | None) -> Encoder:
    if device not in ("cpu", "auto") and not spec.text_encoder:
        raise DataError(f"the encoder 'lite' computes on the CPU, got device {device!r}: leave device out")
    if spec.letterbox or spec.windows:
        raise DataError(f"the encoder 'lite' pads photos and reads long texts already, got {str(spec)!r}: leave it out")
    from product_classificator.encoders.lite import load_lite

    return load_lite(threads)
