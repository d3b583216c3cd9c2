"""Linear rivals and the published heads: each turns a task into scores of its test products.

`boosted.py` holds the other rivals.

Every rival learns from the products that ours learns from, one model per characteristic. Where it is tried in several
variants, it takes the one with the best macro-F1 on the folds of the task, each predicted by a model that was fitted
without it, and is fitted again to all. Of more than 2,000 products to learn from, only the first fold (a fifth) is
predicted.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sets import Task
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

from product_classificator.types import Bools, Floats, Rows

WEIGHTS = (None, "balanced")
REGULARISATIONS = (0.001, 0.01)
MOST_CROSS_VALIDATED = 2_000
EPOCHS = 15


@dataclass(frozen=True)
class Fitted:
    """What a method leaves.

    Attributes:
        scores: characteristic -> (test products, labels); the label with the highest is what is predicted.
        seconds: of fitting.
        search_seconds: of choosing, which a fixed setting would save.
        facts: whatever else it says of itself.
        labels: of the scores; `None`: those of the task.
    """

    scores: Mapping[str, Floats]
    seconds: float
    search_seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] | None = None


def word_svm(task: Task, seed: int) -> Fitted:
    """Fit LinearSVC, plain or balanced, to tf-idf of words and pairs of words."""
    return _svm(task, seed, words())


def character_svm(task: Task, seed: int) -> Fitted:
    """Fit LinearSVC, plain or balanced, to tf-idf of words, pairs of words, and 3 to 5 characters within words."""
    return _svm(task, seed, words(), characters())


def _svm(task: Task, seed: int, *vectorizers: TfidfVectorizer) -> Fitted:
    began = time.process_time()
    models = [LinearSVC(class_weight=weight, random_state=seed) for weight in WEIGHTS]
    return _linear(task, tfidf(task, *vectorizers), models, began)


def svm_on_both(task: Task, seed: int) -> Fitted:
    """Fit one untuned LinearSVC to words, characters and standardised embeddings, each part of about unit length."""
    began = time.process_time()
    vectors = [csr_matrix(standardised_side(task, *side) / np.sqrt(side[0].shape[1])) for side in sides(task)]
    texts = [tfidf(task, words(), characters())] if task.embeddings.has_text.any() else []
    return _linear(task, hstack([*texts, *vectors], format="csr"), [LinearSVC(C=1, random_state=seed)], began)


def logistic_regression(task: Task, seed: int) -> Fitted:
    """Fit LogisticRegression to the standardised embeddings: as it is (C = 1), or regularised more strongly."""
    began = time.process_time()
    settings = [(1.0, None), *product(REGULARISATIONS, WEIGHTS)]
    models = [LogisticRegression(C=c, class_weight=weight, max_iter=1000) for c, weight in settings]
    return _linear(task, standardised(task), models, began)


def _linear(
    task: Task, x: csr_matrix | Floats, models: Sequence[LinearSVC | LogisticRegression], began: float
) -> Fitted:
    """Fit the best of some models to each characteristic; `began` is when the making of `x` did."""
    scores, search_seconds = {}, 0.0
    for name in task.labels:
        start, best = time.process_time(), models[0]
        if len(models) > 1:
            best = max(models, key=lambda model: cross_validated(model, x, task, name))
        search_seconds += time.process_time() - start
        scores[name] = decide(best, x, task, name)
    return Fitted(scores, time.process_time() - began - search_seconds, search_seconds)


def cross_validated(model: LinearSVC | LogisticRegression, x: csr_matrix | Floats, task: Task, name: str) -> float:
    """Return the macro-F1 of a model on folds, each predicted by what the others teach."""
    folds = task.folds if len(task.learn) <= MOST_CROSS_VALIDATED else task.folds[:1]
    true, predicted = [], []
    for fold in folds:
        (rows, codes), (judged, of_judged) = (
            known(task, name, part) for part in (np.setdiff1d(task.learn, fold), fold)
        )
        has_choice = len(np.unique(codes)) > 1 and len(judged)
        predicted.append(fit_quietly(model, x[rows], codes).predict(x[judged]) if has_choice else of_judged)
        true.append(of_judged)
    return float(f1_score(np.concatenate(true), np.concatenate(predicted), average="macro", zero_division=0))


def published_heads(task: Task, seed: int) -> Fitted:
    """Fit the heads of the 2024 system: one MLP per characteristic, the best of 15 epochs.

    The epoch is chosen on the first fold, by heads fitted without it; heads fitted to all stop there.
    `torchvision.ops.MLP(d, [1024, k], dropout=0.2)` also has dropout after the last layer; it is kept.
    """
    began, fold = time.process_time(), task.folds[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trials = _published_epochs(task, np.setdiff1d(task.learn, fold), fold)
        means = [np.mean([macro_f1(task, name, fold, s) for name, s in scores.items()]) for scores in trials]
        search_seconds = time.process_time() - began
        torch.manual_seed(seed)
        best = int(np.argmax(means))
        scores = next(islice(_published_epochs(task, task.learn, task.test), best, None))
    return Fitted(scores, time.process_time() - began - search_seconds, search_seconds)


def _published_epochs(task: Task, rows: Rows, judged: Rows) -> Iterator[dict[str, Floats]]:
    """Fit the published heads to products, and yield after each epoch the scores of others."""
    label_ids = torch.from_numpy(np.stack([task.codes(name) for name in task.labels], 1))
    x = torch.from_numpy(np.hstack([matrix for matrix, _ in sides(task)]))
    train = torch.from_numpy(rows[(label_ids.numpy()[rows] >= 0).any(1)])
    batch_size = min(64, max(8, len(train) // 50))
    heads = nn.ModuleList(_published_head(x.shape[1], len(labels)) for labels in task.labels.values())
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(EPOCHS):
        heads.train()
        for order in torch.split(torch.randperm(len(train)), batch_size):
            batch = train[order]
            losses = [
                nn.functional.cross_entropy(head(x[batch]), column, ignore_index=-1, reduction="sum")
                for head, column in zip(heads, label_ids[batch].T, strict=True)
            ]
            optimizer.zero_grad()
            (torch.stack(losses).sum() / len(batch)).backward()
            optimizer.step()
        heads.eval()
        with torch.inference_mode():
            yield {name: head(x[judged]).numpy() for name, head in zip(task.labels, heads, strict=True)}


def _published_head(width: int, n_labels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.2), nn.Linear(1024, n_labels), nn.Dropout(0.2))


def words() -> TfidfVectorizer:
    """Return what weighs words and pairs of words."""
    return TfidfVectorizer(ngram_range=(1, 2))


def characters() -> TfidfVectorizer:
    """Return what weighs 3 to 5 characters within words."""
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2)


def tfidf(task: Task, *vectorizers: TfidfVectorizer) -> csr_matrix:
    """Return the (n, features) tf-idf of all texts, with words and frequencies of the products to learn from."""
    learn = [task.texts[row] for row in task.learn]
    return hstack([vectorizer.fit(learn).transform(task.texts) for vectorizer in vectorizers], format="csr")


def standardised(task: Task) -> Floats:
    """Return the (n, dims) embeddings, centred and scaled by the products to learn from, 0 where there is none."""
    return np.hstack([standardised_side(task, matrix, has) for matrix, has in sides(task)])


def sides(task: Task) -> list[tuple[Floats, Bools]]:
    """Return vectors and which products have one, of photos and of texts, as far as the task shows any."""
    embeddings = task.embeddings
    both = ((embeddings.image, embeddings.has_image), (embeddings.text, embeddings.has_text))
    return [(matrix, has) for matrix, has in both if has.any()]


def standardised_side(task: Task, matrix: Floats, has: Bools) -> Floats:
    """Return the (n, dim) vectors of a side, centred and scaled by those to learn from, 0 where there is none."""
    return StandardScaler().fit(matrix[task.learn[has[task.learn]]]).transform(matrix) * has[:, None]


def decide(model: LinearSVC | LogisticRegression, x: csr_matrix | Floats, task: Task, name: str) -> Floats:
    """Fit a model to a characteristic and return its (test products, labels) decision values."""
    rows, codes = known(task, name, task.learn)
    return one_column_per_label(fit_quietly(model, x[rows], codes).decision_function(x[task.test]))


def fit_quietly(
    model: LinearSVC | LogisticRegression, x: csr_matrix | Floats, codes: Rows
) -> LinearSVC | LogisticRegression:
    """Return a copy of a model, fitted, without a word where it had not enough iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return clone(model).fit(x, codes)


def known(task: Task, name: str, rows: Rows) -> tuple[Rows, Rows]:
    """Return those of some rows whose label of a characteristic is learned, and the numbers of these labels."""
    codes = task.codes(name)[rows]
    return rows[codes >= 0], codes[codes >= 0]


def one_column_per_label(decisions: Floats) -> Floats:
    """Return (products, labels) decision values; of two labels scikit-learn gives those of the second alone."""
    return decisions if decisions.ndim == 2 else np.stack([-decisions, decisions], axis=1)


def macro_f1(task: Task, name: str, rows: Rows, scores: Floats) -> float:
    """Return the macro-F1 of the (m, labels) scores of some rows."""
    codes = task.codes(name)[rows]
    is_known = codes >= 0
    return float(f1_score(codes[is_known], scores[is_known].argmax(1), average="macro", zero_division=0))
