"""Turn a prediction into what moved it: the image, the text, and the words of the text.

The unit is the log-odds of the label against the runner-up, so weights can be compared and added up. Image and text
share the credit by their Shapley values (Shapley 1953; Lundberg and Lee 2017), exact for two players after four views
of the product. The words branch is linear, so the weights of words are exact too; what a text says beyond its words,
through its embedding, is in the credit of the text.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from product_classificator.heads.bag_of_words import LEADING
from product_classificator.heads.calibration import Characteristic
from product_classificator.types import Embeddings, Explanation, Floats, Predictions


def views_of(product: Embeddings) -> Embeddings:
    """Return one product four times: complete, its image only, its text only, nothing of it."""
    four = product.take(np.zeros(4, dtype=np.int64))
    keeps_image, keeps_text = np.array([True, True, False, False]), np.array([True, False, True, False])
    return replace(four, has_image=four.has_image & keeps_image, has_text=four.has_text & keeps_text)


def explain(
    characteristic: Characteristic, prediction: Predictions, logits: Floats, word_logits: Mapping[str, Floats]
) -> Explanation | None:
    """Return what moved the prediction of one product, `None` if nothing is predicted.

    `logits` are the (4, k) of `views_of`, `word_logits` the (k,) share of each known word of the text.
    """
    name, labels = characteristic.name, characteristic.labels
    # All views get the temperature of the complete product: otherwise shares would not add up.
    temperature = float(characteristic.temperatures(logits[:1])[0])
    scaled = logits / np.float32(temperature) + np.array(characteristic.log_priors or 0, dtype=np.float32)
    order = np.argsort(-scaled[0], kind="stable").tolist()
    label = labels[order[0]] if characteristic.is_multi_label else prediction.best(name)[0]
    if label is None:
        return None
    best = labels.index(label)
    runner_up = None if characteristic.is_multi_label else next(column for column in order if column != best)

    def log_odds(logits: Floats) -> Floats:
        return logits[..., best] - (0.0 if runner_up is None else logits[..., runner_up])

    complete, image_only, text_only, nothing = log_odds(scaled).tolist()
    words: defaultdict[str, float] = defaultdict(float)
    for word, of_word in word_logits.items():
        words[word.removeprefix(LEADING)] += float(log_odds(of_word)) / temperature
    return Explanation(
        label=label,
        probability=float(prediction.probabilities[name][0, best]),
        runner_up=None if runner_up is None else labels[runner_up],
        base=nothing,
        photo=((image_only - nothing) + (complete - text_only)) / 2,
        text=((text_only - nothing) + (complete - image_only)) / 2,
        words=dict(sorted(words.items(), key=lambda item: -abs(item[1]))),
    )
