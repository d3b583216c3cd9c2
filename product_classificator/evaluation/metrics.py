"""Compare predictions with true labels: macro-F1 per characteristic with its interval, errors by label, confusions.

- Macro-F1 is scikit-learn's: the mean F1 of all labels that are true or predicted for a scored product.
- A product is scored if its label is known and was trained, and the product has a prediction. All others are counted
  under the first reason that applies: unlabelled, unknown label, not predicted.
- Rare labels that were trained are scored apart, with their products: macro-F1 stays comparable, whatever their number.
- The interval is the basic 95 % bootstrap (Davison and Hinkley 1997) over groups of near-identical products, which are
  right or wrong together: one multinomial draw per resample over the kinds of groups that occur, by their (true,
  predicted) pairs.
- Multi-label characteristics are scored label by label: they have no confusions, and a product is right if its whole
  set of trained labels is.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.preprocessing import MultiLabelBinarizer

from product_classificator.errors import DataError, culprits, nearest
from product_classificator.evaluation.reliability import (
    Coverage,
    Reliability,
    SelectiveScore,
    measure_reliability,
    precision_by_coverage,
    score_selective,
)
from product_classificator.types import Bools, Floats, Predictions, Rows, Strings, Truth, iter_labels, strings

_Pair = tuple[frozenset[str], frozenset[str]]


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label, 0 without products: `support` have it, `predicted` are predicted as it, `correct` both."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int
    correct: int


@dataclass(frozen=True)
class Confusion:
    """Number of products of label `true` that were predicted as `predicted`."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True)
class RareScore:
    """Scores of the rare labels that were trained, among all products with a trained label; `n` have no common one."""

    macro_f1: float | None
    n: int
    labels: tuple[LabelScore, ...]


@dataclass(frozen=True)
class CharacteristicScore:
    """Scores of one characteristic, of `n + rare.n + unlabelled + unknown_labels + not_predicted` products.

    Attributes:
        macro_f1, accuracy: 0..1; `None` if no product could be scored.
        interval: (low, high), the 95 % bootstrap interval of `macro_f1`; `None` without scored products or resamples.
        n: scored products. A scored product without a prediction for this characteristic is wrong.
        unknown_labels: products whose true label was not trained, so it could not be predicted.
        not_predicted: products without any prediction, because they have neither image nor text.
        labels, confusions: the most frequent first; a multi-label characteristic has no confusions.
        rare: scores of rare labels; no other number but `reliability` and `precision_by_coverage` counts these.
        reliability: calibration of the scored products, or of the predicted labels if there can be several.
        precision_by_coverage: (share of the products with a true label, precision of the most confident such share).
    """

    macro_f1: float | None
    interval: tuple[float, float] | None
    accuracy: float | None
    n: int
    unknown_labels: int
    unlabelled: int
    not_predicted: int
    labels: tuple[LabelScore, ...]
    confusions: tuple[Confusion, ...]
    rare: RareScore
    reliability: Reliability | None
    precision_by_coverage: tuple[tuple[float, float], ...]
    coverage: Coverage
    is_multi_label: bool = False


@dataclass(frozen=True)
class Evaluation:
    """How well predictions agree with the truth.

    Attributes:
        mean_macro_f1: mean over the characteristics that have a macro-F1, 0..1; `None` if none has.
        products: number of evaluated products, scored or not, in `groups` of near-identical ones.
        seed, resamples: of the bootstrap.
        coverage: labels and products behind `mean_macro_f1`, summed over characteristics.
        warnings: a sentence for each characteristic that could not be learned or whose score covers too little.
        selective: scores of the accepted values; `None` if the predictions hold no decisions.
    """

    mean_macro_f1: float | None
    characteristics: Mapping[str, CharacteristicScore]
    products: int
    groups: int
    seed: int
    resamples: int
    coverage: Coverage
    warnings: tuple[str, ...] = ()
    selective: SelectiveScore | None = None


class _Bootstrap(NamedTuple):
    """How intervals are made; `groups` is the (n,) group of near-identical products of each product."""

    groups: Rows
    seed: int
    resamples: int


def evaluate(
    predictions: Predictions,
    truth: Truth,
    *,
    groups: Rows | None = None,
    rare_labels: Mapping[str, Collection[str]] = MappingProxyType({}),
    seed: int = 0,
    resamples: int = 1000,
) -> Evaluation:
    """Score predictions of any origin against the true labels.

    Args:
        predictions: of n products.
        truth: characteristic -> (n,) true labels in the order of `predictions.ids`, `None` where unknown. A predicted
            characteristic that is missing counts as unlabelled; one that is not predicted is ignored.
        groups: (n,) group of near-identical products that each belongs to; `None`: no two are near-identical.
        rare_labels: characteristic -> labels of few products, trained or not, also of characteristics without others.
        seed: of the bootstrap; the same seed gives the same intervals.
        resamples: of the bootstrap; 0 skips the intervals.

    Raises:
        DataError: truth and predictions share no characteristic or differ in length, a true label is neither text
            nor `None`, or `resamples` is negative.

    >>> from product_classificator.types import strings
    >>> probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    >>> ids, labels = strings(["1", "2", "3"]), {"sex": ("men", "women")}
    >>> predictions = Predictions(ids, labels, {"sex": probabilities}, np.ones(3, bool))
    >>> round(evaluate(predictions, {"sex": strings(["men", "women", "women"])}).mean_macro_f1, 3)
    0.667
    """
    if resamples < 0:
        raise DataError(f"resamples must be 0 (no intervals) or more, got {resamples}")
    _check_truth(predictions, truth)
    unlabelled = strings([None] * len(predictions))
    bootstrap = _Bootstrap(np.arange(len(predictions)) if groups is None else groups, seed, resamples)
    scores = {
        name: _score(predictions, name, truth.get(name, unlabelled), frozenset(rare_labels.get(name, ())), bootstrap)
        for name in predictions.characteristics
    }
    macro_f1s = [score.macro_f1 for score in scores.values() if score.macro_f1 is not None]
    unlearned = {
        name: Coverage(0, len(labels), 0, sum(label is not None for label in truth.get(name, ())))
        for name, labels in rare_labels.items()
        if name not in scores
    }
    return Evaluation(
        mean_macro_f1=float(np.mean(macro_f1s)) if macro_f1s else None,
        characteristics=scores,
        products=len(predictions),
        groups=len(np.unique(bootstrap.groups)),
        seed=seed,
        resamples=resamples,
        coverage=sum((score.coverage for score in scores.values()), sum(unlearned.values(), Coverage(0, 0, 0, 0))),
        warnings=tuple(_warnings(scores, unlearned)),
        selective=score_selective(predictions, truth),
    )


def _warnings(scores: Mapping[str, CharacteristicScore], unlearned: Mapping[str, Coverage]) -> Iterator[str]:
    for name, score in scores.items():
        if score.macro_f1 is not None and score.coverage.is_low:
            yield (
                f"the macro-F1 of {name}, {score.macro_f1:.3f}, covers only {score.coverage}: the others are rare "
                "or were not tested, so expect less on the whole catalog"
            )
    for name, coverage in unlearned.items():
        yield f"{name} is part of no score: fewer than 2 of its {coverage.all_labels:,} labels have enough products"


def _check_truth(predictions: Predictions, truth: Truth) -> None:
    shared = [name for name in predictions.characteristics if name in truth]
    if not shared:
        hint = nearest(next(iter(truth), ""), predictions.characteristics)
        raise DataError(f"truth must hold a predicted characteristic, found only {culprits(truth)}; {hint}")
    for name in shared:
        if len(truth[name]) != len(predictions):
            raise DataError(
                f"truth must have one label per predicted product: {name!r} has {len(truth[name])} labels for "
                f"{len(predictions)} products; give the labels in the order of predictions.ids"
            )
        kind, what = (frozenset, "frozensets of text") if name in predictions.decision_thresholds else (str, "text")
        if wrong := [label for label in truth[name] if label is not None and not isinstance(label, kind)]:
            raise DataError(
                f"true labels must be {what}, or None where unknown: {name!r} holds {culprits(map(repr, wrong))}; "
                f"convert them to {what}, and NaN to None"
            )


def _score(
    predictions: Predictions, characteristic: str, true: Strings, rare: frozenset[str], bootstrap: _Bootstrap
) -> CharacteristicScore:
    names, is_multi = predictions.labels[characteristic], characteristic in predictions.decision_thresholds
    best, confidence = predictions.best(characteristic), predictions.confidence(characteristic)
    true_sets, best_sets, is_right = _label_sets(true), _label_sets(best), (best == true).astype(bool)
    is_labelled = np.array([labels is not None for labels in true_sets], dtype=bool)
    common = [name for name in names if name not in rare]
    is_trained, is_common = (_has_one_of(frozenset(labels), true_sets) for labels in (names, common))
    is_judged, is_learned, is_scored = (mask & predictions.is_known for mask in (is_labelled, is_trained, is_common))
    n, tally = int(is_scored.sum()), Counter(_pairs(true_sets[is_scored], best_sets[is_scored], names))
    n_groups, per_group = _group_kinds(true_sets[is_scored], best_sets[is_scored], common, bootstrap.groups[is_scored])
    counts = per_group.T @ n_groups
    labels = _label_scores(common, counts)
    confidences, hits = confidence[is_learned], is_right[is_learned]
    if is_multi:
        confidences, hits = _predicted_labels(predictions, characteristic, true, np.flatnonzero(is_learned))
    return CharacteristicScore(
        macro_f1=_macro_f1(counts) if n else None,
        interval=_interval(per_group, n_groups, bootstrap) if n and bootstrap.resamples else None,
        accuracy=sum(count for (t, p), count in tally.items() if t == p) / n if n else None,
        n=n,
        unknown_labels=int((is_labelled & ~is_trained).sum()),
        unlabelled=int((~is_labelled).sum()),
        not_predicted=int((is_trained & ~predictions.is_known).sum()),
        labels=labels,
        confusions=() if is_multi else _confusions(tally),
        rare=_score_rare([name for name in names if name in rare], true_sets[is_learned], best_sets[is_learned], n),
        reliability=measure_reliability(confidences, hits, bootstrap.seed) if len(confidences) else None,
        precision_by_coverage=precision_by_coverage(confidence[is_judged], is_right[is_judged]) if n else (),
        coverage=Coverage(len(labels), len({*names, *rare, *iter_labels(true)}), n, int(is_labelled.sum())),
        is_multi_label=is_multi,
    )


def _score_rare(names: Sequence[str], true_sets: Strings, best_sets: Strings, n_common: int) -> RareScore:
    """Return the scores of rare labels `names` among products with a trained label, `n_common` with a common one."""
    n = len(true_sets) - n_common
    n_groups, per_group = _group_kinds(true_sets, best_sets, names, np.arange(len(true_sets)))
    counts = per_group.T @ n_groups
    return RareScore(_macro_f1(counts) if n else None, n, _label_scores(names, counts))


def _label_sets(labels: Strings) -> Strings:
    """Return single labels as sets of one; sets and `None` stay as they are."""
    return strings([frozenset((item,)) if isinstance(item, str) else item for item in labels])


def _has_one_of(labels: frozenset[str], true_sets: Strings) -> Bools:
    """Return (n,) whether a product has one of the labels, or is known to have no label at all."""
    return np.array([true is not None and (not true or bool(true & labels)) for true in true_sets], dtype=bool)


def _pairs(true_sets: Strings, best_sets: Strings, names: Sequence[str]) -> list[_Pair]:
    """Return the true and the predicted sets of products as far as they are among `names`; none may be predicted."""
    labels = frozenset(names)
    return [(t & labels, (p or frozenset()) & labels) for t, p in zip(true_sets, best_sets, strict=True)]


def _group_kinds(true: Strings, best: Strings, names: Sequence[str], groups: Rows) -> tuple[Rows, csr_matrix]:
    """Return the kinds of groups that occur; a kind is how often each (true, predicted) pair does.

    Returns:
        (g,) groups of each kind, and (g, 3k) sparse products of such a group in which a label is correct, then true,
        then predicted.
    """
    id_of, pairs = {label: label_id for label_id, label in enumerate(names)}, _pairs(true, best, names)
    # The order decides what a seed draws; a missing prediction comes last.
    distinct = sorted(set(pairs), key=lambda pair: [sorted(map(id_of.__getitem__, s)) or [len(names)] for s in pair])
    binarizer = MultiLabelBinarizer(classes=list(names), sparse_output=True)
    is_true, is_predicted = (binarizer.fit_transform([pair[side] for pair in distinct]) for side in (0, 1))
    pair_ids, members = {pair: pair_id for pair_id, pair in enumerate(distinct)}, defaultdict(list)
    for group, pair in zip(groups.tolist(), pairs, strict=True):
        members[group].append(pair_ids[pair])
    kinds = Counter(tuple(sorted(ids)) for ids in members.values())
    order = sorted(kinds, key=lambda ids: (len(ids), ids))
    columns = np.array([pair_id for ids in order for pair_id in ids], dtype=np.int64)
    starts = np.cumsum([0, *map(len, order)])
    pairs_of_kinds = csr_matrix((np.ones(len(columns), np.int64), columns, starts), shape=(len(order), len(distinct)))
    indicators = hstack([is_true.multiply(is_predicted), is_true, is_predicted], format="csr")
    return np.array([kinds[ids] for ids in order], dtype=np.int64), pairs_of_kinds @ indicators


def _predicted_labels(predictions: Predictions, characteristic: str, true: Strings, rows: Rows) -> tuple[Floats, Bools]:
    """Return the probability of every label predicted for the products of `rows`, and whether it is true."""
    label_ids = {label: label_id for label_id, label in enumerate(predictions.labels[characteristic])}
    probabilities, best = predictions.probabilities[characteristic], predictions.best(characteristic)
    pairs = [(row, label) for row in rows.tolist() for label in sorted(best[row] or ())]
    confidence = np.array([probabilities[row, label_ids[label]] for row, label in pairs], dtype=np.float32)
    return confidence, np.array([label in true[row] for row, label in pairs], dtype=bool)


def _macro_f1(counts: Rows) -> float:
    """Return macro-F1 by the (3k,) numbers of products in which a label is correct, then true, then predicted."""
    correct, support, predicted = counts.reshape(3, -1)
    total = support + predicted
    occurs = total > 0
    # Only label sets can all be empty, on both sides: then every product is right.
    return float(np.mean(2 * correct[occurs] / total[occurs])) if occurs.any() else 1.0


def _interval(per_group: csr_matrix, n_groups: Rows, bootstrap: _Bootstrap) -> tuple[float, float]:
    """Return the basic bootstrap interval: the truth is as far above the score as the score is above resamples.

    Their percentiles are too low where rare labels are missing from some resamples (`benchmarks/worlds.py`).
    """
    n, random, per_label = int(n_groups.sum()), np.random.default_rng(bootstrap.seed), per_group.T
    draws = (random.multinomial(n, n_groups / n) for _ in range(bootstrap.resamples))
    lowest, highest = np.percentile([_macro_f1(per_label @ draw) for draw in draws], (2.5, 97.5))
    score = _macro_f1(per_label @ n_groups)
    return max(0.0, 2 * score - float(highest)), min(1.0, 2 * score - float(lowest))


def _label_scores(names: Sequence[str], counts: Rows) -> tuple[LabelScore, ...]:
    scores = [
        LabelScore(label, hits / max(n, 1), hits / max(support, 1), 2 * hits / (support + n), support, n, hits)
        for label, hits, support, n in zip(names, *counts.reshape(3, -1).tolist(), strict=True)
        if support or n
    ]
    return tuple(sorted(scores, key=lambda score: (-score.support, -score.predicted, score.label)))


def _confusions(tally: Counter[_Pair]) -> tuple[Confusion, ...]:
    confusions = [
        Confusion(next(iter(true)), next(iter(predicted)), count)
        for (true, predicted), count in tally.items()
        if predicted and predicted != true
    ]
    return tuple(sorted(confusions, key=lambda pair: (-pair.count, pair.true, pair.predicted)))
