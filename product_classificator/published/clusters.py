"""Turns embeddings into clusters and tells how well these agree with each characteristic, before any head is fitted.

Decisions:
- As in the published system of 2024 the vectors are reduced, put into at most 1,000 clusters by k-means, and judged by
  AMI and V-measure over the products whose label is known. It reduced them by UMAP, this by PCA: no further
  dependency, the same result under a seed, and on real products an AMI within 0.01 of k-means on the full vectors,
  at a thirtieth of its time.
- The axes of PCA are found on at most 20,000 products, so the memory beside the vectors is a copy of these and 50
  numbers a product. Up to 100,000 products k-means sees all of them in each step, above it sees mini-batches, which
  cost 1 % to 2 % more inertia. On one core 100,000 x 1,792 took 27 s, eight scores included; k-means alone on
  1,000,000 reduced vectors 20 s.
- A characteristic with fewer than two known labels has no score: there is nothing to tell apart.
- V-measure rises with the number of clusters, AMI is corrected for chance: compare characteristics by AMI.
- The picture shows at most 2,000 products: t-SNE takes about 10 s for them on one core, and minutes for all. Near is
  alike on it, but the distance between far groups means nothing.
"""

import csv
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_mutual_info_score, v_measure_score
from sklearn.utils.extmath import randomized_svd

from product_classificator.errors import DataError, culprits
from product_classificator.evaluation import plots
from product_classificator.files import replacing, write_bytes
from product_classificator.types import Floats, Rows, Strings, Truth

MAX_PANELS = 8
MAX_COLORED_LABELS = 10
MAX_DRAWN = 2_000

_AXES_FROM = 20_000
_WHOLE_UP_TO = 100_000
_BATCH_SIZE = 10_000
_PERPLEXITY = 30
_PANEL_COLUMNS = 2
# tab10 without its grey, which stands for all other labels.
_PALETTE = [*("C0", "C1", "C2", "C3", "C4", "C5", "C6"), "black", *("C8", "C9")]
_OTHERS_COLOR, _UNKNOWN_COLOR = "0.72", "0.9"


@dataclass(frozen=True)
class ClusterSettings:
    """How vectors are put into clusters.

    Attributes:
        n_clusters: at most so many; fewer where there are fewer products.
        n_components: dimensions left by PCA; fewer where there are fewer products or dimensions.
        seed: of PCA, k-means and the picture.
    """

    n_clusters: int = 1000
    n_components: int = 50
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("n_clusters", "n_components"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise DataError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise DataError(f"seed must be a whole number between 0 and 2^63 - 1, got {self.seed!r}")


@dataclass(frozen=True)
class ClusterScore:
    """How well clusters agree with one characteristic.

    Attributes:
        ami: adjusted mutual information: 0 by chance (a little below is possible), 1 where clusters are the labels;
            `None` with fewer than two known labels.
        v_measure: harmonic mean of homogeneity and completeness, 0..1; `None` with fewer than two known labels.
        n: products whose label is known.
        n_labels: different labels among them.
    """

    ami: float | None
    v_measure: float | None
    n: int
    n_labels: int


@dataclass(frozen=True)
class Clusters:
    """Products put into clusters, and how well these agree with what is known.

    Attributes:
        assignment: (n,) int64 number of each product's cluster, from 0.
        scores: characteristic -> its score, in the order of the truth.
        settings: how the clusters were made.
    """

    assignment: Rows
    scores: Mapping[str, ClusterScore]
    settings: ClusterSettings


_DEFAULTS = ClusterSettings()


def cluster(vectors: Floats, truth: Truth, settings: ClusterSettings = _DEFAULTS) -> Clusters:
    """Puts products into clusters by their vectors alone, and scores these by what is known.

    Args:
        vectors: (n, d) float32, image part and text part side by side, a missing part zeros. Leave out products that
            miss both: they would be a cluster of their own.
        truth: characteristic -> (n,) labels in the same order, `None` where unknown.
        settings: how.

    Raises:
        DataError: there is no product or no dimension, a number is not finite, truth and vectors differ in length, or
            a label is neither text nor `None`.

    >>> from product_classificator.types import strings
    >>> vectors = np.array([[1, 0], [0.9, 0], [0, 1]], np.float32)
    >>> found = cluster(vectors, {"sex": strings(["men", "men", "women"])}, ClusterSettings(n_clusters=2))
    >>> round(found.scores["sex"].ami, 3)
    1.0
    """
    _check(vectors, truth)
    reduced = _reduce(vectors, settings)
    shared: dict[str, Any] = {
        "n_clusters": min(settings.n_clusters, len(vectors)),
        "n_init": 1,
        "random_state": _random_state(settings),
    }
    whole = len(vectors) <= _WHOLE_UP_TO
    model = KMeans(**shared) if whole else MiniBatchKMeans(batch_size=_BATCH_SIZE, **shared)
    with warnings.catch_warnings():
        # Fewer different vectors than clusters: some clusters stay empty, which is no fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        assignment: Rows = model.fit_predict(reduced).astype(np.int64)
    return Clusters(assignment, {name: _score(labels, assignment) for name, labels in truth.items()}, settings)


def write_clusters(folder: Path, clusters: Clusters, vectors: Floats, truth: Truth, ids: Strings) -> None:
    """Writes clusters.png, assignment.parquet and clusters.csv into `folder`, which is made if need be.

    clusters.csv holds characteristic, ami, v_measure, products and labels, empty where there is no score;
    assignment.parquet holds id and cluster. Files of these names are replaced, each whole or not at all.

    Args:
        folder: where to.
        clusters: what `cluster` made of these vectors and this truth.
        vectors: (n, d), for the picture.
        truth: characteristic -> (n,) labels.
        ids: (n,) product ids.

    Raises:
        DataError: clusters, vectors, truth and ids do not have the same number of products.
    """
    folder = Path(folder)
    _check_lengths(len(clusters.assignment), {"ids": len(ids)})
    figure = draw_clusters(clusters, vectors, truth)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "clusters.png") as temporary:
        figure.savefig(temporary, format="png")
    table = pa.table({"id": pa.array(ids, pa.string()), "cluster": pa.array(clusters.assignment)})
    with replacing(folder / "assignment.parquet") as temporary:
        pq.write_table(table, temporary)
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("characteristic", "ami", "v_measure", "products", "labels"))
    writer.writerows((name, s.ami, s.v_measure, s.n, s.n_labels) for name, s in clusters.scores.items())
    write_bytes(folder / "clusters.csv", text.getvalue().encode("utf-8", "replace"))


def draw_clusters(clusters: Clusters, vectors: Floats, truth: Truth) -> Figure:
    """Draws a map of the vectors, one panel per characteristic (the first 8), coloured by its 10 largest labels.

    Raises:
        DataError: clusters, vectors and truth do not have the same number of products.
    """
    names = list(clusters.scores)[:MAX_PANELS]
    lengths = {name: len(truth[name]) for name in names}
    _check_lengths(len(clusters.assignment), {"vectors": len(vectors), **lengths})
    rows = _sample(len(vectors), MAX_DRAWN, clusters.settings)
    places = _map(_reduce(vectors[rows], clusters.settings), clusters.settings)
    lines = -(-len(names) // _PANEL_COLUMNS)
    figure = Figure(figsize=(12, 0.5 + 3.8 * lines), dpi=plots.DPI, layout="constrained")
    heading = f"{len(rows):,} of {len(vectors):,} products" if len(rows) < len(vectors) else f"{len(rows):,} products"
    figure.suptitle(f"Map of the embeddings (t-SNE), {heading}", fontsize=10)
    for i, name in enumerate(names):
        axes = figure.add_subplot(lines, _PANEL_COLUMNS, i + 1)
        _draw_panel(axes, places, truth[name], rows)
        score = clusters.scores[name]
        told = "no score" if score.ami is None else f"AMI {score.ami:.3f}, V-measure {score.v_measure:.3f}"
        axes.set_title(f"{plots.shorten(name)}: {told}", fontsize=10, parse_math=False)
    return figure


def _draw_panel(axes: Axes, places: Floats, labels: Strings, rows: Rows) -> None:
    """Draws the products of `rows`, which lie at `places`; the largest labels are those of all products."""
    largest = [label for label, _ in Counter(x for x in labels if x is not None).most_common(MAX_COLORED_LABELS)]
    here = labels[rows]
    is_unknown = np.array([label is None for label in here], dtype=bool)
    is_other = np.array([label is not None and label not in largest for label in here], dtype=bool)
    layers = [("(unknown)", _UNKNOWN_COLOR, is_unknown), (plots.OTHERS, _OTHERS_COLOR, is_other)]
    layers = [layer for layer in layers if layer[2].any()]
    layers += [(label, color, here == label) for label, color in zip(largest, _PALETTE, strict=False)]
    for _, color, mask in layers:
        axes.scatter(places[mask, 0], places[mask, 1], s=5, color=color, linewidths=0)
    key = [Line2D([], [], color=color, marker="o", markersize=5, linestyle="none") for _, color, _ in layers]
    order = [*range(len(layers) - len(largest), len(layers)), *reversed(range(len(layers) - len(largest)))]
    plots.add_legend(axes, [key[i] for i in order], [layers[i][0] for i in order])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("0.85")


def _check(vectors: Floats, truth: Truth) -> None:
    if vectors.ndim != 2 or not vectors.size:
        raise DataError(f"vectors must be a matrix, one row per product and at least one, got shape {vectors.shape}")
    if not truth:
        raise DataError("clusters are judged by characteristics: truth must hold at least one, found none")
    _check_lengths(len(vectors), {name: len(labels) for name, labels in truth.items()})
    for name, labels in truth.items():
        wrong = [label for label in labels if label is not None and not isinstance(label, str)]
        if wrong:
            raise DataError(
                f"labels must be text, or None where unknown: {name!r} holds {culprits(map(repr, wrong))}; "
                "turn them into text, and NaN into None"
            )
    with np.errstate(all="ignore"):  # a sum per row needs no second matrix
        rows = np.flatnonzero(~np.isfinite(vectors.sum(1)))
    if len(rows):
        raise DataError(f"vectors must be finite numbers: rows {culprits(rows)} are not; embed these products anew")


def _check_lengths(n: int, found: Mapping[str, int]) -> None:
    wrong = {name: length for name, length in found.items() if length != n}
    if wrong:
        raise DataError(f"every input must have one row per product: there are {n} products, but {wrong}")


def _score(labels: Strings, assignment: Rows) -> ClusterScore:
    codes, known = pd.factorize(labels)  # -1: unknown
    is_known = codes >= 0
    n, n_labels = int(is_known.sum()), len(known)
    if n_labels < 2:
        return ClusterScore(None, None, n, n_labels)
    pair = codes[is_known], assignment[is_known]
    return ClusterScore(float(adjusted_mutual_info_score(*pair)), float(v_measure_score(*pair)), n, n_labels)


def _reduce(vectors: Floats, settings: ClusterSettings) -> Floats:
    """Returns the (n, k) scores of PCA."""
    # Written out: scikit-learn's PCA copies all vectors, and divides by zero where they are all alike.
    rows = _sample(len(vectors), _AXES_FROM, settings)
    centred = vectors[rows]
    mean = centred.mean(0)
    centred -= mean
    k = min(settings.n_components, *centred.shape)
    _, _, axes = randomized_svd(centred, k, random_state=_random_state(settings))
    reduced: Floats = vectors @ axes.T - mean @ axes.T
    return reduced


def _map(reduced: Floats, settings: ClusterSettings) -> Floats:
    """Returns (n, 2) places by t-SNE that starts from the first two axes; these themselves where it cannot start."""
    start = np.zeros((len(reduced), 2), dtype=np.float32)
    start[:, : reduced.shape[1]] = reduced[:, :2]
    spread = float(start[:, 0].std())
    if len(reduced) < 4 or spread < 1e-6:
        return start
    perplexity = min(_PERPLEXITY, (len(reduced) - 1) / 3)
    # init="pca" would divide by the same spread unchecked; the vectors are on their principal axes already.
    tsne = TSNE(perplexity=perplexity, init=start / spread * 1e-4, random_state=_random_state(settings))
    places: Floats = tsne.fit_transform(reduced)
    return places


def _sample(n: int, limit: int, settings: ClusterSettings) -> Rows:
    """Returns at most `limit` of the row numbers 0..n-1, drawn by the seed, ascending."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(settings.seed).choice(n, limit, replace=False))


def _random_state(settings: ClusterSettings) -> int:
    return settings.seed % 2**32  # all that scikit-learn takes
