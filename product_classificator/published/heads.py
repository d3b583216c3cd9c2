"""Turns the folder of published heads (2024) into an ordinary bundle.

The published system joined the image part and the text part of ruCLIP, equally wide, projected them by one PCA in its
smaller variant, and gave them to one small network per characteristic. It knew no product without a photo or a text:
the missing part is zeros before the projection here.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from product_classificator.errors import ArtifactError, culprits
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.bundle import HeadBundle
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.shape import NetworkShape
from product_classificator.published.files import (
    Projection,
    PublishedHead,
    read_head,
    read_labels,
    read_projection,
)
from product_classificator.types import Floats

logger = logging.getLogger(__name__)

LABELS, PROJECTION = "label_to_char.pkl", "pca_all.pkl"
_DROPOUT = 0.2


def read_published_heads(folder: str | Path, *, encoder_name: str, encoder_fingerprint: str = "") -> HeadBundle:
    """Reads published heads: `<characteristic>.pt`, `label_to_char.pkl` and, if it is there, `pca_all.pkl`.

    Args:
        folder: where they lie; other files are not looked at.
        encoder_name: the encoder that they were trained on.
        encoder_fingerprint: of its weights; empty: `HeadBundle.bound_to` says it later.

    Raises:
        ArtifactError: a file is missing, damaged, of another form, or would run something; or they do not fit together.
    """
    folder = Path(folder)
    labels = read_labels(folder / LABELS)
    files = {path.stem: path for path in sorted(folder.glob("*.pt"))}
    unlabelled = sorted(set(files) - set(labels))
    if unlabelled or not files:
        raise ArtifactError(
            f"every network <characteristic>.pt needs its labels in {LABELS}: {folder} has {len(files)} networks, "
            f"without labels: {culprits(unlabelled)}; get all files of one version"
        )
    if len(files) < len(labels):
        logger.info("%s has labels but no network of %s", folder, ", ".join(sorted(set(labels) - set(files))))
    labels = {name: names for name, names in labels.items() if name in files}
    heads = {name: read_head(files[name]) for name in labels}
    path = folder / PROJECTION
    projection = read_projection(path) if path.exists() else None
    network = FittedNetwork(_shape(folder, labels, heads, projection), _weights(heads, projection))
    return HeadBundle(
        network,
        Vocabulary((), np.empty(0, dtype=np.float32)),
        labels,
        encoder_fingerprint,
        (1.0,) * len(labels),
        {"source": "published heads"},
        encoder_name,
    )


def _shape(
    folder: Path,
    labels: Mapping[str, tuple[str, ...]],
    heads: Mapping[str, PublishedHead],
    projection: Projection | None,
) -> NetworkShape:
    """Returns the shape that all networks have in common; they are checked against it."""
    hidden, reads = next(iter(heads.values())).hidden[0].shape
    projected, width = (0, reads) if projection is None else projection.components.shape
    for name, head in heads.items():
        found = (head.labels[0].shape[0], *head.hidden[0].shape)
        expected = (len(labels[name]), hidden, projected or width)
        if found != expected:
            raise ArtifactError(
                f"the published files of {folder} do not fit together: labels, hidden layer and input of {name} are "
                f"expected to be {expected} wide, found {found}; get all files of one version"
            )
    if width % 2:
        raise ArtifactError(f"image part and text part are expected to be equally wide, and {folder} reads {width}")
    n_labels = tuple(len(names) for names in labels.values())
    return NetworkShape("published", width // 2, width // 2, 0, n_labels, hidden, _DROPOUT, projected)


def _weights(heads: Mapping[str, PublishedHead], projection: Projection | None) -> dict[str, Floats]:
    weights = {} if projection is None else {"mean": projection.mean, "components": projection.components}
    for number, head in enumerate(heads.values()):
        for layer, (weight, bias) in ((0, head.hidden), (3, head.labels)):
            weights |= {f"heads.{number}.{layer}.weight": weight, f"heads.{number}.{layer}.bias": bias}
    return {name: weight.astype(np.float32) for name, weight in weights.items()}
