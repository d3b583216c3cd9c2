"""Fit what turns logits into honest probabilities and decisions, on validation products.

Trained networks are overconfident, so logits are divided by a temperature (Guo et al. 2017, "On calibration of modern
neural networks") that depends on the product, see `heads.calibration`: where some products name their label and others
do not, one temperature for all is wrong. Its numbers have a prior, so few validation products, all predicted correctly,
do not make the heads overconfident.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse import csr_matrix
from scipy.special import logsumexp, softmax
from scipy.stats import beta
from sklearn.cluster import MiniBatchKMeans
from sklearn.preprocessing import normalize

from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.calibration import Characteristic, Thresholds, sigmoid, spreads
from product_classificator.heads.novelty import MAX_DISTANCE, NoveltyDetector, distances, unknown_word_shares
from product_classificator.training.targets import Target
from product_classificator.types import Bools, Embeddings, Floats, Predictions, Rows, Truth

_MAX_LOG_TEMPERATURE, _MAX_EXPONENT = math.log(8), 0.75
_LOG_TEMPERATURE_DEVIATION, _EXPONENT_DEVIATION = 0.5, 0.3
_TEMPERATURE_SAMPLE = 20_000
_PRIOR_PRODUCTS = 100.0
_MAX_DECISION_THRESHOLD = 0.5
_RISK = 0.1
_PRECISION_STEPS = 200
_FIRST_SET, _SET_GROWTH = 4, 1.2
_CENTRES, _CENTRES_SAMPLE = 256, 20_000
_IN_DISTRIBUTION_SHARE = 0.99
_NEAR = 0.01  # what is as near as a re-encoded photo is not novel: a limit of rounding noise would decide by chance


def calibrate(target: Target, logits: Floats, rows: Rows) -> Characteristic:
    """Return a characteristic calibrated by the (m, k) logits of m rows, without confidence thresholds."""
    if not target.is_multi_label:
        return Characteristic(target.name, target.labels, *fit_temperature(logits, target.label_ids[rows]))
    is_known = target.is_known[rows]
    known_logits, indicators = logits[is_known], target.indicators[rows[is_known]]
    temperature = fit_multi_label_temperature(known_logits, indicators)
    thresholds = fit_decision_thresholds(sigmoid(known_logits / np.float32(temperature)), indicators)
    return Characteristic(target.name, target.labels, temperature, decision_thresholds=tuple(thresholds.tolist()))


def fit_temperature(logits: Floats, label_ids: Rows) -> tuple[float, float]:
    """Return the temperature and exponent that maximise the likelihood of the known labels; (1, 0) without any."""
    is_known = label_ids >= 0
    known_logits, true = logits[is_known].astype(np.float64), label_ids[is_known][:, None]
    log_spreads = np.log(spreads(known_logits))
    deviations = np.array([_LOG_TEMPERATURE_DEVIATION, _EXPONENT_DEVIATION])

    def loss(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        log_temperature, exponent = point.tolist()
        scaled = known_logits / np.exp(log_temperature + exponent * log_spreads)[:, None]
        scaled_true = np.take_along_axis(scaled, true, 1)[:, 0]
        losses = logsumexp(scaled, axis=1) - scaled_true
        slopes = scaled_true - (softmax(scaled, axis=1) * scaled).sum(1)
        penalty = float(((point / deviations) ** 2).sum()) / 2  # both numbers have a normal prior around 0
        gradient = np.array([slopes.sum(), (slopes * log_spreads).sum()]) + point / deviations**2
        return float(losses.sum()) + penalty, gradient

    bounds = [(-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE), (-_MAX_EXPONENT, _MAX_EXPONENT)]
    log_temperature, exponent = minimize(loss, np.zeros(2), jac=True, bounds=bounds, method="L-BFGS-B").x.tolist()
    return math.exp(log_temperature), exponent


def fit_multi_label_temperature(logits: Floats, indicators: csr_matrix) -> float:
    """Return the temperature that maximises the likelihood of (n, k) indicators; 1 without products."""
    if not len(logits):
        return 1.0
    step = -(-len(logits) // _TEMPERATURE_SAMPLE)
    sample, targets = logits[::step].astype(np.float64), indicators[::step].toarray()

    def loss(log_temperature: float) -> float:
        scaled = sample / math.exp(log_temperature)
        penalty = (log_temperature / _LOG_TEMPERATURE_DEVIATION) ** 2 / 2
        return float((np.logaddexp(0, scaled) - scaled * targets).sum()) + penalty

    bounds = (-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE)
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def fit_decision_thresholds(probabilities: Floats, indicators: csr_matrix) -> Floats:
    """Return the (k,) float32 decision thresholds of labels, the lowest probability at which each is assigned.

    Validation products have a handful of each rare label, and the best threshold for these is mostly chance. So the F1
    that is maximised mixes true labels with what the probabilities themselves expect; the latter weighs as much as 100
    products with the label. Where probabilities are right, the best threshold is half of the best F1 (Lipton et al.
    2014, "Optimal thresholding of classifiers to maximize F1 measure"), so it never exceeds 0.5.
    """
    columns = indicators.tocsc()
    thresholds = np.full(probabilities.shape[1], _MAX_DECISION_THRESHOLD, dtype=np.float32)
    for label_index, column in enumerate(probabilities.T if len(probabilities) else ()):
        has_label = columns[:, label_index].toarray()[:, 0]
        n_true = has_label.sum()
        trust = n_true / (n_true + _PRIOR_PRODUCTS)
        order = np.argsort(-column, kind="stable")
        descending = column[order].astype(np.float64)
        mixed = trust * has_label[order] + (1 - trust) * descending
        f1 = 2 * np.cumsum(mixed) / (mixed.sum() + np.arange(1, len(descending) + 1))
        best = int(f1.argmax())
        # Half way to the next lower probability, so that rounding never decides.
        halfway = float(np.append(descending, 0.0)[[best, best + 1]].mean())
        thresholds[label_index] = min(halfway, _MAX_DECISION_THRESHOLD)
    return thresholds


def with_confidence_thresholds(
    characteristics: Sequence[Characteristic], predictions: Predictions, truth: Truth, groups: Rows
) -> tuple[Characteristic, ...]:
    """Return characteristics with confidence thresholds; a label that was too rare to be trained counts as wrong."""
    calibrated = []
    for characteristic in characteristics:
        name = characteristic.name
        is_judged = predictions.is_predicted(name) & np.array([label is not None for label in truth[name]], dtype=bool)
        is_right = (predictions.best(name) == truth[name])[is_judged].astype(bool)
        thresholds = confidence_thresholds(predictions.confidence(name)[is_judged], is_right, groups[is_judged])
        calibrated.append(replace(characteristic, confidence_thresholds=thresholds))
    return tuple(calibrated)


def confidence_thresholds(confidence: Floats, is_right: Bools, groups: Rows | None = None) -> Thresholds:
    """Return the lowest confidence that keeps each precision, in steps of half a percent.

    The guarantee: with 90 % probability over the validation products, the precision of the products above the threshold
    is at least the promised one, for each promise on its own. It counts a group of near-identical products once, as its
    first product, since its products are right or wrong together; `None`: every product is a group.

    A threshold keeps a precision if the lower end of the one-sided 90 % Clopper-Pearson interval is at least as high.
    Thresholds are tested from the top down, and the first that fails ends the search, so testing many costs nothing
    (fixed-sequence testing: Angelopoulos et al. 2021, "Learn then Test"). The first set tested holds a quarter of the
    products, or as many as a promise needs if all are right (45 for 0.95), and each next one a fifth more.
    """
    if groups is not None:
        first = np.unique(groups, return_index=True)[1]
        confidence, is_right = confidence[first], is_right[first]
    n = len(confidence)
    if not n:
        return ()
    order = np.argsort(-confidence, kind="stable")
    levels = confidence[order].astype(np.float64)
    ends = np.flatnonzero(np.append(levels[1:] < levels[:-1], True)) + 1  # equal confidences are on one side
    steps = np.arange(int(math.log(n, _SET_GROWTH)), -1, -1)
    sizes = np.unique(ends[np.searchsorted(ends, np.ceil(n / _SET_GROWTH**steps))])
    n_right = np.cumsum(is_right[order])[sizes - 1]
    bounds = np.where(n_right > 0, beta.ppf(_RISK, np.maximum(n_right, 1), sizes - n_right + 1), 0.0)
    levels = levels[sizes - 1]
    levels[-1] = 0.0  # what is promised for all validation products is promised for any other
    last, precision_of_level = len(sizes) - 1, {}
    for precision in np.arange(1, _PRECISION_STEPS) / _PRECISION_STEPS:
        start = int(np.searchsorted(sizes, max(n / _FIRST_SET, math.log(_RISK, precision))))
        start = min(start, len(sizes) - 1)
        fails = np.flatnonzero(bounds[start:] < precision)
        last = min(last, start + int(fails[0]) - 1 if len(fails) else len(sizes) - 1)
        if last < start:  # a higher precision is not promised either: each promise is tested on its own
            break
        precision_of_level[float(levels[last])] = float(precision)
    return tuple((precision, level) for level, precision in precision_of_level.items())


def fit_novelty(
    embeddings: Embeddings, texts: Sequence[str], train: Rows, valid: Rows, vocabulary: Vocabulary, seed: int = 0
) -> NoveltyDetector:
    """Learn centres from training products, and limits from validation products."""
    image = _centres(embeddings.image, train[embeddings.has_image[train]], seed)
    text = _centres(embeddings.text, train[embeddings.has_text[train]], seed)
    with_image, with_text = valid[embeddings.has_image[valid]], valid[embeddings.has_text[valid]]
    image_limit, text_limit, words_limit = (
        float(np.quantile(scores, _IN_DISTRIBUTION_SHARE, method="higher")) if len(scores) else MAX_DISTANCE
        for scores in (
            distances(embeddings.image[with_image], image),
            distances(embeddings.text[with_text], text),
            unknown_word_shares([texts[row] for row in with_text.tolist()], vocabulary),
        )
    )
    return NoveltyDetector(image, text, (max(image_limit, _NEAR), max(text_limit, _NEAR), words_limit))


def _centres(vectors: Floats, rows: Rows, seed: int) -> Floats:
    if len(rows) > _CENTRES_SAMPLE:
        rows = np.random.default_rng(seed).choice(rows, _CENTRES_SAMPLE, replace=False)
    if len(rows) <= _CENTRES:
        return vectors[rows]
    # Random products are as good a start as k-means++, which took a quarter of the time of fitting heads, and five
    # passes as good as all.
    kmeans = MiniBatchKMeans(_CENTRES, init="random", batch_size=2048, n_init=1, max_iter=5, random_state=seed)
    centres: Floats = normalize(kmeans.fit(vectors[rows]).cluster_centers_)
    return centres
