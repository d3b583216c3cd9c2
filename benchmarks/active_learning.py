"""How many labels the order of the review queue saves: macro-F1 by labelled products, against random order.

    python benchmarks/active_learning.py [--draws 0 1 2 3 4] [--orders random doubt margin] [--single] [--cache FOLDER]

Fashion goods whose labels are hidden: 500 random ones are known, then batches of 100 are labelled by an order until
3,000 are. The test part of each draw is held out. So that a round takes a second instead of a training, the model is
the linear one alone (least-squares SVM on image, text and words, as `training.linear`), fitted after every batch;
`--single` orders by the doubt of one characteristic and labels only that. A group of near-duplicates gives one product
first in every order but the random one.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from common import RESULTS, parse, save
from scipy.linalg import cho_factor, cho_solve
from sets import Task, open_task
from sklearn.cluster import MiniBatchKMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score

START, BATCH, END = 500, 100, 3_000
PENALTY, TEMPERATURES = 0.3, (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
Columns = Mapping[str, np.ndarray]
Curves = dict[str, dict[str, dict[str, list[float]]]]
"""Order -> draw -> characteristic -> macro-F1 after every batch."""


@dataclass(frozen=True)
class Pool:
    """What a draw learns from and is judged on: kernel rows of all products, label ids (-1: unknown), rows, groups."""

    kernel: np.ndarray
    vectors: np.ndarray
    codes: Columns
    pool: np.ndarray
    test: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Fit:
    """Calibrated probabilities of the pool, predictions of the test part, and variances of the pool."""

    probabilities: Columns
    test: Columns
    variance: np.ndarray
    counts: Columns


def open_pool(task: Task) -> Pool:
    """Return the products of a task, standardised without any label."""
    parts = []
    for part in (task.embeddings.image, task.embeddings.text):
        of_pool = part[task.learn]
        parts.append((part - of_pool.mean(0)) / np.maximum(of_pool.std(0), 1e-6) / np.sqrt(part.shape[1]))
    vectors = np.concatenate(parts, 1).astype(np.float32)
    words = TfidfVectorizer(sublinear_tf=True, min_df=2).fit([task.texts[row] for row in task.learn])
    bags = words.transform(task.texts).astype(np.float32)
    kernel = vectors @ vectors.T
    kernel += (bags @ bags.T).toarray()
    codes = {name: task.codes(name) for name in task.labels}
    return Pool(kernel + 1, vectors, codes, task.learn, task.test, task.groups)


def fit(pool: Pool, labelled: np.ndarray, names: list[str]) -> Fit:
    """Fit the linear model to labelled rows, and calibrate it by leave-one-out predictions of 300 of them."""
    factor = cho_factor(pool.kernel[np.ix_(labelled, labelled)] + PENALTY * np.eye(len(labelled), dtype=np.float32))
    sample = np.random.default_rng(0).permutation(len(labelled))[:300]
    inverse = cho_solve(factor, np.eye(len(labelled), dtype=np.float32)[:, sample])
    to_pool, to_test = (pool.kernel[np.ix_(rows, labelled)] for rows in (pool.pool, pool.test))
    probabilities, test, counts = {}, {}, {}
    for name in names:
        codes = pool.codes[name][labelled]
        k = pool.codes[name].max() + 1
        known = codes >= 0
        signs = np.where(np.eye(k, dtype=bool)[np.maximum(codes, 0)] & known[:, None], 1, -1).astype(np.float32)
        signs[~known] = 0
        weights = cho_solve(factor, signs)
        left_out = signs[sample] - weights[sample] / np.diagonal(inverse[sample])[:, None]
        of_sample = codes[sample]
        is_judged = of_sample >= 0
        losses = []
        for temperature in TEMPERATURES:
            shares = softmax(left_out[is_judged] * temperature)
            losses.append(-np.log(shares[np.arange(is_judged.sum()), of_sample[is_judged]] + 1e-9).mean())
        probabilities[name] = softmax(to_pool @ weights * TEMPERATURES[int(np.argmin(losses))])
        test[name] = (to_test @ weights).argmax(1)
        counts[name] = np.bincount(codes[known], minlength=k)
    few = np.random.default_rng(1).permutation(len(labelled))[
        :500
    ]  # variance against a part: cheap, and enough to rank
    small = pool.kernel[np.ix_(labelled[few], labelled[few])] + PENALTY * np.eye(len(few), dtype=np.float32)
    cross = to_pool[:, few]
    variance = pool.kernel[pool.pool, pool.pool] - (cross * cho_solve(cho_factor(small), cross.T).T).sum(1)
    return Fit(probabilities, test, np.maximum(variance, 0), counts)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax of rows."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def doubt(matrix: np.ndarray) -> np.ndarray:
    """Return 1 - the highest probability."""
    return 1 - matrix.max(1)


def margin(matrix: np.ndarray) -> np.ndarray:
    """Return 1 - the lead of the first label over the second."""
    top = np.partition(matrix, -2, axis=1)
    return 1 - (top[:, -1] - top[:, -2])


def entropy(matrix: np.ndarray) -> np.ndarray:
    """Return the entropy as a share of the largest."""
    return -(matrix * np.log(matrix + 1e-12)).sum(1) / np.log(matrix.shape[1])


def total(fitted: Fit, of_one: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the (pool,) mean over characteristics."""
    return np.mean([of_one(matrix) for matrix in fitted.probabilities.values()], axis=0)


def rare(fitted: Fit) -> np.ndarray:
    """Return the doubt of each characteristic, times how rare its predicted label is among those labelled."""
    parts = []
    for name, matrix in fitted.probabilities.items():
        share = 1 / np.sqrt(fitted.counts[name] + 1)
        parts.append(doubt(matrix) * (matrix @ share) / share.mean())
    return np.mean(parts, axis=0)


ORDERS: dict[str, Callable[[Fit], np.ndarray]] = {
    "doubt": lambda fitted: total(fitted, doubt),
    "margin": lambda fitted: total(fitted, margin),
    "entropy": lambda fitted: total(fitted, entropy),
    "doubt x rarity": rare,
    "expected change": lambda fitted: total(fitted, doubt) * fitted.variance,
    "doubt + clusters": lambda fitted: total(fitted, doubt),
    "rarity + clusters": rare,
    "clusters": lambda fitted: np.ones(len(fitted.variance)),
}


def choose(pool: Pool, fitted: Fit, is_open: np.ndarray, order: str, seed: int) -> np.ndarray:
    """Return the positions in the pool of the next batch."""
    positions = np.flatnonzero(is_open)
    if order == "random":
        return np.random.default_rng(seed).permutation(positions)[:BATCH]
    scores = ORDERS[order](fitted)[positions]
    ranked = positions[np.argsort(-scores, kind="stable")]
    seen = set(pool.groups[pool.pool[~is_open]].tolist())
    first, later = [], []
    for position, group in zip(ranked.tolist(), pool.groups[pool.pool[ranked]].tolist(), strict=True):
        (later if group in seen else first).append(position)
        seen.add(group)
    ranked = np.array(first + later)
    if "clusters" not in order:
        return ranked[:BATCH]
    candidates = ranked if order == "clusters" else ranked[: 10 * BATCH]
    means = MiniBatchKMeans(BATCH, random_state=seed, n_init=1, max_iter=20).fit_predict(
        pool.vectors[pool.pool[candidates]]
    )
    best = [candidates[np.flatnonzero(means == number)[0]] for number in np.unique(means)]
    rest = [position for position in candidates.tolist() if position not in set(best)]
    return np.array((best + rest)[:BATCH])


def curve(pool: Pool, order: str, seed: int, names: list[str]) -> dict[str, list[float]]:
    """Return the macro-F1 of the test part per characteristic, after every batch."""
    is_open = np.ones(len(pool.pool), dtype=bool)
    is_open[np.random.default_rng(seed).permutation(len(pool.pool))[:START]] = False
    scores: dict[str, list[float]] = {name: [] for name in names}
    while True:
        fitted = fit(pool, pool.pool[~is_open], names)
        for name in names:
            true = pool.codes[name][pool.test]
            known, k = true >= 0, pool.codes[name].max() + 1
            scores[name].append(
                f1_score(true[known], fitted.test[name][known], labels=range(k), average="macro", zero_division=0)
            )
        if (~is_open).sum() >= END:
            return scores
        is_open[choose(pool, fitted, is_open, order, seed * 1000 + int((~is_open).sum()))] = False


def labels_needed(scores: np.ndarray, goal: float) -> float | None:
    """Return how many labelled products a mean curve needs to reach a goal, between batches in proportion."""
    for step, score in enumerate(scores):
        if score >= goal:
            before = scores[step - 1] if step else score
            return START + BATCH * (step - (score - goal) / max(score - before, 1e-9) if step else 0)
    return None


def summarise(curves: Curves) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return characteristic -> order -> labels needed to reach the macro-F1 of 3,000 random ones, by mean curves.

    An order is compared with random order on the draws that it was measured on.
    """
    needed: dict[str, dict[str, dict[str, float | None]]] = {}
    for order, runs in curves.items():
        draws = sorted(runs.keys() & curves["random"].keys())
        names = list(runs[draws[0]])
        means, of_random = (
            {name: np.mean([of[draw][name] for draw in draws], 0) for name in names} for of in (runs, curves["random"])
        )
        for of in (means, of_random):
            of["mean of all"] = np.mean([of[name] for name in names], 0)
        for name, scores in means.items():
            goal = float(of_random[name][-1])
            labels = labels_needed(scores, goal)
            needed.setdefault(name, {})[order] = {"draws": len(draws), "goal": goal, "labels": labels}
    return needed


def main() -> None:
    """Run what the command line names; what is in the results already is not measured again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--orders", nargs="+", default=["random", *ORDERS], choices=["random", *ORDERS])
    parser.add_argument("--single", action="store_true", help="order by, and label, one characteristic at a time")
    arguments = parse(parser)
    name = "active_learning_single" if arguments.single else "active_learning"
    path = RESULTS / f"{name}.json"
    curves: Curves = json.loads(path.read_text(encoding="utf-8"))["curves"] if path.is_file() else {}
    for draw in arguments.draws:
        pool = None
        for order in arguments.orders:
            if str(draw) in curves.setdefault(order, {}):
                continue
            pool = pool or open_pool(open_task("fashion", draw, arguments.cache))
            names = list(pool.codes)
            parts = [[one] for one in names] if arguments.single else [names]
            scores = {one: of for part in parts for one, of in curve(pool, order, draw, part).items()}
            curves[order][str(draw)] = {one: [round(float(score), 4) for score in of] for one, of in scores.items()}
            print(draw, order, {one: of[-1] for one, of in curves[order][str(draw)].items()}, flush=True)
            measured = {order: runs for order, runs in curves.items() if runs}
            save(name, {"start": START, "batch": BATCH, "labels_needed": summarise(measured), "curves": measured})
    print(*(f"{one}: {needed}" for one, needed in summarise(curves).items()), path, sep="\n")


if __name__ == "__main__":
    main()
