"""Turns predictions and the true labels into macro-F1 per characteristic, with its interval and its faults.

Decisions:
- Macro-F1 is scikit-learn's: the mean F1 of the labels seen in the truth or in the predictions of the scored
  products, 0 where a ratio has no denominator. One rare label weighs as much as the largest: that is wanted, and it
  makes the interval wide where labels are many and products few.
- A product is scored when its label is known, was trained, and something was predicted. Each other product is counted
  under one reason, the first that holds: unlabelled, unknown label, not predicted.
- The interval is the 95 % percentile bootstrap over products. Products with the same (true, predicted) pair are
  alike, so a resample is one multinomial draw over the distinct pairs: 1,000 resamples of 10,000 products and 600
  labels take about 0.3 s on one core, and memory does not grow with the resamples. Where many labels have a handful
  of products it lies low, for a resample loses products of rare labels: read it as a width, not as a test.
- Of a multi-label characteristic each label is judged by itself (`label_sets`), which leaves no confusions, and a
  product is right if its set of labels is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from product_classificator.errors import DataError, culprits, nearest
from product_classificator.evaluation.label_sets import SetPairs, is_scorable, set_pairs, told_labels
from product_classificator.evaluation.reliability import (
    Reliability,
    ReviewScore,
    precision_by_coverage,
    reliability_of,
    score_review,
)
from product_classificator.types import Predictions, Rows, Strings, Truth

_Ratios = npt.NDArray[np.float64]
_INTERVAL_PERCENT = (2.5, 97.5)


@dataclass(frozen=True)
class LabelScore:
    """How well one label is told.

    Attributes:
        label: the label.
        precision: right among the products predicted as this label, 0..1; 0 if there are none.
        recall: right among the products that truly are this label, 0..1; 0 if there are none.
        f1: harmonic mean of the two, 0..1.
        support: scored products that truly are this label.
        predicted: scored products predicted as this label.
        correct: scored products that are both.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int
    correct: int


@dataclass(frozen=True)
class Confusion:
    """How many products of label `true` were taken for another label, `predicted`."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True)
class CharacteristicScore:
    """How well one characteristic is told. `n + unlabelled + unknown_labels + not_predicted` is all products.

    Attributes:
        macro_f1: 0..1; `None` if no product could be scored.
        interval: (low, high), the 95 % bootstrap interval of `macro_f1`; `None` without scored products or resamples.
        accuracy: share of the scored products that are right, 0..1; `None` if no product could be scored. Of a
            multi-label characteristic: right in every label that was trained.
        n: scored products; one of which nothing is said but in other characteristics is wrong.
        unknown_labels: products whose true label was not trained, so that it could not be predicted.
        unlabelled: products whose true label is not known.
        not_predicted: products of which nothing is said, for they have neither photo nor text.
        labels: the labels seen in truth or prediction, the one with most products first.
        confusions: every pair that was confused, the most frequent first; none of a multi-label characteristic.
        reliability: how far probabilities mean what they say; `None` if no product could be scored. Of a multi-label
            characteristic: those of the labels that are told; `None` if none is.
        precision_by_coverage: (share of the products with a known label, precision of the surest such share).
        is_multi_label: whether a product bears any number of labels.
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
    reliability: Reliability | None
    precision_by_coverage: tuple[tuple[float, float], ...]
    is_multi_label: bool = False


@dataclass(frozen=True)
class Evaluation:
    """How well predictions agree with the truth.

    Attributes:
        mean_macro_f1: mean over the characteristics that have a macro-F1, 0..1; `None` if none has.
        characteristics: name -> its score, in the order of the predictions.
        products: number of products judged, scored or not.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        review: what is left to a person; `None` if the predictions bear no decisions.
    """

    mean_macro_f1: float | None
    characteristics: Mapping[str, CharacteristicScore]
    products: int
    seed: int
    resamples: int
    review: ReviewScore | None = None


@dataclass(frozen=True)
class _Pairs:
    """The distinct (true, predicted) pairs of m kinds among n products and k labels, as label numbers.

    Attributes:
        true: (m,) number of the true label.
        predicted: (m,) number of the predicted label; k where nothing is said of this characteristic, which is wrong.
        count: (m,) products of this pair.
        k: number of labels.
    """

    true: Rows
    predicted: Rows
    count: Rows
    k: int

    @property
    def n_right(self) -> int:
        """Products that are right."""
        return int(self.count[self.true == self.predicted].sum())

    def sums(self, count: Rows) -> _Ratios:
        """Returns (3, k): per label the correct, true and predicted products when pair i occurs `count[i]` times."""
        is_correct = self.true == self.predicted
        sums = (
            np.bincount(self.true[is_correct], count[is_correct], minlength=self.k),
            np.bincount(self.true, count, minlength=self.k),
            np.bincount(self.predicted, count, minlength=self.k)[: self.k],
        )
        return np.stack(sums).astype(np.float64)


def evaluate(predictions: Predictions, truth: Truth, *, seed: int = 0, resamples: int = 1000) -> Evaluation:
    """Judges predictions, anyone's, by the true labels.

    Args:
        predictions: of n products.
        truth: characteristic -> (n,) true labels in the order of `predictions.ids`, `None` where unknown. A predicted
            characteristic that is absent counts as unlabelled throughout; one that is not predicted is passed over.
        seed: of the bootstrap; the same seed gives the same intervals.
        resamples: of the bootstrap; 0 leaves the intervals out.

    Raises:
        DataError: truth and predictions share no characteristic or differ in length, a true label is neither text
            nor `None`, or `resamples` is negative.

    >>> from product_classificator.types import strings
    >>> shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    >>> ids, labels = strings(["1", "2", "3"]), {"sex": ("men", "women")}
    >>> predictions = Predictions(ids, labels, {"sex": shares}, np.ones(3, bool))
    >>> round(evaluate(predictions, {"sex": strings(["men", "women", "women"])}).mean_macro_f1, 3)
    0.667
    """
    if resamples < 0:
        raise DataError(f"resamples must be 0 (no intervals) or more, got {resamples}")
    _check_truth(predictions, truth)
    scores = {
        name: _score(predictions, name, truth[name] if name in truth else _nothing(len(predictions)), seed, resamples)
        for name in predictions.characteristics
    }
    known = [score.macro_f1 for score in scores.values() if score.macro_f1 is not None]
    mean, review = float(np.mean(known)) if known else None, score_review(predictions, truth)
    return Evaluation(mean, scores, len(predictions), seed, resamples, review)


def _check_truth(predictions: Predictions, truth: Truth) -> None:
    names = predictions.characteristics
    shared = [name for name in names if name in truth]
    if not shared:
        hint = nearest(next(iter(truth), ""), names)
        raise DataError(f"truth must hold a predicted characteristic, found only {culprits(truth)}; {hint}")
    for name in shared:
        if len(truth[name]) != len(predictions):
            raise DataError(
                f"truth must have one label per predicted product: {name!r} has {len(truth[name])} labels for "
                f"{len(predictions)} products; give the labels in the order of predictions.ids"
            )
        kind, what = (frozenset, "frozensets of text") if name in predictions.decision_thresholds else (str, "text")
        wrong = [label for label in truth[name] if label is not None and not isinstance(label, kind)]
        if wrong and all(isinstance(label, frozenset) for label in wrong):
            raise DataError(f"{name!r} was learned with one label a product, and its true labels are lists: give text")
        if wrong:
            raise DataError(
                f"true labels must be {what}, or None where unknown: {name!r} holds {culprits(map(repr, wrong))}; "
                f"turn them into {what}, and NaN into None"
            )


def _nothing(n: int) -> Strings:
    return np.full(n, None, dtype=object)


def _score(
    predictions: Predictions, characteristic: str, true: Strings, seed: int, resamples: int
) -> CharacteristicScore:
    names, is_multi = predictions.labels[characteristic], characteristic in predictions.decision_thresholds
    trained = set(names)
    is_labelled = np.array([label is not None for label in true], dtype=bool)
    is_trained = is_scorable(true, names) if is_multi else np.array([label in trained for label in true], dtype=bool)
    is_scored = is_labelled & is_trained & predictions.is_known
    n = int(is_scored.sum())
    best, confidence = predictions.best(characteristic), predictions.confidence(characteristic)
    find_pairs = set_pairs if is_multi else _pairs
    pairs = find_pairs(true[is_scored], best[is_scored], names) if n else None
    is_right, is_judged = (best == true).astype(bool), is_labelled & predictions.is_known
    sure, right = confidence[is_scored], is_right[is_scored]
    if is_multi:
        sure, right = told_labels(predictions, characteristic, true, np.flatnonzero(is_scored))
    return CharacteristicScore(
        macro_f1=None if pairs is None else _macro_f1(pairs.sums(pairs.count)),
        interval=None if pairs is None or not resamples else _interval(pairs, seed, resamples),
        accuracy=None if pairs is None else pairs.n_right / n,
        n=n,
        unknown_labels=int((is_labelled & ~is_trained).sum()),
        unlabelled=int((~is_labelled).sum()),
        not_predicted=int((is_trained & ~predictions.is_known).sum()),
        labels=() if pairs is None else _label_scores(pairs, names),
        confusions=_confusions(pairs, names) if isinstance(pairs, _Pairs) else (),
        reliability=reliability_of(sure, right, seed) if len(sure) else None,
        precision_by_coverage=precision_by_coverage(confidence[is_judged], is_right[is_judged]) if n else (),
        is_multi_label=is_multi,
    )


def _pairs(true: Strings, predicted: Strings, names: Sequence[str]) -> _Pairs:
    numbers = {label: number for number, label in enumerate(names)}
    k = len(names)
    codes = [numbers[t] * (k + 1) + numbers.get(p, k) for t, p in zip(true, predicted, strict=True)]
    pairs, count = np.unique(np.array(codes, dtype=np.int64), return_counts=True)
    return _Pairs(pairs // (k + 1), pairs % (k + 1), count, k)


def _macro_f1(sums: _Ratios) -> float:
    correct, support, predicted = sums
    seen = support + predicted
    is_seen = seen > 0
    # Nothing is borne and nothing told only where labels are sets: then nothing is wrong.
    return float(np.mean(2 * correct[is_seen] / seen[is_seen])) if is_seen.any() else 1.0


def _interval(pairs: _Pairs | SetPairs, seed: int, resamples: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    n = int(pairs.count.sum())
    shares = pairs.count / n
    scores = [_macro_f1(pairs.sums(random.multinomial(n, shares))) for _ in range(resamples)]
    low, high = np.percentile(scores, _INTERVAL_PERCENT)
    return float(low), float(high)


def _label_scores(pairs: _Pairs | SetPairs, names: Sequence[str]) -> tuple[LabelScore, ...]:
    correct, support, predicted = pairs.sums(pairs.count).astype(int).tolist()
    scores = [
        LabelScore(
            label,
            precision=right / guesses if guesses else 0.0,
            recall=right / products if products else 0.0,
            f1=2 * right / (products + guesses),
            support=products,
            predicted=guesses,
            correct=right,
        )
        for label, right, products, guesses in zip(names, correct, support, predicted, strict=True)
        if products or guesses
    ]
    return tuple(sorted(scores, key=lambda score: (-score.support, -score.predicted, score.label)))


def _confusions(pairs: _Pairs, names: Sequence[str]) -> tuple[Confusion, ...]:
    found = [
        Confusion(names[true], names[predicted], int(count))
        for true, predicted, count in zip(pairs.true, pairs.predicted, pairs.count, strict=True)
        if predicted not in (true, pairs.k)
    ]
    return tuple(sorted(found, key=lambda pair: (-pair.count, pair.true, pair.predicted)))
