"""Fit what turns logits into honest probabilities and decisions, on products that no model has learned from.

The logits of a joint network and of a linear model are blended. Trained networks are overconfident, so logits are
divided by a temperature (Guo et al. 2017, "On calibration of modern neural networks") that depends on the product, see
`heads.calibration`: where some products name their label and others do not, one temperature for all is wrong. Its
numbers have a prior, so few products, all predicted correctly, do not make the heads overconfident.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse import csr_matrix
from scipy.special import logsumexp, softmax
from scipy.stats import beta
from sklearn.cluster import MiniBatchKMeans
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from sklearn.random_projection import GaussianRandomProjection

from product_classificator.heads.calibration import Characteristic, Thresholds, sigmoid, spreads
from product_classificator.heads.novelty import MAX_DISTANCE, NoveltyDetector
from product_classificator.training.inputs import blocks_of, thinned
from product_classificator.training.targets import Target
from product_classificator.types import Bools, Embeddings, Floats, Predictions, Rows, Truth

_MAX_LOG_TEMPERATURE, _MAX_EXPONENT = math.log(8), 0.75
_LOG_TEMPERATURE_DEVIATION, _EXPONENT_DEVIATION = 0.5, 0.3
_TEMPERATURE_SAMPLE, _BLEND_SAMPLE = 20_000, 10_000
_TINY = 1e-6
_PRIOR_PRODUCTS = 100.0
_MAX_DECISION_THRESHOLD = 0.5
_RISK = 0.1
_PRECISION_STEPS = 200
_FIRST_SET, _SET_GROWTH = 4, 1.2
_CENTRES, _CENTRES_SAMPLE, _PROJECTED = 256, 20_000, 256
_IN_DISTRIBUTION_SHARE = 0.99
_NEAR = 0.01  # what is as near as a re-encoded photo is not novel: a limit of rounding noise would decide by chance


@dataclass(frozen=True)
class Blend:
    """How the logits of both models of a characteristic add up: shares of each, and (k,) float32 offsets of labels."""

    joint: float
    linear: float
    offsets: Floats

    def logits(self, joint: Floats, linear: Floats) -> Floats:
        """Return the blended (n, k) logits."""
        blended: Floats = np.float32(self.joint) * joint + np.float32(self.linear) * linear + self.offsets
        return blended


def fit_blend(target: Target, joint: Floats, linear: Floats) -> Blend:
    """Return the blend of two models that maximises the likelihood of the known labels of n products.

    Three numbers: the shares, and how much of the log frequency of labels is taken away, for the linear model
    underrates rare labels. Their prior favours equal shares of equally large logits.
    """
    known = np.flatnonzero(target.is_known)
    counts = target.counts(known)
    log_priors = np.log(np.maximum(counts, 0.5) / max(len(known), 1)).astype(np.float32)
    rows = thinned(known, _BLEND_SAMPLE)
    typical = [std if len(rows) and (std := float(logits[rows].std())) > _TINY else 1.0 for logits in (joint, linear)]
    parts = [joint[rows] / typical[0], linear[rows] / typical[1]]
    if not target.is_multi_label:
        parts.append(np.broadcast_to(log_priors, parts[0].shape))
    true, is_multi = target.indicators[rows].toarray(), target.is_multi_label
    expected = np.array([1.0, 1.0, 0.0][: len(parts)])

    def loss(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logits = sum(share * part for share, part in zip(point.tolist(), parts, strict=True))
        if is_multi:
            losses, probabilities = np.logaddexp(0, logits) - true * logits, sigmoid(logits)
        else:
            log_sums = logsumexp(logits, axis=1, keepdims=True)
            losses, probabilities = true * (log_sums - logits), np.exp(logits - log_sums)
        slopes = [float(((probabilities - true) * part).sum(dtype=np.float64)) for part in parts]
        penalty = float(((point - expected) ** 2).sum()) / 2
        return float(losses.sum(dtype=np.float64)) + penalty, np.array(slopes) + point - expected

    bounds = [(0.0, 50.0), (0.0, 50.0), (-1.0, 0.0)][: len(parts)]
    point = minimize(loss, expected, jac=True, bounds=bounds, method="L-BFGS-B").x.tolist() if len(rows) else [1, 1, 0]
    offsets = log_priors * np.float32(0 if is_multi else point[2])
    return Blend(point[0] / typical[0], point[1] / typical[1], offsets)


def calibrate(target: Target, logits: Floats) -> Characteristic:
    """Return a characteristic calibrated by the (n, k) logits of its products, without confidence thresholds."""
    if not target.is_multi_label:
        return Characteristic(target.name, target.labels, *fit_temperature(logits, target.label_ids))
    known_logits, indicators = logits[target.is_known], target.indicators[target.is_known]
    temperature = fit_multi_label_temperature(known_logits, indicators)
    thresholds = fit_decision_thresholds(sigmoid(known_logits / np.float32(temperature)), indicators)
    return Characteristic(target.name, target.labels, temperature, decision_thresholds=tuple(thresholds.tolist()))


def fit_temperature(logits: Floats, label_ids: Rows) -> tuple[float, float, tuple[float, ...]]:
    """Return temperature, exponent and log priors that maximise the likelihood of the known labels.

    The priors are a share of the log frequencies of labels. Without known labels: (1, 0, ()).
    """
    known = np.flatnonzero(label_ids >= 0)
    if not len(known):
        return 1.0, 0.0, ()
    known = thinned(known, _TEMPERATURE_SAMPLE)
    known_logits, true = logits[known].astype(np.float64), label_ids[known][:, None]
    counts = np.bincount(true[:, 0], minlength=logits.shape[1])
    log_frequencies = np.log(np.maximum(counts, 0.5) / len(true))
    log_spreads = np.log(spreads(known_logits))
    deviations = np.array([_LOG_TEMPERATURE_DEVIATION, _EXPONENT_DEVIATION, 1.0])

    def loss(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        log_temperature, exponent, share = point.tolist()
        scaled = known_logits / np.exp(log_temperature + exponent * log_spreads)[:, None]
        logits = scaled + share * log_frequencies
        scaled_true = np.take_along_axis(scaled, true, 1)[:, 0]
        losses = logsumexp(logits, axis=1) - scaled_true - share * log_frequencies[true[:, 0]]
        probabilities = softmax(logits, axis=1)
        slopes = scaled_true - (probabilities * scaled).sum(1)
        of_share = (probabilities.sum(0) - counts) @ log_frequencies
        penalty = float(((point / deviations) ** 2).sum()) / 2  # the numbers have a normal prior around 0
        gradient = np.array([slopes.sum(), (slopes * log_spreads).sum(), of_share]) + point / deviations**2
        return float(losses.sum()) + penalty, gradient

    bounds = [(-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE), (-_MAX_EXPONENT, _MAX_EXPONENT), (0, 1)]
    log_temperature, exponent, share = minimize(loss, np.zeros(3), jac=True, bounds=bounds, method="L-BFGS-B").x
    return math.exp(log_temperature), float(exponent), tuple((share * log_frequencies).tolist())


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
        thresholds[label_index] = min(max(halfway, _TINY), _MAX_DECISION_THRESHOLD)
    return thresholds


def with_confidence_thresholds(
    characteristics: Sequence[Characteristic], predictions: Predictions, truth: Truth, groups: Rows, distance: Floats
) -> tuple[Characteristic, ...]:
    """Return characteristics with confidence thresholds; a label that was too rare to be trained counts as wrong.

    Nothing is promised that the half of the products that are farther from what was learned disproves: new products may
    all be that far, where the catalog holds series of photos.
    """
    calibrated, is_far = [], distance > np.median(distance) if len(distance) else distance > 0
    for characteristic in characteristics:
        name = characteristic.name
        is_judged = predictions.is_predicted(name) & np.array([label is not None for label in truth[name]], dtype=bool)
        columns = (predictions.best(name) == truth[name]).astype(bool), groups, is_far
        confidence = predictions.confidence(name)[is_judged]
        thresholds = confidence_thresholds(confidence, *(column[is_judged] for column in columns))
        calibrated.append(replace(characteristic, confidence_thresholds=thresholds))
    return tuple(calibrated)


def confidence_thresholds(
    confidence: Floats, is_right: Bools, groups: Rows | None = None, is_far: Bools | None = None
) -> Thresholds:
    """Return the lowest confidence that keeps each precision, in steps of half a percent.

    The guarantee: with 90 % probability over the validation products, the precision of the products above the threshold
    is at least the promised one, for each promise on its own. Products of one group are right or wrong together, so n
    products in groups of sizes s count as n² / sum(s²) (Kish's effective sample size); `None`: each is a group.

    A threshold keeps a precision if the lower end of the one-sided 90 % Clopper-Pearson interval is at least as high.
    Thresholds are tested from the top down, and the first that fails ends the search, so testing many costs nothing
    (fixed-sequence testing: Angelopoulos et al. 2021, "Learn then Test"). The first set tested holds a quarter of the
    products, or as many as a promise needs if all are right (45 for 0.95), and each next one a fifth more. The upper
    end of the same interval, of those of each set that are far from what was learned, must be as high, too.
    """
    n = len(confidence)
    if not n:
        return ()
    order = np.argsort(-confidence, kind="stable")
    levels = confidence[order].astype(np.float64)
    ends = np.flatnonzero(np.append(levels[1:] < levels[:-1], True)) + 1  # equal confidences are on one side
    steps = np.arange(int(math.log(n, _SET_GROWTH)), -1, -1)
    sizes = np.unique(ends[np.searchsorted(ends, np.ceil(n / _SET_GROWTH**steps))])
    ids = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1][order]
    effective = np.array([size**2 / (np.bincount(ids[:size]) ** 2).sum() for size in sizes.tolist()])
    n_right = np.cumsum(is_right[order])[sizes - 1] / sizes * effective
    bounds = np.where(n_right > 0, beta.ppf(_RISK, np.maximum(n_right, 1e-9), effective - n_right + 1), 0.0)
    if is_far is not None:
        n_far, n_right_far = (np.cumsum(column[order])[sizes - 1] for column in (is_far, is_right & is_far))
        n_wrong_far: Rows = n_far - n_right_far
        highest = np.where(n_wrong_far > 0, beta.ppf(1 - _RISK, n_right_far + 1, np.maximum(n_wrong_far, 1)), 1.0)
        bounds = np.minimum(bounds, highest)
    levels = levels[sizes - 1]
    levels[-1] = 0.0  # what is promised for all validation products is promised for any other
    last, precision_of_level = len(sizes) - 1, {}
    for precision in np.arange(1, _PRECISION_STEPS) / _PRECISION_STEPS:
        is_enough = (sizes >= n / _FIRST_SET) & (effective >= math.log(_RISK, precision))
        start = int(is_enough.argmax()) if is_enough.any() else len(sizes) - 1
        fails = np.flatnonzero(bounds[start:] < precision)
        last = min(last, start + int(fails[0]) - 1 if len(fails) else len(sizes) - 1)
        if last < start:  # a higher precision is not promised either: each promise is tested on its own
            break
        precision_of_level[float(levels[last])] = float(precision)
    return tuple((precision, level) for level, precision in precision_of_level.items())


def fit_centres(embeddings: Embeddings, train: Rows, seed: int = 0) -> NoveltyDetector:
    """Return a detector that knows centres of training products, and no limits yet."""
    image = _centres(embeddings.image, train[embeddings.has_image[train]], seed)
    text = _centres(embeddings.text, train[embeddings.has_text[train]], seed)
    return NoveltyDetector(image, text, (MAX_DISTANCE, MAX_DISTANCE, MAX_DISTANCE))


def nearest_distance(embeddings: Embeddings, learned: Rows, rows: Rows) -> Floats:
    """Return the (m,) distances, 1 - cosine, of products of `rows` to the nearest one that was learned.

    Photos are compared, of products without one texts; nothing to compare is as far as can be. Vectors are projected to
    256 dimensions, which changes distances by a tenth, and of more than 20,000 products some are compared.
    """
    distances = np.full(len(rows), MAX_DISTANCE, dtype=np.float32)
    for vectors, has_part in ((embeddings.text, embeddings.has_text), (embeddings.image, embeddings.has_image)):
        present, known = np.flatnonzero(has_part[rows]), learned[has_part[learned]]
        if len(present) and len(known):
            project = np.asarray
            if vectors.shape[1] > _PROJECTED:
                project = (
                    GaussianRandomProjection(_PROJECTED, random_state=0).fit(vectors[:1].astype(np.float32)).transform
                )
            of_known, of_present = (
                np.concatenate([project(vectors[block].astype(np.float32)) for block in blocks_of(which)])
                for which in (thinned(known, _CENTRES_SAMPLE), rows[present])
            )
            nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(of_known).kneighbors(of_present)[0]
            distances[present] = nearest[:, 0] ** 2 / 2
    return distances


def fit_limits(scores: Floats) -> tuple[float, float, float]:
    """Return limits of novelty that 1 % of products exceed, by the (n, 3) scores of products that were not learned."""
    limits = []
    for column in scores.T:
        present = column[~np.isnan(column)]
        high = np.quantile(present, _IN_DISTRIBUTION_SHARE, method="higher") if len(present) else MAX_DISTANCE
        limits.append(float(high))
    image, text, words = limits
    return max(image, _NEAR), max(text, _NEAR), words


def _centres(vectors: Floats, rows: Rows, seed: int) -> Floats:
    if len(rows) > _CENTRES_SAMPLE:
        rows = np.random.default_rng(seed).choice(rows, _CENTRES_SAMPLE, replace=False)
    taken: Floats = vectors[rows].astype(np.float32)
    if len(rows) <= _CENTRES:
        return taken
    # Random products are as good a start as k-means++, which took a quarter of the time of fitting heads, and five
    # passes as good as all.
    kmeans = MiniBatchKMeans(_CENTRES, init="random", batch_size=2048, n_init=1, max_iter=5, random_state=seed)
    centres: Floats = normalize(kmeans.fit(taken).cluster_centers_)
    return centres
