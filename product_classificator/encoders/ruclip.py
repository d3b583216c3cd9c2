"""A converted ruCLIP checkpoint as an encoder.

Preparation is that of the published system unless the name asks for another (see `spec`); either way it is part of the
fingerprint. Embeddings of the same weights in bfloat16 (on CUDA) differ from those in float32 by rounding only, so
precision and device are not.
"""

import hashlib
from pathlib import Path

from tokenizers import Tokenizer
from transformers import CLIPModel

from product_classificator.encoders.base import Encoder
from product_classificator.encoders.checkpoint import MARKER, Marker, converted, read_marker
from product_classificator.encoders.clip import ClipImages, ClipTexts
from product_classificator.encoders.huggingface import quiet_loading
from product_classificator.encoders.preprocessing import MAX_WINDOWS, SquarePreparation, TokenPreparation
from product_classificator.encoders.spec import EncoderSpec
from product_classificator.encoders.tokenizer import PAD_ID
from product_classificator.encoders.torch_clip import Compute, TorchNetwork


def load_ruclip(folder: Path, spec: EncoderSpec, compute: Compute) -> Encoder:
    """Loads a ruCLIP checkpoint, converted or not.

    Raises:
        ArtifactError: the checkpoint is damaged or foreign.
    """
    if (folder / MARKER).is_file():
        return _read(folder, read_marker(folder), spec, compute)
    with converted(folder) as (ready, marker):
        return _read(ready, marker, spec, compute)


def _read(folder: Path, marker: Marker, spec: EncoderSpec, compute: Compute) -> Encoder:
    images = SquarePreparation(marker.size_px, marker.mean, marker.std, "letterbox" if spec.letterbox else "crop")
    texts = TokenPreparation(
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        pad_id=PAD_ID,
        max_tokens=marker.max_tokens,
        max_windows=MAX_WINDOWS if spec.windows else 1,
    )
    known = repr((sorted(marker.sha256.items()), images, str(texts)))
    with quiet_loading():
        model = CLIPModel.from_pretrained(folder, dtype=compute.load_dtype)
    network = TorchNetwork(model, model.config.projection_dim, compute)
    fingerprint = f"ruclip-{hashlib.blake2b(known.encode(), digest_size=8).hexdigest()}"
    image, text = ClipImages(fingerprint, network, images), ClipTexts(fingerprint, network, texts)
    return Encoder(str(spec), image, text, shares_space=True)
