"""Detect out-of-distribution products: a noise image, another domain, gibberish.

A product is one if it exceeds a limit that 1 % of the validation products exceed: of the distance (1 - cosine) of image
or text to the nearest of 256 centres of training products (which stand for all of them: Sun et al. 2022,
"Out-of-distribution detection with deep nearest neighbors"), or of the share of words that are not in the vocabulary.
Probabilities are no use here: heads are as confident about noise. Fitted in `training.thresholds`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.text import words_of
from product_classificator.types import Bools, Embeddings, Floats

MAX_DISTANCE = 2.0
"""Largest possible 1 - cosine."""


@dataclass(frozen=True)
class NoveltyDetector:
    """What the training products were like.

    Attributes:
        image: (k, image_dim) float32 unit rows, centres of training images; no rows if images are not used.
        text: (k, text_dim) the same for texts.
        limits: largest in-distribution distance of an image and of a text, and share of unknown words.
    """

    image: Floats
    text: Floats
    limits: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not all(0 <= limit <= MAX_DISTANCE for limit in self.limits):
            raise ValueError(f"limits of novelty must be between 0 and {MAX_DISTANCE:g}, found {self.limits}")

    def scores(self, embeddings: Embeddings, texts: Sequence[str], vocabulary: Vocabulary) -> Floats:
        """Return the (n, 3) distances of images and of texts and shares of unknown words; NaN for a missing part."""
        scores = np.full((len(embeddings), 3), np.nan, dtype=np.float32)
        with_image, with_text = np.flatnonzero(embeddings.has_image), np.flatnonzero(embeddings.has_text)
        scores[with_image, 0] = distances(embeddings.image[with_image], self.image)
        scores[with_text, 1] = distances(embeddings.text[with_text], self.text)
        scores[with_text, 2] = unknown_word_shares([texts[row] for row in with_text.tolist()], vocabulary)
        return scores

    def is_out_of_distribution(self, embeddings: Embeddings, texts: Sequence[str], vocabulary: Vocabulary) -> Bools:
        """Return a mask of the products whose image or raw text is unlike those of the training products."""
        scores = self.scores(embeddings, texts, vocabulary)
        is_novel: Bools = np.any(scores > np.array(self.limits, dtype=np.float32), axis=1)
        return is_novel


def distances(vectors: Floats, centres: Floats) -> Floats:
    """Return (n,) 1 - cosine to the nearest centre; 0 if there are no centres."""
    if not len(centres):
        return np.zeros(len(vectors), dtype=np.float32)
    nearest: Floats = 1 - (vectors @ centres.T).max(1)
    return nearest


def unknown_word_shares(texts: Sequence[str], vocabulary: Vocabulary) -> Floats:
    """Return the (n,) shares of words that are not in the vocabulary; 0 without words or without a vocabulary."""
    words_per_text = [words_of(text) if len(vocabulary) else [] for text in texts]
    shares = [sum(word not in vocabulary for word in words) / max(len(words), 1) for words in words_per_text]
    return np.array(shares, dtype=np.float32)
