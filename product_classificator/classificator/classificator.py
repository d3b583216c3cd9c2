"""`Classificator`: a façade over an encoder and a bundle of heads.

It keeps the interface of product_classificator 0.0.6; CHANGELOG.md lists what it does not keep.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from product_classificator.catalog.photo import MAX_PIXELS, PhotoError
from product_classificator.classificator import opening
from product_classificator.embeddings import products as inputs
from product_classificator.embeddings.products import ImageInput, ImagesInput, TextsInput
from product_classificator.encoders import Encoder, embed_labels, load_encoder
from product_classificator.encoders.base import Dtype, is_exported
from product_classificator.encoders.clip import clip_towers, dtype_of
from product_classificator.errors import ArtifactError, DataError, culprits, nearest
from product_classificator.files import cache_home
from product_classificator.heads import HeadBundle, zero_shot_heads
from product_classificator.runs import Run
from product_classificator.types import Embeddings, Explanation, Predictions, strings

logger = logging.getLogger(__name__)

Errors = Literal["raise", "status"]


class Classificator:
    """Predicts the characteristics of products.

    Args:
        device: where the encoder computes: "cpu", "cuda", "mps", or "auto".
        heads: the characteristics to predict; `None`: all that the heads know.
        model_name: the encoder; `None`: the one that the heads were trained on. A name without options takes the
            options of that one.
        heads_ver: a run, a bundle, an export, one of these at a URL (`hf://<user>/<name>[@<revision>]`, ...), or the
            name of imported heads (`pretrained_heads`).
        cache_dir: folder of ruCLIP models and exported towers; `None`: the caches of the hub and of this package.
        dtype, threads: number format that the encoder computes in, and CPU threads, see `load_encoder`.

    Attributes:
        labels: characteristic -> its labels.
        heads: the characteristics that are predicted by default.
        channels, max_pixels: of image files, as in `open_images`; Pillow images and arrays are always RGB.
        run: the run of the heads; `None` if they come alone.

    Raises:
        DataError: there is no such encoder, device or characteristic.
        ArtifactError: heads or weights are missing or damaged, or the heads were trained on another encoder.
    """

    base_head_version = opening.PUBLISHED_HEADS

    def __init__(
        self,
        device: str = "cpu",
        heads: Sequence[str] | None = None,
        model_name: str | None = None,
        heads_ver: str | Path = opening.PUBLISHED_HEADS,
        cache_dir: str | Path | None = None,
        *,
        dtype: Dtype = "auto",
        threads: int | None = None,
    ) -> None:
        opened = opening.open_heads(heads_ver)
        opened = replace(opened, encoder=opening.encoder_name(model_name, opened.encoder))
        loading: dict[str, Any] = {"dtype": dtype, "cache_dir": cache_dir, "threads": threads}
        self._set(load_encoder(opened.encoder, device=device, **loading), opened, device, **loading)
        self.heads_ver = str(heads_ver)
        if heads is not None:
            self.heads: list[str] = []
            for name in [heads] if isinstance(heads, str) else heads:
                self.load_head(name)

    @classmethod
    def from_parts(cls, encoder: Encoder, bundle: HeadBundle, *, device: str = "cpu") -> "Classificator":
        """Combine heads with their encoder, which computes on `device`; another encoder is an `ArtifactError`."""
        self = cls.__new__(cls)
        self._set(encoder, opening.OpenedHeads(bundle, encoder.name), device)
        return self

    def _set(self, encoder: Encoder, opened: opening.OpenedHeads, device: str, **loading: Any) -> None:
        self.encoder, self.bundle, self.device = encoder, opening.bind_heads(opened.bundle, encoder), device
        self.channels, self.max_pixels = opened.channels, MAX_PIXELS
        self.run, self.heads_ver = opened.run, ""
        self.cache_dir = Path(loading["cache_dir"]) if loading.get("cache_dir") else None
        self._load_encoder = partial(load_encoder, opened.encoder, **loading)  # for another device
        self._torch_encoder: Encoder | None = None
        self.labels = dict(self.bundle.labels)
        self.heads = list(self.labels)

    @classmethod
    def from_run(
        cls, path: str | Path, *, device: str = "cpu", encoder: str | None = None, dtype: Dtype = "auto"
    ) -> "Classificator":
        """Load a finished run (else `ArtifactError`); `encoder` is the new place of its encoder, if that has moved."""
        Run.load(path)
        return cls(device, model_name=encoder, heads_ver=path, dtype=dtype)

    @classmethod
    def from_pretrained(cls, repository: str, **loading: Any) -> "Classificator":
        """Load what `push_to_hub` wrote, "user/name" or "user/name@revision"; `loading` as for `Classificator`."""
        return cls(heads_ver=f"hf://{repository}", **loading)

    @classmethod
    def zero_shot(
        cls,
        labels: Mapping[str, Sequence[str]],
        templates: Sequence[str] | None = None,
        *,
        encoder: str | Encoder = "lite",
        device: str = "cpu",
    ) -> "Classificator":
        """Make a classificator without training: products are compared with the names of the labels.

        Args:
            labels: characteristic -> its labels, two or more, in words (Russian or English for `lite`).
            templates: sentences with `{}` for the label; `None`: those of ruCLIP, in Russian.
            encoder: name of an encoder, or a loaded one. Images count if it has one space for images and texts.
            device: where it computes.

        Raises:
            DataError: a characteristic has fewer than two labels, or a template has no `{}`.
        """
        if not isinstance(labels, Mapping) or any(isinstance(names, str) for names in labels.values()):
            raise DataError(f"labels are given as {{characteristic: [label, label, ...]}}, got {labels!r}")
        encoder = load_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
        templates = [templates] if isinstance(templates, str) else templates
        bundle = zero_shot_heads(
            labels,
            {name: embed_labels(encoder, names, templates) for name, names in labels.items()},
            encoder_name=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            shares_space=encoder.shares_space,
        )
        return cls.from_parts(encoder, bundle, device=device)

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in ("model_name", "heads_ver", "heads", "device")}
        return f"Classificator({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def model_name(self) -> str:
        """Name of the encoder."""
        return self.encoder.name

    @property
    def available_heads(self) -> list[str]:
        """The characteristics that the heads know."""
        return list(self.labels)

    @property
    def label_to_char(self) -> dict[str, dict[int, str]]:
        """Characteristic -> {label id: label}."""
        return {name: dict(enumerate(labels)) for name, labels in self.labels.items()}

    def load_head(self, name: str) -> None:
        """Add a characteristic to those predicted by default; raises `DataError` if the heads do not know it."""
        if name not in self.labels:
            raise DataError(f"the heads know no characteristic {name!r}: {nearest(name, self.labels)}")
        if name not in self.heads:
            self.heads.append(name)

    def classify_products(
        self, texts: TextsInput = None, images: ImagesInput = None, characteristics: str | Sequence[str] | None = None
    ) -> dict[str, list[Any]]:
        """Return characteristic -> the most probable label of each product; arguments as in `predict`.

        For a multi-label characteristic: the list of each product's labels, the most probable first.
        """
        predictions = self.predict(texts, images, characteristics)
        return {name: predictions.predicted(name) for name in predictions.characteristics}

    def predict(
        self,
        texts: TextsInput = None,
        images: ImagesInput = None,
        characteristics: str | Sequence[str] | None = None,
        min_precision: float | None = None,
        *,
        errors: Errors = "raise",
    ) -> Predictions:
        """Return the probabilities of all labels; `Predictions.top` gives the best few, `.explain` the reasons.

        Args:
            texts: one text, n texts, or `None`; `None` in a sequence is a product without text.
            images: one image, n images, or `None`; in a sequence, `None` is a product without image, and a list several
                images of one product, whose vectors are averaged.
            characteristics: one or several to predict; `None`: `heads`.
            min_precision: target precision between 0 and 1 (exclusive): predictions expected to reach it are "auto",
                the others "review" (`Predictions.decisions`). `None`: no decisions.
            errors: what a product with nothing usable, because its images cannot be read or there are none and no text,
                leads to: "raise" raises for the whole call, "status" gives the reason in `Predictions.status`, as bulk
                prediction does. Other products with unreadable images have a status, too, and are a warning.

        Raises:
            DataError: texts and images differ in length or have the wrong type, the heads use none of them, a
                characteristic is unknown, `min_precision` is out of range, or a product is unusable (`errors="raise"`).
            ArtifactError: `min_precision` is given, but the heads have no thresholds.
        """
        if errors not in get_args(Errors):
            raise DataError(f"errors must be one of {', '.join(get_args(Errors))}, got {errors!r}")
        text_list, image_list = inputs.align(texts, images)
        self.check_inputs(has_images=images is not None, has_texts=texts is not None)
        used_texts = text_list if texts is not None and self.bundle.text_dim else None
        broken: dict[int, PhotoError] = {}
        prepared = self._prepared(image_list, broken) if images is not None and self.bundle.image_dim else None
        products = inputs.encode_products(self.encoder, [*map(str, range(len(text_list)))], used_texts, prepared)
        names = [characteristics] if isinstance(characteristics, str) else characteristics
        predictions = self.judge(products, text_list, names, min_precision)
        unusable = np.flatnonzero(~predictions.is_known)
        if errors == "raise" and len(unusable):
            _raise_first({row: broken[row] for row in unusable.tolist() if row in broken})
            raise DataError(f"a product needs {self._needs}: number {unusable[0]} (counted from 0) has none")
        if errors == "raise" and broken:
            logger.warning("photos that cannot be read, of products used without them: %s", culprits(broken.values()))
        return predictions

    def judge(
        self,
        products: inputs.EmbeddedProducts,
        texts: Sequence[str],
        characteristics: Sequence[str] | None = None,
        min_precision: float | None = None,
    ) -> Predictions:
        """Return what `predict` returns with `errors="status"`, of products that are encoded and their raw texts."""
        embeddings = products.embeddings
        predictions = self.bundle.predict(embeddings, texts, self.heads if characteristics is None else characteristics)
        reasons = np.where(predictions.is_known, "", "set_aside:").astype(object)
        predictions = replace(predictions, status=strings(reasons + products.status))
        if self.run and self.run.has_training_products:
            predictions = replace(predictions, explainer=partial(self._explain, self.run, predictions, embeddings))
        if min_precision is None:
            return predictions
        return self.bundle.with_decisions(predictions, embeddings, texts, min_precision)

    @property
    def _needs(self) -> str:
        return " or ".join(["a photo"] * (self.bundle.image_dim > 0) + ["a text"] * (self.bundle.text_dim > 0))

    def check_inputs(self, *, has_images: bool, has_texts: bool) -> None:
        """Raise `DataError` unless the heads use a part that products have."""
        if not (has_images and self.bundle.image_dim) and not (has_texts and self.bundle.text_dim):
            raise DataError(f"for these heads a product needs {self._needs}, none was given")

    def _prepared(
        self, products: Sequence[Sequence[ImageInput]], broken: dict[int, PhotoError]
    ) -> Iterator[list[Image.Image] | str]:
        """Yield the images of each product, prepared, or why there is none; add the first error of each to `broken`."""
        for row, images in enumerate(products):
            prepared = list[Image.Image]()
            for image in images:
                try:
                    prepared.append(inputs.prepare_image(self.encoder, image, self.channels, self.max_pixels))
                except PhotoError as error:
                    broken.setdefault(row, error)
            yield prepared or (broken[row].reason if row in broken else "missing")

    def _explain(self, run: Run, predictions: Predictions, embeddings: Embeddings, row: int) -> dict[str, Explanation]:
        from product_classificator.classificator.neighbors import with_nearest  # imports pyarrow

        return with_nearest(predictions.explain(row), embeddings.take(np.array([row])), run, self.encoder)

    def get_products_embeddings(self, texts: TextsInput = None, images: ImagesInput = None) -> Any:
        """Return a torch tensor (n, image_dim + text_dim), float32: image part, then text part, each of unit length.

        The part of a missing image or text is zero. Arguments and errors as in `predict`.
        """
        import torch  # most answers need none

        text_list, image_list = inputs.align(texts, images)
        rows, broken = [*map(str, range(len(text_list)))], dict[int, PhotoError]()
        products = inputs.encode_products(self.encoder, rows, text_list, self._prepared(image_list, broken))
        _raise_first(broken)
        embeddings = products.embeddings
        return torch.from_numpy(np.concatenate([embeddings.image, embeddings.text], 1))

    def export_model_to_onnx(self, text: str, image: ImageInput) -> None:
        """Write the towers as ONNX files, for `to_onnx_clip`; on the text and the image they must agree with PyTorch.

        Raises `DataError` if the encoder is not CLIP-like; other errors as in `export_classificator`.
        """
        from product_classificator.encoders.onnx_export import export_encoder  # imports torch

        clip_towers(self.encoder)
        encoder = self.encoder if dtype_of(self.encoder) == "float32" else self._load_encoder(dtype="float32")
        samples = text, inputs.prepare_image(encoder, image, self.channels)
        export_encoder(encoder, self._onnx_folder, samples=samples)

    @property
    def _onnx_folder(self) -> Path:
        return (self.cache_dir or cache_home()) / "onnx" / self.encoder.fingerprint

    def is_onnx_created(self) -> bool:
        """Whether the towers of the encoder have been exported."""
        return is_exported(self._onnx_folder)

    @property
    def is_onnx(self) -> bool:
        """Whether ONNX Runtime computes."""
        return self._torch_encoder is not None

    def to_onnx_clip(self) -> "Classificator":
        """Switch to ONNX Runtime and return self.

        Raises `DataError` if the encoder is not CLIP-like, `ArtifactError` if its towers are not exported, or damaged.
        """
        if not self.is_onnx_created():
            clip_towers(self.encoder)
            raise ArtifactError(
                f"ONNX Runtime needs exported towers, there are none in {self._onnx_folder}: call export_model_to_onnx"
            )
        encoder = load_encoder(str(self._onnx_folder), device=self.device)
        self._torch_encoder, self.encoder = self._torch_encoder or self.encoder, encoder
        return self

    def to_clip(self) -> "Classificator":
        """Switch back to PyTorch and return self."""
        self.encoder, self._torch_encoder = self._torch_encoder or self.encoder, None
        return self

    def to(self, device: str) -> "Classificator":
        """Move the encoder to another device and return self.

        Raises `DataError` if it cannot compute there, `ArtifactError` if other weights lie where it was loaded from.
        """
        if device != self.device:
            encoder = self._load_encoder(device=device)
            self.bundle = opening.bind_heads(self.bundle, encoder)  # other weights may lie there by now
            was_onnx, self._torch_encoder = self.is_onnx, None
            self.encoder, self.device = encoder, device
            if was_onnx:
                self.to_onnx_clip()
        return self


def _raise_first(broken: Mapping[int, PhotoError]) -> None:
    for row, error in broken.items():
        raise DataError(f"photo number {row} (counted from 0) cannot be read: {error}") from error
