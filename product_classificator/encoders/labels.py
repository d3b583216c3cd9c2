"""Turns the names of labels into vectors, so that products can be compared with labels nobody has examples of.

Each name is put into several sentences whose vectors are averaged: a text tower was trained on sentences, and one
wording more or less should not decide (Radford et al. 2021). The Russian sentences are those of ruCLIP.
"""

from collections.abc import Sequence

import numpy as np

from product_classificator.encoders.base import Encoder
from product_classificator.errors import DataError, culprits
from product_classificator.types import Floats

TEMPLATES = ("{}", "это {}", "на картинке {}")


def embed_labels(encoder: Encoder, labels: Sequence[str], templates: Sequence[str] | None = None) -> Floats:
    """Embeds the names of labels.

    Args:
        encoder: its text part is used.
        labels: k names.
        templates: sentences with `{}` where the name goes; `None`: `TEMPLATES`.

    Returns:
        (k, text_dim) float32, unit rows.

    Raises:
        DataError: there is no template, or one has no `{}`.
    """
    templates = TEMPLATES if templates is None else tuple(templates)
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise DataError(f"a template is a sentence with {{}} for the label, found {culprits(wrong)}")
    texts = [template.replace("{}", label) for label in labels for template in templates]
    vectors = encoder.encode_texts(texts).reshape(len(labels), len(templates), -1).mean(1)
    unit: Floats = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit
