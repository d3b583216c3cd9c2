"""The forms of a text that training and prediction share, and the cells that hold several labels.

Encoders take raw text and prepare it themselves.
"""

import json
import re
import string
import unicodedata
from collections.abc import Collection

_HAN, _KANA = r"\u3400-\u9fff", r"\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff"
_WORD = re.compile(rf"[{_HAN}]{{1,2}}|[{_KANA}]{{1,4}}|[^\W_{_HAN}{_KANA}]+(?:[.,]\d+)?")
_SPACE = re.compile(r"\s+")
_SIZE_OR_AMOUNT = re.compile(r"(?<!\d)\d++(?:[хХxX]\d++|[кмглршт]++| [xXхХ] \d++)")
# The tokens of NLTK's `word_tokenize`: rules of the Penn Treebank (1995), in sentences of Punkt (Kiss, Strunk 2006).
# A full stop belongs to its word unless a sentence ends there: not after a number or one letter that a word follows.
_MARK, _SUFFIX = r"""«»“”‘’„;@\#$%&?!*()\[\]{}<>`":,""", "'(?:s|m|d|ll|re|ve)?"
_PUBLISHED_TOKEN = re.compile(
    rf"""`+ | \.{{2,}} | -- | [:,](?!\d) | '' | (?![:,])[{_MARK}] | {_SUFFIX}(?![^\s{_MARK}'])
    | (?<!\S)(?:-?[.,]?\d[\d,.-]*+(?<=\.) | [^\W\d_]\.)(?=\s+[^\W\d_])
    | (?: [^\s{_MARK}.'-] | [:,](?=\d) | -(?!-) | \.(?![.\s?!)";}}\]*:@'({{\[]|$)
        | (?!''|{_SUFFIX}(?![^\s{_MARK}']))' )++""",
    re.VERBOSE,
)
_OPENING_QUOTE = re.compile(r"""(?:(?<=[ (\[{<])|^)(?:"|'')""")
_MAX_WORD_LENGTH, _MAX_WORDS = 15, 100
# The 151 Russian stop words of the Snowball project (snowballstem.org), as selected by NLTK.
_STOP_WORDS = """
    а без более больше будет будто бы был была были было быть в вам вас вдруг ведь во вот впрочем все всегда
    всего всех всю вы где да даже два для до другой его ее ей ему если есть еще ж же за зачем здесь и из или им
    иногда их к как какая какой когда конечно кто куда ли лучше между меня мне много может можно мой моя мы на
    над надо наконец нас не него нее ней нельзя нет ни нибудь никогда ним них ничего но ну о об один он она они
    опять от перед по под после потом потому почти при про раз разве с сам свою себе себя сейчас со совсем так
    такой там тебя тем теперь то тогда того тоже только том тот три тут ты у уж уже хорошо хоть чего чем через
    что чтоб чтобы чуть эти этого этой этом этот эту я
"""
_UNITS = "мг г гр кг мл л мм см м км шт штук"
_IGNORED = {*_STOP_WORDS.split(), *_UNITS.split(), *string.punctuation} - {"не", "для"}


def clean(text: object) -> str:
    r"""Return text without control characters and repeated white space; "" for anything but a string.

    >>> clean("  Часы\n наручные\x00 ")
    'Часы наручные'
    >>> clean(None)
    ''
    """
    if not isinstance(text, str):
        return ""
    if not text.isprintable():
        # Lone surrogates cannot be encoded as UTF-8, which every store and tokenizer needs.
        text = text.encode("utf-8", "ignore").decode("utf-8")
        text = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    return _SPACE.sub(" ", text).strip()


def words_of(text: str) -> list[str]:
    """Return the words and numbers of a text, in lower case, with е for ё.

    Chinese and Japanese have no blanks between words: two signs or four letters of kana, about a word, count as one.

    >>> words_of("Сумка Женская, 1.5 кг — чЁрная"), words_of("iPhone手机壳")
    (['сумка', 'женская', '1.5', 'кг', 'черная'], ['iphone', '手机', '壳'])
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("ё", "е"))


def clean_published(text: str) -> str:
    """Return a text as the 2024 system cleaned it, for heads that were trained on such texts.

    In lower case; without sizes (`10х20`, `5 x 7`), amounts (`500мл`), whole numbers, units, words of more than 15
    letters, Russian stop words except "не" and "для", and ASCII punctuation; the first 100 tokens. Tokens are NLTK's: a
    quote becomes `` or two apostrophes, a shortened "шт." keeps its full stop. As in that system, a unit's letters
    after digits are removed even from a longer word: "5 лет" becomes "лет", but "5лет" "ет".

    >>> clean_published("Сумка-шоппер для НЕЁ, 30х40 см, не промокает; 2 шт")
    'сумка-шоппер для неё не промокает'
    """
    text = _OPENING_QUOTE.sub(" `` ", _SIZE_OR_AMOUNT.sub("", text).lower())
    words = ["''" if word == '"' else word for word in _PUBLISHED_TOKEN.findall(text)]
    kept = [word for word in words if word not in _IGNORED and len(word) <= _MAX_WORD_LENGTH and not word.isdigit()]
    return " ".join(kept[:_MAX_WORDS])


def join_labels(labels: Collection[str]) -> str:
    """Return labels as one cell of a table without lists: joined by "|" or, if that is ambiguous, as a JSON array.

    >>> join_labels(["cotton", "wool"]), join_labels([])
    ('cotton|wool', '[]')
    """
    joined = "|".join(labels)
    is_plain = len(labels) > 0 and not any("|" in label for label in labels) and not is_list_cell(joined)
    return joined if is_plain else json.dumps(list(labels), ensure_ascii=False)


_LIST = re.compile(r"""\s*+(?:\[.*\]|\(['"].*['"],?\)|\{['"].*['"]\})\s*+""", re.DOTALL)


def is_list_cell(cell: str) -> bool:
    """Return whether a cell is in brackets, like a JSON array; other brackets of Python hold quotes at both ends."""
    return _LIST.fullmatch(cell) is not None


_LIST_ENTRY = re.compile(
    r"""\s*+(?:'((?:[^'\\]|\\.)*+)'|"((?:[^"\\]|\\.)*+)"|([\w.+-]++))(?:\s*+(?:,|$)|\s++(?=['"]))""", re.DOTALL
)


def split_labels(cell: str, separator: str = "|") -> list[object]:
    """Return the labels of a cell: of a list as JSON, Python or NumPy writes it, or the parts between separators.

    A cell in brackets that is not a list of plain values is a `ValueError`.

    >>> split_labels("cotton|wool"), split_labels('["1|2", 3]'), split_labels("['a' 'b c']"), split_labels("('a',)")
    (['cotton', 'wool'], ['1|2', 3], ['a', 'b c'], ['a'])
    """
    cell = cell.strip()
    if not is_list_cell(cell):
        return list(cell.split(separator))
    try:
        entries: list[object] = json.loads(cell)
    except RecursionError as error:
        raise ValueError("it is nested") from error
    except ValueError:
        entries, end, inner = [], 0, cell[1:-1]
        while entry := _LIST_ENTRY.match(inner, end):
            plain = entry[3] and {"None": None, "nan": None}.get(entry[3], entry[3])
            entries.append(plain if entry[3] else re.sub(r"\\(.)", r"\1", entry[1] if entry[2] is None else entry[2]))
            end = entry.end()
        if end < len(inner):
            raise
    if isinstance(entries, dict) or any(isinstance(entry, list | dict) for entry in entries):
        raise ValueError("it is nested")
    return entries
