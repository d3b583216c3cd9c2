"""Keeps fitted heads: what turns embeddings and texts into predictions, as a folder without any pickle.

The folder holds `weights.safetensors`, `words.json` and, written last, `manifest.json` with the sha256 of the other
two. It is written under a temporary name and renamed, so a bundle is there whole or not at all. Loading believes
nothing (`manifest`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from product_classificator.errors import ArtifactError, DataError, culprits
from product_classificator.files import replacing_folder, sha256_of
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.explain import explain
from product_classificator.heads.hierarchy import Hierarchy
from product_classificator.heads.manifest import (
    FORMAT,
    IDF,
    MANIFEST,
    NAMES,
    SEEN,
    WEIGHTS,
    WORDS,
    Manifest,
    RefinementFacts,
    ShapeFacts,
    check_values,
    hierarchy_of,
    missing_weights,
    novelty_of,
    read_checked,
    read_manifest,
)
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.novelty import NoveltyDetector
from product_classificator.heads.selective import MIN_PRECISION, Thresholds, check_precision, with_decisions
from product_classificator.heads.shape import NetworkShape
from product_classificator.heads.sharpness import temperatures_of
from product_classificator.heads.telling import calibration_of, check_calibration, check_known, tell
from product_classificator.types import Embeddings, Floats, Predictions, Rows

_LEFT_BY_DESKTOPS = {".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class HeadBundle:
    """Fitted heads of all characteristics.

    Attributes:
        network: gives the logits of all characteristics.
        vocabulary: the words it knows.
        labels: characteristic -> labels, in the order of the probability columns.
        encoder_fingerprint: only embeddings of this encoder can be judged; empty in heads that were imported for an
            encoder of a name and do not know its weights yet (`bound_to`).
        temperatures: what the logits of each characteristic are divided by, so that probabilities mean something.
        facts: how the heads were trained; JSON values.
        encoder_name: what `load_encoder` was asked for; empty in older bundles.
        exponents: how the temperature of each characteristic depends on the product (`calibration`); empty: not.
        thresholds: characteristic -> from which probability on a precision is promised; empty in heads that were not
            fitted here, and in older bundles.
        novelty: tells products unlike those of the training; `None` where there are no thresholds.
        hierarchy: which characteristic refines which; predictions never contradict it. Empty in older bundles.
        decision_thresholds: multi-label characteristic -> for each of its labels the probability from which on a product bears it.
    """

    network: FittedNetwork
    vocabulary: Vocabulary
    labels: Mapping[str, tuple[str, ...]]
    encoder_fingerprint: str
    temperatures: tuple[float, ...]
    facts: Mapping[str, Any]
    encoder_name: str = ""
    exponents: tuple[float, ...] = ()
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)
    novelty: NoveltyDetector | None = None
    hierarchy: Hierarchy = ()
    decision_thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def image_dim(self) -> int:
        """Width of the image part, 0 if photos are not used."""
        return self.network.shape.image_dim

    @property
    def text_dim(self) -> int:
        """Width of the text part, 0 if texts are not used."""
        return self.network.shape.text_dim

    @property
    def digest(self) -> str:
        """Names what decides predictions and decisions: weights, words, labels, temperatures, thresholds, hierarchy."""
        limits = self.novelty.limits if self.novelty else ()
        decided = [self.temperatures, self.exponents, dict(self.thresholds), limits]
        known = json.dumps([dict(self.labels), self.vocabulary.words, *decided, self.encoder_fingerprint])
        known += json.dumps([asdict(each) for each in self.hierarchy]) if self.hierarchy else ""
        known += json.dumps(dict(self.decision_thresholds)) if self.decision_thresholds else ""
        known += "title" if self.vocabulary.has_title else ""
        known += "openings" if self.vocabulary.has_leading_words else ""
        digest = hashlib.sha256(known.encode())
        for name, weight in sorted(self._weights().items()):
            digest.update(name.encode() + weight.tobytes())
        return digest.hexdigest()

    @property
    def can_decide(self) -> bool:
        """Whether `with_decisions` can be asked: only heads that were fitted here know how often they are right."""
        return self.novelty is not None

    def check_promise(self, min_precision: float) -> NoveltyDetector:
        """Returns what decisions need beside thresholds, or raises as `with_decisions` does."""
        check_precision(min_precision)
        if self.novelty is None:
            raise ArtifactError(
                "decisions need thresholds from a validation part, and these heads have none: they were imported, made "
                "of names, or fitted by an older version; train again"
            )
        return self.novelty

    def bound_to(self, name: str, fingerprint: str, image_dim: int, text_dim: int) -> "HeadBundle":
        """Returns these heads for the embeddings of one encoder.

        Args:
            name: the encoder's; heads that know no weights yet fit the encoder of their `encoder_name`.
            fingerprint: the encoder's; heads that know theirs fit no other.
            image_dim: width of the encoder's image part.
            text_dim: width of its text part.

        Raises:
            ArtifactError: the encoder does not fit.
        """
        if self.encoder_fingerprint:
            fits = fingerprint == self.encoder_fingerprint
        else:
            widths = ((self.image_dim, image_dim), (self.text_dim, text_dim))
            fits = name == self.encoder_name and all(own in (0, width) for own, width in widths)
        if not fits:
            own = f"{self.encoder_name!r} ({self.encoder_fingerprint or 'any'}, {self.image_dim} + {self.text_dim})"
            raise ArtifactError(
                f"heads fit one encoder: these are for {own}, got {name!r} ({fingerprint}, {image_dim} + {text_dim}); "
                "load the encoder they are for, or train again"
            )
        return self if self.encoder_fingerprint else replace(self, encoder_fingerprint=fingerprint)

    def predict(
        self, embeddings: Embeddings, texts: Sequence[str], characteristics: Sequence[str] | None = None
    ) -> Predictions:
        """Tells the characteristics of products.

        Args:
            embeddings: of n products, made by the encoder that the heads were trained on.
            texts: (n,) their raw texts.
            characteristics: which to tell; all by default.

        Raises:
            ArtifactError: the embeddings were made by another encoder, or the heads are not bound to one yet.
            DataError: a characteristic is unknown, or texts and embeddings differ in length.
        """
        self._check(embeddings, texts)

        def logits_of(rows: Rows) -> Floats:
            return self._logits(embeddings.take(rows), [texts[row] for row in rows.tolist()])

        told = tell(self, embeddings, characteristics, logits_of)
        return replace(told, explainer=partial(explain, self, embeddings, texts, told.characteristics))

    def logits(self, embeddings: Embeddings, texts: Sequence[str]) -> dict[str, Floats]:
        """Returns characteristic -> (n, labels) logits, of products with neither photo nor text as well."""
        found = self._logits(embeddings, texts)
        return {name: found[:, span] for name, span in zip(self.labels, self.network.shape.spans, strict=True)}

    def _logits(self, embeddings: Embeddings, texts: Sequence[str]) -> Floats:
        return self.network.logits(embeddings, self.vocabulary.weigh(texts))

    def temperatures_of(self, characteristic: str, logits: Floats) -> Floats:
        """Returns the (n,) temperatures of products by their logits of a characteristic."""
        return temperatures_of(logits, *calibration_of(self, characteristic))

    def with_decisions(
        self,
        predictions: Predictions,
        embeddings: Embeddings,
        texts: Sequence[str],
        min_precision: float = MIN_PRECISION,
    ) -> Predictions:
        """Returns the predictions with decisions: which values stand, and which a person should review.

        Of the values of a characteristic that stand, a share of `min_precision` is right, as far as the products are
        like those of the validation part. Where it cannot be promised, all values are for review; so are those of a
        product unlike anything in training.

        Args:
            predictions: what these heads say of n products.
            embeddings: of the same products.
            texts: (n,) their raw texts.
            min_precision: above 0 and below 1.

        Raises:
            ArtifactError: the heads do not know how often they are right.
            DataError: `min_precision` is no share.
        """
        novelty = self.check_promise(min_precision)
        self._check(embeddings, texts)
        check_known(self, predictions.characteristics)
        strange = novelty.is_out_of_distribution(embeddings, texts, self.vocabulary)
        return with_decisions(predictions, self.thresholds, strange, min_precision)

    def _check(self, embeddings: Embeddings, texts: Sequence[str]) -> None:
        if not self.encoder_fingerprint:
            raise ArtifactError(
                f"heads judge only embeddings of their encoder, and these, for {self.encoder_name!r}, do not know its "
                "weights yet: bind them to the loaded encoder with bound_to first, as Classificator does"
            )
        if embeddings.fingerprint != self.encoder_fingerprint:
            raise ArtifactError(
                f"heads judge only embeddings of the encoder they were trained on, {self.encoder_fingerprint!r}; "
                f"these were made by {embeddings.fingerprint!r}: embed again with that encoder, or fit new heads"
            )
        if len(texts) != len(embeddings):
            raise DataError(f"every product needs one text: {len(embeddings)} embeddings, {len(texts)} texts")

    def save(self, folder: str | Path) -> None:
        """Writes the bundle as a new folder, or in place of an older bundle there.

        Raises:
            ArtifactError: `folder` exists and holds more than a bundle.
        """
        check_place(Path(folder))
        with replacing_folder(Path(folder)) as new:
            self._write(new)

    def _weights(self) -> dict[str, Floats]:
        weights = dict(self.network.weights)
        if self.novelty:
            weights |= dict(zip(SEEN, (self.novelty.image, self.novelty.text), strict=True))
        return {name: np.asarray(weight, order="C") for name, weight in weights.items()}

    def _write(self, folder: Path) -> None:
        save_file({**self._weights(), IDF: self.vocabulary.idf}, folder / WEIGHTS)
        (folder / WORDS).write_text(json.dumps(self.vocabulary.words, ensure_ascii=False), encoding="utf-8")
        shape = asdict(self.network.shape)
        del shape["n_labels"]
        manifest = Manifest(
            format=FORMAT,
            encoder_name=self.encoder_name,
            encoder_fingerprint=self.encoder_fingerprint,
            labels={name: list(names) for name, names in self.labels.items()},
            temperatures=list(self.temperatures),
            exponents=list(self.exponents),
            thresholds={name: [list(step) for step in steps] for name, steps in self.thresholds.items()},
            novelty_limits=list(self.novelty.limits) if self.novelty else None,
            hierarchy=[RefinementFacts(**asdict(each)) for each in self.hierarchy],
            decision_thresholds={
                name: list(decision_thresholds) for name, decision_thresholds in self.decision_thresholds.items()
            },
            has_title=self.vocabulary.has_title,
            has_leading_words=self.vocabulary.has_leading_words,
            network=ShapeFacts(**shape),
            facts=dict(self.facts),
            sha256={name: sha256_of(folder / name) for name in (WEIGHTS, WORDS)},
        )
        (folder / MANIFEST).write_text(
            json.dumps(manifest.model_dump(), ensure_ascii=False, indent=1), encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: str | Path) -> "HeadBundle":
        """Reads a bundle.

        Raises:
            ArtifactError: the folder is no bundle, is damaged, or was written by a newer version.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        weights_bytes, words_bytes = (read_checked(folder, name, manifest) for name in (WEIGHTS, WORDS))
        n_labels = tuple(len(names) for names in manifest.labels.values())
        try:
            weights = load(weights_bytes)
            idf: Floats = weights.pop(IDF)
            novelty = novelty_of(manifest, weights)
            known = json.loads(words_bytes)
            vocabulary = Vocabulary(
                known, idf, has_title=manifest.has_title, has_leading_words=manifest.has_leading_words
            )
            weights |= missing_weights(manifest)
            shape = NetworkShape(**manifest.network.model_dump(), n_labels=n_labels)
            network = FittedNetwork(shape, weights)
            check_values(manifest, vocabulary, weights)
            bundle = cls(
                network,
                vocabulary,
                {name: tuple(names) for name, names in manifest.labels.items()},
                manifest.encoder_fingerprint,
                tuple(manifest.temperatures),
                manifest.facts,
                manifest.encoder_name,
                tuple(manifest.exponents),
                {name: tuple((p, level) for p, level in steps) for name, steps in manifest.thresholds.items()},
                novelty,
                hierarchy=hierarchy_of(manifest),
                decision_thresholds={
                    name: tuple(decision_thresholds)
                    for name, decision_thresholds in manifest.decision_thresholds.items()
                },
            )
            check_calibration(bundle, decides=novelty is not None)
        except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise ArtifactError(f"the files of {folder} do not fit together ({error}): fit the heads again") from error
        return bundle


def check_place(folder: Path) -> None:
    """Raises `ArtifactError` if what is no bundle would be replaced by one that is saved there."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = [folder.name] if folder.is_file() else sorted(found - NAMES - _LEFT_BY_DESKTOPS)
    if others:
        raise ArtifactError(
            f"a bundle is saved as a folder of its own, but {folder} holds other things: {culprits(others)}"
        )
