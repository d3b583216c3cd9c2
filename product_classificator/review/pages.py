"""What a product looks like, and why it is predicted so; the templates in Russian and English."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache, partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from product_classificator.catalog import Catalog
from product_classificator.catalog.lookup import ImageRef
from product_classificator.catalog.photo import PhotoError
from product_classificator.classificator import Classificator
from product_classificator.embeddings.previews import thumbnail
from product_classificator.errors import ProductClassificatorError
from product_classificator.review.products import Labels, Products
from product_classificator.types import Explanation

PAGE = files("product_classificator.review") / "page"
SIZES_PX = {"large": 1000, "small": 240}
_SHOWN_LABELS = 5
_CACHED = 1500
"""Photos in memory: about 20 kB each if small, 120 kB if large."""


class Showing:
    """Photos and reasons of products; the heads of the run are loaded at the first reason."""

    def __init__(self, products: Products, catalog: Catalog, run: Path) -> None:
        self._products, self._catalog, self._run_folder = products, catalog, run
        self.photo = lru_cache(_CACHED)(self._photo)
        self.reasons = lru_cache(500)(self._reasons)
        self._classificator: Classificator | None = None
        self._thread = ThreadPoolExecutor(1, "why")

    def images(self, row: int) -> Sequence[ImageRef]:
        """Return the photos of a product, none without a folder of them."""
        facts = self._products.facts(row)
        return self._catalog.images_of(facts["photo"] if self._catalog.columns.photo else facts["id"])

    def _photo(self, row: int, number: int, size: str) -> bytes | None:
        """Return a photo as JPEG, `None` if there is no such photo, or it cannot be read."""
        of_product = self.images(row)[number : number + 1]
        return next((thumbnail(self._catalog, image, SIZES_PX[size], quality=85) for image in of_product), None)

    def _reasons(self, row: int) -> Mapping[str, Explanation]:
        """Return characteristic -> what moved its prediction; empty where nothing can be said."""
        with suppress(ProductClassificatorError):
            classificator = self._classificator = self._classificator or Classificator.from_run(self._run_folder)
            files = []
            for image in self.images(row):
                with suppress(PhotoError):
                    files.append(self._catalog.image_bytes(image))
            text = self._products.facts(row)["text"]
            predictions = classificator.predict([text], [files], errors="status")
            return predictions.explain(0) if predictions.is_known[0] else {}
        return {}

    def why(self, row: int) -> Mapping[str, Explanation]:
        """Return the reasons of a product, found in the one thread that finds them."""
        return self._thread.submit(self.reasons, row).result()

    def prepare(self, row: int) -> None:
        """Decode the photo of a product that comes next, and find its reasons, in the background."""
        self._thread.submit(self.photo, row, 0, "large")
        self._thread.submit(self.reasons, row)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)


@cache
def words() -> Mapping[str, tuple[str, str]]:
    """Return key -> the words in English and in Russian."""
    return dict(json.loads((PAGE / "words.json").read_text(encoding="utf-8")))


def translate(language: str, key: str, **values: object) -> str:
    """Return the words of a key; an unknown key is a sentence, and stays what it is."""
    pair = words().get(key)
    return pair[language == "ru"].format(**values) if pair else key


def duration(seconds: float | None) -> str:
    """Return hours and minutes.

    >>> duration(4500), duration(30), duration(None)
    ('1:15', '0:01', '–')
    """
    minutes = -(-int(seconds or 0) // 60)
    return "–" if seconds is None else f"{minutes // 60}:{minutes % 60:02d}"


def shown(label: Labels) -> str:
    """Return a label or labels as text, a dash for none."""
    return (", ".join(label) if isinstance(label, list) else label) or "–"


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share as percent, a dash if it is unknown."""
    return "–" if share is None else f"{100 * share:.{digits}f}\u202f%"


@cache
def _environment() -> Environment:
    loader = PackageLoader("product_classificator.review", "page")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "number": lambda value: f"{value:,}".replace(",", "\u202f"),
        "percent": percent,
        "duration": duration,
        "labels": shown,
        "several": lambda text: "; ".join(map(shown, json.loads(text)[:_SHOWN_LABELS])),
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    environment.globals |= {
        "version": version("product_classificator"),
        "now": time.time,
        "clock": lambda at: time.strftime("%Y-%m-%d %H:%M", time.localtime(at)),
        "token": lambda: secrets.token_urlsafe(12),
    }
    return environment


def render(template: str, language: str, **values: Any) -> Markup:
    """Return a page or a part of one."""
    t = partial(translate, language)
    return Markup(_environment().get_template(template).render(t=t, language=language, **values))  # noqa: S704 - escaped
