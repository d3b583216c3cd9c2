"""Tells whether texts open with what their product is, by what their first word and their last tell of the labels.

Russian titles name the product first ("Чехол для телефона"), English ones last ("Acme blue case"), and those of brands
begin with the brand. Of 40,000 titles of a Russian marketplace the first word alone tells 57 % of the labels right, the
last 14 %; of 6,230 English titles of fashion goods 71 and 77 %.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from product_classificator.heads.zero_shot import Codes
from product_classificator.text import words_of

_FEWEST, _MOST = 500, 20_000
_CLEARLY_MORE = 0.05


def open_with_their_kind(texts: Sequence[str], codes: Codes) -> bool:
    """Returns whether first words tell clearly more labels than last words do: learned from a half, tried on the rest.

    Args:
        texts: (n,) of training products; of texts with a title their titles. Fewer than 500 tell nothing.
        codes: (n, characteristics) numbers of their labels, -1 where unknown.
    """
    found = [words_of(text) for text in texts[:_MOST]]
    rows = [row for row, words in enumerate(found) if len(words) > 1]
    if len(rows) < _FEWEST or not codes.shape[1]:
        return False
    ends = [[found[row][place] for row in rows] for place in (0, -1)]
    first, last = (np.mean([_share_told(words, column[rows]) for column in codes.T]) for words in ends)
    return bool(first > last + _CLEARLY_MORE)


def _share_told(words: Sequence[str], codes: Codes) -> float:
    """Returns how often the commonest label of a word among every other product is that of the products between."""
    labels: defaultdict[str, Counter[int]] = defaultdict(Counter)
    every: Counter[int] = Counter()
    for word, code in zip(words[::2], codes[::2].tolist(), strict=True):
        if code >= 0:
            labels[word][code] += 1
            every[code] += 1
    told = {word: counts.most_common(1)[0][0] for word, counts in labels.items()}
    common = every.most_common(1)[0][0] if every else -1
    tried = [(told.get(word, common), code) for word, code in zip(words[1::2], codes[1::2].tolist(), strict=True)]
    known = [guess == code for guess, code in tried if code >= 0]
    return float(np.mean(known)) if known else 0.0
