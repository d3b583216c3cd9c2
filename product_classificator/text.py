"""Turns raw text into the forms that training and use share.

`words_of` feeds the words branch of the heads; `identity_of` tells near-identical texts of the split;
`clean_published` is the preparation of the 2024 system. Encoders take raw text and prepare it themselves. `join_labels`
and `split_labels` are how several labels are written in one cell.
"""

import json
import re
import unicodedata
from collections.abc import Collection

_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)?", re.UNICODE)
_SPACE = re.compile(r"\s+")
# A first digit outside the repetition lets `re` skip to the digits; at most ten, so that a long run takes no longer.
_SIZE_OR_AMOUNT = re.compile(r"[0-9][0-9]{0,9}+(?:штук|см\b|[кмглршт]++|(?: ?[xх] ?[0-9]++)++)")
_PUBLISHED_WORD = re.compile(r"\w++(?:['’-]\w++)*+")
_LONGEST_WORD, _MOST_WORDS = 15, 100
_UNITS = "мг г гр кг мл л мм см м км шт штук"
# The Russian stop words of the Snowball project (snowballstem.org) in the selection of NLTK: 151 words.
_STOP_WORDS = """
    а без более больше будет будто бы был была были было быть в вам вас вдруг ведь во вот впрочем все всегда
    всего всех всю вы где да даже два для до другой его ее ей ему если есть еще ж же за зачем здесь и из или им
    иногда их к как какая какой когда конечно кто куда ли лучше между меня мне много может можно мой моя мы на
    над надо наконец нас не него нее ней нельзя нет ни нибудь никогда ним них ничего но ну о об один он она они
    опять от перед по под после потом потому почти при про раз разве с сам свою себе себя сейчас со совсем так
    такой там тебя тем теперь то тогда того тоже только том тот три тут ты у уж уже хорошо хоть чего чем через
    что чтоб чтобы чуть эти этого этой этом этот эту я
"""
_LEFT_OUT = frozenset(_STOP_WORDS.split()) - {"не", "для"} | frozenset(_UNITS.split())


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


def clean_published(text: str) -> str:
    """Returns a text as the 2024 system cleaned it, for heads that are trained on such texts and used on them.

    Lower case; without sizes (`10х20`, `5 x 7`), amounts (`500мл`, `100 см`), numbers, units, punctuation, words of
    more than 15 letters and Russian stop words but "не" and "для"; the first 100 words. A hyphen or an apostrophe
    inside a word belongs to it. As published, "80-90" is a word, and a unit's letters after digits go even where a
    longer word begins with them: "5 лет" becomes "лет", but "5лет" "ет".

    >>> clean_published("Сумка-шоппер для НЕЁ, 30х40 см, не промокает; 2 шт")
    'сумка-шоппер для неё не промокает'
    """
    # "_" is punctuation here, a word's letter to `re`.
    words = _PUBLISHED_WORD.findall(_SIZE_OR_AMOUNT.sub("", text.lower().replace("_", " ")))
    kept = [word for word in words if word not in _LEFT_OUT and len(word) <= _LONGEST_WORD and not word.isdigit()]
    return " ".join(kept[:_MOST_WORDS])


def join_labels(labels: Collection[str]) -> str:
    """Returns labels as one cell of a table without lists: joined by "|", or a JSON array where that would not do.

    >>> join_labels(["cotton", "wool"]), join_labels([])
    ('cotton|wool', '[]')
    """
    is_plain = len(labels) > 0 and not any("|" in label or label.startswith("[") for label in labels)
    return "|".join(labels) if is_plain else json.dumps(list(labels), ensure_ascii=False)


def is_list_cell(cell: str) -> bool:
    """Whether a cell stands in brackets, like a JSON array."""
    cell = cell.strip()
    return cell.startswith("[") and cell.endswith("]")


def split_labels(cell: str) -> list[object]:
    """Returns the entries of a cell with labels: of a JSON array, or what stands between "|".

    >>> split_labels("cotton|wool"), split_labels('["1|2", 3]')
    (['cotton', 'wool'], ['1|2', 3])

    Raises:
        ValueError: the cell begins and ends like a list, and is no JSON array of plain values.
    """
    if not is_list_cell(cell):
        return list(cell.strip().split("|"))
    try:
        entries: list[object] = json.loads(cell)
    except RecursionError as error:
        raise ValueError("it is nested") from error
    if any(isinstance(entry, list | dict) for entry in entries):
        raise ValueError("it is nested")
    return entries
