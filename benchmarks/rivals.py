"""Linear rivals: each turns a task into scores of its valid and test products; `boosted.py` holds the others.

Every rival learns from the train part alone, one model per characteristic. Where it is tried in several variants, the
best on the valid part counts, per characteristic, as ours choose by the valid part.
"""

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sets import Task
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from product_classificator.types import Bools, Floats, Rows, SplitName

WEIGHTS = (None, "balanced")
REGULARISATIONS = (0.001, 0.01)


@dataclass(frozen=True)
class Fitted:
    """What a method leaves.

    Attributes:
        scores: characteristic -> (judged products, labels); the label with the highest is what is predicted.
        seconds: of fitting.
        search_seconds: of fitting further variants, which a fixed setting would save.
    """

    scores: Mapping[str, Floats]
    seconds: float
    search_seconds: float = 0.0


def word_svm(task: Task, seed: int) -> Fitted:
    """Fits LinearSVC, plain and balanced, on tf-idf of words and pairs of words."""
    return _svm(task, seed, TfidfVectorizer(ngram_range=(1, 2)))


def character_svm(task: Task, seed: int) -> Fitted:
    """Fits LinearSVC, plain and balanced, on tf-idf of words, pairs of words, and 3 to 5 characters within words."""
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2)
    return _svm(task, seed, TfidfVectorizer(ngram_range=(1, 2)), characters)


def _svm(task: Task, seed: int, *vectorizers: TfidfVectorizer) -> Fitted:
    began = time.process_time()
    x = tfidf(task, *vectorizers)
    scores = {}
    for name in task.labels:
        models = (LinearSVC(class_weight=weight, random_state=seed) for weight in WEIGHTS)
        scores[name] = best_on_valid(task, name, (decide(model, x, task, name) for model in models))
    return Fitted(scores, time.process_time() - began)


def logistic_regression(task: Task, seed: int) -> Fitted:
    """Fits LogisticRegression on the standardised embeddings: as it is (C = 1), and regularised more strongly."""
    began = time.process_time()
    x = standardised(task)
    standard = {name: decide(LogisticRegression(max_iter=1000), x, task, name) for name in task.labels}
    seconds = time.process_time() - began
    scores = {}
    for name in task.labels:
        settings = product(REGULARISATIONS, WEIGHTS)
        models = (LogisticRegression(C=c, class_weight=weight, max_iter=1000) for c, weight in settings)
        others = (decide(model, x, task, name) for model in models)
        scores[name] = best_on_valid(task, name, [standard[name], *others])
    return Fitted(scores, seconds, time.process_time() - began - seconds)


def tfidf(task: Task, *vectorizers: TfidfVectorizer) -> csr_matrix:
    """Returns the (n, features) tf-idf of all texts, with words and frequencies of the train part."""
    train = [task.texts[row] for row in task.split.rows("train")]
    return hstack([vectorizer.fit(train).transform(task.texts) for vectorizer in vectorizers], format="csr")


def standardised(task: Task) -> Floats:
    """Returns the (n, image_dim + text_dim) embeddings, centred and scaled by the train part, 0 where there is none."""
    return np.hstack([standardised_side(task, matrix, has) for matrix, has in sides(task)])


def sides(task: Task) -> list[tuple[Floats, Bools]]:
    """Returns vectors and which products have one, of photos and of texts, as far as the task shows any."""
    embeddings = task.embeddings
    both = ((embeddings.image, embeddings.has_image), (embeddings.text, embeddings.has_text))
    return [(matrix, has) for matrix, has in both if has.any()]


def standardised_side(task: Task, matrix: Floats, has: Bools) -> Floats:
    """Returns the (n, dim) vectors of a side, centred and scaled by the train part, 0 where there is none."""
    train = task.split.rows("train")
    return StandardScaler().fit(matrix[train[has[train]]]).transform(matrix) * has[:, None]


def decide(model: LinearSVC | LogisticRegression, x: csr_matrix | Floats, task: Task, name: str) -> Floats:
    """Fits a model to a characteristic and returns its (judged products, labels) decision values."""
    train, codes = learned(task, name, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[train], codes)
    return one_column_per_label(model.decision_function(x[task.judged]))


def learned(task: Task, name: str, part: SplitName) -> tuple[Rows, Rows]:
    """Returns the rows of a part whose label of a characteristic is learned, and the numbers of these labels."""
    rows, codes = task.split.rows(part), task.codes(name)
    rows = rows[codes[rows] >= 0]
    return rows, codes[rows]


def one_column_per_label(decisions: Floats) -> Floats:
    """Returns (products, labels) decision values; of two labels scikit-learn gives those of the second alone."""
    return decisions if decisions.ndim == 2 else np.stack([-decisions, decisions], axis=1)


def best_on_valid(task: Task, name: str, variants: Iterable[Floats]) -> Floats:
    """Returns the scores with the best macro-F1 on the valid part, the first of equals."""
    codes = task.codes(name)[task.judged]
    is_valid = (task.split.names[task.judged] == "valid") & (codes >= 0)
    return max(
        variants,
        key=lambda scores: f1_score(codes[is_valid], scores[is_valid].argmax(1), average="macro", zero_division=0),
    )
