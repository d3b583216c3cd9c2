"""The errors of the package: each says the rule, what was found, and the way out.

Every deliberate error is a `ProductClassificatorError`, so that a caller can distinguish a problem with data or
artefacts (show the message) from a bug (show the traceback).
"""

from collections.abc import Iterable
from difflib import get_close_matches

DOCS = "https://github.com/nma2207/product_classificator/blob/main/docs/"
"""Where the documentation is read."""


class ProductClassificatorError(Exception):
    """Base of all errors that the package raises deliberately; `page` is where the documentation helps, if it does."""

    page = ""


class DataError(ProductClassificatorError, ValueError):
    """The user's table, photos or arguments break a rule."""

    page = "guides/tables-and-photos.md"


class ArtifactError(ProductClassificatorError):
    """A store, run, bundle or checkpoint is missing, damaged, or not what is expected."""

    page = "reference/formats.md"


class PhotoError(ProductClassificatorError):
    """A product has no usable image; `reason` says why in one word, `message` in a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class MissingExtraError(ProductClassificatorError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed: pip install 'product_classificator[{extra}]'")


def nearest(name: str, options: Iterable[str]) -> str:
    """Return the hint that ends an error about an unknown name.

    >>> nearest("catgory", ["category", "sex"])
    "did you mean 'category'? Known: category, sex"
    >>> nearest("x", ["category", "sex"])
    'Known: category, sex'
    """
    options = list(options)
    shown = ", ".join(options[:20]) + (f", ... ({len(options)} in all)" if len(options) > 20 else "")
    close = get_close_matches(name.lower(), [option.lower() for option in options], n=1, cutoff=0.6)
    matches = [option for option in options if [option.lower()] == close]
    return f"did you mean {matches[0]!r}? Known: {shown}" if matches else f"Known: {shown}"


def culprits(items: Iterable[object]) -> str:
    """Return the first five offending items and their number, for an error message.

    >>> culprits([1, 2, 3])
    '1, 2, 3 (3 in all)'
    >>> culprits(range(9))
    '0, 1, 2, 3, 4, ... (9 in all)'
    """
    items = list(items)
    shown = ", ".join(str(item) for item in items[:5])
    return f"{shown}{', ...' if len(items) > 5 else ''} ({len(items)} in all)"
