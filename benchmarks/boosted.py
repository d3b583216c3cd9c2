"""Rivals that grow trees: CatBoost on words and embeddings, LightGBM on what a model of each side says.

Both are stopped early on the valid part and bounded so that a characteristic takes minutes at most on one core.
"""

import time
import warnings

import lightgbm
import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, Pool
from rivals import (
    WEIGHTS,
    Fitted,
    best_on_valid,
    decide,
    learned,
    one_column_per_label,
    sides,
    standardised_side,
    tfidf,
)
from scipy.sparse import csr_matrix
from scipy.special import softmax
from scipy.stats import rankdata
from sets import Task
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_sample_weight

from product_classificator.text import words_of
from product_classificator.types import Floats, Rows

MOST_TREES, MOST_CATBOOST_TREES, PATIENCE = 500, 200, 30
DIMENSIONS = 256
FOLDS = 4
MOST_LABELS, CANDIDATES = 100, 5

_DICTIONARIES = [
    {"dictionary_id": name, "gram_order": order, "max_dictionary_size": "50000", "occurrence_lower_bound": "2"}
    for name, order in (("Word", "1"), ("Pair", "2"))
]
_TEXTS = {
    "tokenizers": [{"tokenizer_id": "Space", "separator_type": "ByDelimiter", "delimiter": " "}],
    "dictionaries": _DICTIONARIES,
    "feature_processing": {
        "default": [
            {
                "tokenizers_names": ["Space"],
                "dictionaries_names": ["Word", "Pair"],
                "feature_calcers": ["NaiveBayes", "BM25"],
            }
        ]
    },
}


def catboost(task: Task, seed: int) -> Fitted:
    """Fit CatBoostClassifier on words and embeddings, labels weighted by the square root of their rarity.

    Bounded for time, on one core: trees of depth 4 and 32 borders (0.08 s a tree with 36 labels and 840 products, not
    0.8 s as by default), and no yes-or-no features for single words: with them 200 trees for 31 colours were not grown
    in 200 s, without them in 42 s. Embeddings are reduced to 256 dimensions, as it is made for "several hundreds".
    """
    began = time.process_time()
    features = _features(task)
    scores = {}
    for name in task.labels:
        (train, train_codes), (valid, valid_codes) = (learned(task, name, part) for part in ("train", "valid"))
        model = CatBoostClassifier(
            iterations=MOST_CATBOOST_TREES,
            learning_rate=0.3,
            depth=4,
            border_count=32,
            loss_function="MultiClass",
            auto_class_weights="SqrtBalanced",
            boosting_type="Plain",
            text_processing=_TEXTS if "words" in features else None,
            thread_count=1,
            random_seed=seed,
            verbose=False,
            allow_writing_files=False,
        )
        shown = _pool(features.iloc[valid], valid_codes)
        model.fit(_pool(features.iloc[train], train_codes), eval_set=shown, early_stopping_rounds=PATIENCE)
        scores[name] = model.predict(_pool(features.iloc[task.judged]), prediction_type="RawFormulaVal")
    return Fitted(scores, time.process_time() - began)


def _features(task: Task) -> pd.DataFrame:
    """Return a column of words and a column of vectors for each side, as far as the task shows any."""
    train = task.split.rows("train")
    columns = {}
    if task.embeddings.has_text.any():
        columns["words"] = [" ".join(words_of(text)) for text in task.texts]
    for number, (matrix, has) in enumerate(sides(task)):
        reduction = PCA(DIMENSIONS, random_state=0).fit(matrix[train[has[train]]])
        columns[f"vectors {number}"] = list(reduction.transform(matrix) * has[:, None])
    return pd.DataFrame(columns)


def _pool(features: pd.DataFrame, codes: Rows | None = None) -> Pool:
    texts = [column for column in features if column == "words"]
    return Pool(features, codes, text_features=texts, embedding_features=[c for c in features if c not in texts])


def late_fusion(task: Task, seed: int) -> Fitted:
    """Fit LightGBM, plain and balanced, on what models of words, of text embeddings and of photos say.

    Their probabilities of the train products are out of fold. This is the decision-level fusion that won the Rakuten
    challenge of SIGIR eCom 2020 (Bi et al. 2020), with our embeddings and with LightGBM to decide, as others did there.
    LightGBM grows a tree per label and round: above `MOST_LABELS` it ranks the likeliest labels
    of each product instead.
    """
    began = time.process_time()
    models = _models(task)
    fuse = {name: _fuse if len(labels) <= MOST_LABELS else _fuse_candidates for name, labels in task.labels.items()}
    scores = {}
    for name in task.labels:
        said = [_said(model, x, task, name) for model, x in models]
        on_train, on_judged = ([side[i] for side in said] for i in range(2))
        variants = (fuse[name](on_train, on_judged, task, name, weight, seed) for weight in WEIGHTS)
        scores[name] = best_on_valid(task, name, variants)
    return Fitted(scores, time.process_time() - began)


def _models(task: Task) -> list[tuple[LinearSVC | LogisticRegression, csr_matrix | Floats]]:
    """Return a model and its (n, features) input for each side that the task shows."""
    vectors = [standardised_side(task, matrix, has) for matrix, has in sides(task)]
    models = [(LogisticRegression(C=0.01, max_iter=300), matrix) for matrix in vectors]
    if task.embeddings.has_text.any():
        models.append((LinearSVC(random_state=0), tfidf(task, TfidfVectorizer(ngram_range=(1, 2)))))
    return models


def _said(
    model: LinearSVC | LogisticRegression, x: csr_matrix | Floats, task: Task, name: str
) -> tuple[Floats, Floats]:
    """Return the (products, labels) probabilities that a model gives train products, out of fold, and judged ones."""
    train, codes = learned(task, name, "train")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels of fewer products than folds, and not enough iterations
        out_of_fold = cross_val_predict(model, x[train], codes, cv=folds, method="decision_function")
    return softmax(one_column_per_label(out_of_fold), axis=1), softmax(decide(model, x, task, name), axis=1)


def _fuse(
    on_train: list[Floats], on_judged: list[Floats], task: Task, name: str, weight: str | None, seed: int
) -> Floats:
    """Return the (judged products, labels) probabilities of LightGBM fitted on those of the sides."""
    _, train_codes = learned(task, name, "train")
    codes = task.codes(name)[task.judged]
    is_valid = (task.split.names[task.judged] == "valid") & (codes >= 0)
    judged = np.hstack(on_judged)
    model = lightgbm.LGBMClassifier(
        n_estimators=MOST_TREES,
        learning_rate=0.05,
        num_leaves=15,
        min_child_samples=10,
        colsample_bytree=0.5,
        class_weight=weight,
        n_jobs=1,
        random_state=seed,
        verbose=-1,
    )
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    model.fit(np.hstack(on_train), train_codes, eval_X=judged[is_valid], eval_y=codes[is_valid], callbacks=[stop])
    return model.predict_proba(judged)


def _fuse_candidates(
    on_train: list[Floats], on_judged: list[Floats], task: Task, name: str, weight: str | None, seed: int
) -> Floats:
    """Return (judged products, labels) probabilities of LightGBM that tells right labels among the likeliest ones."""
    _, train_codes = learned(task, name, "train")
    codes = task.codes(name)[task.judged]
    is_valid = (task.split.names[task.judged] == "valid") & (codes >= 0)
    prior = np.bincount(train_codes) / len(train_codes)
    products, labels, features = _candidates(on_train, prior)
    judged, judged_labels, judged_features = _candidates(on_judged, prior)
    shown = is_valid[judged]
    model = lightgbm.LGBMClassifier(
        n_estimators=MOST_TREES,
        learning_rate=0.05,
        num_leaves=15,
        n_jobs=1,
        random_state=seed,
        verbose=-1,
    )
    model.fit(
        features,
        train_codes[products] == labels,
        sample_weight=compute_sample_weight(weight, train_codes)[products],
        eval_X=judged_features[shown],
        eval_y=codes[judged[shown]] == judged_labels[shown],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    scores = np.zeros((len(codes), len(prior)), dtype=np.float32)
    scores[judged, judged_labels] = model.predict_proba(judged_features)[:, 1]
    return scores


def _candidates(said: list[Floats], prior: Floats) -> tuple[Rows, Rows, Floats]:
    """Return product and label of each candidate, a label that a side finds likely, and what the sides say of it."""
    is_candidate = np.zeros(said[0].shape, dtype=bool)
    for side in said:
        np.put_along_axis(is_candidate, np.argsort(-side, axis=1)[:, :CANDIDATES], True, axis=1)
    products, labels = np.nonzero(is_candidate)
    features = [prior[labels]]
    for side in said:
        own = side[products, labels]
        features += [own, own / side.max(1)[products], rankdata(-side, axis=1, method="min")[products, labels]]
    return products, labels, np.stack(features, axis=1)
