import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from product_classificator import ProductClassifier
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import DataError
from product_classificator.integrations import sklearn
from tests.fakes import TinyEncoder

QUICK = {"epochs": 3, "hidden": 8, "folds": 2, "learning_rate": 0.02}

NEED_NUMBERS = {
    f"check_{name}"
    for name in [
        "classifier_data_not_an_array",
        "classifier_multioutput",
        "classifiers_classes",
        "classifiers_one_label",
        "classifiers_train",
        "dict_unchanged",
        "dont_overwrite_parameters",
        "dtype_object",
        "estimator_sparse_array",
        "estimator_sparse_matrix",
        "estimator_sparse_tag",
        "estimators_dtypes",
        "estimators_empty_data_messages",
        "estimators_fit_returns_self",
        "estimators_overwrite_params",
        "estimators_pickle",
        "f_contiguous_array_estimator",
        "fit2d_1feature",
        "fit2d_1sample",
        "fit2d_predict1d",
        "fit_check_is_fitted",
        "fit_idempotent",
        "fit_score_takes_y",
        "methods_sample_order_invariance",
        "methods_subset_invariance",
        "n_features_in",
        "n_features_in_after_fitting",
        "pipeline_consistency",
        "positive_only_tag_during_fit",
        "readonly_memmap_input",
        "supervised_y_2d",
    ]
}


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    """The encoder "tiny", and what it has encoded."""
    encoder = TinyEncoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn, "_load_encoder", lambda name, device: encoder)
        patch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield encoder


@pytest.fixture(scope="module")
def shop():
    """120 products: the text has the kind, and mostly the size."""
    rng = np.random.default_rng(0)
    kinds, sizes = rng.choice(["cup", "hat", "sock"], 120), rng.choice(["big", "small"], 120)
    texts = [f"A nice {size} {kind} number {i}" for i, (size, kind) in enumerate(zip(sizes, kinds, strict=True))]
    return pd.DataFrame({"title": texts, "kind": kinds, "size": sizes}, index=rng.permutation(120))


def product_classifier(**options):
    return ProductClassifier("tiny", **{**QUICK, **options})


def test_one_characteristic_is_predicted_with_probabilities_of_its_sorted_classes(shop):
    fitted = product_classifier().fit(shop, shop["kind"])
    assert fitted.classes_.tolist() == ["cup", "hat", "sock"]
    probabilities = fitted.predict_proba(shop)
    assert probabilities.shape == (120, 3)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert fitted.score(shop, shop["kind"]) == (fitted.predict(shop) == shop["kind"]).mean() > 0.9


def test_texts_and_dicts_are_read_as_a_frame_is(shop):
    frame = shop[["title"]]
    fitted = product_classifier(epochs=1).fit(frame, shop["kind"].tolist())
    expected = fitted.predict_proba(frame)
    assert np.array_equal(fitted.predict_proba(frame.to_dict("records")), expected)
    assert np.array_equal(fitted.predict_proba(shop["title"].tolist()), expected)


def test_several_characteristics_are_a_list_as_scikit_learn_has_it(shop):
    y = shop[["kind", "size"]]
    fitted = product_classifier().fit(shop, y)
    assert [classes.tolist() for classes in fitted.classes_] == [["cup", "hat", "sock"], ["big", "small"]]
    assert fitted.predict(shop).shape == (120, 2)
    assert [matrix.shape for matrix in fitted.predict_proba(shop)] == [(120, 3), (120, 2)]
    assert fitted.score(shop, y) == np.mean(fitted.predict(shop) == y.to_numpy())


def test_labels_keep_their_type_and_missing_ones_are_unknown(shop):
    numbers = shop["size"].map({"big": 42.0, "small": 36.0}).mask(np.arange(120) % 7 == 0)
    fitted = product_classifier().fit(shop, numbers)
    assert fitted.classes_.tolist() == [36.0, 42.0]
    assert set(fitted.predict(shop)) == {36.0, 42.0}
    assert fitted.score(shop, numbers) > 0.8


def test_a_product_without_photo_and_text_gets_the_most_frequent_label(shop):
    fitted = product_classifier().fit(shop, shop["kind"])
    usual = shop["kind"].mode()[0]
    assert fitted.predict([None, "A nice cup"]).tolist() == [usual, "cup"]
    assert fitted.predict_proba([None])[0].max() == 1


def test_photos_of_a_column_are_seen(shop_files):
    table = pd.read_parquet(shop_files[0]).dropna(subset="colour")
    table["file"] = table["nm"].astype(str) + ".jpg"
    classifier = product_classifier(text="description", photo="file", images=shop_files[1], epochs=4)
    assert classifier.fit(table, table["colour"]).score(table, table["colour"]) > 0.8


def test_folds_and_candidates_encode_each_product_once(shop, tiny, tmp_path):
    classifier, parts = product_classifier(store=tmp_path / "store"), tmp_path / "store/parts"
    pipeline = make_pipeline(FunctionTransformer(), classifier)
    assert cross_val_score(pipeline, shop, shop["kind"], cv=2, scoring="f1_macro").min() > 0.8
    assert len(EmbeddingStore(tmp_path / "store", tiny)) == len(shop)
    written = set(parts.iterdir())
    search = GridSearchCV(classifier, {"hidden": [8, 16]}, cv=2, refit=False).fit(shop, shop["kind"])
    assert set(search.best_params_) == {"hidden"}
    assert set(parts.iterdir()) == written


def test_a_clone_has_the_parameters_and_no_heads(shop):
    fitted = product_classifier(dropout=0.25).fit(shop, shop["kind"])
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "fitted_")


def test_what_is_no_product_is_refused(shop):
    with pytest.raises(DataError, match="products must be a DataFrame, dicts with its columns, or texts, got ndarray"):
        product_classifier().fit(np.ones((4, 2)), ["a", "b", "a", "b"])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        product_classifier().fit(shop, shop["kind"][:-1])


def test_the_checks_of_scikit_learn_pass_where_they_need_no_numbers():
    expected = dict.fromkeys(NEED_NUMBERS, "X are numbers there, and here texts and photos: they are refused")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(product_classifier(), expected_failed_checks=expected, on_fail=None)
    by_status = {status: {r["check_name"] for r in results if r["status"] == status} for status in ("failed", "xfail")}
    assert by_status == {"failed": set(), "xfail": NEED_NUMBERS}
    assert sum(result["status"] == "passed" for result in results) >= 20
