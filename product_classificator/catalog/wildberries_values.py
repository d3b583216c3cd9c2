r"""Turns the raw characteristics of a Wildberries product into its sex, season, age restrictions and fragility.

They are a list of `{"charcName", "charcValues", "value"}` as text: JSON, an array of dicts as NumPy prints it, or one
of them inside the repr of bytes, a string or a list of one (`["b'[{\\"charcName\\": ...}]'"]`). Nothing is evaluated: a
printed array is rewritten as JSON token by token, in linear time. Labels follow the rules of the 2024 system, except
that the smallest of several ages counts, not the first one in string order ("12" before "3").
"""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from product_classificator.text import clean, join_labels

_DEEPEST_WRAPPING = 4
_WRAPPED = re.compile(r"""(?:\[\s*+)?+(b?["'].*["'])\s*\]?""", re.DOTALL)
# Python warns of other ones.
_ESCAPES = re.compile(
    r"""(?:[^\\]++|\\(?:[\\'"abfnrtv\n]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}))*+""", re.IGNORECASE
)
_NOTHING = ("", "None", "nan", "null")

_PRINTED = re.compile(r"\[\s*+\{'")
_NUMBER = r"-?+(?:\d++(?:\.\d*+)?+(?:[eE][-+]?\d++)?+|nan|inf)"
# Possessive quantifiers, and strings that may also end with the text, keep hostile texts linear. The end of an array
# comes with its dtype, which may hold a string itself.
_LITERAL = re.compile(
    r"""('[^'\\]*+(?:\\.?+[^'\\]*+)*+(?:'|\Z)|"[^"\\]*+(?:\\.?+[^"\\]*+)*+(?:"|\Z)|,\s*+dtype=(?:\w++|'[^'\\]*+')\))""",
    re.DOTALL,
)
_CODE = re.compile(rf"(?:[\[\]{{}}:,\s]|array\((?=\[)|(?<=\])\)|None|True|False|np\.\w++\({_NUMBER}\)|{_NUMBER})*+")
_AS_JSON: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"array\(|np\.\w+\(|\)"), ""),
    (re.compile(r"None|nan|-?inf"), "null"),
    (re.compile(r"True"), "true"),
    (re.compile(r"False"), "false"),
    (re.compile(r"\}\s++(?=\{)"), "},"),
    (re.compile(r"\.(?!\d)"), ".0"),
)
_JSON = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and infinities are no values
_JSON_STRING = json.JSONEncoder(ensure_ascii=False).encode


def parse_characteristics(raw: bytes | str | None) -> dict[str, list[str]] | None:
    """Return the values of the raw characteristics of one product by name; `None` if the text cannot be parsed.

    `value` counts where `charcValues` is absent or null; numbers become strings, 3.0 as "3".

    >>> parse_characteristics('[{"charcName": "Пол", "charcValues": ["Женский"], "value": null}]')
    {'Пол': ['Женский']}
    >>> parse_characteristics("[{'charcName': 'Рост', 'charcValues': None, 'value': 3.0}]")
    {'Рост': ['3']}
    >>> parse_characteristics("[{'charcName': __import__('os')}]") is None
    True
    """
    if raw is None:
        return {}
    try:
        text = raw.decode("utf-8-sig").strip() if isinstance(raw, bytes) else raw.strip()
        for _ in range(_DEEPEST_WRAPPING):  # in a list of one, and in quotes of bytes or of a string
            if wrapped := _WRAPPED.fullmatch(text):
                text = _literal(wrapped[1]).strip()
        if text in _NOTHING:
            return {}
        return _values_by_name(_JSON.decode(_printed_to_json(text) if _PRINTED.match(text) else text))
    # RecursionError, MemoryError: nested too deep.
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        return None


def _values_by_name(entries: object) -> dict[str, list[str]]:
    if not isinstance(entries, list):
        raise TypeError("not a list of entries")
    by_name: dict[str, list[str]] = {}
    for entry in entries:
        values = entry.get("charcValues")
        values = entry.get("value") if values is None else values
        values = [value for value in (values if isinstance(values, list) else [values]) if value is not None]
        if not all(isinstance(value, str | int | float) for value in values):
            raise TypeError("a value must be a string or a number")
        texts = [str(int(v) if isinstance(v, float) and v.is_integer() else v) for v in values]
        by_name.setdefault(entry["charcName"].strip(), []).extend(texts)
    return by_name


def _printed_to_json(text: str) -> str:
    """Rewrite a printed array of dicts as JSON; ValueError if NumPy would not print what is between the strings."""
    pieces = _LITERAL.split(text)
    pieces[::2] = map(_code_to_json, pieces[::2])
    pieces[1::2] = [
        "" if piece[0] == "," else _JSON_STRING(_literal(piece) if "\\" in piece else piece[1:-1])
        for piece in pieces[1::2]
    ]
    return "".join(pieces)


@lru_cache(maxsize=1024)  # what stands between strings is much the same in a million rows
def _code_to_json(code: str) -> str:
    if not _CODE.fullmatch(code):
        raise ValueError("not an array as NumPy prints it")
    for pattern, replacement in _AS_JSON:
        code = pattern.sub(replacement, code)
    return code


def _literal(text: str) -> str:
    """Return what a literal of a string or of bytes says; ValueError for escapes that Python does not write."""
    if not _ESCAPES.fullmatch(text):
        raise ValueError("not a literal as Python prints it")
    value: object = ast.literal_eval(text)
    return value.decode() if isinstance(value, bytes) else str(value)


def labels_of(
    characteristics: Mapping[str, Sequence[str]], names: Sequence[str] = (), multi_label: Sequence[str] = ()
) -> dict[str, str]:
    """Return the labels that raw characteristics imply; the others are absent.

    Any other raw characteristic in `names` has its first value as label, or all, joined, if `multi_label` names it.

    >>> labels_of({"Пол": ["Женский"], "Возрастные ограничения": ["от 3 лет"], "Цвет": ["синий", "белый"]}, ["Цвет"])
    {'sex': 'для женщин', 'age_restrictions': 'для детей', 'Цвет': 'синий'}
    """
    labels = {name: _label(name, tuple(characteristics.get(raw, ()))) for name, (raw, _) in _RULES.items()}
    for name in set(names) - set(_RULES):
        if values := list(filter(None, (" ".join(value.split()) for value in characteristics.get(name, ())))):
            labels[name] = join_labels(values) if name in multi_label else values[0]
    return {name: label for name, label in labels.items() if label}


@lru_cache(maxsize=4096)  # a million rows have few different values
def _label(characteristic: str, values: tuple[str, ...]) -> str | None:
    words = [value for value in (" ".join(v.lower().split()) for v in values) if value]
    return _RULES[characteristic][1](words) if words else None


_SEXES = {
    "для детей": ("детский",),
    "для женщин": ("женский", "women"),
    "для мужчин": ("мужской", "men"),
    "для мальчиков": ("мальчики", "boy"),
    "для девочек": ("девочки", "girl"),
}
_SEASONS = ("лето", "зима", "демисезон", "круглогодичный")
_NO_AGE = re.compile(r"0 ?\+")
_EVERY_AGE = "для всех возрастов"
_AGE_WORDS_BEFORE_NUMBERS = {
    r"без огран|нет огран|для всех|любой|любог": _EVERY_AGE,
    r"мес|годик|рожден|малыш|реб[её]н": "для малышей",
}
_AGES = re.compile(r"\d{1,9}")
_FROM_AGE = ((18, "для взрослых"), (12, "для подростков"), (3, "для детей"), (0, "для малышей"))
_AGE_WORDS_AFTER_NUMBERS = {
    r"дет(?:ям|ск|ей)|школ|девоч|мальчик": "для детей",
    r"мужч|женщ|взросл": "для взрослых",
    r"подрост": "для подростков",
}
_STURDY = re.compile(r"не х|нет|прочн|над[её]ж")
_FRAGILE = re.compile(r"х|да|не брос")


def _sex(values: Sequence[str]) -> str | None:
    return next((sex for sex, words in _SEXES.items() if len(values) == 1 and values[0] in words), None)


def _season(values: Sequence[str]) -> str:
    return next((season for season in _SEASONS if season in values), clean(values[0]))


def _age_restrictions(values: Sequence[str]) -> str | None:
    text = " ".join(values)
    if _NO_AGE.fullmatch(text):
        return None
    ages = [int(age) for age in _AGES.findall(text)]
    of_number = next((label for least, label in _FROM_AGE if ages and min(ages) >= least), None)
    before, after = (
        next((label for words, label in labels.items() if re.search(words, text)), None)
        for labels in (_AGE_WORDS_BEFORE_NUMBERS, _AGE_WORDS_AFTER_NUMBERS)
    )
    return before or of_number or after or _EVERY_AGE


def _fragility(values: Sequence[str]) -> str | None:
    labels = {"хрупкий" if not _STURDY.match(value) and _FRAGILE.match(value) else "не хрупкий" for value in values}
    return labels.pop() if len(labels) == 1 else None


_RULES: Mapping[str, tuple[str, Callable[[Sequence[str]], str | None]]] = {
    "sex": ("Пол", _sex),
    "season": ("Сезон", _season),
    "age_restrictions": ("Возрастные ограничения", _age_restrictions),
    "fragility": ("Хрупкость", _fragility),
}
RAW_CHARACTERISTICS = tuple(_RULES)
"""The characteristics whose labels `labels_of` finds."""
