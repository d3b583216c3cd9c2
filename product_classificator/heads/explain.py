"""Turns a prediction into what moved it: the photo, the text, and the words of the text.

All is told in one unit, the log-odds of the label against the runner-up, so weights can be compared and added up. Photo
and text share the credit by their Shapley values (Shapley 1953; Lundberg and Lee 2017), which for two players are exact
after four looks at the product: whole, without one, without the other, without both. What is hidden is treated as
missing. The words branch of the joint recipe is linear, so the weights of words are exact, too; what a text says beyond
its words, by its vector, is in the credit of the text alone.

Of a multi-label characteristic the most probable label is explained, against its absence.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from product_classificator.heads.bag_of_words import OPENING
from product_classificator.types import Embeddings, Explanation

if TYPE_CHECKING:
    from product_classificator.heads.bundle import HeadBundle


def explain(
    bundle: "HeadBundle", embeddings: Embeddings, texts: Sequence[str], characteristics: Sequence[str], row: int
) -> dict[str, Explanation]:
    """Returns characteristic -> what moved the prediction of one product.

    Args:
        bundle: the heads.
        embeddings: of n products.
        texts: (n,) their raw texts.
        characteristics: which to explain.
        row: which product.
    """
    product = embeddings.take(np.array([row]))
    told = bundle.predict(product, [texts[row]], characteristics)
    looks = bundle.logits(*_looks(product, texts[row]))
    found = {}
    for name in characteristics:
        is_multi = name in bundle.decision_thresholds
        # That of the whole product, for all looks.
        temperature = float(bundle.temperatures_of(name, looks[name][:1])[0])
        logits = looks[name] / np.float32(temperature)
        order = np.argsort(-logits[0], kind="stable").tolist()
        label = bundle.labels[name][order[0]] if is_multi else told.best(name)[0]
        if label is None:  # what it refines leaves it nothing to say
            continue
        best = bundle.labels[name].index(label)
        runner_up = None if is_multi else next(column for column in order if column != best)
        against = 0.0 if runner_up is None else logits[:, runner_up]
        whole, photo, text, nothing = (logits[:, best] - against).tolist()
        found[name] = Explanation(
            label=label,
            probability=float(told.probabilities[name][0, best]),
            runner_up=None if runner_up is None else bundle.labels[name][runner_up],
            base=nothing,
            photo=((photo - nothing) + (whole - text)) / 2,
            text=((text - nothing) + (whole - photo)) / 2,
            words=_words(bundle, texts[row], name, (best, runner_up), temperature),
        )
    return found


def _looks(product: Embeddings, text: str) -> tuple[Embeddings, list[str]]:
    """Returns the product four times: whole, its photo, its text, nothing of it."""
    four = product.take(np.zeros(4, dtype=np.int64))
    sees_photo, sees_text = np.array([True, True, False, False]), np.array([True, False, True, False])
    looks = Embeddings(
        four.ids,
        four.image * sees_photo[:, None],
        four.text * sees_text[:, None],
        four.has_image & sees_photo,
        four.has_text & sees_text,
        four.fingerprint,
    )
    return looks, [text, "", text, ""]


def _words(
    bundle: "HeadBundle", text: str, characteristic: str, labels: tuple[int, int | None], temperature: float
) -> dict[str, float]:
    """Returns known word of the text -> what it adds, the strongest first; without a second label to the first."""
    if not bundle.network.reads_words:
        return {}
    words = bundle.vocabulary.weigh([text])
    first = bundle.network.shape.spans[list(bundle.labels).index(characteristic)].start
    logits = bundle.network.word_weights[words.numbers] * words.weights[:, None]
    best, runner_up = labels
    against = 0.0 if runner_up is None else logits[:, first + runner_up]
    weights = ((logits[:, first + best] - against) / temperature).tolist()
    credit: Counter[str] = Counter()
    for column, weight in zip(words.numbers, weights, strict=True):
        credit[bundle.vocabulary.words[column].removeprefix(OPENING)] += (
            weight  # a word that opens the text has two columns
        )
    return dict(sorted(credit.items(), key=lambda item: -abs(item[1])))
