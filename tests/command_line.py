"""The command line within the process of the tests, and settings that make it quick; the quickest learn little."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper

import pytest

from product_classificator.cli import main

QUICK_TOML = "[heads]\nepochs = 8\nhidden = 32\nbatch_size = 16\n"
QUICKER_TOML = f"[split]\nfolds = 2\n{QUICK_TOML}"
QUICKEST_TOML = "[split]\nfolds = 2\n[heads]\nepochs = 1\nhidden = 8\n"


def call(*arguments: object, code: int = 0, encoding: str = "utf-8") -> str:
    """Runs the command line in this process and returns what it printed; the exit code must be `code`."""
    printed = BytesIO()
    stream = TextIOWrapper(printed, encoding=encoding, newline="", write_through=True)
    with redirect_stdout(stream), redirect_stderr(stream), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["product-classificator", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        try:
            main()
            ended_with: object = 0
        except SystemExit as ended:
            ended_with = ended.code or 0
    text = printed.getvalue().decode(encoding)
    assert ended_with == code, text
    return text
