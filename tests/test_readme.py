"""The examples of README, in order and in an empty folder, and docstrings run; documents show measured tables.

Those of the README run on fewer products and in fewer epochs than a reader's.
"""

import contextlib
import doctest
import io
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from tests.command_line import QUICKEST_TOML, call
from tests.fixtures import QUICKER
from tests.test_guards import FLOORS, PATHS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = README + (ROOT / "docs/results.md").read_text(encoding="utf-8")


def test_every_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.toml").write_text(QUICKEST_TOML)
    names: dict[str, object] = {"QUICKER": QUICKER}
    for language, block in re.findall(r"```(python|console)\n(.*?)```", README, re.DOTALL):
        if language == "python":
            block = block.replace("products=150", "products=100")
            block = block.replace('ruclip_model="lite")', 'ruclip_model="lite", settings=QUICKER)')
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, "README.md", "exec"), names)  # noqa: S102
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            assert program == "product-classificator"
            call(*arguments, *(["--config", "quick.toml"] if arguments[0] == "train" else []))
    assert (tmp_path / "predictions.csv").is_file()


@pytest.mark.parametrize("module", [name for name, path in PATHS.items() if ">>>" in path.read_text("utf-8")])
def test_the_examples_of_docstrings_run(module):
    results = doctest.testmod(import_module(module))
    assert results.attempted > 0 == results.failed


@pytest.mark.parametrize(
    "name", ["quality_fashion", "quality_fashion_title", "quality_ozon", "ablation", "speed", "startup", "export"]
)
def test_the_tables_are_those_of_the_benchmarks(name):
    results = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    shown = TABLES.split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0]
    assert shown.strip().splitlines() == results["table"]


def test_the_table_of_automatic_decisions_is_that_of_its_benchmark():
    results = json.loads((ROOT / "benchmarks/results/review.json").read_text(encoding="utf-8"))
    shown = TABLES.split("<!-- review -->\n")[1].split("<!-- end -->")[0]
    assert shown.strip().splitlines() == results["fashion"]["table"]


def test_every_file_that_documents_link_to_is_there():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_architecture_names_every_room():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert [room for room in FLOORS if f"`{room}`" not in page and f"`{room}/`" not in page and "__" not in room] == []
