"""What may be written for the name of an encoder, taken apart.

    <encoder>[+letterbox][+windows][+clean][+st:<text encoder>]

`<encoder>` is `lite`, one of the six ruCLIP models, a folder with a checkpoint, or `hf:<repository or folder>`. The
options change how photos and texts are prepared, and so the vectors: they are part of the name, which stands in runs
and stores, so that training and use cannot differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from product_classificator.errors import DataError

RUCLIP_MODELS = (
    "ruclip-vit-base-patch32-224",
    "ruclip-vit-base-patch16-224",
    "ruclip-vit-large-patch14-224",
    "ruclip-vit-base-patch32-384",
    "ruclip-vit-large-patch14-336",
    "ruclip-vit-base-patch16-384",
)
"""The published ruCLIP models (Sber AI, 2022), the fastest first."""

ENCODERS: Mapping[str, str] = {
    "lite": "embedded default: EfficientNet-Lite0 and colours (1872-d), multilingual USE v3 (512-d), offline, CPU",
    **dict.fromkeys(RUCLIP_MODELS, "ruCLIP, fetched from the hub at first use"),
    "<folder>": "a ruCLIP checkpoint (bpe.model, config.json, pytorch_model.bin), or what training left of one",
    "hf:<repository or folder>": "any CLIP-like model of transformers (CLIP, SigLIP, Chinese-CLIP, AltCLIP, ...)",
}
"""What `load_encoder` takes -> what it is."""

OPTIONS: Mapping[str, str] = {
    "+letterbox": "photos are padded to a square instead of cropped (ruCLIP, hf:)",
    "+windows": "long texts are read in several windows, averaged (ruCLIP, hf:)",
    "+clean": "texts are cleaned as in the published system",
    "+st:<repository or folder>": "texts go through a model of sentence-transformers instead",
}
"""What may follow the name of an encoder -> what it does."""

_SWITCHES = ("+letterbox", "+windows", "+clean")


EXPORTED = "encoder.json"
"""The file that makes a folder an exported encoder."""


def is_exported(folder: Path) -> bool:
    """Return whether a folder holds an exported encoder."""
    return (folder / EXPORTED).is_file()


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder's name, taken apart.

    Attributes:
        base: the encoder without options.
        letterbox: photos are padded, not cropped.
        windows: long texts are read in windows.
        clean: texts are cleaned as published.
        text_encoder: repository or folder of a text encoder of its own.
    """

    base: str
    letterbox: bool = False
    windows: bool = False
    clean: bool = False
    text_encoder: str | None = None

    @classmethod
    def parse(cls, name: str) -> "EncoderSpec":
        """Takes a name apart.

        >>> EncoderSpec.parse("ruclip-vit-base-patch32-224+windows").windows
        True

        Raises:
            DataError: nothing stands before the options, or an option stands twice.
        """
        base, mark, text_encoder = name.partition("+st:")
        found: set[str] = set()
        while option := next((option for option in _SWITCHES if base.endswith(option)), None):
            if option in found:
                raise DataError(f"an option of an encoder is given once, found {option!r} twice in {name!r}")
            found.add(option)
            base = base.removesuffix(option)
        if not base or (mark and not text_encoder):
            raise DataError(f"an encoder is written <encoder>{''.join(f'[{o}]' for o in OPTIONS)}, got {name!r}")
        return cls(base, "+letterbox" in found, "+windows" in found, "+clean" in found, text_encoder or None)

    def __str__(self) -> str:
        options = [option for option in _SWITCHES if getattr(self, option.removeprefix("+"))]
        return "".join([self.base, *options, *([f"+st:{self.text_encoder}"] if self.text_encoder else [])])
