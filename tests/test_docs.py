"""The examples of README, of the site and of docstrings run; documents show measured tables and link to what is there.

Examples run in the order of the pages, in one folder, on fewer products and in fewer epochs than a reader's.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

import product_classificator
from product_classificator import load_encoder, make_marketplace
from tests.command_line import QUICKEST_TOML, call
from tests.fixtures import QUICKER
from tests.test_guards import FLOORS, PATHS

PRODUCTS = 80
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.ru.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
GUIDES = ["quickstart"]
GUIDES += [f"guides/{n}" for n in ("characteristics", "encoders", "report", "confidence", "audit", "bulk", "export")]

RUN_ELSEWHERE = ["guides/hub-sklearn-mlflow", "guides/tables-and-photos"]  # tests/integrations, tests/catalog


def blocks(page):
    """Return the examples of a page: language and text."""
    return re.findall(r"```(python|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_examples(page, names, done):
    """Run the examples of a page in the working folder; a command that was run before is not run again."""
    for language, block in blocks(page):
        if language == "python":
            block = block.replace("products=150", f"products={PRODUCTS}")
            block = block.replace('ruclip_model="lite")', 'ruclip_model="lite", settings=QUICKER)')
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, page.name, "exec"), names)  # noqa: S102
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            if program == "cd":
                os.chdir(arguments[0])
            elif line not in done:
                assert program == "product-classificator"
                quick = ["--config", done["config"]] if arguments[0] == "train" else []
                done[line] = call(*arguments, *quick)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder; what examples share: names, and which commands were run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.toml").write_text(QUICKEST_TOML)
    return tmp_path, {"QUICKER": QUICKER}, {"config": tmp_path / "quick.toml"}


@pytest.fixture
def link_stores(shared_folder):
    """Let every store that examples fill be the same folder: they embed the same products with the same encoder."""

    def link(folder):
        shared = shared_folder / "embeddings-of-documents"
        shared.mkdir(exist_ok=True)
        for name in ("run/embeddings", f"experiments/cache/embeddings/{load_encoder('lite').fingerprint}", "store"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(shared)

    return link


def test_every_example_of_the_readme_runs_after_the_demo(place, link_stores):
    folder, names, done = place
    make_marketplace("demo/marketplace", products=PRODUCTS)
    link_stores(folder / "demo/marketplace")
    run_examples(ROOT / "README.md", names, done)
    assert (folder / "demo/marketplace/labels.csv").is_file()


@pytest.mark.slow
def test_every_example_of_the_site_runs(place, link_stores):
    folder, names, done = place
    link_stores(folder)
    for name in GUIDES:
        run_examples(ROOT / f"docs/{name}.md", names, done)
    assert (folder / "predictions.csv").is_file()
    assert (folder / "run/report/report.html").is_file()


def test_pages_with_examples_are_run():
    known = {f"docs/{name}.md" for name in (*GUIDES, "ru/quickstart", *RUN_ELSEWHERE)} | {"README.md", "README.ru.md"}
    assert {page.relative_to(ROOT).as_posix() for page in PAGES if blocks(page)} <= known


@pytest.mark.parametrize(("english", "russian"), [("README", "README.ru"), ("docs/quickstart", "docs/ru/quickstart")])
def test_russian_pages_have_the_examples_of_the_english_ones(english, russian):
    assert blocks(ROOT / f"{russian}.md") == blocks(ROOT / f"{english}.md")


@pytest.mark.parametrize("module", [name for name, path in PATHS.items() if ">>>" in path.read_text("utf-8")])
def test_the_examples_of_docstrings_run(module):
    results = doctest.testmod(import_module(module))
    assert results.attempted > 0 == results.failed


def test_tables_are_those_of_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables, shown = import_module("common").tables(), set()
    for page in PAGES:
        for name, table in re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", page.read_text("utf-8"), re.DOTALL):
            if name in tables:
                assert table.strip().splitlines() == tables[name], f"{name} in {page.name}: run benchmarks/common.py"
                shown.add(name)
    assert {"quality", "quality_fashion", "quality_ozon", "ablation", "review", "speed", "startup", "export"} <= shown


def test_every_file_that_documents_link_to_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists() or target == "../changelog.md", f"{page.name} links to {target}"


def test_the_architecture_names_every_room():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert [room for room in FLOORS if f"`{room}`" not in page and f"`{room}/`" not in page and "__" not in room] == []


def test_the_reference_describes_every_public_name():
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    missing = [n for n in product_classificator.__all__ if not re.search(rf"\.{n}\n|`{n}`", page)]
    assert missing == []
