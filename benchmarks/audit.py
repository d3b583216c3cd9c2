"""How many flipped labels an audit finds: 5 % of all labels are changed at random, a run is trained, and audited.

    python benchmarks/audit.py [--seeds 0 1 2] [--cache FOLDER]

Recall is the share of the flipped labels in a list of twice their number: the first findings of one characteristic, or
of all ("overall"). The new label is drawn from the other labels of the characteristic, all equally probable ("evenly")
or by their frequency ("as frequent"), which is harder to detect. Original errors of fashion count as false positives.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from common import DATA, parse, save
from sets import FASHION

from product_classificator import load_encoder, read_catalog, train_heads
from product_classificator.audit import audit_run
from product_classificator.training import TrainSettings

SHARE = 0.05


def flip(labels: pd.Series, rng: np.random.Generator, *, evenly: bool) -> pd.Series:
    """Return the labels with a share of them flipped."""
    counts = labels.value_counts()
    flipped = labels.copy()
    for row in rng.choice(np.flatnonzero(labels.notna()), round(SHARE * labels.notna().sum()), replace=False):
        others = counts.drop(labels[row])
        flipped[row] = rng.choice(others.index, p=None if evenly else others / others.sum())
    return flipped


def measure(seed: int, cache: Path, *, evenly: bool) -> dict[str, object]:
    """Return the recall of the audit's ranking, by odds, and of two others."""
    frame = pd.read_parquet(DATA / "fashion/products.parquet")
    rng = np.random.default_rng(seed)
    flipped = frame.assign(**{name: flip(frame[name], rng, evenly=evenly) for name in FASHION})
    changed = {name: set(np.flatnonzero(frame[name].notna() & (frame[name] != flipped[name]))) for name in FASHION}
    catalog = read_catalog(flipped, DATA / "fashion/images.zip", id="nm", text="description", characteristics=FASHION)
    encoder, out = load_encoder("lite"), cache / "audit"
    training = train_heads(catalog, out / "run", TrainSettings(seed=seed), encoder=encoder, store=cache / "fashion")
    audit = audit_run(training.run, catalog, out, encoder=encoder)
    findings = pd.read_parquet(audit.table).query("kind == 'wrong_label'")
    rankings = {
        "odds": findings.score,
        "self-confidence": -findings.probability,
        "margin": findings.suggested_probability - findings.probability,
    }
    return {
        "flipped": sum(map(len, changed.values())),
        "listed": len(findings),
        **{name: recall(findings.assign(score=scores), changed) for name, scores in rankings.items()},
    }


def recall(findings: pd.DataFrame, changed: dict[str, set[int]]) -> dict[str, float]:
    """Return the share of the flipped labels in the first findings of a ranking, per characteristic and overall."""
    findings = findings.sort_values("score", ascending=False, kind="stable")
    shares = {}
    for name, rows in changed.items():
        listed = findings[findings.characteristic == name].row[: 2 * len(rows)]
        shares[name] = round(len(rows.intersection(listed)) / len(rows), 4)
    total = sum(map(len, changed.values()))
    listed = findings[: 2 * total]
    hits = sum(row in changed[name] for row, name in zip(listed.row, listed.characteristic, strict=True))
    return {**shares, "overall": round(hits / total, 4)}


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parse(parser)
    results = {}
    for how in ("evenly", "as frequent"):
        results[how] = {}
        for seed in arguments.seeds:
            results[how][seed] = measure(seed, arguments.cache, evenly=how == "evenly")
            print(how, seed, results[how][seed], flush=True)
            save("audit", {"share": SHARE, "results": results})


if __name__ == "__main__":
    main()
