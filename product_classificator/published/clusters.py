"""Clusters embeddings, and scores how well the clusters agree with each characteristic, before any head is fitted.

As in the published system (2024): reduced vectors, at most 1,000 clusters by k-means, AMI and V-measure over the
products with a known label. PCA replaces UMAP (docs/design/decisions.md). V-measure rises with the number of clusters,
AMI is corrected for chance: compare characteristics by AMI.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
MAX_DRAWN = 2_000  # t-SNE takes 10 s for them, minutes for all

_MAX_PCA_ROWS = 20_000
_MAX_KMEANS_ROWS = 100_000  # above: mini-batches, 1 % to 2 % more inertia
_BATCH_SIZE = 10_000
_PANEL_COLUMNS = 2
_PALETTE = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "black", "C8", "C9")  # tab10, whose grey means all other labels
_OTHERS_COLOR, _UNKNOWN_COLOR = "0.72", "0.9"


@dataclass(frozen=True)
class ClusterSettings:
    """At most `n_clusters` clusters by k-means, on at most `n_components` dimensions by PCA; `seed` is for both."""

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
    """How well clusters agree with one characteristic; `None` with fewer than two known labels.

    Attributes:
        ami: adjusted mutual information: 0 by chance (slightly below is possible), 1 if clusters and labels agree.
        v_measure: harmonic mean of homogeneity and completeness, 0..1.
        products: number with a known label.
        labels: number of different labels.
    """

    ami: float | None
    v_measure: float | None
    products: int
    labels: int


@dataclass(frozen=True)
class Clusters:
    """The (n,) int64 cluster of each product, from 0, and characteristic -> its score."""

    assignment: Rows
    scores: Mapping[str, ClusterScore]
    settings: ClusterSettings


def cluster(vectors: Floats, truth: Truth, settings: ClusterSettings) -> Clusters:
    """Cluster products by their vectors alone, and score the clusters by the known labels.

    Args:
        vectors: (n, d) float32, image part and text part side by side, zeros for a missing part. Leave out products
            that lack both: they would be a cluster of their own.
        truth: characteristic -> (n,) labels in the same order, `None` where unknown.
        settings: number of clusters and dimensions.

    Raises:
        DataError: vectors are empty or not finite, truth is empty or of another length, or a label is not text.

    >>> from product_classificator.types import strings
    >>> vectors = np.array([[1, 0], [0.9, 0], [0, 1]], np.float32)
    >>> clusters = cluster(vectors, {"sex": strings(["men", "men", "women"])}, ClusterSettings(n_clusters=2))
    >>> round(clusters.scores["sex"].ami, 3)
    1.0
    """
    _check(vectors, truth)
    is_large = len(vectors) > _MAX_KMEANS_ROWS
    k_means = partial(MiniBatchKMeans, batch_size=_BATCH_SIZE) if is_large else KMeans
    model = k_means(min(settings.n_clusters, len(vectors)), n_init=1, random_state=settings.seed % 2**32)
    with warnings.catch_warnings():
        # With fewer different vectors than clusters some clusters stay empty, which is harmless.
        warnings.simplefilter("ignore", ConvergenceWarning)
        assignment: Rows = model.fit(_reduce(vectors, settings)).labels_.astype(np.int64)
    return Clusters(assignment, {name: _score(labels, assignment) for name, labels in truth.items()}, settings)


def write_clusters(folder: Path, clusters: Clusters, vectors: Floats, truth: Truth, ids: Strings) -> None:
    """Write clusters.png, assignment.parquet (id, cluster) and clusters.csv (a row of scores per characteristic).

    Raises:
        DataError: clusters, vectors, truth and (n,) ids differ in length.
    """
    _check_lengths(len(clusters.assignment), {"ids": len(ids)})
    picture = plots.to_png(draw_clusters(clusters, vectors, truth))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "clusters.png", picture)
    table = pa.table({"id": pa.array(ids, pa.string()), "cluster": pa.array(clusters.assignment)})
    with replacing(folder / "assignment.parquet") as temporary:
        pq.write_table(table, temporary)
    scores = pd.DataFrame([{"characteristic": name, **asdict(score)} for name, score in clusters.scores.items()])
    write_bytes(folder / "clusters.csv", scores.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace"))


def draw_clusters(clusters: Clusters, vectors: Floats, truth: Truth) -> Figure:
    """Draw a map of the vectors, one panel per characteristic (the first 8), colored by its 10 most frequent labels.

    Near products are alike; the distance between far groups means nothing.

    Raises:
        DataError: clusters, vectors and truth differ in length.
    """
    names = list(clusters.scores)[:MAX_PANELS]
    _check_lengths(len(clusters.assignment), {"vectors": len(vectors), **{name: len(truth[name]) for name in names}})
    rows = _sample(len(vectors), MAX_DRAWN, clusters.settings)
    points = _map(_reduce(vectors[rows], clusters.settings), clusters.settings)
    panel_rows = -(-len(names) // _PANEL_COLUMNS)
    figure = Figure(figsize=(12, 0.5 + 3.8 * panel_rows), dpi=plots.DPI, layout="constrained")
    heading = f"{len(rows):,} of {len(vectors):,} products" if len(rows) < len(vectors) else f"{len(rows):,} products"
    figure.suptitle(f"Map of the embeddings (t-SNE), {heading}", fontsize=10)
    for i, name in enumerate(names):
        axes = figure.add_subplot(panel_rows, _PANEL_COLUMNS, i + 1)
        counts = Counter(label for label in truth[name] if label is not None)
        _draw_panel(axes, points, truth[name][rows], [label for label, _ in counts.most_common(MAX_COLORED_LABELS)])
        score = clusters.scores[name]
        figures = "no score" if score.ami is None else f"AMI {score.ami:.3f}, V-measure {score.v_measure:.3f}"
        axes.set_title(f"{plots.shorten(name)}: {figures}", fontsize=10, parse_math=False)
    return figure


def _draw_panel(axes: Axes, points: Floats, labels: Strings, frequent: list[str]) -> None:
    is_unknown = labels == None  # noqa: E711 - per element
    is_other = ~is_unknown & ~np.isin(labels, np.array(frequent, dtype=object))
    layers = [(label, color, labels == label) for label, color in zip(frequent, _PALETTE, strict=False)]
    layers += [(plots.OTHERS, _OTHERS_COLOR, is_other)] if is_other.any() else []
    layers += [("(unknown)", _UNKNOWN_COLOR, is_unknown)] if is_unknown.any() else []
    scatter = partial(axes.scatter, s=5, linewidths=0)  # zorder: grey is listed last and drawn first
    dots = [scatter(*points[mask].T, color=color, zorder=1 / (1 + i)) for i, (_, color, mask) in enumerate(layers)]
    plots.add_legend(axes, dots, [name for name, _, _ in layers])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("0.85")


def _check(vectors: Floats, truth: Truth) -> None:
    if vectors.ndim != 2 or not vectors.size:
        raise DataError(f"vectors must be a matrix, one row per product and at least one, got shape {vectors.shape}")
    if not truth:
        raise DataError("clusters are scored by characteristics: truth must hold at least one, found none")
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
        raise DataError(f"vectors must be finite: rows {culprits(rows)} are not; embed these products again")


def _check_lengths(n: int, lengths: Mapping[str, int]) -> None:
    wrong = {name: length for name, length in lengths.items() if length != n}
    if wrong:
        raise DataError(f"every input must have one row per product: there are {n} products, but {wrong}")


def _score(labels: Strings, assignment: Rows) -> ClusterScore:
    label_ids, names = pd.factorize(labels)  # -1: unknown
    has_label = label_ids >= 0
    products = int(has_label.sum())
    if len(names) < 2:
        return ClusterScore(None, None, products, len(names))
    pair = label_ids[has_label], assignment[has_label]
    return ClusterScore(float(adjusted_mutual_info_score(*pair)), float(v_measure_score(*pair)), products, len(names))


def _reduce(vectors: Floats, settings: ClusterSettings) -> Floats:
    """Return the (n, k) scores of a PCA fitted on a sample."""
    # scikit-learn's PCA copies all vectors, and divides by zero if they are all the same.
    sample = vectors[_sample(len(vectors), _MAX_PCA_ROWS, settings)]
    mean = sample.mean(0)
    k = min(settings.n_components, *sample.shape)
    _, _, axes = randomized_svd(sample - mean, k, random_state=settings.seed % 2**32)
    reduced: Floats = vectors @ axes.T - mean @ axes.T
    return reduced


def _map(reduced: Floats, settings: ClusterSettings) -> Floats:
    """Return (n, 2) points by t-SNE, which starts from the first two axes; these axes if it cannot start."""
    start: Floats = np.pad(reduced, ((0, 0), (0, 1)))[:, :2]
    spread = start[:, 0].std()
    if len(reduced) > 3 and spread > 1e-6:  # init="pca" would divide by it unchecked
        tsne = TSNE(perplexity=min(30, (len(reduced) - 1) / 3), init=start / spread * 1e-4)
        start = tsne.set_params(random_state=settings.seed % 2**32).fit_transform(reduced)
    return start


def _sample(n: int, limit: int, settings: ClusterSettings) -> Rows:
    """Return at most `limit` of the row numbers 0..n-1, ascending."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(settings.seed).choice(n, limit, replace=False))
