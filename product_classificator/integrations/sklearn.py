"""`ProductClassifier`: heads as an estimator of scikit-learn, for `cross_val_score`, `GridSearchCV` and pipelines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from product_classificator.catalog import read_catalog
from product_classificator.catalog.split import split_products
from product_classificator.embeddings.embed import embed
from product_classificator.embeddings.products import EmbeddedProducts
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import load_encoder
from product_classificator.errors import DataError, culprits
from product_classificator.files import cache_home
from product_classificator.training import HeadSettings, LabelledProducts, SplitSettings, fit_heads
from product_classificator.training.near_duplicates import Signatures, near_duplicate_groups
from product_classificator.types import Floats, Rows, strings

_ROW = "<row>"
_load_encoder = lru_cache(maxsize=2)(load_encoder)
_OF_HEADS = ("epochs", "hidden", "dropout", "learning_rate", "max_words", "min_products_per_label")


@dataclass(eq=False, repr=False)  # scikit-learn compares and shows estimators
class ProductClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Predicts one or several characteristics of products, as `train_heads` does, but leaves no folder.

    `X` is a DataFrame with text and photo columns, a sequence of dicts, or a sequence of texts; `y` is a Series or
    array of one characteristic, or a DataFrame of several; a missing label is unknown. A product with neither photo nor
    text gets the most frequent label.

    Attributes:
        encoder, device: name and device for `load_encoder`.
        text, photo, images: columns and photos, as in `read_catalog`.
        store: folder of embeddings, computed once for all folds and candidates; `None`: in the cache folder.
        folds: products are dealt into so many to calibrate the heads.
        epochs, hidden, dropout, learning_rate, max_words, min_products_per_label: as in `HeadSettings`.
        random_state: seed; `None`: 0.
        classes_: (k,) sorted labels, of several characteristics a list of such arrays.
        targets_: the names of the characteristics.
        fitted_: what `fit_heads` returned; `fitted_.bundle.save(folder)` keeps the heads for `Classificator`.
    """

    encoder: str = "lite"
    text: str | Sequence[str] | None = None
    photo: str | None = None
    images: str | Path | None = None
    store: str | Path | None = None
    device: str = "cpu"
    folds: int = 5
    epochs: int = 10
    hidden: int = 512
    dropout: float = 0.5
    learning_rate: float = 1e-3
    max_words: int = 100_000
    min_products_per_label: int = 10
    random_state: int | None = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.allow_nan = True
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> "ProductClassifier":  # noqa: N803 - as in scikit-learn
        """Fit heads to n products and return self; too few labels or products are a `DataError`, a `ValueError`."""
        columns, seed = _targets(y), self.random_state or 0
        check_consistent_length(X, y)
        embedded, texts, has_title = self._embed(X)
        truth = {name: strings([None if pd.isna(v) else str(v) for v in values]) for name, values in columns.items()}
        groups = near_duplicate_groups(Signatures.of(texts, embedded.thumbnails))
        is_usable = embedded.set_aside() == "ok"
        shares, ids = SplitSettings(self.folds).shares(int(is_usable.sum())), embedded.embeddings.ids
        split = split_products(ids, groups, truth, is_usable, shares, seed=seed)
        products = LabelledProducts(embedded.embeddings, texts, truth, split, has_title, groups)
        settings = HeadSettings(**{name: getattr(self, name) for name in _OF_HEADS}, seed=seed)
        self.fitted_ = fit_heads(products, settings, encoder=_load_encoder(self.encoder, device=self.device))
        if unlearned := set(columns) - set(self.fitted_.bundle.labels):
            raise DataError(
                f"every characteristic needs two labels of {self.min_products_per_label} products, not so "
                f"{culprits(sorted(unlearned))}: lower min_products_per_label"
            )
        classes = [np.unique(values[~pd.isna(values)]) for values in columns.values()]
        self.targets_, self.classes_ = list(columns), classes if np.ndim(y) == 2 else classes[0]
        self._usual = [pd.Series(values).mode()[0] for values in columns.values()]
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return the (n,) labels of n products, of several characteristics (n, characteristics).

        Rare labels are predicted a little more often than they are the most probable, as macro-F1 asks for.
        """
        answers = [classes[rows] for classes, _, rows in self._answers(X)]
        return np.stack([a.astype(object) for a in answers], 1) if isinstance(self.classes_, list) else answers[0]

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """Return the (n, k) calibrated probabilities of `classes_`, of several characteristics a list of them."""
        answers = [probabilities for _, probabilities, _ in self._answers(X)]
        return answers if isinstance(self.classes_, list) else answers[0]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the accuracy over known labels, of several characteristics the mean."""
        predicted = np.reshape(self.predict(X), (len(X), -1)).T
        weights = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight)
        pairs = [(p == true, ~pd.isna(true)) for p, true in zip(predicted, _targets(y).values(), strict=True)]
        return float(np.mean([np.average(right[known], weights=weights[known]) for right, known in pairs]))

    def _answers(self, X: Any) -> list[tuple[np.ndarray, Floats, Rows]]:  # noqa: N803
        """Return classes, (n, k) probabilities and (n,) positions of the predicted classes of each characteristic."""
        check_is_fitted(self)
        embedded, texts, _ = self._embed(X)
        predictions, answers = self.fitted_.bundle.predict(embedded.embeddings, texts), []
        of_all = self.classes_ if isinstance(self.classes_, list) else [self.classes_]
        for name, classes, usual in zip(self.targets_, of_all, self._usual, strict=True):
            position = {str(label): index for index, label in enumerate(classes)}
            probabilities = np.zeros((len(texts), len(classes)), np.float32)
            columns = [position[label] for label in predictions.labels[name]]
            probabilities[:, columns] = np.nan_to_num(predictions.probabilities[name])
            probabilities[~predictions.is_predicted(name), position[str(usual)]] = 1
            predicted = np.array([position[str(usual) if x is None else x] for x in predictions.best(name)])
            answers.append((classes, probabilities, predicted))
        return answers

    def _embed(self, X: Any) -> tuple[EmbeddedProducts, list[str], bool]:  # noqa: N803
        """Return the embeddings and texts of products, and whether the first line of a text is a title."""
        frame = _frame(X)
        frame[_ROW] = np.arange(len(frame)).astype(str)
        catalog = read_catalog(frame, self.images, id=_ROW, text=self.text, photo=self.photo, characteristics=())
        encoder = _load_encoder(self.encoder, device=self.device)
        store = EmbeddingStore(self.store or cache_home() / "embeddings" / encoder.fingerprint, encoder)
        return embed(catalog, encoder, store), catalog.texts(), catalog.columns.has_title


def _frame(products: Any) -> pd.DataFrame:
    """Return products as a new DataFrame; texts alone are its column "text"."""
    if isinstance(products, pd.DataFrame):
        return products.reset_index(drop=True)
    rows = list(products)
    if rows and all(isinstance(row, Mapping) for row in rows):
        return pd.DataFrame(rows)
    if rows and all(row is None or isinstance(row, str) for row in rows):
        return pd.DataFrame({"text": rows})
    found = type(rows[0]).__name__ if rows else "none"
    raise DataError(f"products must be a DataFrame, dicts with its columns, or texts, got {found}")


def _targets(y: Any) -> dict[str, np.ndarray]:
    """Return name -> (n,) values of each characteristic; what cannot be labels is a `ValueError` of scikit-learn."""
    if y is None:
        raise ValueError("ProductClassifier requires y to be passed, but the target y is None")
    frame = y if isinstance(y, pd.DataFrame) else pd.DataFrame(y if np.ndim(y) == 2 else {"label": np.asarray(y)})
    columns = {str(name): frame[name].to_numpy() for name in frame}
    for values in columns.values():
        check_classification_targets(values[~pd.isna(values)])
    return columns
