"""Ours against rivals: macro-F1 on the same split, the same texts and the same embeddings, in one run.

    python benchmarks/quality.py [--sets fashion ozon] [--seeds 0 1 2] [--cache FOLDER]

The rival "tf-idf + svm" is TfidfVectorizer(ngram_range=(1, 2)) with LinearSVC, plain and balanced; per characteristic
the one that is better on the TEST part counts, which favours the rival. Ours choose by validation only. Every method
learns from the train part alone and is scored on the same test products by `evaluate`.
"""

import argparse
import resource
import time
import warnings
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import numpy as np
from common import DATA, fill_readme, save
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from product_classificator import EmbeddingStore, HeadSettings, Predictions, embed, evaluate, load_encoder, read_catalog
from product_classificator.catalog.splits import group_products, split_products, text_keys, without_placeholders
from product_classificator.encoders.labels import embed_labels
from product_classificator.evaluation import Evaluation
from product_classificator.heads import fit_heads
from product_classificator.types import strings

FASHION = ["category", "sub_category", "sex", "season", "age_restrictions", "usage", "color", "hazmat"]


def open_set(name: str, folder: Path):
    """Returns the catalog of a set."""
    if name == "fashion":
        table, images = DATA / "fashion/products.parquet", DATA / "fashion/images.zip"
        return read_catalog(table, images, id="nm", text="description", characteristics=FASHION)
    import pandas as pd

    titles = pd.read_parquet(DATA / "ozon_ru/products.parquet").sample(60_000, random_state=0)
    path = folder / "ozon60.parquet"
    titles.to_parquet(path)
    return read_catalog(path, id="nm", text="title", characteristics=["sub_category"])


def svm(texts, truth, labels, train, test, ids, class_weight):
    """Fits TF-IDF and LinearSVC per characteristic and returns its predictions of the test part."""
    words = TfidfVectorizer(ngram_range=(1, 2))
    x_train = words.fit_transform([texts[row] for row in train])
    x_test = words.transform([texts[row] for row in test])
    probabilities = {}
    for name, names in labels.items():
        known = np.array([label in names for label in truth[name][train]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LinearSVC(class_weight=class_weight).fit(x_train[known], truth[name][train][known].astype(str))
        found = model.predict(x_test)
        probabilities[name] = (found[:, None] == np.array(names)).astype(np.float32)
    return Predictions(ids[test], labels, probabilities, np.ones(len(test), dtype=bool))


def better(first: Evaluation, second: Evaluation) -> dict[str, float]:
    """Returns the better macro-F1 of each characteristic."""
    return {n: max(s.macro_f1, second.characteristics[n].macro_f1) for n, s in first.characteristics.items()}


def scores(evaluation: Evaluation) -> dict[str, float]:
    """Returns macro-F1 of each characteristic."""
    return {name: score.macro_f1 for name, score in evaluation.characteristics.items()}


def run(name: str, seed: int, cache: Path) -> dict[str, dict[str, float]]:
    """Fits every method on one split and returns method -> characteristic -> macro-F1, with seconds of fitting."""
    catalog = open_set(name, cache)
    encoder = load_encoder("lite")
    embedded = embed(catalog, encoder, EmbeddingStore(cache / name, encoder))
    texts, truth, embeddings = list(catalog.texts()), catalog.truth(), embedded.embeddings
    keys = [without_placeholders(keys) for keys in (text_keys(texts), embedded.image_keys)]
    usable = embeddings.has_image | embeddings.has_text
    split = split_products(catalog.ids, group_products(keys), truth, usable, seed=seed)
    train, test = split.rows("train"), split.rows("test")
    results, seconds = {}, {}
    for method, settings in (
        ("ours", HeadSettings(seed=seed)),
        ("published recipe", HeadSettings.published(seed=seed)),
    ):
        began = time.perf_counter()
        fitted = fit_heads(embeddings, texts, truth, split, settings, label_vectors=partial(embed_labels, encoder))
        seconds[method] = round(time.perf_counter() - began, 1)
        predictions = fitted.bundle.predict(embeddings.take(test), [texts[row] for row in test])
        labels = {name: tuple(names) for name, names in fitted.bundle.labels.items()}
        tested = {name: truth[name][test] for name in labels}
        results[method] = scores(evaluate(predictions, tested, resamples=0))
        print(name, seed, method, seconds[method], "s", mean(results[method]), flush=True)
    began = time.perf_counter()
    rivals = [
        evaluate(svm(texts, truth, labels, train, test, strings(list(catalog.ids)), weight), tested, resamples=0)
        for weight in (None, "balanced")
    ]
    seconds["tf-idf + svm"] = round(time.perf_counter() - began, 1)
    results["tf-idf + svm"] = better(*rivals)
    print(name, seed, "tf-idf + svm", seconds["tf-idf + svm"], "s", mean(results["tf-idf + svm"]), flush=True)
    return {"macro_f1": results, "seconds": seconds, "test_products": len(test)}


def mean(found: dict[str, float]) -> float:
    """Returns the mean over characteristics."""
    return round(float(np.mean(list(found.values()))), 4)


def table(runs: list[dict]) -> list[str]:
    """Returns a Markdown table: characteristics down, methods across, means over the seeds."""
    methods = list(runs[0]["macro_f1"])
    names = list(runs[0]["macro_f1"][methods[0]])
    cell = {m: {n: np.mean([r["macro_f1"][m][n] for r in runs]) for n in names} for m in methods}
    rows = [f"| {n} | " + " | ".join(f"{cell[m][n]:.3f}" for m in methods) + " |" for n in names]
    means = "| **mean** | " + " | ".join(f"**{np.mean(list(cell[m].values())):.3f}**" for m in methods) + " |"
    return [f"| macro-F1 | {' | '.join(methods)} |", "|---|" + "---:|" * len(methods), *rows, means]


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=["fashion", "ozon"], choices=["fashion", "ozon"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=Path(gettempdir()) / "product-classificator-bench")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        seeds = arguments.seeds if name == "fashion" else arguments.seeds[:1]
        runs = [run(name, seed, arguments.cache) for seed in seeds]
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines = table(runs)
        path = save(f"quality_{name}", {"seeds": seeds, "runs": runs, "peak_gib": round(peak_gib, 2), "table": lines})
        fill_readme(f"quality_{name}", lines)
        print("\n".join(lines), f"\n{path}", sep="\n")


if __name__ == "__main__":
    main()
