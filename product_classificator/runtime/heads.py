"""Exported heads: embeddings and texts into predictions, with ONNX Runtime and NumPy.

The dense part is an ONNX network. The words branch is a sum of few rows of a large matrix, which is mapped into memory:
what products name is read, the rest stays on the disk.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from product_classificator.errors import ArtifactError
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.novelty import NoveltyDetector
from product_classificator.heads.selective import check_precision, with_decisions
from product_classificator.heads.telling import tell
from product_classificator.runtime.manifest import (
    HEADS,
    RARITIES,
    SEEN_IMAGE,
    SEEN_TEXT,
    WEIGHTS,
    WORDS,
    Manifest,
)
from product_classificator.types import Embeddings, Floats, Predictions, Rows


@dataclass(frozen=True)
class ExportedHeads:
    """Heads of all characteristics.

    Attributes:
        manifest: labels, calibration, thresholds, hierarchy.
        session: the dense part; takes those of `image`, `text` (n, width) and `has_image`, `has_text` (n, 1), all
            float32, that it uses, and answers (n, all labels) logits.
        vocabulary: the words that they know.
        weights: (words, all labels) float32.
        novelty: tells products unlike those of the training; `None` if the heads can promise nothing.
    """

    manifest: Manifest
    session: onnxruntime.InferenceSession
    vocabulary: Vocabulary
    weights: Floats
    novelty: NoveltyDetector | None

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, threads: int) -> "ExportedHeads":
        """Reads the heads of an exported folder.

        Raises:
            ArtifactError: the files do not fit together.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        n_labels = sum(map(len, manifest.labels.values()))
        try:
            session = onnxruntime.InferenceSession(folder / HEADS, options, ["CPUExecutionProvider"])
            vocabulary, weights = Vocabulary((), np.empty(0, np.float32)), np.empty((0, n_labels), np.float32)
            if WORDS in manifest.sha256:
                known = json.loads((folder / WORDS).read_text(encoding="utf-8"))
                rarities = _array(folder / RARITIES)
                vocabulary = Vocabulary(
                    known, rarities, has_title=manifest.has_title, has_leading_words=manifest.has_leading_words
                )
                weights = np.load(folder / WEIGHTS, mmap_mode="r", allow_pickle=False)
            if weights.shape != (len(vocabulary), n_labels) or session.get_outputs()[0].shape[1] != n_labels:
                raise ValueError(
                    f"{len(vocabulary)} words and {n_labels} labels are promised, weights are {weights.shape}"
                )
            novelty = None
            if manifest.novelty_limits:
                image, text = (_array(folder / name) for name in (SEEN_IMAGE, SEEN_TEXT))
                novelty = NoveltyDetector(image, text, manifest.novelty_limits)
        except Exception as error:  # ONNX Runtime has an exception of its own for each fault, below `Exception` only
            raise ArtifactError(f"the heads of {folder} cannot be read ({error}): export again") from error
        return cls(manifest, session, vocabulary, weights, novelty)

    def predict(
        self, embeddings: Embeddings, texts: Sequence[str], characteristics: Sequence[str] | None = None
    ) -> Predictions:
        """Tells the characteristics of n products; arguments as those of `HeadBundle.predict`.

        Raises:
            DataError: a characteristic is unknown.
        """

        def logits_of(rows: Rows) -> Floats:
            return self.logits(embeddings.take(rows), [texts[row] for row in rows.tolist()])

        return tell(self.manifest, embeddings, characteristics, logits_of)

    def logits(self, embeddings: Embeddings, texts: Sequence[str]) -> Floats:
        """Returns the (n, all labels) logits of products."""
        known = {
            "image": embeddings.image,
            "text": embeddings.text,
            "has_image": embeddings.has_image[:, None].astype(np.float32),
            "has_text": embeddings.has_text[:, None].astype(np.float32),
        }
        inputs = {each.name: known[each.name] for each in self.session.get_inputs()}
        logits: Floats = self.session.run(None, inputs)[0].astype(np.float32, copy=False)
        if len(self.vocabulary):
            self.vocabulary.weigh(texts).add_to(logits, self.weights, embeddings.has_text)
        return logits

    def check_promise(self, min_precision: float) -> NoveltyDetector:
        """Returns what decisions need beside thresholds, or raises as `with_decisions` does."""
        check_precision(min_precision)
        if self.novelty is None:
            raise ArtifactError("decisions need thresholds, and these heads were exported without any: train again")
        return self.novelty

    def with_decisions(
        self, predictions: Predictions, embeddings: Embeddings, texts: Sequence[str], min_precision: float
    ) -> Predictions:
        """Returns the predictions with decisions, as `HeadBundle.decide` does.

        Raises:
            ArtifactError: the heads do not know how often they are right.
            DataError: `min_precision` is no share.
        """
        strange = self.check_promise(min_precision).is_out_of_distribution(embeddings, texts, self.vocabulary)
        return with_decisions(predictions, self.manifest.thresholds, strange, min_precision)


def _array(path: Path) -> Floats:
    found: Floats = np.load(path, allow_pickle=False)
    return found
