"""`Classificator`: photos and texts in, characteristics out; a façade over an encoder and a bundle of heads."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from product_classificator.catalog.images import PhotoError
from product_classificator.catalog.photos import MAX_PIXELS, decode_photo, to_rgb
from product_classificator.encoders import Encoder, load_encoder
from product_classificator.errors import ArtifactError, DataError
from product_classificator.heads import HeadBundle
from product_classificator.runs import Run
from product_classificator.text import clean
from product_classificator.types import Embeddings, Predictions, strings

Photo: TypeAlias = Image.Image | np.ndarray | bytes | str | Path
"""A Pillow image, an (h, w, 3) uint8 RGB array, the bytes of an image file, or the path of one."""


class Classificator:
    """Tells the characteristics of products.

    Args:
        encoder: turns photos and texts into embeddings.
        bundle: heads that were trained on embeddings of this encoder.

    Attributes:
        labels: characteristic -> the labels that it may take.

    Raises:
        ArtifactError: the heads were trained on another encoder.
    """

    def __init__(self, encoder: Encoder, bundle: HeadBundle) -> None:
        if bundle.encoder_fingerprint != encoder.fingerprint:
            raise ArtifactError(
                f"heads fit one encoder: these were trained on {bundle.encoder_fingerprint}, "
                f"got {encoder.name} ({encoder.fingerprint}); load the encoder they were trained on, or train again"
            )
        self.encoder = encoder
        self.bundle = bundle
        self.labels = dict(bundle.labels)

    @classmethod
    def from_run(cls, path: str | Path, *, device: str = "cpu") -> "Classificator":
        """Loads what a training left.

        Raises:
            ArtifactError: the folder is not a finished run, or its heads are damaged.
        """
        run = Run.load(path)
        return cls(load_encoder(run.encoder, device=device), HeadBundle.load(run.bundle))

    def __repr__(self) -> str:
        return f"Classificator(encoder={self.encoder.name!r}, characteristics={list(self.labels)})"

    def classify_products(
        self,
        texts: str | Sequence[str | None] | None = None,
        images: Photo | Sequence[Photo | None] | None = None,
        characteristics: str | Sequence[str] | None = None,
    ) -> dict[str, list[str]]:
        """Returns characteristic -> the most probable label of each product; arguments as in `predict`."""
        predictions = self.predict(texts, images, characteristics)
        return {name: predictions.best(name).tolist() for name in predictions.characteristics}

    def predict(
        self,
        texts: str | Sequence[str | None] | None = None,
        images: Photo | Sequence[Photo | None] | None = None,
        characteristics: str | Sequence[str] | None = None,
    ) -> Predictions:
        """Returns the probabilities of all labels; `Predictions.top` gives the best few.

        Args:
            texts: one text, n texts, or `None`; in a sequence `None` stands for a product without text.
            images: one photo, n photos, or `None`; in a sequence `None` stands for a product without photo.
            characteristics: one or several to tell; `None`: all.

        Raises:
            DataError: texts and images differ in number, a product has neither, a photo cannot be read, or a
                characteristic is unknown.
        """
        text_list, image_list = _aligned(_as_list(texts), _as_list(images))
        prepared = [None if image is None else self._prepared(row, image) for row, image in enumerate(image_list)]
        has_text = np.array([bool(clean(text)) for text in text_list], dtype=bool)
        has_image = np.array([image is not None for image in prepared], dtype=bool)
        uses_image, uses_text = self.bundle.image_dim > 0, self.bundle.text_dim > 0
        bare = np.flatnonzero(~(has_text & uses_text) & ~(has_image & uses_image))
        if len(bare):
            needs = " or ".join(["a photo"] * uses_image + ["a text"] * uses_text)
            raise DataError(f"a product needs {needs}: number {bare[0]} (counted from 0) has none")
        image_part = np.zeros((len(text_list), self.encoder.image_dim), dtype=np.float32)
        text_part = np.zeros((len(text_list), self.encoder.text_dim), dtype=np.float32)
        if has_image.any():
            image_part[has_image] = self.encoder.encode_images([image for image in prepared if image is not None])
        if has_text.any():
            text_part[has_text] = self.encoder.encode_texts([text_list[row] for row in np.flatnonzero(has_text)])
        ids = strings([str(row) for row in range(len(text_list))])
        embeddings = Embeddings(ids, image_part, text_part, has_image, has_text, self.encoder.fingerprint)
        wanted = [characteristics] if isinstance(characteristics, str) else characteristics
        return self.bundle.predict(embeddings, text_list, wanted)

    def _prepared(self, row: int, photo: Photo) -> Image.Image:
        try:
            return self.encoder.prepare_image(_opened(photo))
        except DataError:
            raise
        except (PhotoError, OSError, ValueError) as error:
            raise DataError(f"photo number {row} (counted from 0) cannot be read: {error}") from error


def _as_list(value: object) -> list[object] | None:
    if value is None:
        return None
    is_picture = isinstance(value, np.ndarray) and value.ndim in (2, 3)
    if is_picture or isinstance(value, str | Path | bytes | Image.Image):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise DataError(f"texts and images must be one, a sequence, or None, got {type(value).__name__}")
    return [None if isinstance(item, float) and item != item else item for item in value]  # NaN of a pandas column


def _aligned(texts: list[object] | None, images: list[object] | None) -> tuple[list[str], list[Photo | None]]:
    if texts is None and images is None:
        raise DataError("a product needs a photo or a text: give texts, images, or both")
    n = len(texts if texts is not None else images or [])
    if texts is not None and images is not None and len(texts) != len(images):
        raise DataError(f"texts and images must be of the same products, got {len(texts)} and {len(images)}")
    wrong = [type(text).__name__ for text in texts or [] if text is not None and not isinstance(text, str)]
    if wrong:
        raise DataError(f"a text must be a string or None, found {sorted(set(wrong))}")
    return [str(text or "") for text in texts or [""] * n], list(images or [None] * n)  # type: ignore[arg-type]


def _opened(photo: Photo) -> Image.Image:
    if isinstance(photo, str | Path):
        photo = Path(photo).read_bytes()
    if isinstance(photo, bytes):
        return decode_photo(photo, channels="rgb", max_pixels=MAX_PIXELS)
    if isinstance(photo, Image.Image):
        return to_rgb(ImageOps.exif_transpose(photo))
    if (
        isinstance(photo, np.ndarray)
        and photo.dtype == np.uint8
        and photo.ndim == 3
        and photo.shape[2] == 3
        and photo.size
    ):
        return Image.fromarray(photo)
    found = f"{photo.dtype} {photo.shape}" if isinstance(photo, np.ndarray) else type(photo).__name__
    raise DataError(f"a photo must be an image, its file's path or bytes, or an (h, w, 3) uint8 array, got {found}")
