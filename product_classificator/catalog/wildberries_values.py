r"""Turns the raw characteristics of a Wildberries product into its sex, season, age restrictions and fragility.

The tables hold a list of `{"charcName", "charcValues", "value"}` as text, in one of three dresses: JSON; what NumPy
prints for an array of dicts (`array(['a', 'b'], dtype=object)`, entries parted by a line break instead of a comma); or
either of them wrapped in the repr of bytes, of a string or of a list of one (`["b'[{\\"charcName\\": ...}]'"]`).

Decisions and their cost:
- Nothing is evaluated. NumPy's print is matched entry by entry by one strict regular expression whose quantifiers give
  nothing back, so that time grows with the length of the text only; what it does not match is unreadable as a whole.
- The keys of an entry come in the order in which the tables have them: `charcName`, `charcValues`, `value`.
- The words are mapped to labels by the rules of the 2024 system; one of its faults is mended: of several ages the
  smallest number counts, not the first in the order of strings ("12" before "3").
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from product_classificator.text import clean

Characteristics: TypeAlias = dict[str, list[str]]
"""charcName -> its values as strings, in the order of the table."""

_PLAIN = r"'[^'\\]*+'"
_STRING = rf"""(?:{_PLAIN}|'[^'\\]*+(?:\\.[^'\\]*+)*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+")"""
_NUMBER = r"-?(?:\d++(?:\.\d*+)?+(?:[eE][-+]?\d++)?+|nan|inf)"
_SCALAR = rf"(?:{_STRING}|None|True|False|{_NUMBER}|np\.\w++\({_NUMBER}\))"
_ITEMS = rf"\[\s*+((?:{_SCALAR}(?:,\s*+{_SCALAR})*+)?+)\s*+\]"
_ENTRY = re.compile(
    rf"\{{'charcName':\s*+({_STRING}),\s*+'charcValues':\s*+"
    rf"(?:array\({_ITEMS}(?:,\s*+dtype=(?:\w++|{_PLAIN}))?+\)|{_ITEMS}|None)"
    rf"(?:,\s*+'value':\s*+({_SCALAR}))?+\}}\s*+,?+\s*+",
    re.DOTALL,
)
# What most entries are: a list of strings without escapes, which may be split at its quotes, or a number.
_USUAL_ENTRY = re.compile(
    rf"\{{'charcName': '([^'\\]*+)', 'charcValues': (?:array\(\[({_PLAIN}(?:,\s*+{_PLAIN})*+)\],\s*+dtype=object\), "
    rf"'value': None|None, 'value': ({_NUMBER}))\}}\s*+"
)
_SCALARS = re.compile(_SCALAR, re.DOTALL)
_PRINTED = re.compile(r"\[\s*+(?=\{')")
_WRAPPER = re.compile(r"""(\[\s*+)?+(b)?+(\\*+["'])(?=[\[\\b"'])""")
_ESCAPE = re.compile(r"((?:\\x[0-9a-fA-F]{2})+)|\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_PLAIN_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\n": ""}
_NO_VALUES = ("None", "nan", "inf", "nan)", "inf)")  # how a literal ends that is no value; strings end in a quote
_DEEPEST_WRAPPING = 4
_NOTHING = ("", "None", "nan", "null")
_JSON = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and infinities are no values


def parse_characteristics(raw: bytes | str | None) -> Characteristics | None:
    """Reads the raw characteristics of one product, without `eval`.

    Args:
        raw: JSON, NumPy's print, or one of them wrapped; bytes are UTF-8.

    Returns:
        The values by name; empty if there is nothing to read, `None` if what is there cannot be read. `value` counts
        where `charcValues` is absent or null; numbers become strings, 3.0 as "3".

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
        return _read(text)
    # RecursionError: JSON nested too deep; OverflowError: \U beyond Unicode.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _read(text: str) -> Characteristics:
    for _ in range(_DEEPEST_WRAPPING):
        opening = _WRAPPER.match(text)
        if opening is None:
            break
        text = _unwrapped(text, opening)
    if text in _NOTHING:
        return {}
    printed = _PRINTED.match(text)
    return _read_printed(text, printed.end()) if printed else _read_json(text)


def _read_json(text: str) -> Characteristics:
    found: Characteristics = {}
    entries = _JSON.decode(text)
    if not isinstance(entries, list):
        raise TypeError("not a list of entries")
    for entry in entries:
        values = entry.get("charcValues")
        if values is None:
            values = entry.get("value")
        if not isinstance(values, list):
            values = [values]
        _add(found, entry["charcName"], [v if isinstance(v, str) else _as_text(v) for v in values if v is not None])
    return found


def _read_printed(text: str, position: int) -> Characteristics:
    found: Characteristics = {}
    parts = _USUAL_ENTRY.split(text)
    between, names, lists, numbers = (parts[i::4] for i in range(4))
    # One call instead of one an entry: twice as fast, where nothing else stands in the text.
    if between[0] == "[" and between[-1] == "]" and not any(between[1:-1]):
        for name, items, number in zip(names, lists, numbers, strict=True):
            _add(found, name, _literals(number) if items is None else items.split("'")[1::2])
        return found
    while entry := _ENTRY.match(text, position):
        name, in_array, in_list, value = entry.groups()
        items = in_array if in_array is not None else in_list
        _add(found, _literal(name), _literals(items if items is not None else value or ""))
        position = entry.end()
    if text[position:] != "]":
        raise ValueError("neither an entry nor the end")
    return found


def _add(found: Characteristics, name: str, values: list[str]) -> None:
    name = name.strip()
    if name in found:
        found[name] += values
    else:
        found[name] = values


def _as_text(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int):
        return str(value)
    raise TypeError("a value must be a string or a number")


def _literals(items: str) -> list[str]:
    """Returns the scalars of a printed list as strings, without its None."""
    return [_literal(item) for item in _SCALARS.findall(items) if not item.endswith(_NO_VALUES)]


def _literal(literal: str) -> str:
    if literal[0] in "'\"":
        return _unescaped(literal[1:-1]) if "\\" in literal else literal[1:-1]
    if literal in ("True", "False"):
        return literal
    return _as_text(float(literal.rstrip(")").rpartition("(")[2]))


def _unwrapped(text: str, opening: re.Match[str]) -> str:
    """Takes one wrapper off: a list of one, and the quotes of bytes or of a string with the escapes within."""
    in_list, is_bytes, quote = opening.groups()
    inner = text[opening.end() :].removesuffix("]" if in_list else "").rstrip().removesuffix(quote)
    return _unescaped(inner, "utf-8" if is_bytes else "latin-1").strip()


def _unescaped(text: str, encoding: str = "latin-1") -> str:
    r"""Undoes the escapes of a literal; `encoding` is that of the bytes written as \\xNN."""

    def undo(escape: re.Match[str]) -> str:
        if escape[1]:
            return bytes.fromhex(escape[1].replace("\\x", "")).decode(encoding)
        code = escape[2] or escape[3]
        return chr(int(code, 16)) if code else _PLAIN_ESCAPES.get(escape[4], escape[4])

    # Doubled backslashes and escaped quotes are most of a wrapped text: a callback for each would take far longer.
    quick = text.replace("\\\\", "\0")
    if "\\" in quick:
        quick = quick.replace('\\"', '"').replace("\\'", "'")
    if "\\" not in quick and "\0" not in text:
        return quick.replace("\0", "\\")
    return _ESCAPE.sub(undo, text)


def labels_of(characteristics: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns the labels that the values tell, by characteristic; what they do not tell is absent.

    >>> labels_of({"Пол": ["Женский"], "Возрастные ограничения": ["от 3 лет"], "Цвет": ["синий"]})
    {'sex': 'для женщин', 'age_restrictions': 'для детей'}
    """
    labels = {name: _label(name, tuple(characteristics[key])) for key, name in _KEYS.items() if key in characteristics}
    return {name: label for name, label in labels.items() if label}


@lru_cache(maxsize=4096)  # a table has few different values, said a million times
def _label(characteristic: str, values: tuple[str, ...]) -> str | None:
    known = [value for value in (" ".join(v.lower().split()) for v in values) if value]
    return _READERS[characteristic](known) if known else None


_SEXES = {
    "детский": "для детей",
    "женский": "для женщин",
    "women": "для женщин",
    "мужской": "для мужчин",
    "men": "для мужчин",
    "мальчики": "для мальчиков",
    "boy": "для мальчиков",
    "девочки": "для девочек",
    "girl": "для девочек",
}
_SEASONS = ("лето", "зима", "демисезон", "круглогодичный")
_STURDY = re.compile(r"не х|нет|прочн|над[её]ж")
_FRAGILE = re.compile(r"х|да|не брос")
_NO_AGE = re.compile(r"0 ?\+")
_AGE_WORDS_BEFORE_NUMBERS = (
    (re.compile(r"без огран|нет огран|для всех|любой|любог"), "для всех возрастов"),
    (re.compile(r"мес|годик|рожден|малыш|реб[её]н"), "для малышей"),
)
_AGES = re.compile(r"\d{1,9}")
_FROM_AGE = ((18, "для взрослых"), (12, "для подростков"), (3, "для детей"), (0, "для малышей"))
_AGE_WORDS_AFTER_NUMBERS = (
    (re.compile(r"дет(?:ям|ск|ей)|школ|девоч|мальчик"), "для детей"),
    (re.compile(r"мужч|женщ|взросл"), "для взрослых"),
    (re.compile(r"подрост"), "для подростков"),
)


def _sex(values: Sequence[str]) -> str | None:
    return _SEXES.get(values[0]) if len(values) == 1 else None


def _season(values: Sequence[str]) -> str:
    return next((season for season in _SEASONS if season in values), clean(values[0]))


def _age_restrictions(values: Sequence[str]) -> str | None:
    text = " ".join(values)
    if _NO_AGE.fullmatch(text):
        return None
    for words, label in _AGE_WORDS_BEFORE_NUMBERS:
        if words.search(text):
            return label
    ages = [int(age) for age in _AGES.findall(text)]
    if ages:
        return next(label for least, label in _FROM_AGE if min(ages) >= least)
    return next((label for words, label in _AGE_WORDS_AFTER_NUMBERS if words.search(text)), "для всех возрастов")


def _fragility(values: Sequence[str]) -> str | None:
    found = {"хрупкий" if not _STURDY.match(value) and _FRAGILE.match(value) else "не хрупкий" for value in values}
    return found.pop() if len(found) == 1 else None


_KEYS = {
    "Пол": "sex",
    "Сезон": "season",
    "Возрастные ограничения": "age_restrictions",
    "Хрупкость": "fragility",
}
_READERS: Mapping[str, Callable[[Sequence[str]], str | None]] = {
    "sex": _sex,
    "season": _season,
    "age_restrictions": _age_restrictions,
    "fragility": _fragility,
}
TOLD_BY_VALUES = tuple(_READERS)
"""The characteristics that `labels_of` can tell."""
