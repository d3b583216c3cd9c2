"""`Trainer`, the published façade of training: photos and texts in, an experiment folder out."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd

from product_classificator.catalog import (
    PUBLISHED_CHARACTERISTICS,
    Catalog,
    is_wildberries,
    open_images,
    read_catalog,
    read_frame,
)
from product_classificator.catalog.photo import Channels
from product_classificator.catalog.table import TableSource
from product_classificator.encoders import RUCLIP_MODELS, EncoderSpec, load_encoder
from product_classificator.encoders.ruclip import delete_ruclip
from product_classificator.errors import DataError
from product_classificator.finetuning import Distributed, Finetuned, FinetuneSettings, finetune
from product_classificator.finetuning.trackers import tracking, training_progress
from product_classificator.published.clusters import ClusterSettings, cluster_products
from product_classificator.published.params import as_params, published_finetuning, published_heads
from product_classificator.published.texts import read_raw, with_labels
from product_classificator.runs import Run
from product_classificator.training import Callbacks, Training, TrainSettings, train_heads
from product_classificator.training.settings import with_changes


class Trainer:
    """Trains heads on photos and a table of products.

    Every attribute may be changed before a training, like `trainer.ruclip_train_params["epochs"] = 2`. Override
    `_loading_texts` or `_preprocessing_texts` to load products from elsewhere or to change them.

    Args:
        path_to_images: a folder or zip of photos; `None`: text only.
        path_to_texts: what `read_catalog` opens: a table, several files as one, the Wildberries tables, or a DataFrame.
        characteristics: the columns with labels, or raw characteristics of Wildberries; `None`: the published seven, as
            far as they exist.
        ruclip_train_params: how `train_ruclip` fine-tunes the last blocks, as in the published system (epochs,
            batch_size, num_last_resblocks_to_train, optimizer_params); what it does not name has its default.
        heads_train_params: how heads are fitted, as in the published system (epochs, batch_size, optimizer_params,
            classificator_params); what it does not name is taken from `settings`.
        clusterization_params: `n_clusters`, `n_components`, `seed` of the clusters of the embeddings, which are made
            after a training. Set the attribute to `None` to make none.
        min_products_in_sub_cat: labels of fewer products count as unknown, in `sub_category` and all other
            characteristics; `None`: as `settings` says (10, and rare labels that can be learned).
        ruclip_model: name of the encoder, "lite" or any other that `load_encoder` takes.
        cache_dir: of embeddings and ruCLIP models; `None`: `<save_dir>/cache` and the cache of the hub.
        save_dir: where experiments are saved.
        id, text, photo: the columns of ids, of texts, and of photos or their names, as in `read_catalog`.
        channels: "bgr" if red and blue of the photos are swapped; `None`: only those of Wildberries.
        device: of the encoder; "auto": a GPU if there is one.
        taxonomy: path of a table for `read_taxonomy`; `None`: the hierarchy is learned.
        multi_label: further characteristics with any number of labels per product, see `read_catalog`.
        quiet: do not show stages and progress bars; they are on stderr.
        settings: everything else; `ruclip_model` replaces its encoder.

    Attributes:
        experiment_dir: the folder of the last training, `None` before.
        cache_dir: where embeddings are cached.
        clean_text: whether the encoder reads cleaned texts, as `+clean` does, in training and in prediction.
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
        photo: str | None = None,
        channels: Channels | None = None,
        device: str = "auto",
        taxonomy: str | Path | None = None,
        multi_label: str | Sequence[str] = (),
        quiet: bool = False,
        settings: TrainSettings | None = None,
    ) -> None:
        self._settings = settings or TrainSettings()
        if min_products_in_sub_cat is not None:
            self._settings = replace(self._settings, heads=replace(self._settings.heads, rare_labels=False))
        heads = self._settings.heads
        self.path_to_images, self.path_to_texts = path_to_images, path_to_texts
        names = [characteristics] if isinstance(characteristics, str) else characteristics
        self.characteristics: Any = list(PUBLISHED_CHARACTERISTICS if names is None else names)
        self.ruclip_train_params = as_params(FinetuneSettings(), ruclip_train_params)
        self.heads_train_params = as_params(heads, heads_train_params)
        self.clusterization_params: Any = asdict(ClusterSettings()) | dict(clusterization_params or {})
        least = heads.min_products_per_label if min_products_in_sub_cat is None else min_products_in_sub_cat
        self.min_products_in_sub_cat: int | None = least
        self.ruclip_model, self.clean_text, self.save_dir = ruclip_model, False, save_dir
        self._own_cache = Path(save_dir) / "cache"
        self.cache_dir = self._own_cache if cache_dir is None else Path(cache_dir)
        self.experiment_dir: Path | None = None
        self.end_of_train = {"del_img_and_txt_tensors": False, "del_loaded_ruclip_model": False}
        self.id, self.text, self.photo, self.channels, self.multi_label = id, text, photo, channels, multi_label
        self.device, self.quiet = device, quiet
        self.taxonomy = self._settings.taxonomy if taxonomy is None else taxonomy
        self._all_settings()  # wrong parameters are refused at once

    path_to_dfs = property(  # the name of `path_to_texts` in 0.0.6
        lambda self: self.path_to_texts, lambda self, table: setattr(self, "path_to_texts", table)
    )

    def _all_settings(self) -> tuple[TrainSettings, FinetuneSettings, ClusterSettings | None]:
        """Return the settings of a training, as the attributes are now; a wrong one is a `DataError`."""
        heads, least = self._settings.heads, self.min_products_in_sub_cat
        heads = published_heads(self.heads_train_params or {}, heads)
        if least is not None and least <= 1:
            raise DataError(f"min_products_in_sub_cat must be > 1, got {least}")
        if least not in (None, heads.min_products_per_label):
            heads = replace(heads, min_products_per_label=least, rare_labels=False)
        taxonomy = None if self.taxonomy is None else str(self.taxonomy)
        settings = replace(self._settings, encoder=self._encoder_name, heads=heads, taxonomy=taxonomy)
        clusters, kind = self.clusterization_params, "parameter of clusterization_params"
        cluster_settings = None if clusters is None else with_changes(ClusterSettings(), clusters, kind)
        return settings, published_finetuning(self.ruclip_train_params or {}), cluster_settings

    @property
    def _encoder_name(self) -> str:
        spec = EncoderSpec.parse(self.ruclip_model)
        return str(replace(spec, clean=True)) if self.clean_text else self.ruclip_model

    @property
    def _models_dir(self) -> Path | None:
        return None if self.cache_dir == self._own_cache else Path(self.cache_dir)

    def _loading_texts(self) -> Any:
        """Return the products, a DataFrame or a path: here a DataFrame, of Wildberries with raw `characteristics`."""
        return _read_raw_or_frame(self.path_to_texts)

    def _preprocessing_texts(self, products: pd.DataFrame, clean: bool = False) -> pd.DataFrame:
        """Return the products to learn from, here with labels for raw characteristics of Wildberries.

        `clean` is that of the published method; texts are cleaned by the encoder, see `clean_text`.
        """
        return with_labels(products, self.characteristics or ())

    def _own_products(self) -> Any:
        """Return what a subclass makes of the products; a base class does without DataFrames."""
        names = ("_loading_texts", "_preprocessing_texts")
        loads, changes = (getattr(type(self), name) is not getattr(Trainer, name) for name in names)
        if not loads and not changes:
            return self.path_to_texts
        products = self._loading_texts()
        products = _read_raw_or_frame(products) if changes and products is not None else products
        if isinstance(products, pd.DataFrame):
            takes_clean = len(signature(self._preprocessing_texts).parameters) > 1
            products = self._preprocessing_texts(products, *[self.clean_text] * takes_clean)
        if products is None:
            raise DataError("_loading_texts and _preprocessing_texts must return the products, got None")
        return products

    def _load_catalog(self) -> Catalog:
        products, table, images = self._own_products(), self.path_to_texts, self.path_to_images
        # Wildberries photos are BGR even if a subclass brings another table.
        is_of_wildberries = isinstance(table, str | Path) and is_wildberries(table)
        channels = self.channels or ("bgr" if is_of_wildberries else "rgb")
        text = ("description",) if self.text is None and is_of_wildberries and products is not table else self.text
        is_default = self.characteristics is None or [*self.characteristics] == [*PUBLISHED_CHARACTERISTICS]
        return read_catalog(
            products,
            None if images is None else open_images(images, channels=channels),
            id=self.id,
            text=text,
            photo=self.photo,
            characteristics=None if is_default else self.characteristics,
            multi_label=self.multi_label,
        )

    def _progress(
        self, callbacks: Callbacks | None, catalog: Catalog, *, is_main: bool = True
    ) -> AbstractContextManager[Callbacks]:
        is_shown = callbacks is None and not self.quiet and is_main
        return training_progress(len(catalog)) if is_shown else nullcontext(callbacks or Callbacks())

    def train_heads_only(
        self, task: Any = None, experiment_name: str | None = None, *, callbacks: Callbacks | None = None
    ) -> Training:
        """Fit heads on embeddings of the untuned encoder and write run and report to `experiment_dir`.

        The folder has `experiment_name` (`None`: date and time) under `save_dir`. `task` logs the progress: a ClearML
        task, or the name of a tracker, see `trackers.tracking`. `callbacks` replace the progress bars.

        Raises:
            DataError: table or photos cannot be read, there are too few labels, or the experiment exists already.
            ArtifactError: the encoder is damaged, or cannot be downloaded.
        """
        settings, _, cluster_settings = self._all_settings()
        catalog = self._load_catalog()
        encoder = load_encoder(settings.encoder, device=self.device, cache_dir=self._models_dir)
        folder, store = self._new_folder(experiment_name), Path(self.cache_dir) / "embeddings" / encoder.fingerprint
        with (
            self._progress(callbacks, catalog) as progress,
            tracking(progress, task, folder, asdict(settings)) as tracked,
        ):
            training = train_heads(catalog, folder, settings, encoder=encoder, store=store, callbacks=tracked)
            self._cluster(training, catalog, cluster_settings, tracked)
        self._clean_up(store, training.run)
        return training

    def train_ruclip(
        self, task: Any = None, experiment_name: str | None = None, *, callbacks: Callbacks | None = None
    ) -> Finetuned:
        """Fine-tune the last blocks of the encoder, fit heads after every epoch, and keep the best epoch.

        The same call with the same `experiment_name` resumes an interrupted fine-tuning. Arguments as in
        `train_heads_only`, errors as there and in `finetune`.
        """
        settings, finetune_settings, cluster_settings = self._all_settings()
        distributed = Distributed(self.device)
        catalog = self._load_catalog()
        encoder = load_encoder(settings.encoder, device=distributed.device, dtype="float32", cache_dir=self._models_dir)
        folder = distributed.from_main(lambda: self._new_folder(experiment_name))
        cache = Path(self.cache_dir) / "activations" / encoder.fingerprint
        finetune_settings = replace(finetune_settings, cache_dir=str(cache))
        shown = {**asdict(settings), "finetuning": asdict(finetune_settings)}
        with (
            self._progress(callbacks, catalog, is_main=distributed.is_main) as progress,
            tracking(progress, task, folder, shown) as tracked,
        ):
            finetuned = finetune(catalog, folder, settings, finetune_settings, encoder=encoder, callbacks=tracked)
            self._cluster(finetuned, catalog, cluster_settings if distributed.is_main else None, tracked)
        if distributed.is_main:
            self._clean_up(cache, finetuned.run)
        return finetuned

    def _cluster(
        self, training: Training, catalog: Catalog, settings: ClusterSettings | None, callbacks: Callbacks
    ) -> None:
        """Set the folder of the finished training, and cluster its embeddings."""
        self.experiment_dir = training.run.folder
        if settings is not None:
            callbacks.on_stage("Clustering the embeddings")
            cluster_products(self.experiment_dir / "clusters", training.embeddings, catalog.truth(), settings)

    def _new_folder(self, name: str | None) -> Path:
        folder = Path(self.save_dir) / (name or datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S-%f"))
        if (folder / "run.json").exists():
            raise DataError(f"every experiment needs its own folder, {folder} exists already: choose another name")
        return folder

    def _clean_up(self, cache: Path, run: Run) -> None:
        if self.end_of_train["del_img_and_txt_tensors"]:
            shutil.rmtree(cache)
        model = EncoderSpec.parse(self.ruclip_model).base
        if self.end_of_train["del_loaded_ruclip_model"] and model in RUCLIP_MODELS:
            delete_ruclip(model, self._models_dir)
            if run.encoder != self._encoder_name and not run.has_own_encoder:
                replace(run, encoder=self._encoder_name).save()  # the name downloads the deleted model again


def _read_raw_or_frame(table: TableSource) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        return table
    if isinstance(table, str | Path) and is_wildberries(table):
        return read_raw(table)
    return pd.DataFrame(read_frame(table))
