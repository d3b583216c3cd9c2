"""Learning curves: ours against linear rivals by the number of products to learn from, on a fixed test part.

    python benchmarks/curves.py [--sets fashion ozon] [--sizes 500 10] [--draws 0 1] [--methods ours] [--fresh ours]

Fashion goods with description and photo, with titles too, and with descriptions alone: 250 to 4,000 products drawn at
random. Ozon titles of 120 labels, drawn at random among those with enough: 5, 10 and 35 titles each; a label of 5 is
learned. Draws differ in the products that are learned, in folds and in seeds. Results are kept as `quality.py` does,
and the table shows every point that was ever measured, with as many draws as it has.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from common import RESULTS, fill_table, parse, save
from quality import METHODS, Result, known_or_measured, mean
from sets import Task, open_task

from product_classificator.types import Split, strings

SIZES = dict.fromkeys(("fashion", "fashion_title", "fashion_text"), (250, 500, 1_000, 2_000, 4_000))
SIZES["ozon"] = (5, 10, 35)
OZON_LABELS = 120
RIVALS = ("tf-idf + svm", "tf-idf + chars + svm", "logistic regression", "svm on both")

Runs = Mapping[str, Mapping[str, Mapping[str, Result]]]
"""Set and size -> draw -> method -> what it reached."""


@cache
def whole(name: str, folder: Path) -> Task:
    """Return a set with the split that all draws share."""
    return open_task(name, 0, folder)


def draw(task: Task, name: str, size: int, seed: int) -> Task:
    """Return a task with as many products to learn from: of all together, or of each of the Ozon labels."""
    random, names = np.random.default_rng(seed), task.split.names
    is_shown, min_products = np.ones(len(names), dtype=bool), task.min_products
    if name == "ozon":
        labels = task.truth["sub_category"]
        counts = {label: int((labels[task.learn] == label).sum()) for label in task.labels["sub_category"]}
        enough = [label for label, count in counts.items() if count >= max(SIZES["ozon"])]
        chosen = np.random.default_rng(0).choice(enough, OZON_LABELS, replace=False)  # the same for all draws
        of_labels = [task.learn[labels[task.learn] == label] for label in chosen]
        learned = np.concatenate([random.choice(rows, size, replace=False) for rows in of_labels])
        is_shown, min_products = np.isin(labels.astype(str), chosen), min(min_products, size)
    else:
        learned = random.choice(task.learn, size, replace=False)
    split = strings([""] * len(names))
    split[is_shown & (names == "test")] = "test"
    split[learned] = "train"
    return replace(task, split=Split(task.split.ids, split), seed=seed, min_products=min_products)


def table(runs: Runs, methods: Sequence[str]) -> list[str]:
    """Return a Markdown table of means over the draws, with the lead of ours over the best rival and its least lead.

    Draws that lack a method are left out.

    A characteristic that a draw has too few products of is not learned there, by any method.
    """
    lines = [
        f"| mean macro-F1 | draws | {' | '.join(methods)} | lead of ours | least lead |",
        "|---|---:|" + "---:|" * len(methods) + "---:|---|",
    ]
    for point, every_draw in runs.items():
        draws = {number: run for number, run in every_draw.items() if set(methods) <= set(run)}
        names = sorted({name for run in draws.values() for name in run[methods[0]]["test"]})
        tests = {method: [run[method]["test"] for run in draws.values()] for method in methods}
        means = {method: mean(mean(test.values()) for test in tests[method]) for method in methods}
        scores = {m: {name: mean(t[name] for t in tests[m] if name in t) for name in names} for m in methods}
        cells = [*(f"{means[method]:.3f}" for method in methods), "", ""]
        rivals = [method for method in methods if method != "ours"]
        if rivals and "ours" in methods:
            leads = {name: scores["ours"][name] - max(scores[rival][name] for rival in rivals) for name in names}
            worst = min(leads, key=leads.__getitem__)
            lead = means["ours"] - max(means[rival] for rival in rivals)
            cells[-2:] = f"{lead:+.3f}", f"{leads[worst]:+.3f} {worst}"
        lines.append(f"| {point} | {len(draws)} | {' | '.join(cells)} |")
    return lines


def order(point: str) -> tuple[int, int]:
    """Return what sorts points by set and size."""
    name, size = point.split(", ")
    return list(SIZES).index(name), int(size.split()[0].replace(",", ""))


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--sizes", nargs="+", type=int, help="default: all of the set")
    parser.add_argument("--draws", nargs="+", type=int, default=list(range(5)), help="their numbers")
    parser.add_argument("--methods", nargs="+", default=["ours", *RIVALS], choices=METHODS)
    parser.add_argument("--fresh", nargs="+", default=[], choices=METHODS, help="fitted again though they are known")
    arguments = parse(parser)
    saved = RESULTS / "curves.json"
    runs = json.loads(saved.read_text(encoding="utf-8"))["runs"] if saved.is_file() else {}
    for name in arguments.sets:
        for size in (size for size in SIZES[name] if size in (arguments.sizes or SIZES[name])):
            point = f"{name}, {size:,}" + (" a label" if name == "ozon" else "")
            runs[point] = runs.get(point, {})
            for number in arguments.draws:
                folder = arguments.cache / "curves" / name / str(size) / str(number)
                task = draw(whole(name, arguments.cache), name, size, number)
                runs[point][str(number)] = known_or_measured(task, arguments.methods, arguments.fresh, folder)
            print(*table({point: runs[point]}, arguments.methods), sep="\n", flush=True)
    runs = {point: runs[point] for point in sorted(runs, key=order)}
    lines = table(runs, arguments.methods)
    print(*lines, save("curves", {"runs": runs, "table": lines}), sep="\n")
    fill_table("curves", lines)


if __name__ == "__main__":
    main()
