"""Tells whether texts open with what their product is, by what their first word and their last tell of the labels.

Russian titles name the product first ("Чехол для телефона"), English ones last ("Acme blue case"), and those of brands
begin with the brand. Of 40,000 titles of a Russian marketplace the first word alone tells 57 % of the labels right, the
last 14 %; of 6,230 English titles of fashion goods, eight characteristics, 71 and 77 %.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from product_classificator.heads.zero_shot import LabelIds
from product_classificator.text import words_of

_FEWEST, _MOST = 500, 20_000
_CLEARLY_MORE = 0.05


def open_with_their_kind(texts: Sequence[str], label_ids: LabelIds) -> bool:
    """Returns whether first words tell clearly more labels than last words do: learned from a half, tried on the rest.

    What counts is the mean over the characteristics of which words tell anything.

    Args:
        texts: (n,) of training products; of texts with a title their titles. Fewer than 500 tell nothing.
        label_ids: (n, characteristics) numbers of their labels, -1 where unknown.
    """
    if len(texts) < _FEWEST:
        return False
    found = {row: words_of(texts[row]) for row in range(0, len(texts), -(-len(texts) // _MOST))}
    rows = [row for row, words in found.items() if len(words) > 1]
    first, last = ([found[row][end] for row in rows] for end in (0, -1))
    gains = []
    for column in label_ids[rows].T:
        known = np.flatnonzero(column >= 0)
        if len(known) < _FEWEST:
            continue
        nothing, by_first, by_last = (
            _share_told([words[row] for row in known.tolist()], column[known])
            for words in ([""] * len(rows), first, last)
        )
        if max(by_first, by_last) > nothing + _CLEARLY_MORE:
            gains.append(by_first - by_last)
    return bool(gains and np.mean(gains) > _CLEARLY_MORE)


def _share_told(words: Sequence[str], label_ids: LabelIds) -> float:
    """Returns which share of labels words tell right: of every other product, by the commonest among the rest.

    A word that the rest do not have is given the commonest label of all.
    """
    labels: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for word, code in zip(words[::2], label_ids[::2].tolist(), strict=True):
        labels[word][code] += 1
    told = {word: counts.most_common(1)[0][0] for word, counts in labels.items()}
    common = np.bincount(label_ids[::2]).argmax()
    found = [told.get(word, common) for word in words[1::2]]
    return float(np.mean(found == label_ids[1::2]))
