"""Turns a prediction into what moved it: the photo, the text, and the words of the text.

All is told in one unit, the log-odds of the label against the runner-up, so weights can be compared and added up. Photo
and text share the credit by their Shapley values (Shapley 1953; Lundberg and Lee 2017), which for two players are exact
after four looks at the product: whole, without one, without the other, without both. What is hidden is treated as
missing. The words branch of the joint recipe is linear, so the weights of words are exact, too; what a text says beyond
its words, by its vector, is in the credit of the text alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from product_classificator.heads.network import JointNetwork
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
    looks = bundle.logits(*_looks(embeddings.take(np.array([row])), texts[row]), characteristics)
    found = {}
    for name in characteristics:
        logits, temperatures = looks[name]
        scaled = logits / temperatures
        best, runner_up = np.argsort(-scaled[0].numpy(), kind="stable")[:2].tolist()
        whole, photo, text, nothing = (scaled[:, best] - scaled[:, runner_up]).tolist()
        words = _words(bundle, texts[row], name, best, runner_up)
        found[name] = Explanation(
            label=bundle.labels[name][best],
            probability=float(torch.softmax(scaled[0], 0)[best]),
            runner_up=bundle.labels[name][runner_up],
            base=nothing,
            photo=((photo - nothing) + (whole - text)) / 2,
            text=((text - nothing) + (whole - photo)) / 2,
            words={word: weight / float(temperatures[0]) for word, weight in words.items()},
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


def _words(bundle: "HeadBundle", text: str, characteristic: str, label: int, runner_up: int) -> dict[str, float]:
    """Returns word of the text -> what it adds to the logit of the label, less the runner-up's; the strongest first."""
    if not isinstance(bundle.network, JointNetwork):
        return {}
    rows = bundle.bag.rows([text])
    first = bundle.network.shape.spans[list(bundle.labels).index(characteristic)].start
    logits = bundle.network.word_contributions(rows)[:, [first + label, first + runner_up]]
    weights = (logits[:, 0] - logits[:, 1]).tolist()
    words = [bundle.bag.words[column] for column in rows.indices]
    return dict(sorted(zip(words, weights, strict=True), key=lambda item: -abs(item[1])))
