"""Linear rivals and the published heads: each turns a task into scores of its valid and test products.

`boosted.py` holds the other rivals.

Every rival learns from the train part alone, one model per characteristic. Where it is tried in several variants, the
best on the valid part counts, per characteristic, as ours choose by the valid part.
"""

import time
import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sets import Task
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

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
    """Fit LinearSVC, plain and balanced, on tf-idf of words and pairs of words."""
    return _svm(task, seed, TfidfVectorizer(ngram_range=(1, 2)))


def character_svm(task: Task, seed: int) -> Fitted:
    """Fit LinearSVC, plain and balanced, on tf-idf of words, pairs of words, and 3 to 5 characters within words."""
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
    """Fit LogisticRegression on the standardised embeddings: as it is (C = 1), and regularised more strongly."""
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


def published_heads(task: Task, seed: int) -> Fitted:
    """Fit the heads of the 2024 system: one MLP per characteristic, the best of 15 epochs on validation products.

    `torchvision.ops.MLP(d, [1024, k], dropout=0.2)` also has dropout after the last layer; it is kept.
    """
    began = time.process_time()
    label_ids = torch.from_numpy(np.stack([task.codes(name) for name in task.labels], 1))
    x = torch.from_numpy(np.hstack([matrix for matrix, _ in sides(task)]))
    train = task.split.rows("train")
    train = torch.from_numpy(train[(label_ids.numpy()[train] >= 0).any(1)])
    batch_size = min(64, max(8, len(train) // 50))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleList(_published_head(x.shape[1], len(labels)) for labels in task.labels.values())
        optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3, weight_decay=0)
        best, best_weights = -1.0, heads.state_dict()
        for _ in range(15):
            heads.train()
            for order in torch.split(torch.randperm(len(train)), batch_size):
                rows = train[order]
                losses = [
                    nn.functional.cross_entropy(head(x[rows]), column, ignore_index=-1, reduction="sum")
                    for head, column in zip(heads, label_ids[rows].T, strict=True)
                ]
                optimizer.zero_grad()
                (torch.stack(losses).sum() / len(rows)).backward()
                optimizer.step()
            score = np.mean([valid_macro_f1(task, name, values) for name, values in _scores(heads, x, task).items()])
            if score > best:
                best, best_weights = score, deepcopy(heads.state_dict())
        heads.load_state_dict(best_weights)
    return Fitted(_scores(heads, x, task), time.process_time() - began)


def _published_head(width: int, n_labels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.2), nn.Linear(1024, n_labels), nn.Dropout(0.2))


@torch.inference_mode()
def _scores(heads: nn.ModuleList, x: torch.Tensor, task: Task) -> dict[str, Floats]:
    heads.eval()
    return {name: head(x[task.judged]).numpy() for name, head in zip(task.labels, heads, strict=True)}


def tfidf(task: Task, *vectorizers: TfidfVectorizer) -> csr_matrix:
    """Return the (n, features) tf-idf of all texts, with words and frequencies of the train part."""
    train = [task.texts[row] for row in task.split.rows("train")]
    return hstack([vectorizer.fit(train).transform(task.texts) for vectorizer in vectorizers], format="csr")


def standardised(task: Task) -> Floats:
    """Return the (n, image_dim + text_dim) embeddings, centred and scaled by the train part, 0 where there is none."""
    return np.hstack([standardised_side(task, matrix, has) for matrix, has in sides(task)])


def sides(task: Task) -> list[tuple[Floats, Bools]]:
    """Return vectors and which products have one, of photos and of texts, as far as the task shows any."""
    embeddings = task.embeddings
    both = ((embeddings.image, embeddings.has_image), (embeddings.text, embeddings.has_text))
    return [(matrix, has) for matrix, has in both if has.any()]


def standardised_side(task: Task, matrix: Floats, has: Bools) -> Floats:
    """Return the (n, dim) vectors of a side, centred and scaled by the train part, 0 where there is none."""
    train = task.split.rows("train")
    return StandardScaler().fit(matrix[train[has[train]]]).transform(matrix) * has[:, None]


def decide(model: LinearSVC | LogisticRegression, x: csr_matrix | Floats, task: Task, name: str) -> Floats:
    """Fit a model to a characteristic and returns its (judged products, labels) decision values."""
    train, codes = learned(task, name, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[train], codes)
    return one_column_per_label(model.decision_function(x[task.judged]))


def learned(task: Task, name: str, part: SplitName) -> tuple[Rows, Rows]:
    """Return the rows of a part whose label of a characteristic is learned, and the numbers of these labels."""
    rows, codes = task.split.rows(part), task.codes(name)
    rows = rows[codes[rows] >= 0]
    return rows, codes[rows]


def one_column_per_label(decisions: Floats) -> Floats:
    """Return (products, labels) decision values; of two labels scikit-learn gives those of the second alone."""
    return decisions if decisions.ndim == 2 else np.stack([-decisions, decisions], axis=1)


def best_on_valid(task: Task, name: str, variants: Iterable[Floats]) -> Floats:
    """Return the scores with the best macro-F1 on the valid part, the first of equals."""
    return max(variants, key=lambda scores: valid_macro_f1(task, name, scores))


def valid_macro_f1(task: Task, name: str, scores: Floats) -> float:
    """Return the macro-F1 of (judged products, labels) scores on validation products."""
    codes = task.codes(name)[task.judged]
    is_valid = (task.split.names[task.judged] == "valid") & (codes >= 0)
    return float(f1_score(codes[is_valid], scores[is_valid].argmax(1), average="macro", zero_division=0))
