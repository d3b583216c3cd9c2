"""What each part of the default recipe pays: macro-F1 out of fold with one part left out at a time.

    python benchmarks/ablation.py [--seeds 0 1] [--cache ...]

Fashion goods with descriptions and photos, means of the characteristics. The test part is not looked at: this is what
choices are made by. One seed moves a mean by about .004, so differences below that say nothing. Where there are no
words, a linear layer from photo and text replaces theirs.
"""

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from common import fill_table, parse, save
from quality import out_of_fold
from sets import Task, fit, open_task

from product_classificator import HeadSettings
from product_classificator.encoders.lite import COLORS_DIM, PARTS
from product_classificator.training import inputs

COLUMNS = {
    "last map": slice(0, PARTS[0]),
    "maps in the middle": slice(PARTS[0], sum(PARTS)),
    "colours": slice(sum(PARTS), sum(PARTS) + COLORS_DIM),
}


@dataclass(frozen=True)
class Variant:
    """The recipe with something left out.

    Attributes:
        shown: the set of `sets`, which says what is shown of the same products.
        settings: of the heads, other than the defaults.
        task: changes what the heads are given.
        patched: holds while they are fitted.
    """

    shown: str = "fashion"
    settings: Mapping[str, float] = field(default_factory=dict)
    task: Callable[[Task], Task] = lambda task: task
    patched: Callable[[], AbstractContextManager[object]] = nullcontext


def without_columns(name: str) -> Callable[[Task], Task]:
    """Return what blanks some columns of the image part."""

    def change(task: Task) -> Task:
        image = task.embeddings.image.copy()
        image[:, COLUMNS[name]] = 0
        return replace(task, embeddings=replace(task.embeddings, image=image))

    return change


def without_sentences(task: Task) -> Task:
    """Return products whose texts are only words, without a vector."""
    return replace(task, embeddings=replace(task.embeddings, text=np.zeros_like(task.embeddings.text)))


VARIANTS: Mapping[str, Variant] = {
    "the default recipe": Variant(),
    "without photos": Variant("fashion_text"),
    "without texts": Variant("fashion_photos"),
    "without words": Variant(settings={"max_words": 0}),
    "without vectors of texts": Variant(task=without_sentences),
    "without the words of label names": Variant(patched=lambda: patch.object(inputs, "_LABEL_WEIGHT", 0.0)),
    "leading words never": Variant(settings={"leading_words": False}),
    "leading words always": Variant(settings={"leading_words": True}),
    "photos without the last map": Variant(task=without_columns("last map")),
    "photos without maps in the middle": Variant(task=without_columns("maps in the middle")),
    "photos without colours": Variant(task=without_columns("colours")),
    "without modality dropout": Variant(settings={"modality_dropout": 0.0}),
    "without word dropout": Variant(settings={"word_dropout": 0.0}),
    "without dropout": Variant(settings={"dropout": 0.0}),
    "without favour for rare labels": Variant(settings={"prior_strength": 0.0}),
    "rare labels fully favoured": Variant(settings={"prior_strength": 1.0}),
}


def measure(variant: Variant, seed: int, folder: Path) -> dict[str, float]:
    """Fit heads and return the macro-F1 of each characteristic out of fold."""
    task = variant.task(open_task(variant.shown, seed, folder))
    with variant.patched():
        evaluation = out_of_fold(task, fit(task, HeadSettings(seed=seed, **variant.settings)))
    return {name: score.macro_f1 for name, score in evaluation.characteristics.items()}


def main() -> None:
    """Fit every variant, prints and saves what it reaches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parse(parser)
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in VARIANTS}
    for seed in arguments.seeds:
        for name, variant in VARIANTS.items():
            found[name][str(seed)] = measure(variant, seed, arguments.cache)
            print(seed, name, f"{np.mean(list(found[name][str(seed)].values())):.4f}", flush=True)
    means = {name: float(np.mean([list(scores.values()) for scores in runs.values()])) for name, runs in found.items()}
    whole = means["the default recipe"]
    lines = ["| fashion, out of fold | macro-F1 | difference |", "|---|---:|---:|"]
    lines += [f"| {name} | {mean:.3f} | {mean - whole:+.3f} |" for name, mean in means.items()]
    path = save("ablation", {"seeds": arguments.seeds, "runs": found, "means": means, "table": lines})
    fill_table("ablation", lines)
    print("\n".join(lines), path, sep="\n")


if __name__ == "__main__":
    main()
