"""Rivals that grow trees: CatBoost on words and embeddings, LightGBM on what a model of each side says.

Both are bounded so that a characteristic takes minutes at most on one core. The number of trees is that of the lowest
loss on the first fold of a task, by trees grown without it; then as many are grown on all products to learn from.
"""

import time
import warnings
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, Pool
from rivals import WEIGHTS, Fitted, decide, known, one_column_per_label, sides, standardised_side, tfidf, words
from scipy.sparse import csr_matrix
from scipy.special import softmax
from scipy.stats import rankdata
from sets import Task
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_sample_weight

from product_classificator.text import words_of
from product_classificator.types import Bools, Floats, Rows

MOST_TREES, MOST_CATBOOST_TREES, PATIENCE = 500, 200, 30
DIMENSIONS = 256
FOLDS = 4
MOST_LABELS, CANDIDATES = 100, 5

_DICTIONARIES = [
    {"dictionary_id": name, "gram_order": order, "max_dictionary_size": "50000", "occurrence_lower_bound": "2"}
    for name, order in (("Word", "1"), ("Pair", "2"))
]
_CALCERS = {"dictionaries_names": ["Word", "Pair"], "feature_calcers": ["NaiveBayes", "BM25"]}
_TEXTS = {
    "tokenizers": [{"tokenizer_id": "Space", "separator_type": "ByDelimiter", "delimiter": " "}],
    "dictionaries": _DICTIONARIES,
    "feature_processing": {"default": [{"tokenizers_names": ["Space"], **_CALCERS}]},
}


def catboost(task: Task, seed: int) -> Fitted:
    """Fit CatBoostClassifier on words and embeddings, labels weighted by the square root of their rarity.

    Bounded for time, on one core: trees of depth 4 and 32 borders (0.08 s a tree with 36 labels and 840 products, not
    0.8 s as by default), and no yes-or-no features for single words: with them 200 trees for 31 colours were not grown
    in 200 s, without them in 42 s. Embeddings are reduced to 256 dimensions, as it is made for "several hundreds".
    """
    began = time.process_time()
    features = _features(task)
    scores, search_seconds = {}, 0.0
    for name in task.labels:
        start = time.process_time()
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
        rows, codes = known(task, name, task.learn)
        is_shown, is_grown = _stopping(rows, codes, task)
        shown, grown = (_pool(features.iloc[rows[mask]], codes[mask]) for mask in (is_shown, is_grown))
        first = model.copy().fit(grown, eval_set=shown, early_stopping_rounds=PATIENCE)
        search_seconds += time.process_time() - start
        model.set_params(iterations=first.tree_count_)
        model.fit(_pool(features.iloc[rows], codes))
        scores[name] = model.predict(_pool(features.iloc[task.test]), prediction_type="RawFormulaVal")
    return Fitted(scores, time.process_time() - began - search_seconds, search_seconds)


def _features(task: Task) -> pd.DataFrame:
    """Return a column of words and a column of vectors for each side, as far as the task shows any."""
    learn = task.learn
    columns = {}
    if task.embeddings.has_text.any():
        columns["words"] = [" ".join(words_of(text)) for text in task.texts]
    for number, (matrix, has) in enumerate(sides(task)):
        reduction = PCA(DIMENSIONS, random_state=0).fit(matrix[learn[has[learn]]])
        columns[f"vectors {number}"] = list(reduction.transform(matrix) * has[:, None])
    return pd.DataFrame(columns)


def _pool(features: pd.DataFrame, codes: Rows | None = None) -> Pool:
    texts = [column for column in features if column == "words"]
    return Pool(features, codes, text_features=texts, embedding_features=[c for c in features if c not in texts])


def _stopping(rows: Rows, codes: Rows, task: Task) -> tuple[Bools, Bools]:
    """Return which products end the growing of trees, those of the first fold, and on which trees grow meanwhile."""
    is_grown = ~np.isin(rows, task.folds[0])
    return ~is_grown & np.isin(codes, codes[is_grown]), is_grown


def late_fusion(task: Task, seed: int) -> Fitted:
    """Fit LightGBM, plain or balanced, to what models of words, of text embeddings and of photos say.

    Their probabilities of the products to learn from are out of fold. This is the decision-level fusion that won the
    Rakuten challenge of SIGIR eCom 2020 (Bi et al. 2020), with our embeddings and with LightGBM to decide, as others
    did there. LightGBM grows a tree per label and round: above `MOST_LABELS` it ranks the likeliest labels of each
    product instead.
    """
    began = time.process_time()
    models = _models(task)
    fuse = {name: _fuse if len(labels) <= MOST_LABELS else _fuse_candidates for name, labels in task.labels.items()}
    scores, search_seconds = {}, 0.0
    for name in task.labels:
        said = [_said(model, x, task, name) for model, x in models]
        on_learn, on_test = ([side[i] for side in said] for i in range(2))
        start = time.process_time()
        variants = [fuse[name](on_learn, on_test, task, name, weight, seed) for weight in WEIGHTS]
        search_seconds += time.process_time() - start
        scores[name] = max(variants, key=itemgetter(0))[1]()
    return Fitted(scores, time.process_time() - began - search_seconds, search_seconds)


def _models(task: Task) -> list[tuple[LinearSVC | LogisticRegression, csr_matrix | Floats]]:
    """Return a model and its (n, features) input for each side that the task shows."""
    vectors = [standardised_side(task, matrix, has) for matrix, has in sides(task)]
    models = [(LogisticRegression(C=0.01, max_iter=300), matrix) for matrix in vectors]
    if task.embeddings.has_text.any():
        models.append((LinearSVC(random_state=0), tfidf(task, words())))
    return models


def _said(
    model: LinearSVC | LogisticRegression, x: csr_matrix | Floats, task: Task, name: str
) -> tuple[Floats, Floats]:
    """Return the (products, labels) probabilities that a model gives those it learns from, out of fold, and others."""
    rows, codes = known(task, name, task.learn)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels of fewer products than folds, and not enough iterations
        out_of_fold = cross_val_predict(model, x[rows], codes, cv=folds, method="decision_function")
    return softmax(one_column_per_label(out_of_fold), axis=1), softmax(decide(model, x, task, name), axis=1)


def _fuse(
    on_learn: list[Floats], on_test: list[Floats], task: Task, name: str, weight: str | None, seed: int
) -> tuple[float, Callable[[], Floats]]:
    """Return the macro-F1 on the first fold of LightGBM fitted to what the sides say, and what scores test products."""
    rows, codes = known(task, name, task.learn)
    (is_shown, is_grown), x = _stopping(rows, codes, task), np.hstack(on_learn)
    model = _trees(seed, min_child_samples=10, colsample_bytree=0.5, class_weight=weight)
    shown = {"eval_X": x[is_shown], "eval_y": codes[is_shown]}
    first = clone(model).fit(x[is_grown], codes[is_grown], **shown, callbacks=[_stop()])
    score = f1_score(codes[is_shown], first.predict(x[is_shown]), average="macro", zero_division=0)
    model.set_params(n_estimators=first.best_iteration_)
    return float(score), lambda: model.fit(x, codes).predict_proba(np.hstack(on_test))


def _fuse_candidates(
    on_learn: list[Floats], on_test: list[Floats], task: Task, name: str, weight: str | None, seed: int
) -> tuple[float, Callable[[], Floats]]:
    """Do what `_fuse` does by telling right labels among the likeliest ones."""
    rows, codes = known(task, name, task.learn)
    is_shown, prior = ~_stopping(rows, codes, task)[1], np.bincount(codes) / len(codes)
    products, labels, features = _candidates(on_learn, prior)
    is_right, of_shown = codes[products] == labels, is_shown[products]
    weights, model = compute_sample_weight(weight, codes)[products], _trees(seed)
    shown = {"eval_X": features[of_shown], "eval_y": is_right[of_shown]}
    first = clone(model).fit(
        features[~of_shown], is_right[~of_shown], sample_weight=weights[~of_shown], **shown, callbacks=[_stop()]
    )

    def scores(fitted: lightgbm.LGBMClassifier, said: list[Floats]) -> Floats:
        candidates, labels, features = _candidates(said, prior)
        matrix = np.zeros(said[0].shape, dtype=np.float32)
        matrix[candidates, labels] = fitted.predict_proba(features)[:, 1]
        return matrix

    found = scores(first, [side[is_shown] for side in on_learn]).argmax(1)
    model.set_params(n_estimators=first.best_iteration_)
    score = f1_score(codes[is_shown], found, average="macro", zero_division=0)
    return float(score), lambda: scores(model.fit(features, is_right, sample_weight=weights), on_test)


def _trees(seed: int, **settings: Any) -> lightgbm.LGBMClassifier:
    common = {"n_estimators": MOST_TREES, "learning_rate": 0.05, "num_leaves": 15}
    return lightgbm.LGBMClassifier(**common, **settings, n_jobs=1, random_state=seed, verbose=-1)


def _stop() -> Callable[..., None]:
    return lightgbm.early_stopping(PATIENCE, verbose=False)


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
