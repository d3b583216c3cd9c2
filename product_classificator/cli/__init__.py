"""The command line: every command opens what it is given, calls one verb, and prints what a person needs next.

Exit codes: 0 done, 1 bad data or artefact (a message, no traceback), 2 wrong usage, 130 interrupted.
"""

import logging
import os
import sys

import typer

from product_classificator.cli import audit, commands, demo, export, training
from product_classificator.errors import ProductClassificatorError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tells a product's category, sex, season and other characteristics from its photo and its text.",
)
for command in (
    training.train,
    training.tune,
    commands.evaluate,
    commands.predict,
    commands.classify,
    audit.audit,
    commands.embed,
    export.export,
    commands.import_heads,
    commands.info,
    demo.demo,
):
    app.command()(command)

_INTERRUPTED = 130


def main() -> None:
    """Runs the command line and exits."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Threads of torch that wait actively slow a training down many times as soon as anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except ProductClassificatorError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(1)
    except OSError as error:
        typer.secho(f"error: a file or folder cannot be used: {error}", err=True, fg="red")
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # typer has caught the KeyboardInterrupt
            typer.secho("interrupted; what was finished is kept, the same command goes on from there", err=True)
        raise
