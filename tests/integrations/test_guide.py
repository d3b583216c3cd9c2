"""The examples of the guide to other places run, in order and in an empty folder, on a run of the tests."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.command_line import call
from tests.local_hub import local_hub

GUIDE = Path(__file__).parents[2] / "docs/guides/hub-sklearn-mlflow.md"
QUICKLY = {
    "products=300": "products=60",
    "ProductClassifier(text": "ProductClassifier(epochs=1, hidden=8, folds=2, min_products_per_label=2, text",
}


@pytest.mark.slow
def test_every_example_of_the_guide_to_other_places_runs(lite_run, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(lite_run[0], "my-run")
    names: dict[str, object] = {}
    with local_hub(tmp_path / "hub_cache"):
        for language, block in re.findall(r"```(python|console)\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL):
            if language == "console":
                call(*shlex.split(block.removeprefix("$ product-classificator")))
                continue
            for slow, quick in QUICKLY.items():
                block = block.replace(slow, quick)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, GUIDE.name, "exec"), names)  # noqa: S102
    assert len(names["scores"]) == 3
