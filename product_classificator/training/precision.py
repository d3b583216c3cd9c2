"""Asks whether heads answer alike for vectors of a precision that was chosen on this machine and for those of float32.

The trial of `encoders.precision` compares a few vectors; what counts are labels. So at most 512 validation products are
encoded again in float32, and the fitted heads judge both. The mean macro-F1 may differ by 0.005, in either direction:
heads fitted here will meet vectors of other precisions elsewhere. On a few hundred products a handful of changed values
moves macro-F1 further than that, so a difference is believed only where the values that became right and those that
became wrong are more uneven than a fair coin makes them one time in ten (sign test, as in McNemar 1947).

The cost is loading the encoder a second time, and 512 products at the speed of float32, in each training whose encoder
computes in a chosen precision. The heads are fitted on vectors of that precision, so what they would have learned from
float32 is not compared.
"""

from dataclasses import dataclass

import numpy as np

from product_classificator.catalog.catalog import Catalog
from product_classificator.embeddings.embed import embed_rows
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.encoders.precision import give_up, is_chosen, precision_of, threads_of
from product_classificator.evaluation import evaluate
from product_classificator.heads import HeadBundle
from product_classificator.types import Embeddings, Predictions, Split, Truth

_SAMPLE = 512
_MOST_DIFFERENCE = 0.005
_CHANCE = 0.1


@dataclass(frozen=True)
class PrecisionCheck:
    """How heads judge the same validation products by vectors of two precisions.

    Attributes:
        precision: the chosen one.
        products: how many were compared.
        macro_f1: mean over characteristics, by vectors of that precision.
        exact_macro_f1: likewise, by those of float32.
        became_right: known values that are right by the chosen precision and wrong by float32.
        became_wrong: the reverse.
    """

    precision: str
    products: int
    macro_f1: float
    exact_macro_f1: float
    became_right: int
    became_wrong: int

    @property
    def is_refused(self) -> bool:
        """Whether the difference is too large, and no chance."""
        from scipy.stats import binomtest

        n = self.became_right + self.became_wrong
        if not n or abs(self.macro_f1 - self.exact_macro_f1) <= _MOST_DIFFERENCE:
            return False  # where no value became right or wrong, macro-F1 differs by which wrong label is told
        return bool(binomtest(self.became_right, n).pvalue < _CHANCE)

    def __str__(self) -> str:
        return (
            f"on {self.products} validation products the heads have macro-F1 {self.macro_f1:.4f} by {self.precision} "
            f"and {self.exact_macro_f1:.4f} by float32; {self.became_right} values are right by {self.precision} "
            f"alone, {self.became_wrong} by float32 alone"
        )


def check_precision(
    catalog: Catalog,
    embeddings: Embeddings,
    truth: Truth,
    split: Split,
    bundle: HeadBundle,
    encoder: Encoder,
    store: EmbeddingStore | None = None,
) -> PrecisionCheck | None:
    """Compares the precision that an encoder has chosen with float32, and lets the encoder give it up if heads differ.

    Args:
        catalog: n products.
        embeddings: of them, made by `encoder`.
        truth: characteristic -> (n,) labels.
        split: of the products.
        bundle: heads that were fitted on the embeddings.
        encoder: computes in float32 afterwards if the check is refused.
        store: is emptied then, before the precision is given up: a killed training must not leave its vectors there.

    Returns:
        `None` if the encoder computes in float32, or in what it was told to.
    """
    if not is_chosen(encoder):
        return None
    rows = split.rows("valid")
    if len(rows) > _SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, _SAMPLE, replace=False))
    texts = catalog.texts().take(rows)
    exact = load_encoder(encoder.name, dtype="float32", threads=threads_of(encoder))
    known = {name: truth[name][rows] for name in bundle.labels}
    ours = bundle.predict(embeddings.take(rows), texts)
    theirs = bundle.predict(embed_rows(catalog, exact, rows), texts)
    check = PrecisionCheck(
        precision_of(encoder) or "",
        len(rows),
        _macro_f1(ours, known),
        _macro_f1(theirs, known),
        _only_right(ours, theirs, known),
        _only_right(theirs, ours, known),
    )
    if check.is_refused:
        if store:
            store.clear()
        give_up(encoder, exact, str(check))
    return check


def _macro_f1(predictions: Predictions, truth: Truth) -> float:
    return evaluate(predictions, truth, resamples=0).mean_macro_f1 or 0.0


def _only_right(one: Predictions, other: Predictions, truth: Truth) -> int:
    """Counts the values that one side has right and the other has not."""
    found = 0
    for name, true in truth.items():
        is_known = np.array([label is not None for label in true], dtype=bool)
        found += int((is_known & (one.best(name) == true) & (other.best(name) != true)).sum())
    return found
