"""Fitted heads of all characteristics: turn embeddings and texts into predictions, and keep themselves as a folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from product_classificator.errors import ArtifactError, DataError, nearest
from product_classificator.files import replacing_folder
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.calibration import Characteristic
from product_classificator.heads.explain import explain, views_of
from product_classificator.heads.hierarchy import (
    Hierarchy,
    check_hierarchy,
    reconcile,
    restrict_hierarchy,
    with_relatives,
)
from product_classificator.heads.manifest import check_parts, check_target, read_bundle, weights_of, write_bundle
from product_classificator.heads.network import ROWS_PER_STEP, Network
from product_classificator.heads.novelty import NoveltyDetector
from product_classificator.types import Decisions, Embeddings, Explanation, Floats, OutOfFold, Predictions, Strings

MIN_PRECISION = 0.95
"""The default target precision of decisions."""


@dataclass(frozen=True, kw_only=True)
class HeadBundle:
    """Fitted heads of all characteristics.

    Attributes:
        characteristics: labels and calibration, in the order of the columns of logits.
        encoder_name: name for `load_encoder`.
        encoder_fingerprint: only embeddings of this encoder can be judged; empty in heads that were imported for an
            encoder by name and do not know its weights yet (`bound_to`).
        facts: how the heads were trained; JSON values.
        novelty: detects out-of-distribution products; `None` in heads that cannot make decisions.
        hierarchy: which characteristic refines which; predictions never contradict it.
    """

    characteristics: tuple[Characteristic, ...]
    network: Network
    vocabulary: Vocabulary
    encoder_name: str
    encoder_fingerprint: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    novelty: NoveltyDetector | None = None
    hierarchy: Hierarchy = ()

    def __post_init__(self) -> None:
        n_labels = tuple(len(characteristic.labels) for characteristic in self.characteristics)
        if not n_labels or len(self.labels) < len(n_labels) or n_labels != self.network.shape.n_labels:
            raise ValueError(
                f"characteristics must be distinct and fit the network: they have {n_labels} labels, the network "
                f"{self.network.shape.n_labels}"
            )
        check_parts(self.network, self.vocabulary, self.novelty)
        check_hierarchy(self.hierarchy)
        if restrict_hierarchy(self.hierarchy, self.labels) != self.hierarchy:
            raise ValueError("the hierarchy names labels that the heads do not know")
        refined = {name for refinement in self.hierarchy for name in (refinement.child, refinement.parent)}
        if any(self[name].is_multi_label for name in refined):
            raise ValueError("a multi-label characteristic refines none and is refined by none")

    def __getitem__(self, name: str) -> Characteristic:
        """Return a characteristic, or raise `DataError` if there is none of that name."""
        for characteristic in self.characteristics:
            if characteristic.name == name:
                return characteristic
        raise DataError(f"the heads know no characteristic {name!r}: {nearest(name, self.labels)}")

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Characteristic -> labels, in the order of the probability columns."""
        return {characteristic.name: characteristic.labels for characteristic in self.characteristics}

    @property
    def image_dim(self) -> int:
        """Width of the image part, 0 if images are not used."""
        return self.network.shape.image_dim

    @property
    def text_dim(self) -> int:
        """Width of the text part, 0 if texts are not used."""
        return self.network.shape.text_dim

    @property
    def digest(self) -> str:
        """Identify everything that predictions and decisions depend on."""
        vocabulary, limits = self.vocabulary, self.novelty and self.novelty.limits
        values = [self._values(), limits, vocabulary.words, vocabulary.has_title, vocabulary.has_leading_words]
        digest = hashlib.sha256(json.dumps(values).encode())
        for name, weight in sorted({**weights_of(self.network, self.novelty), "idf": vocabulary.idf}.items()):
            digest.update(name.encode() + weight.tobytes())
        return digest.hexdigest()

    def check_can_decide(self, min_precision: float) -> NoveltyDetector:
        """Return the novelty detector, or raise as `with_decisions` does."""
        if not 0 < min_precision < 1:
            raise DataError(f"min_precision must be between 0 and 1 (exclusive), got {min_precision}")
        if self.novelty is None:
            raise ArtifactError(
                "decisions need thresholds from validation products, and these heads have none: they were imported or "
                "made from label names; train heads instead"
            )
        return self.novelty

    def bound_to(self, name: str, fingerprint: str, image_dim: int, text_dim: int) -> "HeadBundle":
        """Return these heads for the embeddings of the encoder with this name, fingerprint and widths.

        Raises:
            ArtifactError: the encoder does not fit: by its fingerprint, or where heads know none yet, by its name.
        """
        if self.encoder_fingerprint:
            fits = fingerprint == self.encoder_fingerprint
        else:
            widths = ((self.image_dim, image_dim), (self.text_dim, text_dim))
            fits = name == self.encoder_name and all(used in (0, width) for used, width in widths)
        if not fits:
            raise ArtifactError(
                f"heads fit one encoder: these are for {self.encoder_name!r} ({self.encoder_fingerprint or 'any'}, "
                f"{self.image_dim} + {self.text_dim}), got {name!r} ({fingerprint}, {image_dim} + {text_dim}); "
                "load the encoder they are for, or train again"
            )
        return self if self.encoder_fingerprint else replace(self, encoder_fingerprint=fingerprint)

    def predict(
        self, embeddings: Embeddings, texts: Sequence[str], characteristics: Sequence[str] | None = None
    ) -> Predictions:
        """Predict characteristics (all by default) of n products by their embeddings and raw texts.

        Raises:
            ArtifactError: the embeddings were made by another encoder, or the heads are not bound to one yet.
            DataError: a characteristic is unknown, or texts and embeddings differ in length.
        """
        self._check(embeddings, texts)
        wanted = {name: self[name] for name in (self.labels if characteristics is None else characteristics)}
        labels = {name: characteristic.labels for name, characteristic in wanted.items()}
        needed = [self[name] for name in with_relatives(wanted, self.hierarchy)]
        is_known = embeddings.has_image & (self.image_dim > 0) | embeddings.has_text & (self.text_dim > 0)
        probabilities = {name: np.full((len(embeddings), len(labels[name])), np.nan, np.float32) for name in wanted}
        known_rows = np.flatnonzero(is_known)
        for start in range(0, len(known_rows), ROWS_PER_STEP):
            rows = known_rows[start : start + ROWS_PER_STEP]
            logits = self.logits(embeddings.take(rows), [texts[row] for row in rows.tolist()])
            consistent = consistent_probabilities(logits, needed, self.hierarchy)
            for name, matrix in probabilities.items():
                matrix[rows] = consistent[name]
        thresholds = {name: item.decision_thresholds for name, item in wanted.items() if item.decision_thresholds}
        explainer = partial(self._explain, embeddings, texts, tuple(wanted))
        return Predictions(
            embeddings.ids,
            labels,
            probabilities,
            is_known,
            explainer=explainer,
            decision_thresholds=thresholds,
            decision_weights={name: item.decision_weights for name, item in wanted.items() if item.log_priors},
        )

    def logits(self, embeddings: Embeddings, texts: Sequence[str]) -> dict[str, Floats]:
        """Return characteristic -> (n, labels) logits, including products with neither image nor text."""
        return self._by_characteristic(self.network.logits(embeddings, self.vocabulary.weigh(texts)))

    def _by_characteristic(self, logits: Floats) -> dict[str, Floats]:
        return {name: logits[:, columns] for name, columns in zip(self.labels, self.network.shape.columns, strict=True)}

    def _explain(
        self, embeddings: Embeddings, texts: Sequence[str], characteristics: Sequence[str], row: int
    ) -> dict[str, Explanation]:
        """Return characteristic -> what moved the prediction of the product of a row."""
        product, text = embeddings.take(np.array([row])), texts[row]
        prediction = self.predict(product, [text], characteristics)
        logits, words = self.logits(views_of(product), [text] * 4), self.vocabulary.weigh([text])
        contributions = self.network.weights["word_weights"][words.columns] * words.weights[:, None]
        word_logits = self._by_characteristic(contributions)
        columns = words.columns[words.columns < self.vocabulary.n_whole]  # pieces of words say nothing to a reader
        known_words = [self.vocabulary.words[column] for column in columns]
        explanations = {
            name: explain(self[name], prediction, logits[name], dict(zip(known_words, word_logits[name], strict=False)))
            for name in characteristics
        }
        return {name: explanation for name, explanation in explanations.items() if explanation is not None}

    def with_decisions(
        self,
        predictions: Predictions,
        embeddings: Embeddings,
        texts: Sequence[str],
        min_precision: float = MIN_PRECISION,
    ) -> Predictions:
        """Return the predictions with decisions: which are accepted, and which a person should review.

        Of the accepted predictions of a characteristic a share of at least `min_precision` is correct, with 90 %
        probability and as far as the products are like the validation products (`training.thresholds`). Where that
        cannot be promised, all predictions are for review; so are those of an out-of-distribution product.

        Raises:
            ArtifactError: the heads have no thresholds.
            DataError: `min_precision` is out of range.
        """
        novelty = self.check_can_decide(min_precision)
        self._check(embeddings, texts)
        is_novel, accepted = novelty.is_out_of_distribution(embeddings, texts, self.vocabulary), {}
        for name in predictions.characteristics:
            is_confident = self[name].promises(predictions.confidence(name)) >= np.float32(min_precision)
            accepted[name] = is_confident & predictions.is_predicted(name) & ~is_novel
        return replace(predictions, decisions=Decisions(min_precision, accepted, is_novel))

    def judged(
        self,
        out_of_fold: OutOfFold,
        ids: Strings,
        min_precision: float = MIN_PRECISION,
        characteristics: Sequence[str] | None = None,
    ) -> Predictions:
        """Return out-of-fold predictions, made when these heads were fitted, of products with (m,) ids, decided."""
        self.check_can_decide(min_precision)
        wanted = {name: self[name] for name in (self.labels if characteristics is None else characteristics)}
        is_novel = out_of_fold.is_out_of_distribution
        accepted = {name: (out_of_fold.promises[name] >= np.float32(min_precision)) & ~is_novel for name in wanted}
        return Predictions(
            ids,
            {name: item.labels for name, item in wanted.items()},
            {name: out_of_fold.probabilities[name] for name in wanted},
            np.ones(len(ids), dtype=bool),
            decisions=Decisions(min_precision, accepted, is_novel),
            decision_thresholds={n: item.decision_thresholds for n, item in wanted.items() if item.decision_thresholds},
            decision_weights={name: item.decision_weights for name, item in wanted.items() if item.log_priors},
        )

    def _check(self, embeddings: Embeddings, texts: Sequence[str]) -> None:
        if not self.encoder_fingerprint:
            raise ArtifactError(
                f"heads need embeddings of their encoder, and these, for {self.encoder_name!r}, do not know its "
                "weights yet: bind them to the loaded encoder with bound_to first, as Classificator does"
            )
        if embeddings.fingerprint != self.encoder_fingerprint:
            raise ArtifactError(
                f"heads need embeddings of the encoder they were trained on, {self.encoder_fingerprint!r}; "
                f"these were made by {embeddings.fingerprint!r}: embed again with that encoder, or fit new heads"
            )
        if len(texts) != len(embeddings):
            raise DataError(f"every product needs one text: {len(embeddings)} embeddings, {len(texts)} texts")

    def _values(self) -> dict[str, Any]:
        """Return the fields that the manifest stores as they are, except the facts."""
        return {
            "encoder_fingerprint": self.encoder_fingerprint,
            "characteristics": [asdict(characteristic) for characteristic in self.characteristics],
            "hierarchy": [asdict(refinement) for refinement in self.hierarchy],
        }

    def save(self, folder: str | Path) -> None:
        """Write the bundle as a new folder, or replace an older bundle there; it is complete or absent.

        Raises:
            ArtifactError: `folder` exists and holds more than a bundle.
        """
        check_target(Path(folder))
        values = {"encoder_name": self.encoder_name, **self._values(), "facts": dict(self.facts)}
        with replacing_folder(Path(folder)) as new:
            write_bundle(new, self.network, self.vocabulary, self.novelty, **values)

    @classmethod
    def load(cls, folder: str | Path) -> "HeadBundle":
        """Read a bundle.

        Raises:
            ArtifactError: the folder is not a bundle, is damaged, or was written by another version.
        """
        return read_bundle(Path(folder), cls)


def consistent_probabilities(
    logits: Mapping[str, Floats], characteristics: Sequence[Characteristic], hierarchy: Hierarchy
) -> dict[str, Floats]:
    """Return characteristic -> (n, k) probabilities by logits; the labels that they predict suit the hierarchy."""
    scores = {item.name: item.scores(logits[item.name]) for item in characteristics}
    consistent = reconcile(scores, {item.name: item.labels for item in characteristics}, hierarchy)
    return {item.name: item.with_priors(consistent[item.name]) for item in characteristics}
