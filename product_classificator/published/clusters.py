"""Clusters embeddings, and scores how well the clusters agree with each characteristic, before any head is fitted.

As in the published system (2024): reduced vectors, at most 1,000 clusters by k-means, AMI and V-measure over the
products with a known label. PCA replaces UMAP (docs/design/decisions.md). V-measure rises with the number of clusters,
AMI is corrected for chance: compare characteristics by AMI.
"""

import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_mutual_info_score, v_measure_score

from product_classificator.errors import DataError
from product_classificator.evaluation import plots
from product_classificator.evaluation.plots import OTHERS
from product_classificator.files import replacing, write_bytes
from product_classificator.types import Embeddings, Floats, Rows, Strings, Truth, as_text

UNKNOWN = "(unknown)"
MAX_PANELS, MAX_COLORED_LABELS = 8, 10
MAX_DRAWN = 2_000  # t-SNE takes 10 s for them, minutes for all

_MAX_PCA_ROWS = 20_000
_MAX_KMEANS_ROWS = 100_000  # above: mini-batches, 1 % to 2 % more inertia
_BATCH_SIZE = 10_000
_PANEL_COLUMNS = 2
_PALETTE = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "black", "C8", "C9")  # tab10, whose grey means all other labels
_GREYS = {OTHERS: "0.72", UNKNOWN: "0.9"}
_SCORES = ["ami", "v_measure", "products", "labels"]


@dataclass(frozen=True)
class ClusterSettings:
    """At most `n_clusters` clusters by k-means, on at most `n_components` dimensions by PCA; `seed` is for both."""

    n_clusters: int = 1000
    n_components: int = 50
    seed: int = 42

    def __post_init__(self) -> None:
        for name, lowest, limit in (("n_clusters", 1, 2**31), ("n_components", 1, 2**31), ("seed", 0, 2**32)):
            value = getattr(self, name)
            if not isinstance(value, int) or not lowest <= value < limit:
                raise DataError(f"{name} must be a whole number from {lowest} to {limit - 1}, got {value!r}")


@dataclass(frozen=True)
class Clusters:
    """The (n,) int64 cluster of each product, from 0, and the scores: a row per characteristic (index).

    The columns are `ami` (adjusted mutual information: 0 by chance, slightly below is possible, 1 if clusters and
    labels agree), `v_measure` (harmonic mean of homogeneity and completeness, 0..1), both NaN with fewer than two known
    labels, `products` (number of those with a known label) and `labels` (number of different ones).
    """

    assignment: Rows
    scores: pd.DataFrame
    settings: ClusterSettings


def cluster(vectors: Floats, truth: Truth, settings: ClusterSettings) -> Clusters:
    """Cluster products by their (n, d) float32 vectors alone, and score the clusters by the known labels, as text.

    Leave out products that lack image and text: they would be a cluster of their own.

    >>> from product_classificator.types import strings
    >>> vectors = np.array([[1, 0], [0.9, 0], [0, 1]], np.float32)
    >>> clusters = cluster(vectors, {"sex": strings(["men", "men", "women"])}, ClusterSettings(n_clusters=2))
    >>> print(clusters.scores.ami["sex"].round(3))
    1.0
    """
    k_means = partial(MiniBatchKMeans, batch_size=_BATCH_SIZE) if len(vectors) > _MAX_KMEANS_ROWS else KMeans
    model = k_means(min(settings.n_clusters, len(vectors)), n_init=1, random_state=settings.seed)
    with warnings.catch_warnings():
        # With fewer different vectors than clusters some clusters stay empty, which is harmless.
        warnings.simplefilter("ignore", ConvergenceWarning)
        assignment: Rows = model.fit(_reduce(vectors, settings)).labels_.astype(np.int64)
    scores = [_score(labels, assignment) for labels in truth.values()]
    return Clusters(assignment, pd.DataFrame(scores, pd.Index(truth, name="characteristic"), _SCORES), settings)


def cluster_products(folder: Path, embeddings: Embeddings, truth: Truth, settings: ClusterSettings) -> Clusters:
    """Cluster the products that have an image or a text, and write the clusters into a folder; a set is one label."""
    rows = np.flatnonzero(embeddings.has_image | embeddings.has_text)
    embeddings, truth = embeddings.take(rows), {name: as_text(labels[rows]) for name, labels in truth.items()}
    vectors = np.concatenate([embeddings.image, embeddings.text], 1, dtype=np.float32)
    clusters = cluster(vectors, truth, settings)
    write_clusters(folder, clusters, vectors, truth, embeddings.ids)
    return clusters


def write_clusters(folder: Path, clusters: Clusters, vectors: Floats, truth: Truth, ids: Strings) -> None:
    """Write clusters.png, assignment.parquet (id, cluster) and clusters.csv (a row of scores per characteristic)."""
    picture = plots.to_png(draw_clusters(clusters, vectors, truth))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "clusters.png", picture)
    with replacing(folder / "assignment.parquet") as temporary:
        pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "cluster": clusters.assignment}), temporary)
    write_bytes(folder / "clusters.csv", clusters.scores.to_csv(lineterminator="\n").encode("utf-8", "replace"))


def draw_clusters(clusters: Clusters, vectors: Floats, truth: Truth) -> Figure:
    """Draw a map of the vectors, one panel per characteristic (the first 8), colored by its 10 most frequent labels."""
    names = list(truth)[:MAX_PANELS]
    rows = _sample(len(vectors), MAX_DRAWN, clusters.settings)
    points = _map(_reduce(vectors[rows], clusters.settings), clusters.settings)
    panel_rows = -(-len(names) // _PANEL_COLUMNS)
    figure = Figure(figsize=(12, 0.5 + 3.8 * panel_rows), dpi=plots.DPI, layout="constrained")
    heading = f"{len(rows):,} of {len(vectors):,} products" if len(rows) < len(vectors) else f"{len(rows):,} products"
    figure.suptitle(f"Map of the embeddings (t-SNE), {heading}", fontsize=10)
    for i, name in enumerate(names):
        axes = figure.add_subplot(panel_rows, _PANEL_COLUMNS, i + 1, xticks=[], yticks=[])
        axes.spines[:].set_color("0.85")
        score, frequent = clusters.scores.loc[name], Counter(filter(None, truth[name])).most_common(MAX_COLORED_LABELS)
        figures = "no score" if np.isnan(score.ami) else f"AMI {score.ami:.3f}, V-measure {score.v_measure:.3f}"
        axes.set_title(f"{plots.shorten(name)}: {figures}", fontsize=10, parse_math=False)
        colors = dict(zip([label for label, _ in frequent], _PALETTE, strict=False))
        shown = [label if label in colors else UNKNOWN if label is None else OTHERS for label in truth[name][rows]]
        dots = {}
        for order, (label, color) in enumerate({**colors, **_GREYS}.items(), start=1):
            if (mask := np.array([item == label for item in shown])).any():  # grey is listed last and drawn first
                x, y = points[mask].T
                dots[label] = axes.scatter(x, y, s=5, linewidths=0, color=color, zorder=1 / order)
        plots.add_legend(axes, list(dots.values()), list(dots))
    return figure


def _score(labels: Strings, assignment: Rows) -> tuple[float, float, int, int]:
    label_ids, names = pd.factorize(labels)  # -1: unknown
    has_label = label_ids >= 0
    pair = label_ids[has_label], assignment[has_label]
    scores = (adjusted_mutual_info_score(*pair), v_measure_score(*pair)) if len(names) > 1 else (np.nan, np.nan)
    return *scores, len(pair[0]), len(names)


def _reduce(vectors: Floats, settings: ClusterSettings) -> Floats:
    """Return the (n, k) scores of a PCA fitted on a sample."""
    sample = vectors[_sample(len(vectors), _MAX_PCA_ROWS, settings)]
    pca = PCA(min(settings.n_components, *sample.shape), svd_solver="randomized", random_state=settings.seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # one product, or all alike: nothing to explain
        return np.asarray(pca.fit(sample).transform(vectors))


def _map(reduced: Floats, settings: ClusterSettings) -> Floats:
    """Return (n, 2) points by t-SNE, or the first two axes of too few products, or of products that are all alike."""
    points: Floats = np.pad(reduced, ((0, 0), (0, 1)))[:, :2]
    if len(reduced) > 3 and np.ptp(points[:, 0]) > 1e-6:
        tsne = TSNE(perplexity=min(30, (len(reduced) - 1) / 3), init="random", random_state=settings.seed)
        points = tsne.fit_transform(reduced)
    return points


def _sample(n: int, limit: int, settings: ClusterSettings) -> Rows:
    """Return at most `limit` of the row numbers 0..n-1, ascending."""
    return np.sort(np.random.default_rng(settings.seed).choice(n, min(n, limit), replace=False))
