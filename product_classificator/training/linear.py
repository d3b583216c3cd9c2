"""Fit a linear model of words and embeddings: a least-squares support vector machine per label (Suykens 1999).

In a small catalog it is the safer choice: it has one setting, and no luck in its start. It is solved exactly in the
dual, from the (n, n) products of rows, for all labels at once.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import ssyrk
from scipy.sparse import csr_matrix

from product_classificator.heads.network import columns_of
from product_classificator.training.targets import Target
from product_classificator.training.vocabulary import BagOfWords
from product_classificator.types import Floats

MAX_ROWS = 12_000
"""Products that the model learns from: their products take 576 MB."""
_PENALTY = 0.3
_ROWS_PER_BLOCK = 1024
_MOSTLY_KNOWN = 0.9


@dataclass(frozen=True)
class LinearModel:
    """Weights of all labels: (words, labels) of words, (dim, labels) of inputs, and (labels,) biases, float32."""

    words: Floats
    inputs: Floats
    bias: Floats

    def logits(self, words: BagOfWords, inputs: Floats) -> Floats:
        """Return the (n, labels) logits of products."""
        logits: Floats = words @ self.words + inputs @ self.inputs + self.bias
        return logits


def fit_linear(words: BagOfWords, inputs: Floats, targets: Sequence[Target]) -> LinearModel:
    """Fit labels, 1 where a product has one and -1 where not, to the (n, words) and (n, dim) inputs of n products.

    Products whose label of a characteristic is unknown are left out, or fitted to 0 where they are few; of more than
    `MAX_ROWS` products, an even share is learned from.
    """
    rows = np.arange(words.shape[0])[:: -(-words.shape[0] // MAX_ROWS) or 1]
    words, inputs = words[rows], inputs[rows]
    products = _products(words, inputs)
    columns = columns_of([len(target.labels) for target in targets])
    coefficients = np.zeros((len(rows), columns[-1].stop), dtype=np.float32)
    same_rows = defaultdict(list)  # such characteristics share a factorization
    for target, of_target in zip(targets, columns, strict=True):
        is_known = target.is_known[rows]
        used = np.arange(len(rows)) if is_known.mean() >= _MOSTLY_KNOWN else np.flatnonzero(is_known)
        signs = (2 * target.indicators[rows[used]].toarray() - 1) * is_known[used, None]
        same_rows[used.tobytes()].append((used, of_target, signs))
    for members in same_rows.values():
        used = members[0][0]
        if len(used):
            own = products if len(used) == len(products) else products[np.ix_(used, used)]
            factor = cho_factor(own, lower=True, check_finite=False)
            labels = np.concatenate([np.arange(of_target.start, of_target.stop) for _, of_target, _ in members])
            signs = np.concatenate([signs for _, _, signs in members], 1)
            coefficients[np.ix_(used, labels)] = cho_solve(factor, signs, check_finite=False)
    return LinearModel(words.T @ coefficients, inputs.T @ coefficients, coefficients.sum(0))


def _products(words: csr_matrix, inputs: Floats) -> Floats:
    """Return the (n, n) products of rows, with a constant for the bias and the penalty on the diagonal.

    Only the lower triangle is filled.
    """
    products = ssyrk(1.0, inputs.T, trans=1, lower=1) if inputs.shape[1] else np.zeros((len(inputs), len(inputs)), "f4")
    for start in range(0, len(products), _ROWS_PER_BLOCK):  # sparse products take three times the memory
        stop = start + _ROWS_PER_BLOCK
        products[start:stop, :stop] += (words[start:stop] @ words[:stop].T).toarray()
    products += 1
    products[np.diag_indices(len(products))] += _PENALTY
    return products
