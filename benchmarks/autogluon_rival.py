"""AutoGluon's tabular predictor on a set of `quality.py`, in an environment of its own: it needs pandas below 3.

    python benchmarks/autogluon_rival.py export flipkart 0 task.npz   # in the environment of the package
    python benchmarks/autogluon_rival.py fit task.npz out.json    # in one with autogluon.tabular[lightgbm,catboost]

It gets the text, of which it makes features of words and pairs of words, and 128 principal components each of the image
and the text embeddings; macro-F1 is its measure, `TIME_LIMIT_S` its time for a characteristic, on one core.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

TIME_LIMIT_S, COMPONENTS = 90, 128


def export(set_name: str, seed: str, out: str, cache: str = "benchmarks/cache") -> None:
    """Write the task of a set: texts, embeddings, labels, and the rows to learn from and to be judged on."""
    from sets import open_task

    task = open_task(set_name, int(seed), Path(cache))
    arrays = {"texts": np.array(task.texts, dtype=str), "learn": task.learn, "test": task.test}
    arrays |= {"image": task.embeddings.image, "text": task.embeddings.text}
    arrays |= {f"truth.{name}": task.truth[name].astype(str) for name in task.labels}
    arrays |= {f"labels.{name}": np.array(task.labels[name]) for name in task.labels}
    np.savez(out, allow_pickle=False, **arrays)


def fit(task: str, out: str) -> None:
    """Fit a predictor per characteristic and write its macro-F1 on the test part, over the labels to learn."""
    import pandas as pd
    from autogluon.tabular import TabularPredictor
    from sklearn.decomposition import PCA
    from sklearn.metrics import f1_score

    arrays = np.load(task, allow_pickle=False)
    learn, test, frame, scores = arrays["learn"], arrays["test"], pd.DataFrame({"words": arrays["texts"]}), {}
    for part in ("image", "text"):
        components = PCA(COMPONENTS, random_state=0).fit(arrays[part][learn]).transform(arrays[part])
        frame = frame.join(pd.DataFrame(components, columns=[f"{part} {number}" for number in range(COMPONENTS)]))
    for name in (key.removeprefix("labels.") for key in arrays.files if key.startswith("labels.")):
        began, labels, truth = time.process_time(), arrays[f"labels.{name}"], arrays[f"truth.{name}"]
        rows, judged = (rows[np.isin(truth[rows], labels)] for rows in (learn, test))
        predictor = TabularPredictor(label="label", eval_metric="f1_macro", problem_type="multiclass", verbosity=1)
        table = frame.loc[rows].assign(label=truth[rows])
        predictor.fit(table, time_limit=TIME_LIMIT_S, num_cpus=1, presets="medium_quality")
        predicted = predictor.predict(frame.loc[judged])
        f1 = f1_score(truth[judged], predicted, labels=labels, average="macro", zero_division=0)
        scores[name] = {"test": float(f1), "seconds": round(time.process_time() - began, 1)}
        print(name, scores[name], flush=True)
    Path(out).write_text(json.dumps(scores, indent=1), encoding="utf-8")


if __name__ == "__main__":
    {"export": export, "fit": fit}[sys.argv[1]](*sys.argv[2:])
