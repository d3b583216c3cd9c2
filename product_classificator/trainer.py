"""`Trainer`, the published façade over the verbs: photos and texts in, an experiment folder out."""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from product_classificator.catalog import (
    Catalog,
    ImageSource,
    is_wildberries,
    open_images,
    read_catalog,
    read_frame,
    read_wildberries,
)
from product_classificator.encoders import RUCLIP_MODELS, EncoderSpec, load_encoder
from product_classificator.errors import DataError, nearest
from product_classificator.finetuning.distributed import Distributed
from product_classificator.finetuning.epochs import FinetuneCallbacks
from product_classificator.finetuning.finetune import Finetuned, finetune
from product_classificator.published.clusters import ClusterSettings, cluster, write_clusters
from product_classificator.published_params import published_settings, published_tuning
from product_classificator.runs import Run
from product_classificator.trackers import Task, tracked, tracked_finetuning, tracking
from product_classificator.training.settings import TrainSettings
from product_classificator.training.taxonomy import Taxonomy
from product_classificator.training.train import Callbacks, Training, train_heads
from product_classificator.types import Embeddings, Truth, as_text

_DEFAULT_ENCODER = "ruclip-vit-base-patch16-384"

TableSource: TypeAlias = str | Path | pd.DataFrame


class Trainer:
    """Trains heads on photos and a table of products.

    Override `_loading_texts` or `_preprocessing_texts` to bring products from elsewhere or to change them.

    Args:
        path_to_images: a folder or zip of photos; `None`: text only.
        path_to_texts: a parquet, CSV or JSON lines file, a folder with the two Wildberries tables, or a DataFrame.
        characteristics: the columns with labels; `None`: the published seven, as far as they are there.
        ruclip_train_params: how `train_ruclip` tunes the last blocks, as in the published system (epochs, batch_size,
            num_last_resblocks_to_train, optimizer_params); `None`: the defaults.
        heads_train_params: how heads are fitted, as in the published system, in its recipe; `None`: the default
            recipe, or what `settings` says.
        clusterization_params: `n_clusters`, `n_components`, `seed`: the embeddings are clustered after the training;
            `None`: they are not.
        min_products_in_sub_cat: labels of fewer products are unknown, of `sub_category` as of any other characteristic;
            `None`: as `settings` says (10).
        ruclip_model: name of the encoder, "lite" or any other of `load_encoder`.
        cache_dir: where embeddings and ruCLIP models are kept; `None`: `<save_dir>/cache` and the hub's cache.
        save_dir: where experiments are saved.
        id: the column of ids; `None`: guessed.
        text: the text columns; `None`: guessed.
        device: where the encoder computes; "auto": on the GPU where there is one.
        taxonomy: a table with the columns `label` and `parent`; `None`: which characteristic refines which is learned.
        multi_label: further characteristics of which a product bears any number of labels, see `read_catalog`.
        settings: everything else; its encoder gives way to `ruclip_model`.

    Attributes:
        experiment_dir: the folder of the last training, `None` before.
        cache_dir: where embeddings are kept.
        end_of_train: what is deleted after a training: `del_img_and_txt_tensors` (embeddings in the cache),
            `del_loaded_ruclip_model` (the fetched model; a folder of yours is never deleted).

    Raises:
        DataError: an argument breaks a rule. Table and photos are opened by the training, which says what is wrong.
    """

    def __init__(
        self,
        path_to_images: str | Path | None,
        path_to_texts: TableSource,
        characteristics: str | Sequence[str] | None = None,
        ruclip_train_params: Mapping[str, Any] | None = None,
        heads_train_params: Mapping[str, Any] | None = None,
        clusterization_params: Mapping[str, int] | None = None,
        min_products_in_sub_cat: int | None = None,
        ruclip_model: str = _DEFAULT_ENCODER,
        cache_dir: str | Path | None = None,
        save_dir: str | Path = "experiments",
        *,
        id: str | None = None,  # noqa: A002 - the word of the command line, too
        text: str | Sequence[str] | None = None,
        device: str = "auto",
        taxonomy: Taxonomy | None = None,
        multi_label: str | Sequence[str] = (),
        settings: TrainSettings | None = None,
    ) -> None:
        if min_products_in_sub_cat is not None and min_products_in_sub_cat <= 1:
            raise DataError(f"min_products_in_sub_cat must be > 1, got {min_products_in_sub_cat}")
        self.path_to_images = path_to_images
        self.path_to_texts = path_to_texts
        self.characteristics = [characteristics] if isinstance(characteristics, str) else characteristics
        self.ruclip_train_params = ruclip_train_params
        self.heads_train_params = heads_train_params
        self.clusterization_params = clusterization_params
        self.min_products_in_sub_cat = min_products_in_sub_cat
        self.ruclip_model = ruclip_model
        self.save_dir = Path(save_dir)
        self.cache_dir = self.save_dir / "cache" if cache_dir is None else Path(cache_dir)
        self.experiment_dir: Path | None = None
        self.end_of_train = {"del_img_and_txt_tensors": False, "del_loaded_ruclip_model": False}
        self._models_dir = None if cache_dir is None else self.cache_dir
        self._id, self._text = id, text
        self._device, self._taxonomy, self._multi_label = device, taxonomy, multi_label
        self._settings = self._resolve(settings or TrainSettings())
        self._tuning = published_tuning(ruclip_train_params or {})
        self._clusters = None if clusterization_params is None else _cluster_settings(clusterization_params)

    def _resolve(self, settings: TrainSettings) -> TrainSettings:
        heads = settings.heads
        if self.heads_train_params is not None:
            heads = published_settings(self.heads_train_params, settings.seed)
        if self.min_products_in_sub_cat is not None:
            heads = replace(heads, min_products_per_label=self.min_products_in_sub_cat)
        return replace(settings, encoder=self.ruclip_model, heads=heads)

    def _loading_texts(self) -> TableSource:
        """Returns the products: a table file, a DataFrame, or a folder with the Wildberries tables."""
        return self.path_to_texts

    def _preprocessing_texts(self, products: pd.DataFrame) -> pd.DataFrame:
        """Returns the products as they are to be learned from; a subclass gets them as a table in memory."""
        return products

    def _load_catalog(self) -> Catalog:
        products = self._loading_texts()
        text = self._text
        if type(self)._preprocessing_texts is not Trainer._preprocessing_texts:
            if not isinstance(products, pd.DataFrame):
                text = ("description",) if text is None and is_wildberries(products) else text
                products = read_frame(products)
            products = self._preprocessing_texts(products)
        if not isinstance(products, str | Path | pd.DataFrame):
            raise DataError(
                "_loading_texts and _preprocessing_texts must return the products (a DataFrame, or their place), got "
                f"{type(products).__name__}"
            )
        given, told = self.path_to_images, self.path_to_texts
        images: str | Path | ImageSource | None = given
        if given is not None and isinstance(told, str | Path) and is_wildberries(told):
            images = open_images(given, channels="bgr")  # however a subclass brings the table
        is_published = not isinstance(products, pd.DataFrame) and is_wildberries(products) and not self._multi_label
        if is_published and self._id in (None, "nm"):
            return read_wildberries(
                products,
                images,
                min_products_in_sub_cat=self._settings.heads.min_products_per_label,
                text=("description",) if text is None else text,
                characteristics=self.characteristics,
            )
        return read_catalog(
            products,
            images,
            id=self._id,
            text=text,
            characteristics=self.characteristics,
            multi_label=self._multi_label,
        )

    def train_heads_only(
        self, task: Task | str | None = None, experiment_name: str | None = None, *, callbacks: Callbacks | None = None
    ) -> Training:
        """Fits heads on embeddings of the untouched encoder and writes run and report to `experiment_dir`.

        Args:
            task: who is told of the progress: a ClearML task, which is not closed, or the name of a tracker such as
                "tensorboard" or "mlflow".
            experiment_name: name of the folder under `save_dir`; `None`: date and time.
            callbacks: who else is told.

        Raises:
            DataError: table or photos cannot be read, too little is known to train on, or there is an experiment of
                that name.
            ArtifactError: the encoder is not on this machine and cannot be fetched, or is damaged.
        """
        catalog = self._load_catalog()
        encoder = load_encoder(self.ruclip_model, device=self._device, cache_dir=self._models_dir)
        folder = self._new_folder(experiment_name)
        store = self.cache_dir / "embeddings" / encoder.fingerprint
        callbacks = callbacks or Callbacks()
        with tracking(task, folder, asdict(self._settings)) as logger:
            training = train_heads(
                catalog,
                folder,
                self._settings,
                encoder=encoder,
                store=store,
                taxonomy=self._taxonomy,
                callbacks=tracked(callbacks, logger),
            )
        self.experiment_dir = folder
        if self._clusters is not None:
            callbacks.on_stage("Clustering the embeddings")
            _write_clusters(folder / "clusters", training.embeddings, catalog.truth(), self._clusters)
        self._clean_up(store, training.run)
        return training

    def train_ruclip(
        self,
        task: Task | str | None = None,
        experiment_name: str | None = None,
        *,
        callbacks: FinetuneCallbacks | None = None,
    ) -> Finetuned:
        """Tunes the last blocks of the encoder, fits heads after every epoch, and keeps the best epoch.

        An interrupted tuning goes on when it is called again with the same `experiment_name`.

        Args:
            task: who is told of the progress: a ClearML task, which is not closed, or the name of a tracker such as
                "tensorboard" or "mlflow".
            experiment_name: name of the folder under `save_dir`; `None`: date and time.
            callbacks: who else is told.

        Raises:
            DataError: as `train_heads_only`; or the encoder has no towers, or there are too few products with both
                photo and text.
            ArtifactError: as `train_heads_only`; or the unfinished tuning there is of other products or settings.
        """
        distributed = Distributed(self._device)
        catalog = self._load_catalog()
        encoder = load_encoder(
            self.ruclip_model, device=distributed.device, dtype="float32", cache_dir=self._models_dir
        )
        folder = distributed.from_main(lambda: self._new_folder(experiment_name))
        cache = self.cache_dir / "activations" / encoder.fingerprint
        with tracking(task, folder, {**asdict(self._settings), "tuning": asdict(self._tuning)}) as logger:
            found = finetune(
                catalog,
                folder,
                self._settings,
                self._tuning,
                encoder=encoder,
                cache_dir=cache,
                taxonomy=self._taxonomy,
                distributed=distributed,
                callbacks=tracked_finetuning(callbacks or FinetuneCallbacks(), logger),
            )
        self.experiment_dir = folder
        if distributed.is_main:
            self._clean_up(cache, found.run)
        return found

    def _new_folder(self, name: str | None) -> Path:
        if name is not None:
            folder = self.save_dir / name
            if (folder / "run.json").exists():
                raise DataError(f"every experiment has a folder of its own, {folder} is there already: name another")
            return folder
        self.save_dir.mkdir(parents=True, exist_ok=True)
        while True:
            folder = self.save_dir / datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S")
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
            time.sleep(0.1)  # another process has begun in the same second

    def _clean_up(self, store: Path, run: Run) -> None:
        if self.end_of_train["del_img_and_txt_tensors"]:
            shutil.rmtree(store)
        model = EncoderSpec.parse(self.ruclip_model).base
        if self.end_of_train["del_loaded_ruclip_model"] and model in RUCLIP_MODELS:
            from product_classificator.encoders.checkpoint import forget

            forget(model, self._models_dir)
            if run.encoder != self.ruclip_model and not run.has_own_encoder:
                replace(run, encoder=self.ruclip_model).save()  # the folder is gone: fetch it again when it is needed


def _write_clusters(folder: Path, embeddings: Embeddings, truth: Truth, settings: ClusterSettings) -> None:
    rows = np.flatnonzero(embeddings.has_image | embeddings.has_text)
    # To clusters a set of labels is one label.
    embeddings, truth = embeddings.take(rows), {name: as_text(labels[rows]) for name, labels in truth.items()}
    vectors = np.concatenate([embeddings.image, embeddings.text], 1)
    write_clusters(folder, cluster(vectors, truth, settings), vectors, truth, embeddings.ids)


def _cluster_settings(params: Mapping[str, int]) -> ClusterSettings:
    known = [field.name for field in fields(ClusterSettings)]
    for name in params:
        if name not in known:
            raise DataError(f"clusterization_params has no {name!r}: {nearest(name, known)}")
    return ClusterSettings(**params)
