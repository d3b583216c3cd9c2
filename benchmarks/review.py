"""Calibration, automatic decisions at a target precision, and detection of out-of-distribution products.

    python benchmarks/review.py [--sets fashion ozon] [--seeds 0 1 2] [--cache FOLDER]

Thresholds, temperatures and limits come from out-of-fold predictions, the figures from the test part, which no heads
learned from. The out-of-distribution products are made here: photos of noise, gradients, one colour, crops of two
landscapes (scikit-learn's) and drawn products; texts of random letters and digits, and the texts of the other set.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import fill_table, parse, save
from PIL import Image
from sets import fit, open_task
from sklearn.datasets import load_sample_images

from product_classificator import Embeddings, EmbeddingStore, HeadBundle, HeadSettings, embed, evaluate, load_encoder
from product_classificator.catalog import read_catalog
from product_classificator.demo import make_marketplace
from product_classificator.encoders import Encoder
from product_classificator.evaluation import Evaluation
from product_classificator.types import strings

PRECISIONS = (0.9, 0.95, 0.98)
NOVEL = 200


def novel_images(encoder: Encoder, folder: Path) -> dict[str, np.ndarray]:
    """Return kind -> image embeddings of photos unlike those of a shop."""
    draw = np.random.default_rng(0)
    noise = [Image.fromarray(draw.integers(0, 256, (200, 160, 3), dtype=np.uint8)) for _ in range(NOVEL)]
    gradients = [image.resize((8, 6)).resize((160, 200), Image.Resampling.BICUBIC) for image in noise]
    plain = [Image.new("RGB", (160, 200), tuple(draw.integers(0, 256, 3).tolist())) for _ in range(NOVEL)]
    crops = []
    for image in map(Image.fromarray, load_sample_images().images):
        for _ in range(NOVEL // 2):
            size = int(draw.integers(96, 400))
            x, y = int(draw.integers(image.width - size)), int(draw.integers(image.height - size))
            crops.append(image.crop((x, y, x + size, y + size)))
    shop = make_marketplace(folder / "drawn", products=NOVEL)
    drawn = embed(read_catalog(shop.table, shop.images), encoder, EmbeddingStore(folder / "drawn_store", encoder))
    made = {"noise": noise, "gradients": gradients, "one colour": plain, "landscapes": crops}
    parts = {k: encoder.image.encode([encoder.image.prepare(image) for image in v]) for k, v in made.items()}
    return {**parts, "drawn products": drawn.embeddings.image[drawn.embeddings.has_image]}


def novel_texts(other: Sequence[str]) -> dict[str, list[str]]:
    """Return kind -> texts unlike those of a shop."""
    draw = np.random.default_rng(0)

    def gibberish(letters: str) -> list[str]:
        def word() -> str:
            return "".join(draw.choice(list(letters), draw.integers(3, 11)))

        return [" ".join(word() for _ in range(draw.integers(1, 9))) for _ in range(NOVEL)]

    present = [text for text in other if text]
    return {
        "latin gibberish": gibberish("abcdefghijklmnopqrstuvwxyz"),
        "keyboard, asdf": gibberish("asdfghjkl"),
        "cyrillic gibberish": gibberish("абвгдежзийклмнопрстуфхцчшщъыьэюя"),
        "keyboard, фыва": gibberish("фывапролджэ"),
        "digits": gibberish("0123456789"),
        "texts of the other set": [present[row] for row in draw.choice(len(present), NOVEL, replace=False)],
    }


def detected(bundle: HeadBundle, photos: dict, texts: dict, encoder: Encoder) -> dict[str, float]:
    """Return kind -> share of the out-of-distribution products that are detected."""
    shares = {}
    for kind, image in photos.items() if bundle.image_dim else ():
        products = alone(bundle, image, np.zeros((len(image), encoder.text.dim), np.float32))
        shares[kind] = float(
            bundle.novelty.is_out_of_distribution(products, [""] * len(image), bundle.vocabulary).mean()
        )
    for kind, words in texts.items():
        products = alone(bundle, np.zeros((len(words), encoder.image.dim), np.float32), encoder.text.encode(words))
        shares[kind] = float(bundle.novelty.is_out_of_distribution(products, words, bundle.vocabulary).mean())
    return shares


def alone(bundle: HeadBundle, image: np.ndarray, text: np.ndarray) -> Embeddings:
    """Return products that have an image or a text only."""
    ids = strings([str(row) for row in range(len(image))])
    return Embeddings(ids, image, text, image.any(1), text.any(1), bundle.encoder_fingerprint)


def figures(evaluation: Evaluation) -> dict[str, object]:
    """Return what one target precision gives on the test part."""
    selective = evaluation.selective
    accepted = {
        name: {"share": d.share, "precision": d.precision, "n": d.n} for name, d in selective.characteristics.items()
    }
    return {"all_decided": selective.share, "characteristics": accepted}


def run(name: str, seed: int, cache: Path, encoder: Encoder, photos: dict) -> dict[str, object]:
    """Fit heads on one split and return all figures of the test part."""
    task = open_task(name, seed, cache)
    test = task.test
    fitted = fit(task, HeadSettings(seed=seed))
    bundle, products, words = fitted.bundle, task.embeddings.take(test), [task.texts[row] for row in test]
    truth = {key: task.truth[key][test] for key in bundle.labels}
    predictions = bundle.predict(products, words)
    promised = {
        p: evaluate(bundle.with_decisions(predictions, products, words, p), truth, resamples=0) for p in PRECISIONS
    }
    first = promised[PRECISIONS[0]]
    other = open_task("ozon" if name == "fashion" else "fashion", seed, cache).texts
    return {
        "seed": seed,
        "test_products": len(test),
        "calibration": {
            key: {"ece": s.reliability.error, "ece_by_chance": s.reliability.error_by_chance, "n": s.n}
            for key, s in first.characteristics.items()
        },
        "temperatures": {c.name: (c.temperature, c.temperature_exponent) for c in bundle.characteristics},
        "promised": {str(p): figures(evaluation) for p, evaluation in promised.items()},
        "false_alarms": first.selective.out_of_distribution,
        "detected": detected(bundle, photos, novel_texts(other), encoder),
    }


def table(runs: list[dict]) -> list[str]:
    """Return a Markdown table: characteristics down, means over the seeds; precision also the lowest."""
    lines = ["| at 0.95 | ECE | by chance | accepted | precision | lowest |", "|---|---:|---:|---:|---:|---:|"]
    for name in runs[0]["calibration"]:
        errors = [run["calibration"][name] for run in runs]
        accepted = [run["promised"]["0.95"]["characteristics"][name] for run in runs]
        known = [score["precision"] for score in accepted if score["precision"] is not None]
        precision = f"{np.mean(known):.3f} | {min(known):.3f}" if known else "— | —"
        means = (np.mean([error[key] for error in errors]) for key in ("ece", "ece_by_chance"))
        shown = " | ".join(f"{value:.3f}" for value in means)
        lines.append(f"| {name} | {shown} | {np.mean([score['share'] for score in accepted]):.1%} | {precision} |")
    return lines


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=["fashion", "ozon"], choices=["fashion", "ozon", "flipkart"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parse(parser)
    encoder = load_encoder("lite")
    photos = novel_images(encoder, arguments.cache)
    results: dict[str, object] = {}
    for name in arguments.sets:
        seeds = arguments.seeds[:1] if name == "ozon" else arguments.seeds
        runs = [run(name, seed, arguments.cache, encoder, photos) for seed in seeds]
        results[name] = {"runs": runs, "table": table(runs)}
        print(name, *table(runs), runs[0]["false_alarms"], runs[0]["detected"], sep="\n", flush=True)
        path = save("review", results)
        if name == "fashion":
            fill_table("review", table(runs))
    print(path)


if __name__ == "__main__":
    main()
