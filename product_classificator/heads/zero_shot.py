"""Make heads from the names of labels, without any training: the label nearest to the product wins.

The text part of a product is compared with the embeddings of the labels, and so is the image part where the encoder has
one space for both. A new label needs no products, but a label whose name says little is predicted poorly.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from product_classificator.errors import DataError, culprits
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.bundle import HeadBundle
from product_classificator.heads.calibration import Characteristic
from product_classificator.heads.network import Network, NetworkShape
from product_classificator.types import Floats

SCALE = 30.0
"""Factor of cosines: chosen among 20, 30 and 40 on validation products; learning it did not pay."""


def zero_shot_heads(
    labels: Mapping[str, Sequence[str]],
    vectors: Mapping[str, Floats],
    *,
    encoder_name: str,
    encoder_fingerprint: str,
    shares_space: bool,
) -> HeadBundle:
    """Make heads that compare products with the embeddings of labels.

    Args:
        labels: characteristic -> its labels, two or more, each once.
        vectors: characteristic -> (labels, dim) unit rows, the encoder's embeddings of the labels.
        encoder_name: name for `load_encoder`.
        encoder_fingerprint: only embeddings of this encoder can be judged.
        shares_space: whether image part and text part lie in one space; if not, images are not used.

    Raises:
        DataError: labels are too few or repeated, or vectors do not fit them.
    """
    if not labels:
        raise DataError("zero-shot heads need a characteristic with labels, got none")
    dim = next((rows.shape[-1] for rows in vectors.values()), 0)
    for name, names in labels.items():
        if isinstance(names, str) or len(names) < 2 or len(set(names)) != len(names):
            shown = repr(names) if isinstance(names, str) else culprits(names)
            raise DataError(f"{name} needs two labels or more, each once, got {shown}")
        found = vectors[name].shape if name in vectors else None
        if found != (len(names), dim) or not np.isfinite(vectors[name]).all():
            raise DataError(f"{name} needs finite vectors of shape {(len(names), dim)} for its labels, got {found}")
    n_labels = tuple(len(names) for names in labels.values())
    shape = NetworkShape(dim if shares_space else 0, dim, n_labels, hidden=0, label_dim=dim, shares_space=shares_space)
    weights = {name: np.zeros(size, dtype=np.float32) for name, size in shape.weights().items()}
    weights["scale"] += 1
    weights["label_embeddings"] = SCALE * np.concatenate([vectors[name] for name in labels]).astype(np.float32)
    return HeadBundle(
        characteristics=tuple(Characteristic(name, tuple(names)) for name, names in labels.items()),
        network=Network(shape, weights),
        vocabulary=Vocabulary(),
        encoder_name=encoder_name,
        encoder_fingerprint=encoder_fingerprint,
        facts={"source": "zero-shot"},
    )
