"""From raw text and image to vectors.

`load_encoder` is the one door; every encoder behind it follows the `Encoder` protocol.
"""

from collections.abc import Mapping

from product_classificator.encoders.base import Encoder, cores
from product_classificator.errors import DataError, nearest

__all__ = ["ENCODERS", "Encoder", "cores", "load_encoder"]

ENCODERS: Mapping[str, str] = {
    "lite": "embedded default: EfficientNet-Lite0 (1280-d) and multilingual USE v3 (512-d), offline, CPU",
}
"""Name -> what it is, of the encoders that `load_encoder` knows."""


def load_encoder(name: str = "lite", *, device: str = "cpu", threads: int | None = None) -> Encoder:
    """Loads an encoder by name.

    Args:
        name: one of `ENCODERS`.
        device: where it computes; `lite` computes on the CPU.
        threads: CPU threads; `None`: the cores this process may use.

    Raises:
        DataError: there is no such encoder, or it does not run on `device`.
    """
    if name != "lite":
        raise DataError(f"there is no encoder {name!r}: {nearest(name, ENCODERS)}")
    if device != "cpu":
        raise DataError(f"the encoder 'lite' computes on the CPU, got device {device!r}: leave device out")
    # Imported here: torch costs seconds, and listing the encoders needs none of it.
    from product_classificator.encoders.lite import LiteEncoder

    return LiteEncoder(threads=threads)
