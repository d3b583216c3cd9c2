import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import softmax

from product_classificator.heads.sharpness import probabilities_of
from product_classificator.training.calibration import fit_set_temperature, fit_temperature, fit_temperatures
from product_classificator.types import Floats, Rows


def drawn(n: int, k: int, too_sure: float, seed: int = 0) -> tuple[Floats, Rows]:
    """Returns logits that are `too_sure` times too far apart, and labels drawn as the right ones say."""
    random = np.random.default_rng(seed)
    right = 2 * random.standard_normal((n, k), dtype=np.float32)
    label_ids = (right + random.gumbel(size=(n, k))).argmax(1)
    return right * np.float32(too_sure), label_ids


def surprise(probabilities: Floats, label_ids: Rows) -> float:
    """Returns the mean negative log-likelihood of labels."""
    return float(-np.log(probabilities[np.arange(len(label_ids)), label_ids]).mean())


@pytest.mark.parametrize("too_sure", [0.5, 1.0, 3.0])
def test_one_temperature_for_all_is_found_where_one_is_right(too_sure: float) -> None:
    logits, label_ids = drawn(4000, 5, too_sure)
    temperature, exponent = fit_temperature(logits, label_ids)
    found = probabilities_of(logits, temperature, exponent)
    assert np.allclose(found, softmax(logits / too_sure, 1), atol=0.05)
    assert abs(exponent) < 0.1


def test_where_sure_products_are_less_right_an_exponent_beats_one_temperature() -> None:
    wrong = np.arange(6000) % 10 == 0
    logits, label_ids = drawn(6000, 5, 1.0, seed=2)
    label_ids = np.where(wrong, np.roll(label_ids, 1), label_ids)  # a tenth is wrong however sure it looks
    temperature, exponent = fit_temperature(logits, label_ids)
    one = min(surprise(softmax(logits / t, 1), label_ids) for t in np.geomspace(0.5, 4, 60))
    assert exponent < -0.02
    assert surprise(probabilities_of(logits, temperature, exponent), label_ids) < one - 0.002


def test_the_order_of_labels_stays() -> None:
    logits, _ = drawn(500, 6, 2.0)
    order = probabilities_of(logits, 1.7, -0.2).argsort(1)
    assert np.array_equal(order, logits.argsort(1))


def test_without_an_exponent_it_is_a_softmax_of_divided_logits() -> None:
    logits, _ = drawn(10, 4, 1.0)
    assert np.allclose(probabilities_of(logits, 2.0), softmax(logits / 2, 1))


def test_unknown_labels_say_nothing() -> None:
    logits, label_ids = drawn(400, 3, 2.0)
    known = fit_temperature(logits[:200], label_ids[:200])
    label_ids[200:] = -1
    assert fit_temperature(logits, label_ids) == known
    assert fit_temperature(logits, np.full_like(label_ids, -1)) == (1.0, 0.0)


def test_products_that_are_all_right_do_not_make_probabilities_of_one() -> None:
    logits = np.tile(20 * np.eye(3, dtype=np.float32), (10, 1))
    temperature, exponent = fit_temperature(logits, np.tile(np.arange(3), 10))
    assert np.isfinite(probabilities_of(logits, temperature, exponent)).all()
    assert 1 / 8 <= temperature <= 8
    assert abs(exponent) <= 0.75
    mild = np.tile(4 * np.eye(3, dtype=np.float32), (12, 1))
    few, _ = fit_temperature(mild, np.tile(np.arange(3), 12))
    many, _ = fit_temperature(np.tile(mild, (100, 1)), np.tile(np.arange(3), 1200))
    assert 0.6 < few < 1  # the fewer they are, the less they prove
    assert many < few - 0.1
    every = csr_matrix(np.tile(np.eye(3, dtype=bool), (12, 1)))
    assert 0.6 < fit_set_temperature(8 * np.tile(np.eye(3), (12, 1)) - 4, np.ones(36, dtype=bool), every) < 1


def test_each_characteristic_has_its_own() -> None:
    (sure, of_sure), (unsure, of_unsure) = drawn(1000, 3, 3.0), drawn(1000, 2, 0.7)
    label_ids = np.stack([of_sure, of_unsure], 1)
    temperatures, exponents = fit_temperatures(np.concatenate([sure, unsure], 1), label_ids, [slice(0, 3), slice(3, 5)])
    assert temperatures[0] > 2 > 1 > temperatures[1]
    assert len(exponents) == 2
