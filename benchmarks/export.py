"""Compare an export in its own environment with the whole package: answers, sizes, seconds.

    python benchmarks/export.py [--folder FOLDER]

Trains on 1,500 fashion products with `lite`, exports the run, makes a virtual environment with what the export needs
and the package without its dependencies, and classifies 50 other products in both, every tenth without its text and
every tenth without its photo. Each environment is a fresh process on one core, three times; medians are reported.
Seconds are CPU seconds; sizes are those of the required packages and their dependencies. Files that are in the folder
already are not made again.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from tempfile import gettempdir
from zipfile import ZipFile

import numpy as np
import pandas as pd
from common import DATA, fill_table, save
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CHARACTERISTICS = "category,sub_category,sex,season,usage,color"
LEARNED, NEW, ROUNDS = 1_500, 50, 3
ASK = """
import json, resource, sys, time
began = time.process_time()
folder, products, answers = sys.argv[1:]
texts, photos = json.loads(open(products).read())
from product_classificator import Classificator
classificator = Classificator(heads_ver=folder)
classificator.predict(texts[:1], photos[:1])
first = time.process_time()
predictions = classificator.predict(texts, photos)
seconds = {"to_first_answer_s": first - began, "products_s": time.process_time() - first}
import numpy
numpy.savez(answers, **predictions.probabilities)
print(json.dumps({**seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def main() -> None:
    """Measure, saves, and fills the table of the README."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "product-classificator-bench/export")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run/run.json").exists():
        train(folder)
    if not (folder / "exported/export.json").exists():
        command_line("export", folder / "run", "--out", folder / "exported")
    slim = folder / "slim"
    if not slim.exists():
        install(slim, folder / "exported/requirements.txt")
    whole, exported = Path(sys.executable), slim / "bin/python"
    ways = {"whole package": [whole, "whole", folder / "run"], "exported": [exported, "exported", folder / "exported"]}
    rounds = [{way: ask(folder, *how) for way, how in ways.items()} for _ in range(ROUNDS)]
    figures = {way: {name: round(median(r[way][name] for r in rounds), 2) for name in rounds[0][way]} for way in ways}
    requires = json.loads((folder / "exported/export.json").read_text(encoding="utf-8"))["requires"]
    figures["whole package"] |= {"installed_mib": needed_mib(whole.parents[1], ["product_classificator"])}
    figures["exported"] |= {"installed_mib": needed_mib(slim, requires)}
    figures["whole package"]["artefact_mib"] = mib([folder / "run/bundle"])
    figures["exported"]["artefact_mib"] = mib([folder / "exported"])
    equality = compare(folder)
    rows = {
        "packages, MiB": "installed_mib",
        "heads (export: with towers), MiB": "artefact_mib",
        "start to first answer, CPU s": "to_first_answer_s",
        f"{NEW} products, CPU s": "products_s",
        "peak memory, MiB": "peak_mib",
    }
    table = [f"| one core | {' | '.join(ways)} |", "|---|---:|---:|"]
    table += [f"| {title} | {' | '.join(f'{figures[way][name]:g}' for way in ways)} |" for title, name in rows.items()]
    fill_table("export", table)
    print("\n".join(table), equality, save("export", {"figures": figures, "equality": equality, "table": table}))


def command_line(*arguments: object) -> None:
    """Calls the command line in a process of its own."""
    subprocess.run([sys.executable, "-m", "product_classificator", *map(str, arguments)], check=True)  # noqa: S603


def train(folder: Path) -> None:
    """Train on a part of the products and writes down others."""
    table = pd.read_parquet(DATA / "fashion/products.parquet")
    learned = table.sample(LEARNED, random_state=0)
    new = table.drop(learned.index).sample(NEW, random_state=1)
    learned.to_parquet(folder / "products.parquet")
    with ZipFile(DATA / "fashion/images.zip") as photos:
        photos.extractall(folder / "photos", [f"{nm}.jpg" for nm in [*learned["nm"], *new["nm"]]])
    texts: list[str | None] = (new["title"] + "\n" + new["description"].fillna("")).tolist()
    files: list[str | None] = [str(folder / f"photos/{nm}.jpg") for nm in new["nm"]]
    texts[3::10] = [None] * len(texts[3::10])
    files[7::10] = [None] * len(files[7::10])
    (folder / "new.json").write_text(json.dumps([texts, files]), encoding="utf-8")
    options = ["--id", "nm", "--text", "title,description", "--characteristics", CHARACTERISTICS]
    command_line("train", folder / "products.parquet", "--images", folder / "photos", *options, "--out", folder / "run")


def install(target: Path, requirements: Path) -> None:
    """Make the environment that the README describes."""
    venv.create(target, with_pip=True)
    pip = [target / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", "-r", requirements], check=True)  # noqa: S603
    subprocess.run([*pip, "--no-deps", ROOT], check=True)  # noqa: S603


def ask(folder: Path, python: Path, way: str, artefact: Path) -> dict[str, float]:
    """Classifies the new products in a fresh process and returns seconds and memory."""
    command = [python, "-c", ASK, artefact, folder / "new.json", folder / f"{way}.npz"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    core = {min(os.sched_getaffinity(0))}
    found = subprocess.run(  # noqa: S603
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )
    answer: dict[str, float] = json.loads(found.stdout)
    return answer


def compare(folder: Path) -> dict[str, float]:
    """Return the largest difference of a probability, and the share of labels that are equal."""
    known, found = np.load(folder / "whole.npz"), np.load(folder / "exported.npz")
    differences = [np.nanmax(np.abs(known[name] - found[name])) for name in known]
    same = [(np.nan_to_num(known[name]).argmax(1) == np.nan_to_num(found[name]).argmax(1)).mean() for name in known]
    return {"largest_difference": float(max(differences)), "equal_labels": float(np.mean(same))}


def needed_mib(environment: Path, packages: Iterable[str]) -> int:
    """Return the size of installed packages and of all that they need, without extras."""
    site = str(next(environment.glob("lib/*/site-packages")))
    installed = {canonicalize_name(each.metadata["Name"]): each for each in distributions(path=[site])}
    found, ahead = set(), [canonicalize_name(package) for package in packages]
    while ahead:
        name = ahead.pop()
        if name in found or name not in installed:
            continue
        found.add(name)
        needs = [Requirement(each) for each in installed[name].requires or []]
        ahead += [
            canonicalize_name(each.name) for each in needs if not each.marker or each.marker.evaluate({"extra": ""})
        ]
    return mib(Path(str(file.locate())) for name in found for file in installed[name].files or [])


def mib(paths: Iterable[Path]) -> int:
    """Return the size of files, and of all below folders."""
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 2**20)


if __name__ == "__main__":
    main()
