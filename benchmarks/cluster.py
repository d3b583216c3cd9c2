"""Bulk work in units: are parts equal whoever makes them, what do workers and Ray cost, how much memory has the driver?

    python benchmarks/cluster.py [--cache FOLDER] [--before CHECKOUT] [--only parts memory predict] [--share 1]

Heads for `lite` are trained on a sample in seconds: their quality does not matter here. 20,000 titles and 3,000
products with photos are predicted in this process, by two processes, and by two actors of a Ray cluster of this machine
(`ray.init(num_cpus=4)`). The driver's memory is the peak of a process that plans a generated listing and hands its
units to workers that do nothing. `--before` compares the command `predict` with that of another checkout, in turns, by
the CPU seconds of the whole process. What is not measured stays as it was measured before.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from common import DATA, RESULTS, parse, save

from product_classificator.catalog import read_catalog
from product_classificator.classificator import Classificator
from product_classificator.classificator.rows import OutputOptions
from product_classificator.classificator.work import predicting
from product_classificator.cluster.drive import Driver, Worker
from product_classificator.cluster.plan import Plan, cut, write_plan
from product_classificator.cluster.runners import LocalRunner, RayRunner, running
from product_classificator.cluster.storage import Storage
from product_classificator.cluster.work import Recipe
from product_classificator.predict_file import finish

COMMAND = "from product_classificator.cli import main; main()"
QUICK = "[split]\nfolds = 2\n[heads]\nepochs = 3\nhidden = 32\n"
SETS = {
    "titles": (DATA / "ozon_ru/products.parquet", None, 20_000, "title", "sub_category"),
    "photos": (
        DATA / "fashion/products.parquet",
        DATA / "fashion/images.zip",
        3_000,
        "title,description",
        "category,sex",
    ),
}


def prepare(cache: Path, name: str, share: float) -> tuple[Path, Path, list[str]]:
    """Return a run and a table to predict, and the options of both; made once."""
    source, images, n, text, characteristics = SETS[name]
    table, run, config = cache / f"cluster-{name}.parquet", cache / f"cluster-{name}", cache / "cluster.toml"
    options = ["--images", str(images)] if images else []
    frame = pd.read_parquet(source)
    frame.head(int(n * share)).to_parquet(table, row_group_size=1_024)
    if not (run / "run.json").exists():
        frame.tail(1_500).to_parquet(cache / "cluster-train.parquet")
        config.write_text(QUICK)
        command(
            "train",
            cache / "cluster-train.parquet",
            *options,
            "--text",
            text,
            "--characteristics",
            characteristics,
            "--config",
            config,
            "--out",
            run,
        )
    return run, table, options


def command(*arguments: object, checkout: Path | None = None) -> float:
    """Run the command line and return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout or Path(__file__).parents[1])}
    subprocess.run(  # noqa: S603
        [sys.executable, "-c", COMMAND, *map(str, arguments)], check=True, env=environment, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_parts(cache: Path, name: str, share: float) -> dict[str, object]:
    """Predict with each runner and compare the parts."""
    import ray

    run, table, _ = prepare(cache, name, share)
    images, text = SETS[name][1], SETS[name][3].split(",")
    classificator = Classificator.from_run(run)
    catalog = read_catalog(table, images, id="nm", text=text, characteristics=())
    work = predicting(classificator, catalog, OutputOptions())
    recipe = Recipe.of(catalog, {"heads_ver": str(run)}, OutputOptions(), None)
    began = time.perf_counter()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    results: dict[str, object] = {"products": len(catalog), "ray_init_s": round(time.perf_counter() - began, 2)}
    runners = {"here": LocalRunner(), "two processes": LocalRunner(2), "two actors of Ray": RayRunner(workers=2)}
    parts = {}
    with TemporaryDirectory() as folder:
        for who, runner in runners.items():
            storage, began, seconds = Storage(Path(folder, who)), time.perf_counter(), []
            note = partial(lambda seconds, began, rows: seconds.append(time.perf_counter() - began), seconds, began)
            with running(storage, work, runner, recipe=recipe, rows=1_024, on_rows=note) as (plan, _):
                whole_s = time.perf_counter() - began
                sha256 = finish(plan).sha256.hexdigest()
            parts[who] = sha256
            results[who] = {"wall_s": round(whole_s, 2), "first_unit_s": round(seconds[0], 2), "units": plan.n_units}
    ray.shutdown()
    results["equal"] = len(set(parts.values())) == 1
    print(name, json.dumps(results))
    return results


def drive(n_units: int) -> None:
    """Plan so many units and hand them to workers that do nothing; print the peak memory before and after, in MB."""

    def peak() -> float:
        status = Path("/proc/self/status").read_text(encoding="ascii")  # `ru_maxrss` is inherited from the parent
        return round(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024, 1)

    def done(unit: object = None) -> "Future[None]":
        future: Future[None] = Future()
        future.set_result(None)
        return future

    start = peak()
    with TemporaryDirectory() as folder:
        listing = ((f"s3://shop/part-{n:06d}.parquet", [100_000] * 4) for n in range(n_units // 100))
        plan: Plan = write_plan(Storage(folder), cut(listing, 4_096), fingerprint="f" * 32, made_from={})
        planned = peak()
        count = []
        driver = Driver(plan, lambda number: Worker(done, done, int), 60.0, 1.0)
        driver.run(2, lambda **_: None, lambda unit: count.append(None))
    print(json.dumps({"units": len(count), "start_mb": start, "planned_mb": planned, "driven_mb": peak()}))


def measure_memory() -> list[object]:
    """Run `drive` in processes of its own."""
    results = []
    for n_units in (1_000, 10_000, 100_000):
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import cluster; cluster.drive({n_units})"
        )
        call = [sys.executable, "-c", code]
        printed = subprocess.run(call, check=True, capture_output=True, text=True).stdout  # noqa: S603
        results.append(json.loads(printed))
        print(printed.strip())
    return results


def measure_predict(cache: Path, before: Path, rounds: int, share: float) -> dict[str, object]:
    """Compare `predict` of two checkouts in turns."""
    results: dict[str, object] = {}
    for name in SETS:
        run, table, options = prepare(cache, name, share)
        seconds: dict[str, list[float]] = {"before": [], "after": []}
        for _ in range(rounds):
            for which, checkout in (("before", before), ("after", None)):
                out = cache / f"cluster-{which}.csv"
                seconds[which].append(command("predict", run, table, *options, "--out", out, checkout=checkout))
        equal = (cache / "cluster-before.csv").read_bytes() == (cache / "cluster-after.csv").read_bytes()
        ratios = [after / first for first, after in zip(*seconds.values(), strict=True)]
        rounded = {which: [round(value, 2) for value in values] for which, values in seconds.items()}
        results[name] = {
            "products": len(pd.read_parquet(table)),
            "cpu_s": rounded,
            "median_ratio": round(statistics.median(ratios), 3),
            "equal_files": equal,
        }
        print(name, json.dumps(results[name]))
    return results


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the products")
    parser.add_argument("--only", nargs="+", default=["parts", "memory", "predict"])
    arguments = parse(parser)
    path = RESULTS / "cluster.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "parts" in arguments.only:
        results["parts"] = {name: measure_parts(arguments.cache, name, arguments.share) for name in SETS}
    if "memory" in arguments.only:
        results["driver_memory"] = measure_memory()
    if "predict" in arguments.only and arguments.before:
        results["predict"] = measure_predict(
            arguments.cache, arguments.before.resolve(), arguments.rounds, arguments.share
        )
    save("cluster", {name: results[name] for name in ("parts", "driver_memory", "predict") if name in results})


if __name__ == "__main__":
    main()
