"""CPU time of a start: `--help`, and the classification of one product in a new process.

    python benchmarks/startup.py [--rounds 7]

Trains heads on a synthetic shop with `lite`, then runs the command line in a new process per measurement and reads user
and system time of that process from the operating system: CPU time, since wall time depends on what else runs.
`import torch` alone is measured as well: the least that a start would cost if heads computed with it. The 15 modules
with the largest import time of their own are listed for `classify` (`-X importtime`, wall time).
"""

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from common import fill_table, save

from product_classificator import make_marketplace

COMMAND = ["-m", "product_classificator"]
CLASSIFY = [*COMMAND, "classify", "run"]
TEXT = ["--text", "Куртка зимняя мужская, утеплённая"]
MODULES = 15


def cpu_seconds(arguments: list[str], folder: Path) -> float:
    """Run Python in a folder and return its CPU seconds."""
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{arguments} failed with status {status}")
    return usage.ru_utime + usage.ru_stime


def own_times(arguments: list[str], folder: Path) -> dict[str, float]:
    """Return module -> milliseconds of its import, without the modules that it imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    log = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr  # noqa: S603
    lines = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", log, re.MULTILINE)
    return {name: int(us) / 1000 for us, name in lines}


def prepare(folder: Path) -> Path:
    """Generate a shop, train a run, and return the path of a photo."""
    make_marketplace(folder / "shop", products=150)
    arguments = ["shop/products.parquet", "--images", "shop/images.zip", "--id", "nm", "--text", "title,description"]
    arguments += ["--characteristics", "category,sex,season,fragility", "--out", "run"]
    subprocess.run([sys.executable, *COMMAND, "train", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S603
    subprocess.run([sys.executable, "-m", "zipfile", "-e", "shop/images.zip", "photos"], cwd=folder, check=True)
    return sorted((folder / "photos").rglob("*.jpg"))[0].relative_to(folder)


def measured(rounds: int) -> dict[str, object]:
    """Return the CPU seconds of each command, and the slowest imports."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PRODUCT_CLASSIFICATOR_CACHE"] = str(folder / "cache")
        photo = ["--image", str(prepare(folder))]
        commands = {
            "`--help`": [*COMMAND, "--help"],
            "`classify`, text": [*CLASSIFY, *TEXT],
            "`classify`, text and photo": [*CLASSIFY, *TEXT, *photo],
            "`import torch` alone": ["-c", "import torch"],
        }
        # Commands take turns, so that other load on the machine affects them alike.
        seconds: dict[str, list[float]] = defaultdict(list)
        imports: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            for title, arguments in commands.items():
                seconds[title].append(cpu_seconds(arguments, folder))
            for module, ms in own_times(commands["`classify`, text and photo"], folder).items():
                imports[module].append(ms)
        os.environ["PRODUCT_CLASSIFICATOR_CACHE"] = str(folder / "empty")
        first = cpu_seconds(commands["`classify`, text and photo"], folder)
    slowest = sorted(((median(ms), module) for module, ms in imports.items()), reverse=True)[:MODULES]
    return {
        "rounds": rounds,
        "cpu_s": {
            title: {"best": round(min(times), 2), "median": round(median(times), 2)} for title, times in seconds.items()
        },
        "first_cpu_s": round(first, 2),
        "imports_own_ms": {module: round(ms, 1) for ms, module in slowest},
    }


def main() -> None:
    """Measure, print, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    results = measured(parser.parse_args().rounds)
    table = ["| CPU seconds of a start | best | median |", "|---|---:|---:|"]
    table += [f"| {title} | {took['best']:.2f} | {took['median']:.2f} |" for title, took in results["cpu_s"].items()]
    table += [f"| `classify`, text and photo, for the first time | {results['first_cpu_s']:.2f} | |"]
    print("\n".join(table))
    for module, ms in results["imports_own_ms"].items():
        print(f"{ms:8.1f} ms  {module}")
    fill_table("startup", table)
    print(save("startup", {**results, "table": table}))


if __name__ == "__main__":
    main()
