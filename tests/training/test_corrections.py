"""What people decided in a review enters a training: it wins over the table, and judges nothing unless asked."""

from dataclasses import replace

import numpy as np
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.errors import DataError
from product_classificator.review.history import Decision, History
from product_classificator.training import train_heads
from tests.fakes import TinyEncoder
from tests.fixtures import QUICKER

N = 20


@pytest.fixture(scope="module")
def corrected(shop_files, tmp_path_factory):
    """The history of a review: the first products are socks, but product 1 is none of the kinds."""
    folder = tmp_path_factory.mktemp("corrected")
    history = History(folder / "review.sqlite")
    decisions = [Decision(str(number), "kind", None if number == 1 else "sock") for number in range(N)]
    history.act("accept", "a", "Anna", [*decisions, Decision("no such product", "kind", "cup")])
    history.close()
    return folder / "review.sqlite"


def trained(shop_files, folder, **settings):
    catalog = read_catalog(*shop_files, text="description", characteristics=["kind", "colour"])
    return catalog, train_heads(catalog, folder, replace(QUICKER, **settings), encoder=TinyEncoder())


@pytest.mark.parametrize("is_judged", [False, True])
def test_corrections_win_and_are_judged_only_if_asked(shop_files, corrected, tmp_path, is_judged):
    settings = {"corrections": str(corrected), "judge_corrections": is_judged, "correction_weight": 3}
    catalog, training = trained(shop_files, tmp_path / "run", **settings)
    judged = training.run.load_out_of_fold().rows
    assert np.isin(np.arange(N), judged).any() == is_judged
    labels = training.run.load_training_products()[0]["kind"]
    assert labels["1"] is None
    assert {labels[id_] for id_ in map(str, range(N)) if id_ in labels} == {"sock", None}
    assert catalog.is_corrected is None  # another training of the same catalog learns from the table
    assert set(catalog.truth()["kind"][:N]) > {"sock"}


def test_products_are_learned_as_often_as_they_weigh(products):
    weighted = replace(products, weights=np.where(np.arange(len(products.texts)) < 2, 3, 1))
    assert weighted.weighted(np.array([0, 1, 5])).tolist() == [0, 0, 0, 1, 1, 1, 5]
    assert products.weighted(np.array([0, 5])).tolist() == [0, 5]


def test_a_file_that_is_no_review_is_refused(shop_files, tmp_path):
    (tmp_path / "notes.txt").write_text("no database")
    with pytest.raises(DataError, match=r"review\.sqlite of a review.*cannot be read"):
        trained(shop_files, tmp_path / "run", corrections=str(tmp_path / "notes.txt"))


def test_a_weight_is_at_least_one():
    with pytest.raises(DataError, match="correction_weight must be at least 1, got 0"):
        replace(QUICKER, correction_weight=0)
