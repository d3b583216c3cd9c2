"""A run, a bundle or an export as a model of MLflow's `pyfunc` flavour: its files as data, and this module as loader.

`mlflow.pyfunc.load_model(...).predict(frame)` takes a DataFrame with the text columns of the run, and photos as bytes
in a column that is called photo or image. Nothing is pickled. Needs the extra `mlflow`.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from mlflow import pyfunc

from product_classificator.catalog import open_images, read_catalog
from product_classificator.classificator import Classificator
from product_classificator.integrations.hub import copy_shared
from product_classificator.predict_file import predict_to_file


def save_model(folder: str | Path, path: str | Path, **options: Any) -> None:
    """Save a run, a bundle or an export as an MLflow model in a new folder; `options` are those of `pyfunc`."""
    _hand_over(folder, pyfunc.save_model, path=str(path), **options)


def log_model(folder: str | Path, name: str = "model", **options: Any) -> Any:
    """Log a run, a bundle or an export to the active run of MLflow, and return what `pyfunc.log_model` does."""
    return _hand_over(folder, pyfunc.log_model, name=name, **options)


def _hand_over(folder: str | Path, function: Callable[..., Any], **options: Any) -> Any:
    needs = {"pip_requirements": [f"product_classificator=={version('product_classificator')}"]}
    with TemporaryDirectory() as temporary:
        copy_shared(Path(folder), Path(temporary))
        return function(loader_module=__name__, data_path=temporary, **needs | options)


class _load_pyfunc:  # noqa: N801 - MLflow calls it with the folder of the data
    def __init__(self, path: str) -> None:
        self._classificator = Classificator(heads_ver=path)

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Return the columns of `predict_to_file` for each product, with the index of the input."""
        frame, run = model_input, self._classificator.run
        text = [name for name in run.columns.text if name in frame] if run else None
        id_ = run.columns.id if run and run.columns.id in frame else None
        images = open_images(None, channels=self._classificator.channels)
        catalog = read_catalog(frame.reset_index(drop=True), images, id=id_, text=text, characteristics=())
        with TemporaryDirectory() as temporary:
            predict_to_file(self._classificator, catalog, out := Path(temporary, "predictions.parquet"))
            return pd.read_parquet(out).set_index(frame.index)
