"""Memory and time of fitting heads to a synthetic catalog: does a million products fit in 8 GiB?

    python benchmarks/fit_memory.py [--products 100000] [--epochs 10]

Draws titles, thumbnails and float16 embeddings as wide as those of `lite` (the latter into a mapped file, as
`embed` does with large catalogs), and labels of seven characteristics; a tenth of the products are copies of others.
Then it does what a training does after embedding: groups of near-duplicates, a split with one judged fold, heads, and
the evaluation. The resident memory is polled (Linux): all of it, and without pages of mapped files, which the system
may take back at any time. Scores say nothing: the catalog is much easier than a real one.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event, Thread

import numpy as np
from common import save

from product_classificator.catalog.split import split_products
from product_classificator.embeddings.products import THUMBNAIL_BYTES
from product_classificator.evaluation import evaluate
from product_classificator.training import HeadSettings, LabelledProducts, SplitSettings, fit_heads
from product_classificator.training.near_duplicates import Signatures, near_duplicate_groups
from product_classificator.types import Embeddings, Truth, strings

N_LABELS = {"category": 20, "sub_category": 100, "sex": 4, "season": 4, "age": 5, "fragility": 2, "hazmat": 2}
IMAGE_DIM, TEXT_DIM, ROWS, COPIES, WORDS = 1744, 512, 8192, 0.1, 200_000


class Memory:
    """Polls the resident memory of this process; the highest since the last call, in MiB."""

    def __init__(self) -> None:
        self._highest: dict[str, float] = {}
        self._stopped = Event()
        Thread(target=self._poll, daemon=True).start()

    def _poll(self) -> None:
        while not self._stopped.wait(0.05):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            kib = {
                line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "RssAnon:"))
            }
            for name, value in {"all": kib["VmRSS"], "without_files": kib["RssAnon"]}.items():
                self._highest[name] = max(self._highest.get(name, 0), round(value / 1024))

    def peak(self) -> dict[str, float]:
        """Return the peaks since the last call."""
        time.sleep(0.1)
        peak, self._highest = self._highest, {}
        return peak


def vectors(rng: np.random.Generator, leaves: np.ndarray, dim: int) -> np.ndarray:
    """Return (n, dim) float16 unit rows around a centre per leaf, in a mapped file."""
    n, centres, noise = len(leaves), *(rng.standard_normal((k, dim)).astype(np.float32) for k in (100, 4096))
    with TemporaryFile(dir=".") as file:
        matrix = np.memmap(file, np.float16, "w+", shape=(n, dim)).view(np.ndarray)
    for start in range(0, n, ROWS):
        of_rows = leaves[start : start + ROWS]
        drawn = centres[of_rows] + sum(noise[rng.integers(4096, size=len(of_rows))] for _ in range(3))
        matrix[start : start + ROWS] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return matrix


def draw(n: int) -> tuple[Embeddings, list[str], Truth, np.ndarray]:
    """Return embeddings, texts, labels and thumbnails of n products."""
    rng = np.random.default_rng(0)
    original = np.arange(n)
    copies = rng.permutation(n)[: int(COPIES * n)]
    original[copies] = rng.integers(n, size=len(copies))
    original = original[original]
    leaves = rng.integers(100, size=n)[original]
    ranks = np.minimum(rng.zipf(1.3, (n, 10)), WORDS)[original]
    texts = [
        f"noun{leaf} kind{leaf % 20} " + " ".join(f"word{rank}" for rank in row)
        for leaf, row in zip(leaves.tolist(), ranks.tolist(), strict=True)
    ]
    truth = {}
    for name, k in N_LABELS.items():
        names = np.array([f"{name} {label}" for label in range(k)], dtype=object)
        truth[name] = strings(names[np.where(rng.random(n) < 0.05, rng.integers(k, size=n), leaves % k)])
    thumbnails = np.stack([rng.integers(1, 256, THUMBNAIL_BYTES, dtype=np.uint8) for _ in range(4096)])
    thumbnails = thumbnails[original % 4096] ^ (original[:, None] // 4096 * 7 % 97).astype(np.uint8)
    flags = np.ones(n, dtype=bool)
    image, text = vectors(rng, leaves, IMAGE_DIM), vectors(rng, leaves, TEXT_DIM)
    ids = strings([str(number) for number in range(n)])
    return Embeddings(ids, image, text, flags, flags.copy(), "synthetic"), texts, truth, np.maximum(thumbnails, 1)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=10)
    arguments, memory, stages = parser.parse_args(), Memory(), {}
    n = arguments.products

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        memory.peak()
        began = time.perf_counter()
        yield
        stages[name] = {"seconds": round(time.perf_counter() - began, 1), "peak_mib": memory.peak()}
        print(name, stages[name], flush=True)

    with stage("drawing"):
        embeddings, texts, truth, thumbnails = draw(n)
    with stage("near-duplicates"):
        groups = near_duplicate_groups(Signatures.of(texts, thumbnails))
    with stage("split"):
        shares = SplitSettings(holdout=0.2).shares(n)
        split = split_products(embeddings.ids, groups, truth, np.ones(n, dtype=bool), shares)
    products = LabelledProducts(embeddings, texts, truth, split, groups=groups)
    with stage("heads"):
        fitted = fit_heads(products, HeadSettings(epochs=arguments.epochs))
    with stage("evaluation"):
        rows = fitted.out_of_fold.rows
        judged = fitted.bundle.judged(fitted.out_of_fold, embeddings.ids[rows])
        scores = evaluate(judged, {name: labels[rows] for name, labels in truth.items()}, groups=groups[rows])
    worked = [facts for name, facts in stages.items() if name != "drawing"]
    peak = {kind: max(facts["peak_mib"][kind] for facts in worked) for kind in ("all", "without_files")}
    results = {
        "products": n,
        "epochs": arguments.epochs,
        "peak_mib": peak,
        "seconds": round(sum(facts["seconds"] for facts in worked), 1),
        "groups": len(np.unique(groups)),
        "words": len(fitted.bundle.vocabulary),
        "mean_macro_f1": round(scores.mean_macro_f1 or 0, 3),
        "stages": stages,
    }
    print(results)
    print(save(f"fit_memory_{n}", results))


if __name__ == "__main__":
    main()
