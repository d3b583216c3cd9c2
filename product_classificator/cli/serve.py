"""`serve` and `keys`: the service; with `lite` and exports it imports nothing of torch."""

import sys
from dataclasses import asdict
from importlib.util import find_spec

from product_classificator.cli import console
from product_classificator.cli.options import Keys, Serve
from product_classificator.errors import MissingExtraError
from product_classificator.serving.keys import KeyFile, add_key, remove_key


def serve(options: Serve) -> None:
    """Serve until a signal ends it."""
    need_extra("the service")
    from product_classificator.serving import server  # these need the extra
    from product_classificator.serving.model import ModelSource

    sys.exit(server.run(ModelSource(options.run, **asdict(options.encoder)), options.settings))


def need_extra(feature: str) -> None:
    """Raise `MissingExtraError` without the extra `serve`."""
    if not all(map(find_spec, ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpcore2"))):
        raise MissingExtraError(feature, "serve")


def keys(options: Keys) -> None:
    """Change or print a file of keys."""
    if options.action == "list":
        for key in KeyFile.read(options.file).keys:
            quota = f", {key.products_per_minute} products a minute" if key.products_per_minute else ""
            console.out.print(f"{key.name}  created {key.created}{quota}")
    elif options.name is None:
        console.log.print(f"error: `keys {options.action}` needs the name of the key", style="red")
        sys.exit(2)
    elif options.action == "add":
        console.out.print(add_key(options.file, options.name, options.products_per_minute), soft_wrap=True)
        console.log.print(f"{options.name} is in {options.file}; its key is shown only once")
    else:
        remove_key(options.file, options.name)
        console.log.print(f"{options.name} was removed from {options.file}")
