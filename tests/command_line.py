"""The command line within the process of the tests, and the settings that make it quick."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from product_classificator.cli import main

QUICK_TOML = "[heads]\nmax_epochs = 8\nhidden = 32\nbatch_size = 16\n"


def call(*arguments: object, code: int = 0) -> str:
    """Runs the command line in this process and returns what it printed; the exit code must be `code`."""
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["product-classificator", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        try:
            main()
            ended_with: object = 0
        except SystemExit as ended:
            ended_with = ended.code or 0
    assert ended_with == code, printed.getvalue()
    return printed.getvalue()
