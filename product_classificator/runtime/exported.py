"""`Exported`: an exported folder, ready to classify.

Where `Classificator` raises for a product that it cannot judge, this answers with a reason, as bulk prediction does: a
service must not lose a batch to one broken photo.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from product_classificator.encoders import Encoder, cores
from product_classificator.errors import DataError
from product_classificator.inputs import Photos, Texts, aligned, as_list
from product_classificator.runtime.embed import embed_products
from product_classificator.runtime.encoder import load_exported_encoder
from product_classificator.runtime.heads import ExportedHeads
from product_classificator.runtime.manifest import Manifest
from product_classificator.types import Predictions, Strings


@dataclass(frozen=True)
class Exported:
    """Tells the characteristics of products.

    Attributes:
        manifest: what the folder says of itself.
        encoder: turns photos and texts into embeddings.
        heads: turn embeddings and texts into predictions.
    """

    manifest: Manifest
    encoder: Encoder
    heads: ExportedHeads

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None) -> "Exported":
        """Opens an exported folder and checks it.

        Args:
            folder: what `export` has written.
            threads: of the CPU; `None`: the cores this process may use.

        Raises:
            ArtifactError: it is none, of another format, damaged, or needs packages that are not installed.
            DataError: there are fewer cores.
        """
        folder, threads = Path(folder), threads or cores()
        if not 1 <= threads <= cores():
            raise DataError(f"threads must lie between 1 and the {cores()} cores, got {threads}")
        manifest = Manifest.read(folder)
        encoder = load_exported_encoder(folder, manifest, threads)
        return cls(manifest, encoder, ExportedHeads.load(folder, manifest, threads))

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Characteristic -> the labels that it may take."""
        return dict(self.manifest.labels)

    def classify(
        self,
        texts: Texts = None,
        photos: Photos = None,
        *,
        characteristics: str | Sequence[str] | None = None,
        min_precision: float | None = None,
    ) -> list[dict[str, Any]]:
        """Tells the characteristics of each product, as plain values that can be sent as JSON.

        Args:
            texts: one text, n texts, or `None`; in a sequence `None` stands for a product without text.
            photos: one photo, n photos, or `None`; in a sequence `None` stands for a product without photo.
            characteristics: one or several to tell; all by default.
            min_precision: share of the values that stand without a person which shall be right; `None`: nothing is
                decided.

        Returns:
            For each product `status`: "ok", or what is wrong, such as "image_truncated"; it begins with "set_aside:"
            where nothing is left to judge. `labels` and `probabilities`: characteristic -> the most probable label, or
            the list of those that it bears of a multi-label one, and how probable that is; `None` where nothing is
            said. With `min_precision` also `decisions`: characteristic -> "auto" or "review".

        Raises:
            DataError: texts and photos differ in number or are nothing of the kind, all lack what the heads use, a
                characteristic is unknown, or `min_precision` is no share.
            ArtifactError: `min_precision` is given, and the heads can promise nothing.
        """
        predictions, status = self._judge(texts, photos, characteristics, min_precision)
        best = {name: predictions.predicted(name) for name in predictions.characteristics}
        surest = {name: predictions.confidence(name).tolist() for name in best}
        found: list[dict[str, Any]] = []
        for row, said in enumerate(status.tolist()):
            labels = {name: values[row] for name, values in best.items()}
            shares = {name: surest[name][row] if label is not None else None for name, label in labels.items()}
            product = {"status": said, "labels": labels, "probabilities": shares}
            if predictions.decisions:
                product["decisions"] = {name: predictions.decisions[name][row] for name in labels}
            found.append(product)
        return found

    def predict(
        self,
        texts: Texts = None,
        photos: Photos = None,
        *,
        characteristics: str | Sequence[str] | None = None,
        min_precision: float | None = None,
    ) -> Predictions:
        """Returns the probabilities of all labels; arguments and errors as those of `classify`.

        Of a product with nothing to judge `Predictions.is_known` is false.
        """
        return self._judge(texts, photos, characteristics, min_precision)[0]

    def _judge(
        self, texts: Texts, photos: Photos, characteristics: str | Sequence[str] | None, min_precision: float | None
    ) -> tuple[Predictions, Strings]:
        """Returns predictions and the (n,) statuses of products."""
        uses_image, uses_text = self.manifest.image_dim > 0, self.manifest.text_dim > 0
        if not (uses_image and photos is not None) and not (uses_text and texts is not None):
            needs = " or ".join(["photos"] * uses_image + ["texts"] * uses_text)
            raise DataError(f"these heads judge products by {needs}: give them")
        if min_precision is not None:
            self.heads.check_promise(min_precision)
        if isinstance(characteristics, str):
            characteristics = [characteristics]
        text_list, photo_list = aligned(as_list(texts), as_list(photos))
        embeddings, status = embed_products(
            self.encoder,
            text_list if uses_text and texts is not None else None,
            photo_list if uses_image and photos is not None else None,
            self.manifest.channels,
        )
        predictions = self.heads.predict(embeddings, text_list, characteristics)
        if min_precision is not None:
            predictions = self.heads.with_decisions(predictions, embeddings, text_list, min_precision)
        status[~predictions.is_known] = "set_aside:" + status[~predictions.is_known]
        return predictions, status
