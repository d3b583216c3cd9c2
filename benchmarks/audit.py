"""How many flipped labels an audit finds: 5 % of all labels are changed at random, a run is trained, and audited.

    python benchmarks/audit.py [--seeds 0 1 2] [--cache FOLDER]

Recall is the share of the changed labels in a list twice as long as their number: the likeliest findings of one
characteristic, or of all ("overall"). The new label is drawn from the others of the characteristic, each as likely
("evenly"), or as likely as it is frequent ("as frequent"), which is harder to see. The labels of fashion have errors of
their own, which count as false finds here.
"""

import argparse
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pandas as pd
from common import DATA, save

from product_classificator import load_encoder, read_catalog, train_heads
from product_classificator.audit import audit_run
from product_classificator.training import TrainSettings

FASHION = ["category", "sub_category", "sex", "season", "age_restrictions", "usage", "color", "hazmat"]
SHARE = 0.05


def flip(labels: pd.Series, rng: np.random.Generator, *, evenly: bool) -> pd.Series:
    """Returns the labels with a share of them changed."""
    counts = labels.value_counts()
    flipped = labels.copy()
    for row in rng.choice(np.flatnonzero(labels.notna()), round(SHARE * labels.notna().sum()), replace=False):
        others = counts.drop(labels[row])
        flipped[row] = rng.choice(others.index, p=None if evenly else others / others.sum())
    return flipped


def measure(seed: int, cache: Path, *, evenly: bool) -> dict[str, object]:
    """Returns the recall of the audit's ranking, the odds of the likelier label, and of two others."""
    frame = pd.read_parquet(DATA / "fashion/products.parquet")
    rng = np.random.default_rng(seed)
    flipped = frame.assign(**{name: flip(frame[name], rng, evenly=evenly) for name in FASHION})
    changed = {name: set(np.flatnonzero(frame[name].notna() & (frame[name] != flipped[name]))) for name in FASHION}
    catalog = read_catalog(flipped, DATA / "fashion/images.zip", id="nm", text="description", characteristics=FASHION)
    encoder, out = load_encoder("lite"), cache / "audit"
    training = train_heads(catalog, out / "run", TrainSettings(seed=seed), encoder=encoder, store=cache / "fashion")
    audit = audit_run(training.run, catalog, out, encoder=encoder)
    found = pd.read_parquet(audit.table).query("kind == 'wrong_label'")
    rankings = {
        "odds": found.score,
        "self-confidence": -found.probability,
        "margin": found.suggested_probability - found.probability,
    }
    return {
        "flipped": sum(map(len, changed.values())),
        "listed": len(found),
        **{name: recall(found.assign(score=scores), changed) for name, scores in rankings.items()},
    }


def recall(found: pd.DataFrame, changed: dict[str, set[int]]) -> dict[str, float]:
    """Returns the share of the changed labels that the best of a ranking hold, per characteristic and overall."""
    found = found.sort_values("score", ascending=False, kind="stable")
    shares = {}
    for name, rows in changed.items():
        listed = found[found.characteristic == name].row[: 2 * len(rows)]
        shares[name] = round(len(rows.intersection(listed)) / len(rows), 4)
    total = sum(map(len, changed.values()))
    listed = found[: 2 * total]
    hits = sum(row in changed[name] for row, name in zip(listed.row, listed.characteristic, strict=True))
    return {**shares, "overall": round(hits / total, 4)}


def main() -> None:
    """Measures and saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=Path(gettempdir()) / "product-classificator-bench")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    results = {}
    for how in ("evenly", "as frequent"):
        results[how] = {}
        for seed in arguments.seeds:
            results[how][seed] = measure(seed, arguments.cache, evenly=how == "evenly")
            print(how, seed, results[how][seed], flush=True)
            save("audit", {"share": SHARE, "results": results})


if __name__ == "__main__":
    main()
