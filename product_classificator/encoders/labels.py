"""Turns the names of labels into vectors, so that products can be compared with labels nobody has examples of.

Each name is put into several sentences whose vectors are averaged: a text tower was trained on sentences, and one
wording more or less should not decide (Radford et al. 2021). The Russian sentences are those of ruCLIP. Names of labels
are no texts of a shop: even where texts are cleaned, they are read as they are.
"""

from collections.abc import Sequence

from product_classificator.encoders.base import Encoder, unit_rows
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
        DataError: there is no label, or one without a name; there is no template, or one has no `{}`.
    """
    from product_classificator.encoders.combined import CleaningEncoder

    unnamed = [repr(label) for label in labels if not (isinstance(label, str) and label.strip())]
    if unnamed or len(labels) == 0 or isinstance(labels, str):
        found = repr(labels) if isinstance(labels, str) else culprits(unnamed) if unnamed else "an empty list"
        raise DataError(f"labels are a list of names, each a text that is not blank, found {found}: name each label")
    templates = TEMPLATES if templates is None else tuple(templates)
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise DataError(f"a template is a sentence with {{}} for the label, found {culprits(wrong)}")
    texts = [template.replace("{}", label) for label in labels for template in templates]
    inner = encoder.encoder if isinstance(encoder, CleaningEncoder) else encoder
    return unit_rows(inner.encode_texts(texts).reshape(len(labels), len(templates), -1).mean(1))
