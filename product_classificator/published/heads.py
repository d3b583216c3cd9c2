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
from product_classificator.heads import Characteristic, HeadBundle
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.network import Network, NetworkShape, columns_of
from product_classificator.published.files import (
    Projection,
    PublishedHead,
    read_head,
    read_labels,
    read_projection,
)

logger = logging.getLogger(__name__)

LABELS, PROJECTION = "label_to_char.pkl", "pca_all.pkl"


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
    network = _joint_network(folder, labels, heads, projection)
    return HeadBundle(
        characteristics=tuple(Characteristic(name, names) for name, names in labels.items()),
        network=network,
        vocabulary=Vocabulary.empty(),
        encoder_name=encoder_name,
        encoder_fingerprint=encoder_fingerprint,
        facts={"source": "published heads"},
    )


def _joint_network(
    folder: Path,
    labels: Mapping[str, tuple[str, ...]],
    heads: Mapping[str, PublishedHead],
    projection: Projection | None,
) -> Network:
    """Return all heads as one network: hidden layers one after the other, label weights block-diagonal.

    The projection becomes part of the hidden layer. A missing part was zeros before the projection, so it is -mean
    after the mean is subtracted.
    """
    hidden, reads = next(iter(heads.values())).hidden[0].shape
    projected, width = (reads, reads) if projection is None else projection.components.shape
    for name, head in heads.items():
        sizes = (head.labels[0].shape[0], *head.hidden[0].shape)
        expected = (len(labels[name]), hidden, projected)
        if sizes != expected:
            raise ArtifactError(
                f"the published files of {folder} do not fit together: labels, hidden layer and input of {name} are "
                f"expected to be {expected} wide, found {sizes}; get all files of one version"
            )
    if width % 2:
        raise ArtifactError(f"image part and text part are expected to be equally wide, and {folder} reads {width}")
    mean = np.zeros(width) if projection is None else projection.mean
    first = np.concatenate([head.hidden[0] for head in heads.values()]).astype(np.float64)
    n_labels = tuple(len(names) for names in labels.values())
    label_weights = np.zeros((sum(n_labels), hidden * len(heads)))
    for head_index, (head, rows) in enumerate(zip(heads.values(), columns_of(n_labels), strict=True)):
        label_weights[rows, hidden * head_index : hidden * (head_index + 1)] = head.labels[0]
    weights = {
        "mean": mean,
        "scale": np.ones(width),
        "missing_image": -mean[: width // 2],
        "missing_text": -mean[width // 2 :],
        "hidden.weight": first if projection is None else first @ projection.components,
        "hidden.bias": np.concatenate([head.hidden[1] for head in heads.values()]),
        "labels.weight": label_weights,
        "labels.bias": np.concatenate([head.labels[1] for head in heads.values()]),
        "word_weights": np.zeros((0, sum(n_labels))),
    }
    shape = NetworkShape(width // 2, width // 2, n_labels, hidden * len(heads))
    return Network(shape, {name: weight.astype(np.float32) for name, weight in weights.items()})
