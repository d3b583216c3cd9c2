"""`Classificator`: photos and texts in, characteristics out; a façade over an encoder and a bundle of heads.

It keeps the published interface (product_classificator 0.0.6); what it does not keep is listed in CHANGELOG.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from product_classificator.catalog.images import ImageError
from product_classificator.catalog.photo import Channels
from product_classificator.encoders import Encoder, EncoderSpec, load_encoder
from product_classificator.encoders.labels import embed_labels
from product_classificator.errors import ArtifactError, DataError, nearest
from product_classificator.files import cache_home
from product_classificator.heads import HeadBundle, zero_shot_heads
from product_classificator.inputs import Photo, Photos, Texts, aligned, as_list, opened
from product_classificator.neighbors import with_nearest
from product_classificator.opening import PUBLISHED_HEADS, encoder_name, open_heads
from product_classificator.runs import Run
from product_classificator.text import clean
from product_classificator.types import Embeddings, Predictions, strings

if TYPE_CHECKING:
    import torch

    from product_classificator.encoders.base import Dtype
    from product_classificator.encoders.towers import Towers


class Classificator:
    """Tells the characteristics of products.

    Args:
        device: where the encoder computes: "cpu", "cuda", "mps", or "auto".
        heads: the characteristics to tell; `None`: all that the heads know.
        model_name: the encoder; `None`: the one that the heads were trained on. A name without options takes over
            those of the heads.
        heads_ver: a run, a bundle, or the name of imported heads (`pretrained_heads`).
        cache_dir: where ruCLIP models and exported towers lie; `None`: the caches of the hub and of this package.
        dtype: what the encoder computes in, see `load_encoder`.

    Attributes:
        encoder: turns photos and texts into embeddings.
        bundle: the heads.
        labels: characteristic -> the labels that it may take.
        heads: the characteristics that are told when none are asked for.
        channels: "bgr" if files of photos have red and blue swapped, as those of the run had; pictures and arrays are
            RGB.
        run: the run that the heads are of; `None` if they come alone.

    Raises:
        DataError: there is no such encoder, device or characteristic.
        ArtifactError: heads or weights are missing or damaged, or the heads were trained on another encoder.
    """

    def __init__(
        self,
        device: str = "cpu",
        heads: Sequence[str] | None = None,
        model_name: str | None = None,
        heads_ver: str | Path = PUBLISHED_HEADS,
        cache_dir: str | Path | None = None,
        *,
        dtype: "Dtype" = "auto",
    ) -> None:
        bundle, trained_on, self.run = open_heads(heads_ver)
        name = encoder_name(model_name, trained_on)
        self._set(load_encoder(name, device=device, dtype=dtype, cache_dir=cache_dir), bundle, heads)
        self.device, self._dtype = device, dtype
        self.channels: Channels = self.run.channels if self.run else "rgb"
        self.heads_ver = str(heads_ver)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)

    @classmethod
    def from_parts(cls, encoder: Encoder, bundle: HeadBundle, *, device: str = "cpu") -> "Classificator":
        """Puts an encoder, which computes on `device`, and heads together.

        Raises:
            ArtifactError: the heads were trained on another encoder.
        """
        self = cls.__new__(cls)
        self._set(encoder, bundle, None)
        self.device, self.heads_ver, self.cache_dir, self.channels, self.run = device, "", None, "rgb", None
        self._dtype = "auto"
        return self

    @classmethod
    def from_run(
        cls, path: str | Path, *, device: str = "cpu", encoder: str | None = None, dtype: "Dtype" = "auto"
    ) -> "Classificator":
        """Loads what a training left.

        Args:
            path: folder of the run.
            device: where the encoder computes.
            encoder: where the encoder lies now, if it has moved since.
            dtype: what it computes in, see `load_encoder`.

        Raises:
            ArtifactError: the folder is not a finished run, or its heads are damaged.
        """
        Run.load(path)
        return cls(device, model_name=encoder, heads_ver=path, dtype=dtype)

    @classmethod
    def zero_shot(
        cls,
        labels: Mapping[str, Sequence[str]],
        templates: Sequence[str] | None = None,
        *,
        encoder: str | Encoder = "lite",
        device: str = "cpu",
    ) -> "Classificator":
        """Makes a classificator without any training: products are compared with the names of the labels.

        Args:
            labels: characteristic -> its labels, two or more, in words (Russian or English for `lite`).
            templates: sentences with `{}` for the label; `None`: those of ruCLIP, in Russian.
            encoder: name of an encoder, or a loaded one. Photos count where it has one space for photos and texts.
            device: where it computes.

        Raises:
            DataError: a characteristic has under two labels, or a template has no `{}`.
        """
        if not isinstance(labels, Mapping) or any(isinstance(names, str) for names in labels.values()):
            raise DataError(f"labels are given as {{characteristic: [label, label, ...]}}, got {labels!r}")
        if isinstance(encoder, str):
            encoder = load_encoder(encoder, device=device)
        templates = [templates] if isinstance(templates, str) else templates
        vectors = {name: embed_labels(encoder, names, templates) for name, names in labels.items()}
        bundle = zero_shot_heads(
            labels,
            vectors,
            image_dim=encoder.image_dim,
            text_dim=encoder.text_dim,
            encoder_name=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            shares_space=encoder.shares_space,
        )
        return cls.from_parts(encoder, bundle, device=device)

    def _set(self, encoder: Encoder, bundle: HeadBundle, heads: Sequence[str] | None) -> None:
        if not bundle.encoder_fingerprint:
            spec = EncoderSpec.parse(encoder.name)
            name = str(spec if spec.base.startswith("hf:") else replace(spec, base=Path(spec.base).name))
            bundle = bundle.bound_to(name, encoder.fingerprint, encoder.image_dim, encoder.text_dim)
        if bundle.encoder_fingerprint != encoder.fingerprint:
            raise ArtifactError(
                f"heads fit one encoder: these were trained on {bundle.encoder_name} ({bundle.encoder_fingerprint}), "
                f"got {encoder.name} ({encoder.fingerprint}); load the encoder they were trained on, or train again"
            )
        self.encoder = encoder
        self._torch_towers: Towers | None = None
        self.bundle = bundle
        self.labels = dict(bundle.labels)
        self.heads: list[str] = []
        for name in [heads] if isinstance(heads, str) else self.labels if heads is None else heads:
            self.load_head(name)

    def __repr__(self) -> str:
        return (
            f"Classificator(model_name={self.model_name!r}, heads_ver={self.heads_ver!r}, heads={self.heads}, "
            f"device={self.device!r})"
        )

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
        """Characteristic -> number of a label -> the label."""
        return {name: dict(enumerate(labels)) for name, labels in self.labels.items()}

    def load_head(self, name: str) -> None:
        """Adds a characteristic to those that are told when none are asked for.

        Raises:
            DataError: the heads do not know it.
        """
        if name not in self.labels:
            raise DataError(f"the heads know no characteristic {name!r}: {nearest(name, self.labels)}")
        if name not in self.heads:
            self.heads.append(name)

    def classify_products(
        self, texts: Texts = None, images: Photos = None, characteristics: str | Sequence[str] | None = None
    ) -> dict[str, list[Any]]:
        """Returns characteristic -> the most probable label of each product; arguments as in `predict`.

        Of a multi-label characteristic the list of the labels that each product bears, the most probable first.
        """
        predictions = self.predict(texts, images, characteristics)
        return {name: predictions.predicted(name) for name in predictions.characteristics}

    def predict(
        self,
        texts: Texts = None,
        images: Photos = None,
        characteristics: str | Sequence[str] | None = None,
        min_precision: float | None = None,
    ) -> Predictions:
        """Returns the probabilities of all labels; `Predictions.top` gives the best few, `.explain` says why.

        Args:
            texts: one text, n texts, or `None`; in a sequence `None` stands for a product without text.
            images: one photo, n photos, or `None`; in a sequence `None` stands for a product without photo.
            characteristics: one or several to tell; `None`: `heads`.
            min_precision: share of the values that stand without a person which shall be right, above 0 and below 1:
                `Predictions.decisions` tells "auto" from "review". `None`: nothing is decided.

        Raises:
            DataError: texts and images differ in number, a product has neither, a photo cannot be read, a
                characteristic is unknown, or `min_precision` is no share.
            ArtifactError: `min_precision` is given, and the heads can promise nothing.
        """
        embeddings, text_list = self._embed(texts, images)
        uses_image, uses_text = self.bundle.image_dim > 0, self.bundle.text_dim > 0
        bare = np.flatnonzero(~(embeddings.has_text & uses_text) & ~(embeddings.has_image & uses_image))
        if len(bare):
            needs = " or ".join(["a photo"] * uses_image + ["a text"] * uses_text)
            raise DataError(f"a product needs {needs}: number {bare[0]} (counted from 0) has none")
        wanted = [characteristics] if isinstance(characteristics, str) else characteristics
        predictions = self.bundle.predict(embeddings, text_list, self.heads if wanted is None else wanted)
        if self.run:
            predictions = with_nearest(predictions, embeddings, self.run, self.encoder)
        if min_precision is None:
            return predictions
        return self.bundle.with_decisions(predictions, embeddings, text_list, min_precision)

    def get_products_embeddings(self, texts: Texts = None, images: Photos = None) -> "torch.Tensor":
        """Returns (n, image_dim + text_dim) float32: the image part first, then the text part, each of unit length.

        The part of a missing photo or text is zero. Arguments and errors as in `predict`.
        """
        import torch

        embeddings, _ = self._embed(texts, images)
        return torch.from_numpy(np.concatenate([embeddings.image, embeddings.text], 1))

    def export_model_to_onnx(self, text: str, image: Photo) -> None:
        """Writes the towers of the encoder as ONNX files, for `to_onnx_clip`.

        Args:
            text: an example; what both ways answer to it is compared.
            image: likewise.

        Raises:
            DataError: the encoder has no towers, or does not compute with PyTorch now.
            ArtifactError: the exported towers answer otherwise.
            MissingExtraError: the exporter is not installed (extra `onnx-export`).
        """
        from product_classificator.encoders.combined import clip_of
        from product_classificator.encoders.onnx import export_towers
        from product_classificator.encoders.towers import TorchTowers

        clip = clip_of(self.encoder)
        if isinstance(clip.towers, TorchTowers) and clip.towers.precision == "int8":  # cannot be turned back
            clip = clip_of(load_encoder(self.model_name, dtype="float32", cache_dir=self.cache_dir))
        export_towers(clip, self._onnx_folder, text, self._prepared(0, image))

    @property
    def _onnx_folder(self) -> Path:
        from product_classificator.encoders.combined import clip_of

        return (self.cache_dir or cache_home()) / "onnx" / clip_of(self.encoder).fingerprint

    def is_onnx_created(self) -> bool:
        """Says whether the towers of the encoder were exported."""
        from product_classificator.encoders.onnx_towers import is_exported

        return is_exported(self._onnx_folder)

    @property
    def is_onnx(self) -> bool:
        """Whether ONNX Runtime computes."""
        return self._torch_towers is not None

    def to_onnx_clip(self) -> "Classificator":
        """Lets ONNX Runtime compute from now on, and returns itself.

        Raises:
            DataError: the encoder has no towers.
            ArtifactError: they were not exported, or the files are damaged.
        """
        from product_classificator.encoders.combined import clip_of
        from product_classificator.encoders.onnx_towers import OnnxTowers

        clip = clip_of(self.encoder)
        if not self.is_onnx_created():
            raise ArtifactError(
                f"ONNX Runtime needs exported towers, there are none in {self._onnx_folder}: call export_model_to_onnx"
            )
        towers = OnnxTowers(self._onnx_folder, self.device)
        self._torch_towers, clip.towers = self._torch_towers or clip.towers, towers
        return self

    def to_clip(self) -> "Classificator":
        """Lets PyTorch compute again, and returns itself."""
        from product_classificator.encoders.combined import clip_of

        if self._torch_towers is not None:
            clip_of(self.encoder).towers, self._torch_towers = self._torch_towers, None
        return self

    def to(self, device: str) -> "Classificator":
        """Lets the encoder compute on another device from now on, and returns itself.

        Raises:
            DataError: there is no such device, or the encoder cannot compute there.
        """
        if device != self.device:
            encoder = load_encoder(self.model_name, device=device, dtype=self._dtype, cache_dir=self.cache_dir)
            was_onnx, self._torch_towers = self.is_onnx, None
            self.encoder, self.device = encoder, device
            if was_onnx:
                self.to_onnx_clip()
        return self

    def _embed(self, texts: Texts, images: Photos) -> tuple[Embeddings, list[str]]:
        text_list, image_list = aligned(as_list(texts), as_list(images))
        prepared = [None if image is None else self._prepared(row, image) for row, image in enumerate(image_list)]
        has_text = np.array([bool(clean(text)) for text in text_list], dtype=bool)
        has_image = np.array([image is not None for image in prepared], dtype=bool)
        image_part = np.zeros((len(text_list), self.encoder.image_dim), dtype=np.float32)
        text_part = np.zeros((len(text_list), self.encoder.text_dim), dtype=np.float32)
        if has_image.any():
            image_part[has_image] = self.encoder.encode_images([image for image in prepared if image is not None])
        if has_text.any():
            text_part[has_text] = self.encoder.encode_texts([text_list[row] for row in np.flatnonzero(has_text)])
        ids = strings([str(row) for row in range(len(text_list))])
        return Embeddings(ids, image_part, text_part, has_image, has_text, self.encoder.fingerprint), text_list

    def _prepared(self, row: int, photo: Photo) -> Image.Image:
        try:
            return self.encoder.prepare_image(opened(photo, self.channels, self.encoder.min_decode_size))
        except DataError:
            raise
        except (ImageError, OSError, ValueError) as error:
            raise DataError(f"photo number {row} (counted from 0) cannot be read: {error}") from error
