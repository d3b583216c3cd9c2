"""Fitting heads: all characteristics in one pass, against a loop over single products per characteristic.

    python benchmarks/heads.py [--products 100000] [--loop-epochs 1]

The rival is the shape of the published training: for each characteristic an MLP of its own (1024 hidden units), a
Dataset that answers one product, a DataLoader that collates 64 of them, Adam, 15 epochs. Both learn from the same
made-up embeddings (1,024 columns: a noisy direction per label) and are scored on the same held-back products. Since the
loop takes long, it may be run for fewer epochs: its time for 15 is then extrapolated and marked so.
"""

import argparse
import time

import numpy as np
import torch
from common import save
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import DataLoader, Dataset

from product_classificator import HeadSettings
from product_classificator.encoders import cores
from product_classificator.training import LabelledProducts, fit_heads
from product_classificator.types import Embeddings, Split, strings

LABELS = {
    "category": 63,
    "sub_category": 690,
    "isadult": 2,
    "sex": 5,
    "season": 4,
    "age_restrictions": 5,
    "fragility": 2,
}
EPOCHS = 15


class OneByOne(Dataset):
    """Answers one product."""

    def __init__(self, vectors, codes):
        self.vectors, self.codes = vectors, codes

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, row):
        """Return the vector and the label of a product."""
        return torch.from_numpy(self.vectors[row]), int(self.codes[row])


def make(products: int):
    """Return vectors of unit parts, and codes of each characteristic with a long tail."""
    rng = np.random.default_rng(0)
    codes = {n: (rng.power(0.4, products) * k).astype(np.int64) for n, k in LABELS.items()}
    vectors = rng.standard_normal((products, 1024)).astype(np.float32)
    for name, column in codes.items():
        vectors += 0.4 * rng.standard_normal((LABELS[name], 1024)).astype(np.float32)[column]
    for part in (slice(0, 512), slice(512, 1024)):
        vectors[:, part] /= np.linalg.norm(vectors[:, part], axis=1, keepdims=True)
    return vectors, codes


def loop(vectors, codes, train, test, epochs: int) -> dict[str, float]:
    """Fit heads the published way and returns macro-F1 of each characteristic."""
    torch.set_num_threads(cores())
    scores = {}
    for name, k in LABELS.items():
        net = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.2), nn.Linear(1024, k), nn.Dropout(0.2))
        optimizer, loss = torch.optim.Adam(net.parameters(), lr=1e-3), nn.CrossEntropyLoss()
        loader = DataLoader(OneByOne(vectors[train], codes[name][train]), batch_size=64, shuffle=True)
        for _ in range(epochs):
            net.train()
            for x, y in loader:
                optimizer.zero_grad()
                loss(net(x), y).backward()
                optimizer.step()
        net.eval()
        with torch.inference_mode():
            found = net(torch.from_numpy(vectors[test])).argmax(1).numpy()
        scores[name] = f1_score(codes[name][test], found, average="macro", zero_division=0)
    return scores


def ours(vectors, codes, parts) -> dict[str, float]:
    """Fit heads our way and returns macro-F1 of each characteristic."""
    n = len(vectors)
    ids, has = strings([str(row) for row in range(n)]), np.ones(n, dtype=bool)
    embeddings = Embeddings(ids, vectors[:, :512], vectors[:, 512:], has, has, "made-up")
    truth = {name: strings([f"{code:03d}" for code in column]) for name, column in codes.items()}
    settings = HeadSettings(min_products_per_label=1, max_words=0)
    fitted = fit_heads(LabelledProducts(embeddings, [""] * n, truth, Split(ids, parts)), settings, refit=False)
    test = np.flatnonzero(parts == "test")
    predictions = fitted.bundle.predict(embeddings.take(test), [""] * len(test))
    return {
        name: f1_score(
            truth[name][test].astype(str), predictions.best(name).astype(str), average="macro", zero_division=0
        )
        for name in LABELS
    }


def main() -> None:
    """Fit both ways, prints and saves seconds and scores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--loop-epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    vectors, codes = make(options.products)
    parts = np.random.default_rng(1).choice(["train", "test"], options.products, p=[0.8, 0.2]).astype(object)
    began = time.perf_counter()
    scores = {"ours": ours(vectors, codes, parts)}
    seconds = {"ours": time.perf_counter() - began}
    print("ours", seconds, scores, flush=True)
    began = time.perf_counter()
    scores["loop"] = loop(vectors, codes, parts == "train", parts == "test", options.loop_epochs)
    seconds["loop"] = (time.perf_counter() - began) * EPOCHS / options.loop_epochs
    means = {way: round(float(np.mean(list(found.values()))), 4) for way, found in scores.items()}
    ratio = round(seconds["loop"] / seconds["ours"], 2)
    print(means, seconds, "ratio", ratio)
    known = {"products": options.products, "loop_epochs": options.loop_epochs}
    known["extrapolated"] = options.loop_epochs < EPOCHS
    print(save("heads", {**known, "seconds": seconds, "ratio": ratio, "macro_f1": scores, "mean_macro_f1": means}))


if __name__ == "__main__":
    main()
