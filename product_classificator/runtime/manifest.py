"""What an exported folder says of itself, and whether its files are those that were written.

    manifest.json      this; written last
    requirements.txt   what must be installed to use the folder, for pip
    image.onnx, text.onnx, tokenizer.json   the encoder: what there is of it, and what the heads use
    heads.onnx         parts of products -> logits
    words.json, words.npy, rarities.npy     the words branch: vocabulary, (words, labels) weights, rarity of each word
    seen_image.npy, seen_text.npy           centres of training products, for `min_precision`

Arrays are NumPy's own files, read without pickle; the weights of words are mapped into memory, not read into it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from product_classificator.catalog.photo import Channels
from product_classificator.encoders.onnx_towers import IMAGE_FILE, TEXT_FILE
from product_classificator.errors import ArtifactError, culprits
from product_classificator.files import sha256_of, write_text
from product_classificator.heads.hierarchy import Hierarchy, Refinement
from product_classificator.heads.selective import Thresholds
from product_classificator.heads.telling import check_calibration

FORMAT = 2
MANIFEST, REQUIREMENTS = "manifest.json", "requirements.txt"
TOKENIZER, HEADS, WORDS, WEIGHTS, RARITIES = "tokenizer.json", "heads.onnx", "words.json", "words.npy", "rarities.npy"
SEEN_IMAGE, SEEN_TEXT = "seen_image.npy", "seen_text.npy"
FILES = frozenset(
    {REQUIREMENTS, IMAGE_FILE, TEXT_FILE, TOKENIZER, HEADS, WORDS, WEIGHTS, RARITIES, SEEN_IMAGE, SEEN_TEXT}
)
KINDS = ("lite", "ruclip", "hub")


@dataclass(frozen=True)
class EncoderFacts:
    """How photos and texts become vectors.

    Attributes:
        kind: "lite", "ruclip", or "hub" for `hf:`.
        name: what the encoder was called in training.
        fingerprint: of its weights and preparation.
        image_dim: length of an image vector.
        text_dim: length of a text vector.
        is_cleaning: whether texts are cleaned as published.
        photos: preparation of photos: the fields of `SquarePreparation` or `PlainImages`, or words for a person.
        texts: preparation of texts: arguments of `TokenPreparation` or `PlainTexts`, or sha256 of a package's files.
    """

    kind: str
    name: str
    fingerprint: str
    image_dim: int
    text_dim: int
    is_cleaning: bool
    photos: Mapping[str, Any]
    texts: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        made_by: the version that wrote it.
        encoder: how photos and texts become vectors.
        channels: "bgr" if files of photos have red and blue swapped.
        image_dim: width of the image part that the heads use, 0 if they use none.
        text_dim: likewise, of the text part.
        labels: characteristic -> labels, in the order of the probability columns.
        temperatures: of each characteristic.
        exponents: likewise; empty: none.
        thresholds: characteristic -> (precision, probability from which on it is promised), ascending.
        novelty_limits: the largest familiar distance of a photo, of a text, and share of unknown words; `None`: the heads
            can promise nothing.
        hierarchy: which characteristic refines which.
        decision_thresholds: multi-label characteristic -> for each label the probability from which on a product bears it.
        has_title: whether the first line of a text weighs as much as all that follows.
        has_leading_words: whether the first word of a text, and its first two, count as words of their own too.
        requires: package of pip -> version that the folder was written and checked with.
        sha256: file -> digest.
    """

    made_by: str
    encoder: EncoderFacts
    channels: Channels
    image_dim: int
    text_dim: int
    labels: Mapping[str, tuple[str, ...]]
    temperatures: tuple[float, ...]
    exponents: tuple[float, ...]
    thresholds: Mapping[str, Thresholds]
    novelty_limits: tuple[float, float, float] | None
    hierarchy: Hierarchy
    decision_thresholds: Mapping[str, tuple[float, ...]]
    has_title: bool
    has_leading_words: bool
    requires: Mapping[str, str]
    sha256: Mapping[str, str]

    @property
    def needed(self) -> set[str]:
        """The files that are read, but for those that only some heads have."""
        towers = {IMAGE_FILE} if self.image_dim else set()
        if self.encoder.kind != "lite":
            towers |= {TOKENIZER, *([TEXT_FILE] if self.text_dim else [])}
        words = {WORDS, WEIGHTS, RARITIES} if WORDS in self.sha256 else set()
        return {HEADS, REQUIREMENTS, *towers, *words, *([SEEN_IMAGE, SEEN_TEXT] if self.novelty_limits else [])}

    def write(self, folder: Path) -> None:
        """Writes `manifest.json`."""
        found = {"format": FORMAT, **asdict(self)}
        write_text(folder / MANIFEST, json.dumps(found, ensure_ascii=False, indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads `manifest.json`, and checks all files against it.

        Raises:
            ArtifactError: there is none, it is of a newer version or damaged, or a file is missing or was changed.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ArtifactError(f"an exported folder holds {MANIFEST}, {folder} holds none: write it with `export`")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            number = found["format"]
            if number not in (1, FORMAT):  # 1 knows no openings, and is else as 2
                raise ArtifactError(
                    f"{folder} has format {number}, this version reads {FORMAT}: export again with this version, or "
                    "install the one that wrote it"
                )
            manifest = _parsed(found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path} is not the manifest of an exported folder ({error!r}): export again"
            ) from error
        unknown = sorted((set(manifest.sha256) - FILES) | (manifest.needed - set(manifest.sha256)))
        changed = [
            name
            for name, digest in manifest.sha256.items()
            if name in FILES and (not (folder / name).is_file() or sha256_of(folder / name) != digest)
        ]
        if unknown or changed:
            raise ArtifactError(
                f"the files of an export stay as they were written; in {folder} missing, changed or unknown are "
                f"{culprits(unknown + changed)}: copy it anew"
            )
        return manifest


def _parsed(found: Mapping[str, Any]) -> Manifest:
    labels = {name: tuple(names) for name, names in found["labels"].items()}
    hierarchy = tuple(Refinement(**each) for each in found["hierarchy"])
    novelty_limits = found["novelty_limits"]
    manifest = Manifest(
        made_by=found["made_by"],
        encoder=EncoderFacts(**found["encoder"]),
        channels=found["channels"],
        image_dim=found["image_dim"],
        text_dim=found["text_dim"],
        labels=labels,
        temperatures=tuple(found["temperatures"]),
        exponents=tuple(found["exponents"]),
        thresholds={name: tuple((p, level) for p, level in steps) for name, steps in found["thresholds"].items()},
        novelty_limits=None if novelty_limits is None else (novelty_limits[0], novelty_limits[1], novelty_limits[2]),
        hierarchy=hierarchy,
        decision_thresholds={
            name: tuple(decision_thresholds) for name, decision_thresholds in found["decision_thresholds"].items()
        },
        has_title=bool(found["has_title"]),
        has_leading_words=bool(found.get("has_leading_words", False)),
        requires=dict(found["requires"]),
        sha256=dict(found["sha256"]),
    )
    if manifest.encoder.kind not in KINDS:
        raise ValueError(f"an encoder is of one of the kinds {', '.join(KINDS)}, found {manifest.encoder.kind!r}")
    check_calibration(manifest, decides=novelty_limits is not None)
    return manifest
