"""Turns raw text into the forms that training and use share.

`words_of` feeds the words branch of the heads; `identity_of` tells near-identical texts of the split. Encoders take
raw text and prepare it themselves.
"""

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)?", re.UNICODE)
_SPACE = re.compile(r"\s+")


def clean(text: object) -> str:
    r"""Returns text without control characters and repeated white space; anything but a string is empty.

    >>> clean("  Часы\n наручные\x00 ")
    'Часы наручные'
    >>> clean(None)
    ''
    """
    if not isinstance(text, str):
        return ""
    # Lone surrogates cannot be encoded as UTF-8, which every store and tokenizer needs.
    text = text.encode("utf-8", "ignore").decode("utf-8")
    printable = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    return _SPACE.sub(" ", printable).strip()


def words_of(text: str) -> list[str]:
    """Returns the words and numbers of a text, lower-cased, ё as е.

    >>> words_of("Сумка Женская, 1.5 кг — чЁрная")
    ['сумка', 'женская', '1.5', 'кг', 'черная']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("ё", "е"))


def identity_of(text: str) -> str:
    """Returns what near-identical texts have in common: their words, without case, punctuation and spacing.

    >>> identity_of("Сумка  женская!") == identity_of("сумка, Женская")
    True
    """
    return " ".join(words_of(text))
