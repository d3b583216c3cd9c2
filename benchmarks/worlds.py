"""Simulated worlds, where the truth is known: are intervals and promises of precision kept?

    python benchmarks/worlds.py [--draws 200]

A world has long-tailed labels, and products in groups of 1, 3 or 5 that share label and prediction. Logits are the true
label plus noise, and probabilities are what they are worth. Labels of fewer than 10 products of a draw are not learned.
The truth is what a large sample shows, for the same labels: 95 % intervals of macro-F1 should hold it in .93 to .97 of
the draws, and a precision promised at 90 % should be broken in at most .12.
"""

import argparse

import numpy as np
from common import parse, save
from scipy.special import softmax
from sklearn.metrics import f1_score

from product_classificator import evaluate
from product_classificator.training.thresholds import confidence_thresholds
from product_classificator.types import Predictions, strings

GROUP_SIZES, LABELS, PRODUCTS, MIN_PRODUCTS, POPULATION = (1, 3, 5), (4, 30), 1_500, 10, 100_000
PROMISED = (0.9, 0.95, 0.98)


def draw_world(n_groups: int, n_labels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) label ids and (n, k) calibrated probabilities, one row per group."""
    priors = 1 / np.arange(1, n_labels + 1)
    priors /= priors.sum()
    true = rng.choice(n_labels, n_groups, p=priors)
    strength = rng.choice([1.0, 2.5, 4.0], n_groups)[:, None]  # some products say more than others
    noisy = strength * (np.arange(n_labels) == true[:, None]) + rng.normal(size=(n_groups, n_labels))
    # The posterior of a normal mean: strength x what was seen, and the prior.
    return true, softmax(strength * noisy + np.log(priors), axis=1)


def learnable(true: np.ndarray, probabilities: np.ndarray, learned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the products whose label is learned, with their probabilities of such labels."""
    is_learned = np.isin(true, learned)
    of_learned = probabilities[is_learned][:, learned]
    return np.searchsorted(learned, true[is_learned]), of_learned / of_learned.sum(1, keepdims=True)


def predictions_of(true: np.ndarray, probabilities: np.ndarray) -> tuple[Predictions, dict[str, np.ndarray]]:
    """Return predictions and the truth as the package takes them."""
    names = tuple(f"label {k}" for k in range(probabilities.shape[1]))
    ids = strings([str(row) for row in range(len(true))])
    matrix = probabilities.astype(np.float32)
    predictions = Predictions(ids, {"kind": names}, {"kind": matrix}, np.ones(len(ids), dtype=bool))
    return predictions, {"kind": strings(names)[true]}


def measure(group_size: int, n_labels: int, n_draws: int) -> dict[str, object]:
    """Return the share of draws whose interval holds the truth, and the share that breaks each promise."""
    rng = np.random.default_rng([group_size, n_labels])
    population = draw_world(POPULATION, n_labels, rng)
    holds, broken, made = [], dict.fromkeys(PROMISED, 0), dict.fromkeys(PROMISED, 0)
    for _ in range(n_draws):
        drawn = draw_world(PRODUCTS // group_size, n_labels, rng)
        learned = np.flatnonzero(np.bincount(drawn[0], minlength=n_labels) * group_size >= MIN_PRODUCTS)
        true, probabilities = learnable(*population, learned)
        is_right, confidence = probabilities.argmax(1) == true, probabilities.max(1)
        expected = f1_score(true, probabilities.argmax(1), average="macro")
        drawn = learnable(*drawn, learned)
        groups = np.repeat(np.arange(len(drawn[0])), group_size)
        predictions, truth = predictions_of(*(np.repeat(part, group_size, axis=0) for part in drawn))
        low, high = evaluate(predictions, truth, groups=groups).characteristics["kind"].interval
        holds.append(low <= expected <= high)
        of_draw = predictions.confidence("kind")
        thresholds = confidence_thresholds(of_draw, predictions.best("kind") == truth["kind"], groups)
        for promise in PROMISED:
            levels = [level for precision, level in thresholds if precision >= promise - 1e-9]
            if levels:
                made[promise] += 1
                broken[promise] += bool(is_right[confidence >= min(levels)].mean() < promise)
    return {
        "group_size": group_size,
        "labels": n_labels,
        "intervals_that_hold": float(np.mean(holds)),
        "promises_made": {str(promise): made[promise] / n_draws for promise in PROMISED},
        "promises_broken": {str(promise): broken[promise] / n_draws for promise in PROMISED},
    }


def main() -> None:
    """Simulate all kinds of worlds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=200)
    arguments = parse(parser)
    worlds = []
    for n_labels in LABELS:
        for group_size in GROUP_SIZES:
            worlds.append(measure(group_size, n_labels, arguments.draws))
            print(worlds[-1], flush=True)
    print(save("worlds", {"draws": arguments.draws, "products": PRODUCTS, "worlds": worlds}))


if __name__ == "__main__":
    main()
