"""The errors of the package: each says the rule, what was found, and the way out.

Everything the package raises on purpose descends from `ProductClassificatorError`, so that a caller can tell
"your data or artefact is wrong" (show the message) from a fault of the program (show the traceback).
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ProductClassificatorError(Exception):
    """Root of every error that the package raises on purpose."""


class DataError(ProductClassificatorError, ValueError):
    """The user's table, photos or arguments break a rule."""


class ArtifactError(ProductClassificatorError):
    """A store, run, bundle or checkpoint is missing, damaged, or made by something else."""


class MissingExtraError(ProductClassificatorError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed: pip install 'product_classificator[{extra}]'")


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns the hint that ends an error about an unknown name.

    >>> nearest("catgory", ["category", "sex"])
    "did you mean 'category'? Known: category, sex"
    >>> nearest("x", ["category", "sex"])
    'Known: category, sex'
    """
    options = list(options)
    shown = ", ".join(options[:20]) + (f", ... ({len(options)} in all)" if len(options) > 20 else "")
    close = get_close_matches(name.lower(), [option.lower() for option in options], n=1, cutoff=0.6)
    if not close:
        return f"Known: {shown}"
    found = next(option for option in options if option.lower() == close[0])
    return f"did you mean {found!r}? Known: {shown}"


def culprits(found: Iterable[object]) -> str:
    """Lists at most five culprits and their count, for an error message.

    >>> culprits([1, 2, 3])
    '1, 2, 3 (3 in all)'
    >>> culprits(range(9))
    '0, 1, 2, 3, 4, ... (9 in all)'
    """
    found = list(found)
    shown = ", ".join(str(item) for item in found[:5])
    return f"{shown}{', ...' if len(found) > 5 else ''} ({len(found)} in all)"
