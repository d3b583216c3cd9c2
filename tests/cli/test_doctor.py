import json
import sys
from importlib.metadata import PathDistribution, version
from pathlib import Path

import pytest

from product_classificator.cli import app, doctor
from product_classificator.errors import DOCS, ArtifactError, DataError
from tests.command_line import call


def test_doctor_shows_machine_versions_caches_and_device():
    printed = call("doctor")
    for part in ("machine: ", f"torch {version('torch')}", "device: ", "OMP_NUM_THREADS", "caches in MB: "):
        assert part in printed


def test_doctor_prints_json():
    facts = json.loads(call("doctor", "--json"))
    assert list(facts) == ["machine", "versions", "device", "threads", "caches in MB", "missing"]


def test_what_is_missing_is_shown_with_the_line_that_installs_it(tmp_path, monkeypatch):
    lines = ["Name: product_classificator", "Version: 1", "Provides-Extra: odd", "Provides-Extra: test"]
    needed = ["numpy>=999", "pytest", "nosuchpackage>=2; extra == 'odd'", "another-missing; extra == 'test'"]
    (tmp_path / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {need}" for need in needed)]))
    monkeypatch.setattr(doctor, "metadata", lambda _: PathDistribution(tmp_path).metadata)
    missing = {"product_classificator": "numpy>=999", "product_classificator[odd]": "nosuchpackage>=2"}
    assert doctor.missing_packages() == missing
    assert "pip install 'product_classificator[odd]' nosuchpackage>=2" in call("doctor")


def test_an_installation_without_torch_is_described_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "version", lambda name: version(name if name != "torch" else "nosuchpackage"))
    assert "torch missing" in call("doctor")


def test_shells_complete_commands_and_options():
    script = app.generate_completion(shell="bash")  # noqa: S604
    assert "import-heads" in script
    assert "min-precision" in script


def test_the_last_line_of_an_error_links_to_the_page_that_helps(tmp_path):
    (tmp_path / "table.csv").write_text("nm,title\n1,Cup\n")
    *_, last = call("train", tmp_path / "table.csv", "--out", tmp_path / "run", code=1).splitlines()
    assert last == f"help: {DOCS}{DataError.page}"
    *_, last = call("info", tmp_path, code=1).splitlines()
    assert last == f"help: {DOCS}{ArtifactError.page}"


PAGES = Path(__file__).parents[2] / "docs"


@pytest.mark.skipif(not PAGES.is_dir(), reason="a wheel has no pages")
@pytest.mark.parametrize("error", [DataError, ArtifactError])
def test_the_pages_that_help_are_there(error):
    assert (PAGES / error.page).is_file()
