"""What the benchmarks share: where results go, and what they say of the machine."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
DATA = Path(__file__).parents[2] / "shared" / "data"


def facts() -> dict[str, object]:
    """Returns machine, commit, date and versions."""
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
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scikit-learn", "pyarrow")},
    }


def save(name: str, results: dict[str, object]) -> Path:
    """Writes results as JSON beside the benchmarks."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**facts(), **results}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def fill_readme(name: str, table: list[str]) -> None:
    """Puts a table between its marks in the README."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(f"<!-- {name} -->\n")
    after = rest[rest.index("<!-- end -->") :]
    README.write_text(before + f"<!-- {name} -->\n" + "\n".join(table) + "\n" + after, encoding="utf-8")
