import json

import numpy as np
import pandas as pd
import pytest
import torch

from product_classificator import Classificator, make_marketplace
from product_classificator.errors import ArtifactError, DataError
from product_classificator.published.params import published_heads
from product_classificator.runs import Run
from product_classificator.trainer import Trainer
from product_classificator.training import Callbacks, HeadSettings
from tests.encoders.tiny_ruclip import write_checkpoint
from tests.fixtures import QUICKER

PUBLISHED_PARAMS = {
    "criterion": torch.nn.CrossEntropyLoss,
    "optimizer": torch.optim.Adam,
    "optimizer_params": {"lr": 0.01},
    "classificator": "MLP",
    "classificator_params": {
        "in_channels": 1024,
        "hidden_channels": [32],
        "dropout": 0.1,
        "activation": torch.nn.ReLU,
    },
    "epochs": 4,
    "batch_size": 16,
}


@pytest.fixture(scope="session")
def tiny_ruclip(tmp_path_factory):
    """A folder in which a ruCLIP model lies under its name."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "ruclip/ruclip-vit-base-patch32-224")


@pytest.fixture
def make_trainer(shop_files, tiny_ruclip, tmp_path):
    table, images = shop_files

    def make(kind=Trainer, **changes):
        chosen = {
            "characteristics": ["kind", "colour"],
            "ruclip_model": str(tiny_ruclip),
            "save_dir": tmp_path / "experiments",
            "settings": QUICKER,
            **changes,
        }
        return kind(images, pd.read_parquet(table).head(90), **chosen)

    return make


def test_a_training_leaves_an_experiment_and_another_reuses_its_embeddings(make_trainer, tmp_path):
    trainer = make_trainer(cache_dir=tmp_path / "cache")
    assert trainer.experiment_dir is None
    training = trainer.train_heads_only()
    assert trainer.experiment_dir.parent == tmp_path / "experiments"
    assert np.isfinite(training.evaluation.mean_macro_f1)
    encoded = []
    trainer.train_heads_only(
        experiment_name="again", callbacks=Callbacks(on_chunk=lambda chunk: encoded.append(chunk.encoded))
    )
    assert trainer.experiment_dir.name == "again"
    assert sum(encoded) == 0
    with pytest.raises(DataError, match=r"every experiment needs its own folder, .*again exists already"):
        trainer.train_heads_only(experiment_name="again")


def test_a_classificator_takes_the_heads_of_an_experiment(make_trainer, tiny_ruclip):
    trainer = make_trainer()
    trainer.train_heads_only()
    classificator = Classificator(heads_ver=trainer.experiment_dir)
    assert classificator.model_name == str(tiny_ruclip)
    assert set(classificator.classify_products("A nice cup")) == {"kind", "colour"}


def test_a_subclass_brings_and_changes_the_products(make_trainer, shop_files):
    class ShopTrainer(Trainer):
        def _loading_texts(self):
            return self.path_to_texts.rename(columns={"description": "words"})

        def _preprocessing_texts(self, products):
            return products[products.kind != "sock"]

    training = make_trainer(ShopTrainer, text="words").train_heads_only()
    assert training.fitted.bundle.labels["kind"] == ("cup", "hat")

    class FromFile(Trainer):
        def _preprocessing_texts(self, products):
            return products[products.kind != "sock"]

    catalog = FromFile(None, shop_files[0], ["kind"], text="description")._load_catalog()
    assert set(catalog.truth()["kind"]) == {"cup", "hat"}

    class Forgetful(Trainer):
        def _loading_texts(self):
            return None

    with pytest.raises(DataError, match=r"must return the products .* got NoneType"):
        Forgetful(None, shop_files[0])._load_catalog()


def test_a_model_fetched_to_the_cache_is_deleted_when_asked_for(make_trainer, tmp_path):
    write_checkpoint(tmp_path / "cache/ruclip-vit-base-patch32-224")
    trainer = make_trainer(ruclip_model="ruclip-vit-base-patch32-224", cache_dir=tmp_path / "cache")
    trainer.end_of_train["del_img_and_txt_tensors"] = True
    trainer.end_of_train["del_loaded_ruclip_model"] = True
    training = trainer.train_heads_only()
    assert not list((tmp_path / "cache").rglob("*.*"))
    assert Run.load(training.run.folder).encoder == "ruclip-vit-base-patch32-224"


def test_an_interrupted_training_goes_on_under_its_name(make_trainer):
    def stop(chunk):
        raise KeyboardInterrupt

    trainer = make_trainer()
    with pytest.raises(KeyboardInterrupt):
        trainer.train_heads_only(experiment_name="again", callbacks=Callbacks(on_chunk=stop))
    assert np.isfinite(trainer.train_heads_only(experiment_name="again").evaluation.mean_macro_f1)


def test_trainings_that_begin_in_the_same_second_have_folders_of_their_own(make_trainer):
    trainer = make_trainer()
    assert len({trainer._new_folder(None) for _ in range(2)}) == 2


def test_photos_of_the_wildberries_tables_are_bgr_however_the_table_is_brought(tiny_ruclip, tmp_path):
    class MyTrainer(Trainer):
        def _loading_texts(self):
            return pd.DataFrame({"nm": [1, 2], "description": ["a", "b"], "kind": ["x", "y"]})

    make_marketplace(tmp_path / "school", products=60, layout="wildberries")
    for kind, characteristics in ((MyTrainer, ["kind"]), (Trainer, None)):
        trainer = kind(tmp_path / "school/images.zip", tmp_path / "school", characteristics)
        assert trainer._load_catalog().images.channels == "bgr"
    with pytest.raises(DataError, match="products and photos of the Wildberries set are found by nm"):
        Trainer(None, tmp_path / "school", id="sku")._load_catalog()


def test_a_folder_of_the_user_is_never_deleted(make_trainer, tiny_ruclip):
    trainer = make_trainer()
    trainer.end_of_train["del_loaded_ruclip_model"] = True
    trainer.train_heads_only()
    assert (tiny_ruclip / "pytorch_model.bin").is_file()


def test_clusters_are_made_when_asked_for(make_trainer):
    trainer = make_trainer(clusterization_params={"n_clusters": 5})
    trainer.train_heads_only()
    scores = pd.read_csv(trainer.experiment_dir / "clusters/clusters.csv", index_col=0)
    assert set(scores.index) == {"kind", "colour"}
    assert (trainer.experiment_dir / "clusters/clusters.png").is_file()
    with pytest.raises(DataError, match="no parameter of clusterization_params 'n_cluster': did you mean 'n_clusters'"):
        make_trainer(clusterization_params={"n_cluster": 5})


class RecordingTask:
    """A ClearML task that writes down what it is told."""

    def __init__(self):
        self.scalars, self.lines = [], []

    def get_logger(self):
        return self

    def report_scalar(self, title, series, value, iteration):
        self.scalars.append((title, series, iteration))

    def report_text(self, text):
        self.lines.append(text)


def test_a_task_is_told_of_every_epoch(make_trainer):
    task = RecordingTask()
    training = make_trainer().train_heads_only(task)
    epochs = {iteration for title, _, iteration in task.scalars if title == "train loss"}
    assert epochs == set(range(1, len(training.fitted.history) + 1))
    assert "Fitting heads without fold 2 of 2, and predicting it" in task.lines


def test_published_parameters_change_the_settings_of_the_heads(make_trainer):
    trainer = make_trainer(heads_train_params=PUBLISHED_PARAMS, min_products_in_sub_cat=5)
    training = trainer.train_heads_only()
    settings = json.loads((trainer.experiment_dir / "run.json").read_text())["settings"]["heads"]
    assert (settings["epochs"], settings["hidden"], settings["batch_size"]) == (4, 32, 16)
    assert (settings["learning_rate"], settings["dropout"], settings["min_products_per_label"]) == (0.01, 0.1, 5)
    assert len(training.fitted.history) == 4
    assert published_heads({}) == HeadSettings()
    assert published_heads({"criterion": torch.nn.CrossEntropyLoss()}) == HeadSettings()
    assert published_heads({"classificator_params": {"hidden_channels": 32}}).hidden == 32


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epoch": 3}, "heads_train_params has no 'epoch': did you mean 'epochs'"),
        ({"optimizer_params": {"betas": (0.9, 0.99)}}, "heads_train_params has no 'optimizer_params.betas'"),
        ({"optimizer": torch.optim.SGD}, "optimizer of heads_train_params must be Adam or AdamW, got SGD"),
        ({"criterion": "NLLLoss"}, "criterion of heads_train_params must be CrossEntropyLoss, got NLLLoss"),
        ({"classificator_params": {"hidden_channels": [64, 32]}}, r"must name one hidden layer, got \[64, 32\]"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, "parameter epochs: Input should be a valid integer.*got 2.5"),
        ({"criterion": torch.nn.NLLLoss()}, "criterion of heads_train_params must be CrossEntropyLoss, got NLLLoss"),
        ({"optimizer_params": 3}, "optimizer_params of heads_train_params must be a dictionary, got int"),
    ],
)
def test_what_the_heads_do_not_have_is_refused(params, message):
    with pytest.raises(DataError, match=message):
        published_heads(params)


def test_wrong_arguments_are_told_at_once_and_missing_files_by_the_training(make_trainer, tmp_path):
    with pytest.raises(DataError, match="min_products_in_sub_cat must be > 1, got 1"):
        make_trainer(min_products_in_sub_cat=1)
    trainer = Trainer(None, tmp_path / "no.parquet", save_dir=tmp_path)
    with pytest.raises(DataError, match=r"there is no file .*no.parquet"):
        trainer.train_heads_only()
    with pytest.raises(ArtifactError, match="cannot be fetched from the hub"):
        make_trainer(ruclip_model="ruclip-vit-base-patch16-384", cache_dir=tmp_path / "cache").train_heads_only()
