import numpy as np
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from product_classificator.training import linear
from product_classificator.training.linear import fit_linear
from product_classificator.training.targets import Target
from product_classificator.types import Floats, strings

N, PENALTY = 60, 0.3
KINDS = ("cup", "hat", "sock")


@pytest.fixture
def rows() -> tuple[csr_matrix, Floats]:
    """Return words and inputs of products."""
    draw = np.random.default_rng(0)
    words = csr_matrix((draw.random((N, 9)) * (draw.random((N, 9)) < 0.3)).astype(np.float32))
    return words, draw.normal(size=(N, 4)).astype(np.float32)


def target(n_unknown: int = 0, *, name: str = "kind") -> Target:
    """Return the kinds of products, the last ones unknown."""
    labels = strings([KINDS[i % 7 % 3] if i < N - n_unknown else None for i in range(N)])
    return Target.of(name, KINDS, labels)


def signs(of: Target) -> Floats:
    return 2 * of.indicators.toarray() - 1


def ridge(words: csr_matrix, inputs: Floats, wanted: Floats) -> Floats:
    """Return what scikit-learn's least squares predict for the products; the bias is penalised as any weight."""
    everything = np.hstack([words.toarray(), inputs, np.ones((len(inputs), 1))])
    return Ridge(PENALTY, fit_intercept=False).fit(everything, wanted).predict(everything)


def test_the_model_is_the_ridge_regression_of_scikit_learn(rows) -> None:
    words, inputs = rows
    logits = fit_linear(words, inputs, [target()]).logits(words, inputs)
    assert np.allclose(logits, ridge(words, inputs, signs(target())), atol=1e-4)
    kernel = (hstack([words, csr_matrix(inputs)]) @ hstack([words, csr_matrix(inputs)]).T).toarray() + 1
    dual = KernelRidge(alpha=PENALTY, kernel="precomputed").fit(kernel, signs(target()))
    assert np.allclose(logits, dual.predict(kernel), atol=1e-4)


def test_products_of_unknown_labels_are_left_out_where_they_are_many(rows) -> None:
    words, inputs = rows
    half = target(30)
    model = fit_linear(words, inputs, [half, target(name="known")])
    logits = model.logits(words, inputs)
    assert np.allclose(logits[:30, :3], ridge(words[:30], inputs[:30], signs(half)[:30]), atol=1e-4)
    assert np.allclose(logits[:, 3:], ridge(words, inputs, signs(target())), atol=1e-4)


def test_few_products_of_unknown_labels_are_fitted_to_nothing_so_one_factorization_serves_all(rows) -> None:
    words, inputs = rows
    few = target(3)
    logits = fit_linear(words, inputs, [few]).logits(words, inputs)
    assert np.allclose(logits, ridge(words, inputs, signs(few) * few.is_known[:, None]), atol=1e-4)


def test_sets_of_labels_are_fitted_like_labels(rows) -> None:
    words, inputs = rows
    marks = strings([frozenset(KINDS[: i % 4]) for i in range(N)])
    several = Target.of("marks", KINDS, marks)
    logits = fit_linear(words, inputs, [several]).logits(words, inputs)
    assert np.allclose(logits, ridge(words, inputs, signs(several)), atol=1e-4)


def test_rows_are_multiplied_block_by_block(rows, monkeypatch) -> None:
    monkeypatch.setattr(linear, "_ROWS_PER_BLOCK", 7)
    assert np.allclose(fit_linear(*rows, [target()]).logits(*rows), ridge(*rows, signs(target())), atol=1e-4)


@pytest.mark.parametrize(("n_words", "dim"), [(0, 4), (9, 0)])
def test_words_or_inputs_may_be_missing(rows, n_words: int, dim: int) -> None:
    words, inputs = rows[0][:, :n_words], rows[1][:, :dim]
    model = fit_linear(words, inputs, [target()])
    assert np.allclose(model.logits(words, inputs), ridge(words, inputs, signs(target())), atol=1e-4)
    assert (model.words.shape, model.inputs.shape, model.bias.shape) == ((n_words, 3), (dim, 3), (3,))


def test_a_characteristic_without_any_known_label_gets_no_weights(rows) -> None:
    model = fit_linear(*rows, [target(N)])
    assert not model.words.any()
    assert not model.inputs.any()
    assert not model.bias.any()


def test_a_placeholder_far_from_nearly_equal_photos_can_be_fitted(rows) -> None:
    words, inputs = rows
    inputs[: N // 2] = 3000
    assert np.isfinite(fit_linear(words, inputs, [target()]).logits(words, inputs)).all()
