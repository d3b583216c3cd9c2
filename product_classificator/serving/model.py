"""A model in service: decoded products in, their answers out; a newer one replaces it without a pause."""

import base64
import binascii
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from product_classificator.catalog.photo import PhotoError
from product_classificator.classificator import Classificator
from product_classificator.embeddings.products import encode_products, prepare_image
from product_classificator.encoders.base import Dtype
from product_classificator.errors import ArtifactError
from product_classificator.serving import observe
from product_classificator.serving.schemas import ClassifiedProduct, ModelFacts, Prediction, Scored
from product_classificator.serving.settings import MEGABYTE, ServeSettings
from product_classificator.types import Explanation, Floats, Predictions

Wanted = tuple[int, float | None]
"""Number of labels in `top`, target precision (`None`: no decisions)."""

logger = logging.getLogger(__name__)
_WRITTEN_LAST = ("run.json", "export.json", "manifest.json")


@dataclass(frozen=True)
class ModelSource:
    """A run, a bundle or an export, and how to load it, see `Classificator`."""

    path: Path
    encoder: str | None = None
    device: str = "cpu"
    dtype: Dtype = "auto"

    @property
    def last_files(self) -> list[Path]:
        """Those files of which a complete folder holds one, which was written last."""
        return [self.path / name for name in _WRITTEN_LAST]


@dataclass(frozen=True)
class ServedItem:
    """A decoded product: its text and its image, prepared, or the reason why there is none (`detail`: in words)."""

    text: str
    image: Image.Image | str
    detail: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Pixels and characters."""
        return 0 if isinstance(self.image, str) else self.image.width * self.image.height, len(self.text)


class ServedResult(NamedTuple):
    """The answer for one product, its vectors, `None` without a usable image or text, and what explains it."""

    product: ClassifiedProduct
    image: Floats | None = None
    text: Floats | None = None
    explain: Callable[[], Mapping[str, Explanation]] = dict


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model; equal fingerprints mean equal answers."""

    name: str
    classificator: Classificator
    max_photo_bytes: int
    loaded_at: datetime

    @classmethod
    def load(cls, source: ModelSource, settings: ServeSettings) -> "ServedModel":
        """Load a model and let it answer once, so that the first request is no slower.

        Raises:
            ArtifactError: it is missing or damaged, or its answers are no probabilities.
        """
        how: dict[str, Any] = {"dtype": source.dtype, "threads": settings.threads}
        classificator = Classificator(source.device, model_name=source.encoder, heads_ver=source.path, **how)
        classificator.max_pixels = settings.max_pixels
        max_photo_bytes = int(settings.max_photo_mb * MEGABYTE)
        model = cls(source.path.absolute().name, classificator, max_photo_bytes, datetime.now(UTC))
        model.check_canary(*model.run((1, None), [model.canary()]))
        logger.info("loaded %s", model.fingerprint)
        return model

    @cached_property
    def fingerprint(self) -> str:
        """Identifies heads and encoder; takes 0.1 s to compute."""
        return f"{self.classificator.bundle.digest[:16]}-{self.classificator.encoder.fingerprint}"

    def facts(self, reload_error: str | None) -> ModelFacts:
        """Return what clients may know."""
        bundle, encoder = self.classificator.bundle, self.classificator.encoder
        return ModelFacts(
            name=self.name,
            fingerprint=self.fingerprint,
            encoder=Path(encoder.name).name,  # not the folders of the server
            encoder_fingerprint=encoder.fingerprint,
            can_decide=bundle.novelty is not None,
            loaded_at=self.loaded_at.isoformat(timespec="seconds"),
            reload_error=reload_error,
            characteristics={name: list(labels) for name, labels in bundle.labels.items()},
        )

    def decode(self, text: str, photo: bytes | str | None) -> ServedItem:
        """Decode and shrink a photo, a file or one in base64; what cannot be used becomes a reason."""
        if not photo or not self.classificator.bundle.image_dim:
            return ServedItem(text, "missing")
        limits = self.classificator.channels, self.classificator.max_pixels
        try:
            with observe.DECODE_SECONDS.time():
                data = file_of(photo, self.max_photo_bytes)
                return ServedItem(text, prepare_image(self.classificator.encoder, data, *limits))
        except PhotoError as error:
            return ServedItem(text, error.reason, error.message)

    def canary(self) -> ServedItem:
        """Return a product that any model can answer."""
        image = self.classificator.encoder.image.prepare(Image.new("RGB", (64, 64), "tomato"))
        return ServedItem("Футболка женская, cotton T-shirt", image)

    def check_canary(self, result: object) -> None:
        """Raise `ArtifactError` unless the canary was answered with probabilities."""
        predictions = result.product.predictions.values() if isinstance(result, ServedResult) else []
        if not predictions or not all(0 <= prediction.confidence <= 1 for prediction in predictions):
            raise ArtifactError(f"{self.name} cannot answer a simple product: {result}")

    def run(self, wanted: Wanted, items: Sequence[ServedItem]) -> list[ServedResult]:
        """Answer n products."""
        (top_k, min_precision), bundle, texts = wanted, self.classificator.bundle, [item.text for item in items]
        ids, used_texts = [*map(str, range(len(items)))], texts if bundle.text_dim else None
        images = [item.image if isinstance(item.image, str) else [item.image] for item in items]
        used_images = images if bundle.image_dim else None
        with observe.ENCODE_SECONDS.time():
            products = encode_products(self.classificator.encoder, ids, used_texts, used_images)
        with observe.HEADS_SECONDS.time():
            judged = self.classificator.judge(products, texts, min_precision=min_precision)
            predictions = _predictions(judged, top_k)
        statuses = products.status if judged.status is None else judged.status
        is_novel = judged.decisions.is_out_of_distribution.tolist() if judged.decisions else [None] * len(items)
        vectors = products.embeddings
        parts = (vectors.image, vectors.has_image), (vectors.text, vectors.has_text)
        results = []
        for row, item in enumerate(items):
            image, text = (vectors[row] if has[row] else None for vectors, has in parts)
            product = ClassifiedProduct(id=None, status=statuses[row], detail=item.detail)
            product.is_out_of_distribution = is_novel[row]
            product.predictions = predictions[row] if judged.is_known[row] else {}
            results.append(ServedResult(product, image, text, partial(judged.explain, row)))
        return results


def signature(*paths: Path) -> tuple[object, ...]:
    """Identify the state of the first file that exists; empty: there is none."""
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            return path.name, status.st_mtime_ns, status.st_size, status.st_ino
    return ()


def file_of(photo: bytes | str, max_bytes: int) -> bytes:
    """Return the bytes of a photo file within the limit; bad base64 and URLs are a `PhotoError`."""
    if isinstance(photo, str):
        if photo.startswith(("http://", "https://")):
            raise PhotoError("missing", "photos are not fetched from URLs: send the file")
        if photo.startswith("data:"):
            head, _, photo = photo.partition(",")
            if not head.endswith(";base64"):
                raise PhotoError("unreadable", "a photo is a file in base64, a data URI says so: ';base64,'")
        try:
            photo = base64.b64decode("".join(photo.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise PhotoError("unreadable", f"a photo is a file in base64: {error}") from error
    if len(photo) > max_bytes:
        raise PhotoError("too_large", f"{len(photo)} bytes, at most {max_bytes} are read")
    return photo


def _predictions(judged: Predictions, top_k: int) -> list[dict[str, Prediction]]:
    """Return of each product characteristic -> prediction."""
    rows: list[dict[str, Prediction]] = [{} for _ in range(len(judged))]
    for name in judged.characteristics:
        decisions = judged.decisions[name] if judged.decisions else [None] * len(judged)
        columns = judged.labels_of(name), judged.confidence(name), judged.top(name, top_k), decisions
        for row, (labels, confidence, top, decision) in zip(rows, zip(*columns, strict=True), strict=True):
            row[name] = Prediction.model_construct(
                labels=labels or [],
                confidence=round(float(confidence), 6),
                decision=decision,
                top=[Scored.model_construct(label=label, probability=round(share, 6)) for label, share in top],
            )
    return rows
