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

from product_classificator.heads.network import columns_of
from product_classificator.training.inputs import BagOfWords
from product_classificator.training.targets import Target
from product_classificator.types import Floats

MAX_PRODUCTS = 12_000
"""Of more, the network alone learns: what this model needs (576 MB for 12,000) grows with their square, and fitted to
12,000 of 48,000 titles it added nothing."""
_PENALTY = 0.3
_ROWS_PER_BLOCK, _COMMON_SHARE = 1024, 0.1
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

    Products whose label of a characteristic is unknown are left out, or fitted to 0 where they are few.
    """
    products, n = _products(words, inputs), words.shape[0]
    columns = columns_of([len(target.labels) for target in targets])
    coefficients = np.zeros((n, columns[-1].stop), dtype=np.float32)
    same_rows = defaultdict(list)  # such characteristics share a factorization
    for target, of_target in zip(targets, columns, strict=True):
        is_used = target.is_known | (target.is_known.mean() >= _MOSTLY_KNOWN)
        same_rows[is_used.tobytes()].append((np.flatnonzero(is_used), target, of_target))
    for members in sorted(same_rows.values(), key=lambda members: len(members[0][0])):
        rows = members[0][0]
        if len(rows):
            signs = [
                (2 * target.indicators[rows].toarray() - 1) * target.is_known[rows, None] for _, target, _ in members
            ]
            of_rows = products if len(rows) == n else products[np.ix_(rows, rows)]  # of all rows: the last
            factor = cho_factor(of_rows, lower=True, overwrite_a=True, check_finite=False)
            labels = np.concatenate([np.arange(of_target.start, of_target.stop) for *_, of_target in members])
            coefficients[np.ix_(rows, labels)] = cho_solve(factor, np.concatenate(signs, 1), check_finite=False)
    return LinearModel(words.T @ coefficients, inputs.T @ coefficients, coefficients.sum(0))


def _products(words: BagOfWords, inputs: Floats) -> Floats:
    """Return the (n, n) products of rows, with a constant for the bias and the penalty on the diagonal.

    Only the lower triangle is filled.
    """
    n = len(inputs)
    # Words of many products take most of the time of sparse products, but are as cheap as any other dense column.
    is_common = words.getnnz(0) > _COMMON_SHARE * n
    inputs, words = np.hstack([inputs, words[:, is_common].toarray()]), words[:, ~is_common]
    products = ssyrk(1.0, inputs.T, trans=1, lower=1) if inputs.size else np.zeros((n, n), dtype=np.float32)
    for start in range(0, n, _ROWS_PER_BLOCK):  # sparse products take three times the memory
        stop = start + _ROWS_PER_BLOCK
        products[start:stop, :stop] += (words[start:stop] @ words[:stop].T).toarray()
    products += 1
    diagonal = np.diag_indices(n)
    # A placeholder far from nearly equal photos would drown the penalty in rounding errors.
    products[diagonal] += max(_PENALTY, 4 * np.finfo(np.float32).eps * products[diagonal].sum(dtype=np.float64))
    return products
