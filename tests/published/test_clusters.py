import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from PIL import Image

from product_classificator.errors import DataError
from product_classificator.published.clusters import ClusterSettings, cluster, draw_clusters, write_clusters
from product_classificator.types import strings

pytestmark = pytest.mark.usefixtures("drawn_figures")
HOSTILE = 'a,"b"\n$x_1$ _c'


def blobs(n, kinds, dim=12, noise=0.05):
    """Returns (n, dim) vectors around `kinds` centres, and the number of each one's centre."""
    random = np.random.default_rng(1)
    kind = np.arange(n) % kinds
    centres = random.normal(size=(kinds, dim))
    return (centres[kind] + random.normal(0, noise, (n, dim))).astype(np.float32), kind


@pytest.fixture(scope="module")
def goods():
    """150 products of 5 kinds; `kind` follows the vectors, `noise` does not."""
    vectors, kind = blobs(150, 5)
    noise = np.random.default_rng(2).integers(0, 3, 150)
    truth = {
        "kind": strings([f"kind {i}" for i in kind]),
        "noise": strings([None if i == 0 else str(i) for i in noise]),
        "one": strings(["same", None] * 75),
        "nothing": strings([None] * 150),
        HOSTILE: strings([HOSTILE, "_b", "旅"] * 50),
    }
    return vectors, truth


@pytest.fixture(scope="module")
def clusters(goods):
    return cluster(*goods, ClusterSettings(n_clusters=5))


@pytest.fixture(scope="module")
def folder(clusters, goods, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "clusters"
    write_clusters(folder, clusters, *goods, strings([f"p{i}" for i in range(150)]))
    return folder


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def key_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_clusters_that_are_the_labels_score_one_and_chance_scores_nothing(clusters):
    assert clusters.scores.ami["kind"] == pytest.approx(1)
    assert clusters.scores.v_measure["kind"] == pytest.approx(1)
    assert abs(clusters.scores.ami["noise"]) < 0.05


def test_only_products_with_a_known_label_count(clusters, goods):
    known = sum(label is not None for label in goods[1]["noise"])
    assert (clusters.scores.products["noise"], clusters.scores.labels["noise"]) == (known, 2)


@pytest.mark.parametrize(("name", "counts"), [("one", (75, 1)), ("nothing", (0, 0))])
def test_fewer_than_two_labels_have_no_score(clusters, name, counts):
    score = clusters.scores.loc[name]
    assert np.isnan([score.ami, score.v_measure]).all()
    assert (score.products, score.labels) == counts


def test_every_product_has_a_cluster(clusters):
    assert clusters.assignment.dtype == np.int64
    assert set(clusters.assignment) == set(range(5))


def test_the_same_seed_gives_the_same_clusters(goods):
    first, second = (cluster(*goods, ClusterSettings(n_clusters=40, seed=2**32 - 1)) for _ in range(2))
    assert np.array_equal(first.assignment, second.assignment)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_fewer_products_than_clusters_are_clustered_and_drawn(n, tmp_path):
    vectors, _ = blobs(n, kinds=n)
    truth = {"x": strings([str(i) for i in range(n)])}
    found = cluster(vectors, truth, ClusterSettings())
    assert sorted(found.assignment) == list(range(n))
    write_clusters(tmp_path, found, vectors, truth, strings([str(i) for i in range(n)]))
    assert (tmp_path / "clusters.png").stat().st_size > 1000


@pytest.mark.parametrize("dim", [1, 12])
def test_products_that_are_all_alike_are_clustered_and_drawn(dim):
    truth = {"x": strings(["a", "b", None] * 4)}
    vectors = np.ones((12, dim), np.float32)
    found = cluster(vectors, truth, ClusterSettings(n_clusters=4))
    assert set(found.assignment) == {0}
    assert draw_clusters(found, vectors, truth).axes


def test_a_large_catalog_is_clustered_in_batches():
    vectors, kind = blobs(100_001, kinds=3, dim=4)
    truth = {"kind": strings([str(i) for i in kind])}
    assert cluster(vectors, truth, ClusterSettings(n_clusters=3)).scores.ami["kind"] == pytest.approx(1)


def test_the_folder_holds_scores_assignment_and_picture(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["assignment.parquet", "clusters.csv", "clusters.png"]
    with Image.open(folder / "clusters.png") as picture:
        assert min(picture.size) > 1000


def test_the_scores_are_written_with_empty_cells_where_there_is_none(folder, clusters):
    table = pd.read_csv(folder / "clusters.csv", index_col="characteristic")
    assert list(table.columns) == ["ami", "v_measure", "products", "labels"]
    assert list(table.index) == list(clusters.scores.index)
    assert table["ami"]["kind"] == clusters.scores.ami["kind"]
    assert table.loc[["one", "nothing"], ["ami", "v_measure"]].isna().all(axis=None)
    assert table["products"].tolist() == clusters.scores.products.tolist()


def test_the_assignment_is_written_by_id(folder, clusters):
    table = pd.read_parquet(folder / "assignment.parquet")
    assert table["id"].tolist() == [f"p{i}" for i in range(150)]
    assert table["cluster"].tolist() == clusters.assignment.tolist()


def test_each_panel_shows_its_characteristic_and_score(clusters, goods):
    figure = draw_clusters(clusters, *goods)
    assert titles(figure)[0] == "kind: AMI 1.000, V-measure 1.000"
    score = clusters.scores.loc[HOSTILE]
    figures = f"AMI {score.ami:.3f}, V-measure {score.v_measure:.3f}"
    assert titles(figure)[3:] == ["nothing: no score", f'a,"b" $x_1$ _c: {figures}']
    assert key_of(figure.axes[3]) == ["(unknown)"]
    assert key_of(figure.axes[4]) == ['a,"b" $x_1$ _c', "_b", "?"]
    assert pyplot.get_fignums() == []


def test_only_the_ten_largest_labels_have_a_colour_and_eight_characteristics_a_panel(goods):
    vectors, _ = goods
    labels = strings([None, *(str(i % 12) for i in range(134)), *("ab" for _ in range(15))])
    truth = {f"x{i}": labels for i in range(9)}
    figure = draw_clusters(cluster(vectors, truth, ClusterSettings(n_clusters=2)), vectors, truth)
    assert len(figure.axes) == 8
    key = key_of(figure.axes[0])
    assert (key[0], key[10:]) == ("ab", ["(all others)", "(unknown)"])


def test_a_map_of_many_products_shows_a_sample_and_states_it():
    vectors, kind = blobs(2_001, kinds=1, dim=2)
    vectors[:] = 1  # all alike: no t-SNE, which would take seconds
    truth = {"x": strings([str(i) for i in kind])}
    figure = draw_clusters(cluster(vectors, truth, ClusterSettings(n_clusters=1)), vectors, truth)
    assert "2,000 of 2,001 products" in figure.get_suptitle()
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 2_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_clusters": 0}, r"n_clusters must be a whole number from 1 to \d+, got 0"),
        ({"n_components": 2.5}, r"n_components must be a whole number from 1 to \d+, got 2\.5"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 4294967295, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        ClusterSettings(**wrong)
