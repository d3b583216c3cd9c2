"""The cells of the example notebooks are run, on fewer products, with a smaller encoder, in fewer epochs."""

import json
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from tests.encoders.tiny_ruclip import write_checkpoint
from tests.fixtures import QUICKER

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_was_run(path, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    request.addfinalizer(lambda: plt.close("all"))
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8"))  # of who ran it
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    encoder = write_checkpoint(tmp_path / "tiny")
    names: dict[str, object] = {"QUICKER": QUICKER}
    for cell in cells:
        source = "".join(cell["source"]).replace("products=1200", "products=200")
        source = source.replace('"lite"', f'"{encoder}", settings=QUICKER')
        exec(compile(source, path.name, "exec"), names)  # noqa: S102
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
