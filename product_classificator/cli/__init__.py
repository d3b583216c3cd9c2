"""The command line: every command opens its inputs, calls one verb, and prints the result and the next step.

Exit codes: 0 done, 1 bad data or artefact (a message, no traceback), 2 wrong usage, 130 interrupted.
"""

import io
import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from cyclopts import App, Parameter

from product_classificator import __version__
from product_classificator.cli import options
from product_classificator.errors import DOCS, DataError, ProductClassificatorError
from product_classificator.remote.paths import as_path

_IMPLEMENTATIONS = {
    options.Train: "fitting.train",
    options.Tune: "fitting.tune",
    options.Evaluate: "fitting.evaluate",
    options.Predict: "answering.predict",
    options.Status: "bulk.status",
    options.Join: "bulk.join",
    options.Classify: "classify.classify",
    options.Audit: "fitting.audit",
    options.Embed: "answering.embed",
    options.Export: "fitting.export",
    options.ImportHeads: "fitting.import_heads",
    options.Info: "answering.info",
    options.Benchmark: "benchmark.benchmark",
    options.Doctor: "doctor.doctor",
    options.Demo: "fitting.demo",
    options.Serve: "serve.serve",
    options.Keys: "serve.keys",
    options.Review: "review.review",
}
"""Options of a command -> module and function, imported when the command runs: help imports neither torch nor NumPy."""


def _run(values: Any) -> None:
    if type(values) in _IMPLEMENTATIONS:  # not after --help and --version
        for value in vars(values).values():
            if isinstance(value, Path) and as_path(value) is not value:
                raise DataError(f"this command reads and writes here on a disk, got the URL {as_path(value)}: copy it")
        module, function = _IMPLEMENTATIONS[type(values)].split(".")
        getattr(import_module(f"{__name__}.{module}"), function)(values)


app = App(
    name="product-classificator",
    help="Predict product characteristics (category, sex, season, ...) from photos and text.",
    version=__version__,
    help_flags="--help",
    help_format="plaintext",
    default_parameter=Parameter(negative=(), show_default=lambda value: value or None),
    result_action=_run,
    suppress_keyboard_interrupt=False,
)
for command, implementation in _IMPLEMENTATIONS.items():
    app.command(command, name=implementation.split(".")[1].replace("_", "-"), sort_key=len(list(app)))
app.register_install_completion_command(sort_key=len(list(app)))


def main() -> None:
    """Run the command line and exit."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Busy-waiting torch threads slow training down when anything else runs: 20 s an epoch instead of 0.6 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # consoles and pipes of Windows cannot write every label
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(sys.argv[1:])
    except (ProductClassificatorError, OSError) as error:
        problem, page = "a file or folder cannot be used: " * isinstance(error, OSError), getattr(error, "page", "")
        _fail(1, f"error: {problem}{error}" + f"\nhelp: {DOCS}{page}" * bool(page))
    except KeyboardInterrupt:
        _fail(130, "interrupted; finished work is kept, run the same command again to resume")


def _fail(code: int, message: str) -> NoReturn:
    app.error_console.print(message, style="red", markup=False, highlight=False, emoji=False, soft_wrap=True)
    sys.exit(code)
