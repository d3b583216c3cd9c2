"""Turns the names of labels into a bundle of heads, without any training: the nearest name wins.

The text part of a product is compared with the vectors of the names, and the photo too where the encoder has one space
for both. Nothing is learned, so a label costs no products; a label whose name says little is told badly. A training
with few products starts from the same scores. The scale stays fixed: learning it did not pay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from product_classificator.errors import DataError, culprits
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.bundle import HeadBundle
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.shape import NetworkShape
from product_classificator.types import Floats, Rows

LabelIds: TypeAlias = npt.NDArray[np.int64]
"""(n, characteristics) number of each product's label, -1 where it is unknown."""

LabelVectors: TypeAlias = Callable[[Sequence[str]], Floats]
"""Turns k names of labels into (k, text_dim) unit rows."""

SCALE = 30.0
"""What cosines are multiplied by: chosen among 20, 30 and 40 on validation products (fashion, `lite`)."""

_FEW_PRODUCTS = 10


def zero_shot_heads(
    labels: Mapping[str, Sequence[str]],
    vectors: Mapping[str, Floats],
    *,
    image_dim: int,
    text_dim: int,
    encoder_name: str,
    encoder_fingerprint: str,
    shares_space: bool,
    scale: float = SCALE,
) -> HeadBundle:
    """Makes heads that compare products with the names of labels.

    Args:
        labels: characteristic -> its names, two or more, each once.
        vectors: characteristic -> (labels, text_dim) unit rows, what the encoder makes of the names.
        image_dim: width of the encoder's image part.
        text_dim: width of its text part.
        encoder_name: what `load_encoder` was asked for.
        encoder_fingerprint: the encoder's.
        shares_space: whether image part and text part lie in one space; if not, photos are not used.
        scale: what cosines are multiplied by; the larger, the surer the probabilities.

    Raises:
        DataError: labels are too few or repeated, or vectors do not belong to them.
    """
    _check(labels, vectors, text_dim)
    if shares_space and image_dim != text_dim:
        raise DataError(f"parts of one space must be equally wide, got {image_dim} (image) and {text_dim} (text)")
    n_labels = tuple(len(names) for names in labels.values())
    shape = NetworkShape(
        "zero-shot",
        image_dim if shares_space else 0,
        text_dim,
        n_words=0,
        n_labels=n_labels,
        hidden=0,
        dropout=0,
        name_dim=text_dim,
        shares_space=shares_space,
    )
    names = np.concatenate([vectors[name] for name in labels]).astype(np.float32)
    return HeadBundle(
        FittedNetwork(shape, {"start.names": names, "start.scale": np.array(scale, dtype=np.float32)}),
        Vocabulary((), np.empty(0, dtype=np.float32)),
        {name: tuple(names) for name, names in labels.items()},
        encoder_fingerprint,
        (1.0,) * len(labels),
        {"source": "zero-shot"},
        encoder_name,
    )


def names_to_start_from(
    labels: Mapping[str, Sequence[str]], counts: Sequence[Rows], label_vectors: LabelVectors | None
) -> Floats:
    """Embeds the labels of those characteristics that have a label of under 10 training products.

    A name weighs as much as 10 products: the more products a label has, the less is said by its name.

    Args:
        labels: characteristic -> its labels.
        counts: of each characteristic the (k,) training products of each label.
        label_vectors: the encoder's; `None`: there are none.

    Returns:
        (all labels, text_dim) float32, unit rows times 10 / (10 + products); zeros for the other characteristics; of
        width 0 if there are only others.
    """
    found: dict[str, Floats] = {}
    for (name, names), products in zip(labels.items(), counts, strict=True):
        if label_vectors is not None and products.min() < _FEW_PRODUCTS:
            weights = (_FEW_PRODUCTS / (_FEW_PRODUCTS + products)).astype(np.float32)
            found[name] = label_vectors(names) * weights[:, None]
    width = next((vectors.shape[1] for vectors in found.values()), 0)
    rows = [found.get(name, np.zeros((len(names), width), dtype=np.float32)) for name, names in labels.items()]
    return np.concatenate(rows)


def _check(labels: Mapping[str, Sequence[str]], vectors: Mapping[str, Floats], text_dim: int) -> None:
    if not labels:
        raise DataError("zero-shot heads need a characteristic with labels, got none")
    for name, names in labels.items():
        if isinstance(names, str) or len(names) < 2 or len(set(names)) != len(names):
            shown = repr(names) if isinstance(names, str) else culprits(names)
            raise DataError(f"{name} needs two labels or more, each once, got {shown}")
        found = vectors[name].shape if name in vectors else None
        if found != (len(names), text_dim) or not np.isfinite(vectors[name]).all():
            raise DataError(
                f"{name} needs finite vectors of shape {(len(names), text_dim)} for its labels, got {found}"
            )
