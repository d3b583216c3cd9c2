"""Ours against rivals: macro-F1 on the same split, the same texts and the same embeddings.

    python benchmarks/quality.py [--sets fashion ozon] [--seeds 0 1 2] [--methods ours catboost] [--fresh ours]

The sets are described in `sets.py`, the rivals in `rivals.py`. Every method learns from the train part, chooses by the
valid part and is judged once on the test part, by `evaluate`. Rivals are slow: what a method reached is kept in the
folder `--cache` and taken from there as long as products, parts, labels and, unless it reads only words, the encoder
are the same; `--fresh` fits methods again.
Seconds are those of the CPU (all threads together), which other processes disturb less than the time on the wall.
Threads that wait count, too: what is committed was measured with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from boosted import catboost, late_fusion
from common import RESULTS, facts, fill_table, save
from rivals import Fitted, character_svm, logistic_regression, published_heads, word_svm
from scipy.special import softmax
from sets import SETS, Task, fit, open_task

from product_classificator import HeadSettings, Predictions, evaluate
from product_classificator.files import write_text
from product_classificator.types import SplitName

Result = dict[str, Any]


def heads(task: Task, settings: HeadSettings) -> Fitted:
    """Fit the heads of this package."""
    began = time.process_time()
    fitted = fit(task, settings)
    seconds = time.process_time() - began
    found = fitted.bundle.predict(task.embeddings.take(task.judged), [task.texts[row] for row in task.judged])
    return Fitted(found.probabilities, seconds)


METHODS: Mapping[str, Callable[[Task, int], Fitted]] = {
    "ours": lambda task, seed: heads(task, HeadSettings(seed=seed)),
    "published recipe": published_heads,
    "tf-idf + svm": word_svm,
    "tf-idf + chars + svm": character_svm,
    "logistic regression": logistic_regression,
    "catboost": catboost,
    "lightgbm late fusion": late_fusion,
}
ONLY_TEXT = ("tf-idf + svm", "tf-idf + chars + svm")
TABLES = ("fashion", "fashion_title", "ozon")
"""Sets whose table is shown whole; of the others the means are."""


def can_learn(method: str, task: Task) -> bool:
    """Return whether a method has something to learn from."""
    return method not in ONLY_TEXT or bool(task.embeddings.has_text.any())


def judge(task: Task, fitted: Fitted, part: SplitName) -> dict[str, float]:
    """Return the macro-F1 of each characteristic on a part."""
    is_in = task.split.names[task.judged] == part
    rows = task.judged[is_in]
    probabilities = {name: softmax(scores[is_in], axis=1).astype(np.float32) for name, scores in fitted.scores.items()}
    found = Predictions(task.split.ids[rows], task.labels, probabilities, np.ones(len(rows), dtype=bool))
    evaluation = evaluate(found, {name: task.truth[name][rows] for name in task.labels}, resamples=0)
    return {name: score.macro_f1 for name, score in evaluation.characteristics.items()}


def measure(task: Task, method: str, seed: int) -> Result:
    """Fit a method and returns what it reached, and where and when."""
    fitted = METHODS[method](task, seed)
    return {
        "task": task.digest(of_words=method in ONLY_TEXT),
        "valid": judge(task, fitted, "valid"),
        "test": judge(task, fitted, "test"),
        "seconds": round(fitted.seconds, 1),
        "search_seconds": round(fitted.search_seconds, 1),
        "measured": {name: value for name, value in facts().items() if name in ("commit", "date")},
    }


def compare(name: str, seed: int, methods: Sequence[str], fresh: Sequence[str], folder: Path) -> dict[str, Result]:
    """Return what the methods reach on a set, from `folder` unless unknown there or in `fresh`."""
    task = open_task(name, seed, folder)
    results = {}
    for method in (method for method in methods if can_learn(method, task)):
        path = folder / "quality" / name / str(seed) / f"{method}.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and method not in fresh else {}
        if result.get("task") != task.digest(of_words=method in ONLY_TEXT):
            result = measure(task, method, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(result, ensure_ascii=False, indent=1))
        results[method] = result
        print(name, seed, method, result["seconds"], "s", f"{mean(result['test'].values()):.4f}", flush=True)
    return results


def mean(values: Iterable[float]) -> float:
    """Return the mean of macro-F1 over characteristics or seeds."""
    return float(np.mean(list(values)))


def table(runs: Sequence[Mapping[str, Result]]) -> list[str]:
    """Return a Markdown table: characteristics down, methods across, means over the seeds."""
    methods = list(runs[0])
    names = list(runs[0][methods[0]]["test"])
    cell = {m: {name: mean(run[m]["test"][name] for run in runs) for name in names} for m in methods}
    seconds = {m: mean(run[m]["seconds"] for run in runs) for m in methods}
    return [
        f"| macro-F1 | {' | '.join(methods)} |",
        "|---|" + "---:|" * len(methods),
        *(f"| {name} | " + " | ".join(f"{cell[m][name]:.3f}" for m in methods) + " |" for name in names),
        "| **mean** | " + " | ".join(f"**{mean(cell[m].values()):.3f}**" for m in methods) + " |",
        "| CPU seconds | " + " | ".join(f"{seconds[m]:.0f}" for m in methods) + " |",
    ]


def overview() -> list[str]:
    """Return a Markdown table of the other sets, as far as there are results: sets down, methods across, means."""
    paths = {name: RESULTS / f"quality_{name}.json" for name in SETS if name not in TABLES}
    known = {
        name: json.loads(path.read_text(encoding="utf-8"))["runs"] for name, path in paths.items() if path.is_file()
    }
    methods = [method for method in METHODS if any(method in runs[0] for runs in known.values())]
    lines = [f"| mean macro-F1 | {' | '.join(methods)} |", "|---|" + "---:|" * len(methods)]
    for name, runs in known.items():
        cells = [f"{mean(mean(run[m]['test'].values()) for run in runs):.3f}" if m in runs[0] else "" for m in methods]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="ozon takes the first")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--fresh", nargs="+", default=[], choices=METHODS, help="fitted again though they are known")
    parser.add_argument("--cache", type=Path, default=Path(gettempdir()) / "product-classificator-bench")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        seeds = arguments.seeds[:1] if name == "ozon" else arguments.seeds
        runs = [compare(name, seed, arguments.methods, arguments.fresh, arguments.cache) for seed in seeds]
        lines = table(runs)
        path = save(f"quality_{name}", {"seeds": seeds, "runs": runs, "table": lines})
        if name in TABLES:
            fill_table(f"quality_{name}", lines)
        print("\n".join(lines), f"\n{path}", sep="\n")
    fill_table("quality_others", overview())


if __name__ == "__main__":
    main()
