import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from product_classificator.catalog.split import (
    load_split,
    read_split,
    save_split,
    split_products,
    stratify,
)
from product_classificator.errors import ArtifactError, DataError
from product_classificator.types import strings

SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}


def ids(n):
    return strings([str(number) for number in range(n)])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=3, max_size=120), st.integers(0, 5))
def test_no_group_is_separated_and_every_usable_product_has_a_split(products, seed):
    groups = np.array([group for group, _ in products])
    truth = {"x": strings([label for _, label in products])}
    usable = np.arange(len(products)) % 7 != 6
    split = split_products(ids(len(products)), groups, truth, usable, SHARES, seed=seed)
    assert ((split.names == "") == ~usable).all()
    for group in set(groups):
        assert len(set(split.names[(groups == group) & usable])) <= 1


def test_a_label_with_ten_products_is_in_every_split():
    labels = ["common"] * 990 + ["rare"] * 10
    split = split_products(ids(1000), np.arange(1000), {"x": strings(labels)}, np.ones(1000, dtype=bool), SHARES)
    table = pd.crosstab(pd.Series(labels), pd.Series(split.names))
    assert table.loc["rare", "train"] == 7
    assert table.loc["rare", ["valid", "test"]].min() >= 1
    assert abs(table.loc["common", "test"] - 0.15 * 990) <= 2


@pytest.mark.parametrize(("families", "splits"), [(2, {"train", "test"}), (3, set(SHARES)), (4, set(SHARES))])
def test_a_label_of_few_large_groups_is_tested(families, splits):
    n = 100 * families * 5
    labels = strings([f"l{row // (families * 5)}" for row in range(n)])
    names = split_products(ids(n), np.arange(n) // 5, {"x": labels}, np.ones(n, dtype=bool), SHARES).names
    assert all(set(names[labels == label]) == splits for label in set(labels))


def test_the_rarest_characteristic_is_stratified_first():
    rng = np.random.default_rng(0)
    rare = strings(["yes" if number < 20 else "no" for number in range(2000)])
    common = strings(rng.choice(["a", "b"], 2000).tolist())
    split = split_products(ids(2000), np.arange(2000), {"c": common, "r": rare}, np.ones(2000, dtype=bool), SHARES)
    assert [int((split.names[:20] == name).sum()) for name in SHARES] == [14, 3, 3]


def test_labels_of_single_products_leave_every_split_its_share():
    n = 240
    kinds = strings([["cup", "hat"][i % 2] for i in range(n)])
    every, of_hats = [f"b{i}" for i in range(n)], [None if kind == "cup" else f"b{i}" for i, kind in enumerate(kinds)]
    for brands in (strings(every), strings(of_hats), strings([frozenset([b]) if b else None for b in of_hats])):
        truth = {"kind": kinds, "brand": brands}
        names = split_products(ids(n), np.arange(n), truth, np.ones(n, dtype=bool), SHARES).names
        for kind in ("cup", "hat"):
            assert [int((names[kinds == kind] == name).sum()) for name in SHARES] == [84, 18, 18]


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    arguments = (ids(300), np.arange(300), {}, np.ones(300, dtype=bool), SHARES)
    first, again, other = (split_products(*arguments, seed=seed).names for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_split_survives_saving_with_its_further_columns(tmp_path):
    split = split_products(ids(30), np.arange(30), {}, np.ones(30, dtype=bool), SHARES)
    save_split(split, {"text_key": pa.array(range(30))}, tmp_path / "split.parquet")
    loaded, table = load_split(tmp_path / "split.parquet")
    assert (loaded.names == split.names).all()
    assert table["text_key"].to_pylist() == list(range(30))


def test_too_few_products_are_refused():
    with pytest.raises(DataError, match="at least 3 usable products, got 2"):
        split_products(ids(2), np.arange(2), {}, np.ones(2, dtype=bool), SHARES)


def test_a_missing_split_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"must hold a readable split: .*split\.parquet"):
        load_split(tmp_path / "split.parquet")


def test_each_of_any_number_of_folds_gets_its_share_of_a_label():
    groups, usable = np.arange(200) // 2, np.ones(200, dtype=bool)
    usable[:4] = False
    truth = {"sex": strings(["a" if row % 10 < 2 else "b" for row in range(200)])}
    fold = stratify(groups, truth, usable, [0.1] * 10, seed=0)
    assert fold[:4].tolist() == [-1] * 4
    assert (fold[::2] == fold[1::2]).all()
    assert {np.count_nonzero((fold == i) & (truth["sex"] == "a")) for i in range(10)} == {2, 4}
    assert all(18 <= np.count_nonzero(fold == i) <= 22 for i in range(10))


def test_a_column_of_splits_may_say_them_as_people_do():
    names = strings(["Train", "val", "TESTING", None, "dev", "test", "fold7"])
    usable = np.array([True] * 5 + [False, True])
    split = read_split(ids(7), names, usable, np.arange(7))
    assert split.names.tolist() == ["train", "valid", "test", "train", "valid", "", "fold7"]
    assert split.folds == ["fold7", "test"]


@pytest.mark.parametrize("names", [["train"] * 4, ["test"] * 4, [None, None, "valid", "train"]])
def test_a_column_of_splits_that_judges_or_learns_from_nothing_is_refused(names):
    with pytest.raises(DataError, match="must name one to learn from and one to judge, like train and test, got"):
        read_split(ids(4), strings(names), np.ones(4, dtype=bool), np.arange(4))


def test_near_identical_products_in_two_splits_of_a_column_are_a_warning(caplog):
    names, groups = strings(["train", "train", "test", "test"]), np.array([0, 1, 1, 2])
    read_split(ids(4), names, np.ones(4, dtype=bool), groups)
    assert "1 products of the folds are near-identical to products of another split" in caplog.text


def test_a_column_of_something_else_is_no_column_of_splits():
    with pytest.raises(DataError, match=r"may name 50 folds, got 0, 1, 10, 11, 12, \.\.\. \(60 in all\)"):
        read_split(ids(60), ids(60), np.ones(60, dtype=bool), np.arange(60))
