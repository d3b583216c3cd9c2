"""What the benchmarks share: where results go, and what they say of the machine.

`python benchmarks/common.py` fills the tables of README and docs/ from the results again.
"""

import argparse
import json
import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "README.ru.md", *sorted(ROOT.glob("docs/**/*.md"))]
SHOWN_SETS = {
    "fashion": "fashion, photos and descriptions",
    "fashion_title": "fashion, with titles, too",
    "flipkart": "general shop of 1,050 products",
    "ozon": "60,000 Russian titles, 560 labels",
}
"""Results of `quality.py` -> how README calls the set."""
DATA = Path(__file__).parents[2] / "shared" / "data"

VIT_B = {
    "embed_dim": 512,
    "vision_layers": 12,
    "vision_width": 768,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}
SIZES = {
    "patch32-224": {"image_resolution": 224, "vision_patch_size": 32},
    "patch16-384": {"image_resolution": 384, "vision_patch_size": 16},
}
"""The shapes of ruCLIP's checkpoints."""


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, with `--cache` as well, the folder of embeddings and of what is known, which is made."""
    parser.add_argument("--cache", type=Path, default=Path(gettempdir()) / "product-classificator-bench")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    return arguments


def facts() -> dict[str, object]:
    """Return machine, commit, date and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "product_classificator"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "commit": commit.stdout.strip() + (" with uncommitted changes" if changed.stdout.strip() else ""),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "cpu": cpu(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scikit-learn", "pyarrow")},
    }


def cpu() -> str:
    """Return the model of the processor, and those of its instructions that decide number formats (Linux)."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in known.get("flags", "").split() if flag.startswith(("amx", "avx"))]
    return f"{known.get('model name', platform.processor())}, {' '.join(flags)}"


def save(name: str, results: dict[str, object]) -> Path:
    """Write results as JSON beside the benchmarks."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**facts(), **results}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def fill_table(name: str, table: list[str]) -> None:
    """Put a table between its marks in the documents that have them, and what README shows of all sets."""
    for known, lines in {name: table, "quality": means()}.items():
        mark, is_marked = f"<!-- {known} -->\n", False
        for path in DOCUMENTS:
            before, has_mark, rest = path.read_text(encoding="utf-8").partition(mark)
            if has_mark:
                after, is_marked = rest[rest.index("<!-- end -->") :], True
                path.write_text("\n".join([before + mark.rstrip(), *lines, after]), encoding="utf-8")
        if not is_marked:
            raise KeyError(f"no document has a table {known}")


def tables() -> dict[str, list[str]]:
    """Return the tables that results hold, by the name of their marks."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    filled = {name: result["table"] for name, result in results.items() if "table" in result}
    return {**filled, "review": results["review"]["fashion"]["table"], "quality": means()}


def means() -> list[str]:
    """Return a Markdown table of the mean macro-F1 of every method on the sets that README names."""
    rows = {}
    for name, title in SHOWN_SETS.items():
        table = json.loads((RESULTS / f"quality_{name}.json").read_text(encoding="utf-8"))["table"]
        cells = [[cell.strip(" *") for cell in line.split("|")[2:-1]] for line in table]
        means_of_all = cells[next(i for i, line in enumerate(table) if line.startswith("| **mean**"))]
        rows[title] = dict(zip(cells[0], means_of_all, strict=True))
    methods = list(next(iter(rows.values())))
    lines = [f"| mean macro-F1 | {' | '.join(methods)} |", "|---|" + "---:|" * len(methods)]
    return lines + [f"| {t} | {' | '.join(row.get(method, '') for method in methods)} |" for t, row in rows.items()]


if __name__ == "__main__":
    for name, table in tables().items():
        with suppress(KeyError):  # not every table is shown
            fill_table(name, table)
