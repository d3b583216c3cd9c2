"""`Trainer`, the published façade of training: photos and texts in, an experiment folder out."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from product_classificator.catalog import Catalog, is_wildberries, open_images, read_catalog, read_frame
from product_classificator.encoders import RUCLIP_MODELS, EncoderSpec, load_encoder
from product_classificator.encoders.ruclip import delete_ruclip
from product_classificator.errors import DataError
from product_classificator.finetuning import Distributed, Finetuned, finetune
from product_classificator.finetuning.trackers import tracking
from product_classificator.published.clusters import ClusterSettings, cluster, write_clusters
from product_classificator.published.params import published_finetuning, published_heads
from product_classificator.runs import Run
from product_classificator.training import Callbacks, Training, TrainSettings, train_heads
from product_classificator.training.settings import with_changes
from product_classificator.types import as_text

TableSource: TypeAlias = str | Path | pd.DataFrame


class Trainer:
    """Trains heads on photos and a table of products.

    Override `_loading_texts` or `_preprocessing_texts` to load products from elsewhere or to change them.

    Args:
        path_to_images: a folder or zip of photos; `None`: text only.
        path_to_texts: a parquet, CSV or JSON lines file, a folder with the two Wildberries tables, or a DataFrame.
        characteristics: the columns with labels; `None`: the published seven, as far as they exist.
        ruclip_train_params: how `train_ruclip` fine-tunes the last blocks, as in the published system (epochs,
            batch_size, num_last_resblocks_to_train, optimizer_params); `None`: the defaults.
        heads_train_params: how heads are fitted, as in the published system (epochs, batch_size, optimizer_params,
            classificator_params); what it does not name is taken from `settings`.
        clusterization_params: `n_clusters`, `n_components`, `seed`: cluster the embeddings after the training; `None`:
            do not.
        min_products_in_sub_cat: labels of fewer products count as unknown, in `sub_category` and all other
            characteristics; `None`: as `settings` says (10).
        ruclip_model: name of the encoder, "lite" or any other that `load_encoder` takes.
        cache_dir: of embeddings and ruCLIP models; `None`: `<save_dir>/cache` and the cache of the hub.
        save_dir: where experiments are saved.
        id: the column of ids; `None`: guessed.
        text: the text columns; `None`: guessed.
        device: of the encoder; "auto": a GPU if there is one.
        taxonomy: path of a table for `read_taxonomy`; `None`: the hierarchy is learned.
        multi_label: further characteristics with any number of labels per product, see `read_catalog`.
        settings: everything else; `ruclip_model` replaces its encoder.

    Attributes:
        experiment_dir: the folder of the last training, `None` before.
        cache_dir: where embeddings are cached.
        end_of_train: what to delete after a training: `del_img_and_txt_tensors` (cached embeddings),
            `del_loaded_ruclip_model` (the downloaded model; a folder of yours is never deleted).

    Raises:
        DataError: an argument breaks a rule. Table and photos are only opened by the training methods.
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
        ruclip_model: str = "ruclip-vit-base-patch16-384",
        cache_dir: str | Path | None = None,
        save_dir: str | Path = "experiments",
        *,
        id: str | None = None,  # noqa: A002 - as on the command line
        text: str | Sequence[str] | None = None,
        device: str = "auto",
        taxonomy: str | Path | None = None,
        multi_label: str | Sequence[str] = (),
        settings: TrainSettings | None = None,
    ) -> None:
        if min_products_in_sub_cat is not None and min_products_in_sub_cat <= 1:
            raise DataError(f"min_products_in_sub_cat must be > 1, got {min_products_in_sub_cat}")
        self.path_to_images, self.path_to_texts = path_to_images, path_to_texts
        self.characteristics = [characteristics] if isinstance(characteristics, str) else characteristics
        self.ruclip_train_params, self.heads_train_params = ruclip_train_params, heads_train_params
        self.clusterization_params, self.min_products_in_sub_cat = clusterization_params, min_products_in_sub_cat
        self.ruclip_model, self.save_dir = ruclip_model, Path(save_dir)
        self.cache_dir = self.save_dir / "cache" if cache_dir is None else Path(cache_dir)
        self.experiment_dir: Path | None = None
        self.end_of_train = {"del_img_and_txt_tensors": False, "del_loaded_ruclip_model": False}
        self._models_dir = None if cache_dir is None else self.cache_dir
        self._id, self._text, self._multi_label = id, text, multi_label
        self._device, settings = device, settings or TrainSettings()
        heads = published_heads(heads_train_params or {}, settings.heads)
        if min_products_in_sub_cat is not None:
            heads = replace(heads, min_products_per_label=min_products_in_sub_cat, rare_labels=False)
        taxonomy = settings.taxonomy if taxonomy is None else str(taxonomy)
        self._settings = replace(settings, encoder=ruclip_model, heads=heads, taxonomy=taxonomy)
        self._finetune_settings = published_finetuning(ruclip_train_params or {})
        clusters, kind = clusterization_params, "parameter of clusterization_params"
        self._clusters = None if clusters is None else with_changes(ClusterSettings(), clusters, kind)

    def _loading_texts(self) -> TableSource:
        """Return the products: a table file, a DataFrame, or a folder with the Wildberries tables."""
        return self.path_to_texts

    def _preprocessing_texts(self, products: pd.DataFrame) -> pd.DataFrame:
        """Return the products to learn from; only called on a subclass that overrides it."""
        return products

    def _load_catalog(self) -> Catalog:
        products, text = self._loading_texts(), self._text
        if type(self)._preprocessing_texts is not Trainer._preprocessing_texts:
            if not isinstance(products, pd.DataFrame):
                text = ("description",) if text is None and is_wildberries(products) else text
                products = read_frame(products)
            products = self._preprocessing_texts(products)
        if not isinstance(products, str | Path | pd.DataFrame):
            raise DataError(
                "_loading_texts and _preprocessing_texts must return the products (a DataFrame or a path), got "
                f"{type(products).__name__}"
            )
        images, table = self.path_to_images, self.path_to_texts
        # Wildberries photos are BGR even if a subclass brings another table.
        is_bgr = images is not None and isinstance(table, str | Path) and is_wildberries(table)
        source = open_images(images, channels="bgr") if images is not None and is_bgr else images
        return read_catalog(
            products,
            source,
            id=self._id,
            text=text,
            characteristics=self.characteristics,
            multi_label=self._multi_label,
        )

    def train_heads_only(
        self, task: Any = None, experiment_name: str | None = None, *, callbacks: Callbacks | None = None
    ) -> Training:
        """Fit heads on embeddings of the untuned encoder and write run and report to `experiment_dir`.

        The folder has `experiment_name` (`None`: date and time) under `save_dir`. `task` logs the progress: a ClearML
        task, or the name of a tracker, see `trackers.tracking`.

        Raises:
            DataError: table or photos cannot be read, there are too few labels, or the experiment exists already.
            ArtifactError: the encoder is damaged, or cannot be downloaded.
        """
        catalog = self._load_catalog()
        encoder = load_encoder(self.ruclip_model, device=self._device, cache_dir=self._models_dir)
        folder, store = self._new_folder(experiment_name), self.cache_dir / "embeddings" / encoder.fingerprint
        callbacks, settings = callbacks or Callbacks(), self._settings
        with tracking(callbacks, task, folder, asdict(settings)) as tracked:
            training = train_heads(catalog, folder, settings, encoder=encoder, store=store, callbacks=tracked)
        self.experiment_dir = folder
        if self._clusters is not None:
            callbacks.on_stage("Clustering the embeddings")
            rows = np.flatnonzero(training.embeddings.has_image | training.embeddings.has_text)
            embeddings = training.embeddings.take(rows)
            truth = {name: as_text(labels[rows]) for name, labels in catalog.truth().items()}  # a set is one label here
            vectors = np.concatenate([embeddings.image, embeddings.text], 1)
            clusters = cluster(vectors, truth, self._clusters)
            write_clusters(folder / "clusters", clusters, vectors, truth, embeddings.ids)
        self._clean_up(store, training.run)
        return training

    def train_ruclip(
        self, task: Any = None, experiment_name: str | None = None, *, callbacks: Callbacks | None = None
    ) -> Finetuned:
        """Fine-tune the last blocks of the encoder, fit heads after every epoch, and keep the best epoch.

        The same call with the same `experiment_name` resumes an interrupted fine-tuning. Arguments as in
        `train_heads_only`, errors as there and in `finetune`.
        """
        distributed = Distributed(self._device)
        catalog = self._load_catalog()
        encoder = load_encoder(
            self.ruclip_model, device=distributed.device, dtype="float32", cache_dir=self._models_dir
        )
        folder = distributed.from_main(lambda: self._new_folder(experiment_name))
        cache = self.cache_dir / "activations" / encoder.fingerprint
        settings, finetune_settings = self._settings, replace(self._finetune_settings, cache_dir=str(cache))
        shown = {**asdict(settings), "finetuning": asdict(finetune_settings)}
        with tracking(callbacks or Callbacks(), task, folder, shown) as tracked:
            finetuned = finetune(catalog, folder, settings, finetune_settings, encoder=encoder, callbacks=tracked)
        self.experiment_dir = folder
        if distributed.is_main:
            self._clean_up(cache, finetuned.run)
        return finetuned

    def _new_folder(self, name: str | None) -> Path:
        folder = self.save_dir / (name or datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S-%f"))
        if (folder / "run.json").exists():
            raise DataError(f"every experiment needs its own folder, {folder} exists already: choose another name")
        return folder

    def _clean_up(self, cache: Path, run: Run) -> None:
        if self.end_of_train["del_img_and_txt_tensors"]:
            shutil.rmtree(cache)
        model = EncoderSpec.parse(self.ruclip_model).base
        if self.end_of_train["del_loaded_ruclip_model"] and model in RUCLIP_MODELS:
            delete_ruclip(model, self._models_dir)
            if run.encoder != self.ruclip_model and not run.has_own_encoder:
                replace(run, encoder=self.ruclip_model).save()  # the name downloads the deleted model again
