"""The examples of docs/guides/tables-and-photos.md run, in order and in an empty folder, except those with URLs."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs/guides/tables-and-photos.md"


def test_the_examples_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, GUIDE.name, "exec"), names)  # noqa: S102
        else:
            assert all("s3://" in line for line in block.splitlines())
    assert len(blocks) == 3
