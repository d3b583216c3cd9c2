"""Writes a CLIP-like encoder with other weights as a folder that `load_encoder` and transformers read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from product_classificator.encoders.base import Encoder
from product_classificator.encoders.checkpoint import FORMAT, Marker, write_marker
from product_classificator.encoders.clip import clip_towers
from product_classificator.encoders.preprocessing import SquarePreparation, TokenPreparation
from product_classificator.encoders.spec import EncoderSpec
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import DataError
from product_classificator.files import replacing_folder


def save_encoder(encoder: Encoder, weights: Mapping[str, Tensor], folder: Path) -> str:
    """Writes an encoder with some of its weights replaced.

    Args:
        encoder: a CLIP-like encoder that computes with PyTorch; it is not changed.
        weights: parameters of its model by name.
        folder: takes the place of an older one.

    Returns:
        The name to give to `load_encoder`, with the options of `encoder`.

    Raises:
        DataError: the encoder is not CLIP-like, or its weights cannot be replaced.
    """
    image, text = clip_towers(encoder)
    model = torch_network_of(encoder).model
    unknown = set(weights) - set(model.state_dict())
    if unknown:
        raise DataError(f"weights replace those of the model, it has no {sorted(unknown)}")
    state = {
        name: weight.float().cpu().contiguous().clone() for name, weight in {**model.state_dict(), **weights}.items()
    }
    with replacing_folder(folder) as new:
        save_file(state, new / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(new)
        images, texts = image.preparation, text.preparation
        if isinstance(images, SquarePreparation) and isinstance(texts, TokenPreparation):
            texts.tokenizer.save(str(new / "tokenizer.json"))
            marker = Marker(
                format=FORMAT,
                size_px=images.size_px,
                mean=images.mean,
                std=images.std,
                max_tokens=texts.max_tokens,
                sha256={},
            )
            write_marker(new, marker)
        else:
            images.save(new)
            texts.save(new)
    spec = EncoderSpec.parse(encoder.name)
    return str(replace(spec, base=str(folder.resolve())))
