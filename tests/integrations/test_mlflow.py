import warnings

import mlflow
import pandas as pd
import pytest

from product_classificator import Classificator
from tests.fakes import jpeg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own annotations
    from mlflow import pyfunc

    pyfunc.load_model  # noqa: B018 - now it is imported

    from product_classificator.integrations.mlflow import log_model, save_model

FRAME = pd.DataFrame({"description": ["A nice cup", "A nice hat", None]}, index=[7, 3, 5])


@pytest.fixture(scope="module", autouse=True)
def tracking_in_a_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(f"file:{tmp_path_factory.mktemp('mlflow') / 'runs'}")
        yield
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def model(lite_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(lite_run[0], folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model):
    return pyfunc.load_model(str(model))


def test_a_loaded_model_predicts_a_frame_as_the_run_does(loaded, lite_run):
    predicted = loaded.predict(FRAME)
    expected = Classificator.from_run(lite_run[0]).predict(FRAME["description"].tolist(), errors="status")
    assert predicted.index.tolist() == [7, 3, 5]
    assert [*predicted["kind"][:2], None] == expected.predicted("kind")
    assert predicted["kind"].isna().tolist() == [False, False, True]
    assert predicted["status"].tolist()[0] == "ok"
    assert predicted["kind_probability"][:2].tolist() == [row[0][1] for row in expected.top("kind", 1)[:2]]


def test_photos_are_bytes_of_a_column(loaded):
    frame = FRAME.assign(photo=[jpeg("red"), jpeg("blue"), jpeg("green")])
    predicted = loaded.predict(frame)
    assert predicted["colour"].tolist() == ["red", "blue", "green"]


def test_a_model_holds_no_pickle_and_nothing_of_the_products(model):
    names = {path.name for path in model.rglob("*") if path.is_file()}
    assert not any(name.endswith((".pkl", ".pickle", ".joblib", ".bin")) for name in names)
    assert not {"split.parquet", "labels.parquet", "report.json"} & names


def test_a_model_can_be_logged_to_a_run(lite_run):
    with mlflow.start_run():
        facts = log_model(lite_run[0], "heads")
    assert pyfunc.load_model(facts.model_uri).predict(FRAME)["kind"].tolist()[0] == "cup"
