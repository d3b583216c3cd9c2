"""The role of each column of a table, in a module that classifying one product can import without pyarrow."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

ROW_NUMBER = "row_number"
"""The id column of a table that has none."""
_NAMES = {
    "id": "nm id sku product_id item_id offer_id nm_id article uniq_id article_id goods_id asin uuid uid pid code "
    "product_code vendor_code gtin ean barcode артикул артикул_товара код код_товара",
    "text": "title name text product_title item_title product_name item_name product_display_name display_name "
    "prod_name designation название название_товара наименование наименование_товара заголовок "
    "description product_description item_description detail_desc long_description short_description "
    "описание описание_товара текст",
    "image": "image images photo photos picture pictures img фото изображение "
    "image_url image_urls photo_url photo_urls img_url picture_url image_link ссылка_на_фото",
}
"""The usual names of columns by their role, the most usual first and titles before descriptions."""
MAX_PHOTOS = 5
"""The photos of a product that are read, unless another number is given."""
UNKNOWN: tuple[str, ...] = (
    *("nan", "NaN", "NAN", "none", "None", "NONE", "null", "Null", "NULL", "<NA>", "NA", "N/A", "n/a", "#N/A"),
    *("#Н/Д", "#ЗНАЧ!", "#ССЫЛКА!", "#VALUE!", "#REF!", "#NULL!", "#DIV/0!", "#NAME?"),  # errors of spreadsheets
)
"""Cells that mean an unknown label or an empty text, as blank ones do, unless `na_values` names others."""


@dataclass(frozen=True)
class Columns:
    """The role of each column, as in `read_catalog`; an empty `text` is for photos only; photos per product.

    A run has a dictionary of the separators that were found, by characteristic.
    """

    id: str
    text: tuple[str, ...] = ()
    characteristics: tuple[str, ...] = ()
    photo: str | None = None
    multi_label: tuple[str, ...] = ()
    max_photos: int = MAX_PHOTOS
    label_separator: str | dict[str, str] | None = None
    path: str | None = None
    path_separator: str | None = None

    @property
    def has_title(self) -> bool:
        """Whether the first line of a text is a title: the first of several columns."""
        return len(self.text) > 1


def spelling(name: str) -> str:
    """Return the letters and digits of a name: "Uniq Id", "uniqId" and "uniq_id" are spelled alike."""
    return re.sub(r"[\W_]+", "", name.casefold())


def guess(columns: Iterable[str], *roles: str) -> list[str]:
    """Return the columns that are spelled like a usual one of the roles ("id", "text", "image"), in their order."""
    names = " ".join(_NAMES[role] for role in roles).split()
    places = {spelling(name): place for place, name in reversed(list(enumerate(names)))}
    return sorted((column for column in columns if spelling(column) in places), key=lambda c: places[spelling(c)])


def unique_names(names: Iterable[object], table: str) -> list[str]:
    """Return column names without blanks and invisible signs around them; the second "a" becomes "a.1"."""
    unique: dict[str, None] = {}
    repeats: Counter[str] = Counter()
    for name in names:
        plain = trimmed = re.sub(r"^'(?=[=+\-@])", "", visible(str(name)).strip())  # as in `canonical`
        while plain in unique:
            repeats[trimmed] += 1
            plain = f"{trimmed}.{repeats[trimmed]}"
        if plain != trimmed and trimmed:
            logger.warning("%s repeats the column name %s: the later one is named %s", table, trimmed, plain)
        unique[plain] = None
    cases = Counter(map(str.casefold, unique))
    if alike := [name for name in unique if cases[name.casefold()] > 1]:
        logger.warning(
            "%s: columns whose names differ in case alone are different columns: %s", table, ", ".join(alike)
        )
    return list(unique)


def visible(text: str) -> str:
    r"""Return a text in the Unicode form NFC, without zero-width signs, soft hyphens and byte order marks.

    >>> visible("лето\u200b\ufeff")
    'лето'
    """
    return "".join(char for char in unicodedata.normalize("NFC", text) if unicodedata.category(char) != "Cf")
