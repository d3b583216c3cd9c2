"""Ours against rivals: macro-F1 on the same split, the same texts and the same embeddings.

    python benchmarks/quality.py [--sets fashion ozon] [--seeds 0 1 2] [--methods ours catboost] [--fresh ours]

The sets are described in `sets.py`, the rivals in `rivals.py`. Every method learns from the same products, chooses
among them (ours and rivals by the same folds), and is judged once on the test part, by `evaluate`. Of ours is also
kept how honest it is: its own scores, probabilities and promises beside what the test part says. Rivals are slow: what
a method reached is kept in the folder `--cache` and taken from there as long as products, parts, labels and, unless it
reads only words, the encoder are the same; `--fresh` fits methods again.
Seconds are those of the CPU (all threads together), which other processes disturb less than the time on the wall.
Threads that wait count, too: what is committed was measured with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from boosted import catboost, late_fusion
from common import RESULTS, facts, fill_table, parse, save
from rivals import Fitted, character_svm, logistic_regression, published_heads, svm_on_both, word_svm
from scipy.special import softmax
from sets import SETS, Task, fit, open_task

from product_classificator import HeadSettings, Predictions, evaluate
from product_classificator.evaluation import Evaluation
from product_classificator.files import write_text
from product_classificator.training import FittedHeads
from product_classificator.types import Rows

Result = dict[str, Any]
PROMISED = 0.95


def heads(task: Task, settings: HeadSettings) -> Fitted:
    """Fit the heads of this package."""
    began = time.process_time()
    fitted = fit(task, settings)
    seconds = time.process_time() - began
    products, texts = task.embeddings.take(task.test), [task.texts[row] for row in task.test]
    bundle = fitted.bundle
    found = bundle.with_decisions(bundle.predict(products, texts), products, texts, PROMISED)
    scores = {name: matrix * found.decision_weights.get(name, 1) for name, matrix in found.probabilities.items()}
    return Fitted(scores, seconds, facts=honesty(task, fitted, found), labels=found.labels)


def out_of_fold(task: Task, fitted: FittedHeads) -> Evaluation:
    """Return how the out-of-fold predictions of heads score."""
    rows = task.learn[fitted.out_of_fold.rows]
    judged = fitted.bundle.judged(fitted.out_of_fold, task.embeddings.ids[rows], PROMISED)
    truth = {name: task.truth[name][rows] for name in task.labels}
    return evaluate(judged, truth, rare_labels=fitted.rare_labels, resamples=0)


def honesty(task: Task, fitted: FittedHeads, found: Predictions) -> Result:
    """Return what heads say of themselves beside what the test part says.

    "rare" is the mean confidence minus the accuracy where one of the rarest third of the labels is predicted, and the
    number of such predictions. A label that was not learned counts as wrong for a promise and not at all elsewhere.
    """
    truth = {name: task.truth[name][task.test] for name in task.labels}
    tested = evaluate(found, truth, rare_labels=fitted.rare_labels, resamples=0)
    own = out_of_fold(task, fitted)
    facts: Result = {}
    for name, score in tested.characteristics.items():
        accepted, reliability = tested.selective.characteristics[name], score.reliability
        gaps = _gaps_of_rare(found, name, task.truth[name][task.learn], truth[name])
        facts[name] = {
            "out_of_fold": own.characteristics[name].macro_f1,
            "test": score.macro_f1,
            "ece": reliability.error,
            "ece_by_chance": reliability.error_by_chance,
            "accepted": accepted.n,
            "accepted_right": round(accepted.n * (accepted.precision or 0)),
            "rare": [float(gaps.mean()) if len(gaps) else 0.0, len(gaps)],
        }
    n, right = (sum(fact[key] for fact in facts.values()) for key in ("accepted", "accepted_right"))
    gaps, counts = np.array([fact["rare"] for fact in facts.values()]).T
    return {
        **{key: mean(fact[key] for fact in facts.values()) for key in ("out_of_fold", "test", "ece", "ece_by_chance")},
        "precision_of_promised": right / n if n else None,
        "rare": [float(gaps @ counts / max(counts.sum(), 1)), int(counts.sum())],
        "characteristics": facts,
    }


def _gaps_of_rare(found: Predictions, name: str, learned: Rows, true: Rows) -> Rows:
    """Return confidence minus right (0 or 1) of the predictions of the rarest third of the labels."""
    labels, counts = found.labels[name], Counter(learned)
    rare = set(sorted(labels, key=lambda label: (counts[label], label))[: len(labels) // 3])
    best, learnable = found.best(name), set(labels)
    is_judged = np.array([b in rare and t in learnable for b, t in zip(best, true, strict=True)], dtype=bool)
    return (found.confidence(name) - (best == true))[is_judged].astype(np.float64)


METHODS: Mapping[str, Callable[[Task, int], Fitted]] = {
    "ours": lambda task, seed: heads(task, HeadSettings(seed=seed)),
    "published recipe": published_heads,
    "tf-idf + svm": word_svm,
    "tf-idf + chars + svm": character_svm,
    "logistic regression": logistic_regression,
    "svm on both": svm_on_both,
    "catboost": catboost,
    "lightgbm late fusion": late_fusion,
}
ONLY_TEXT = ("tf-idf + svm", "tf-idf + chars + svm")
TABLES = ("fashion", "fashion_title", "ozon")
"""Sets whose table is shown whole; of the others the means are."""
SEEDS = {"ozon": 1, "flipkart": 5}


def can_learn(method: str, task: Task) -> bool:
    """Return whether a method has something to learn from."""
    return method not in ONLY_TEXT or bool(task.embeddings.has_text.any())


def judge(task: Task, fitted: Fitted) -> dict[str, float]:
    """Return the macro-F1 of each characteristic on the test part, of the labels that every method learns."""
    labels = fitted.labels or task.labels
    rare = {name: {*labels[name]} - {*of_task} for name, of_task in task.labels.items()}
    probabilities = {name: softmax(scores, axis=1).astype(np.float32) for name, scores in fitted.scores.items()}
    found = Predictions(task.split.ids[task.test], labels, probabilities, np.ones(len(task.test), dtype=bool))
    truth = {name: task.truth[name][task.test] for name in task.labels}
    evaluation = evaluate(found, truth, rare_labels=rare, resamples=0)
    return {name: score.macro_f1 for name, score in evaluation.characteristics.items()}


def measure(task: Task, method: str, seed: int) -> Result:
    """Fit a method and returns what it reached, and where and when."""
    fitted = METHODS[method](task, seed)
    return {
        "task": task.digest(of_words=method in ONLY_TEXT),
        "test": judge(task, fitted),
        "seconds": round(fitted.seconds, 1),
        "search_seconds": round(fitted.search_seconds, 1),
        **({"honesty": fitted.facts} if fitted.facts else {}),
        "measured": {name: value for name, value in facts().items() if name in ("commit", "date", "cpu")},
    }


def known_or_measured(task: Task, methods: Sequence[str], fresh: Sequence[str], folder: Path) -> dict[str, Result]:
    """Return what the methods reach on a task, from `folder` unless unknown there or in `fresh`."""
    results = {}
    for method in (method for method in methods if can_learn(method, task)):
        path = folder / f"{method}.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and method not in fresh else {}
        if result.get("task") != task.digest(of_words=method in ONLY_TEXT):
            result = measure(task, method, task.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(result, ensure_ascii=False, indent=1))
        results[method] = result
        print(
            folder.parent.name,
            folder.name,
            method,
            result["seconds"],
            "s",
            f"{mean(result['test'].values()):.4f}",
            flush=True,
        )
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
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 3, flipkart 5, ozon 1")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--fresh", nargs="+", default=[], choices=METHODS, help="fitted again though they are known")
    arguments = parse(parser)
    for name in arguments.sets:
        seeds, runs = arguments.seeds or list(range(SEEDS.get(name, 3))), []
        for seed in seeds:
            task, folder = open_task(name, seed, arguments.cache), arguments.cache / "quality" / name / str(seed)
            runs.append(known_or_measured(task, arguments.methods, arguments.fresh, folder))
        lines = table(runs)
        path = save(f"quality_{name}", {"seeds": seeds, "runs": runs, "table": lines})
        if name in TABLES:
            fill_table(f"quality_{name}", lines)
        honest = [
            {k: v for k, v in run["ours"]["honesty"].items() if k != "characteristics"} for run in runs if "ours" in run
        ]
        print("\n".join(lines), *honest, path, sep="\n")
    fill_table("quality_others", overview())


if __name__ == "__main__":
    main()
