import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from product_classificator import Classificator, make_marketplace
from product_classificator.catalog.table import open_table
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
            "quiet": True,
            **changes,
        }
        trainer = kind(images, pd.read_parquet(table).head(90), **chosen)
        if "clusterization_params" not in changes:
            trainer.clusterization_params = None  # a map takes a second
        return trainer

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

    with pytest.raises(DataError, match=r"must return the products, got None"):
        Forgetful(None, shop_files[0])._load_catalog()


def test_products_may_come_as_files_arrow_tables_and_datasets(shop_files):
    table, photos = shop_files
    frame = pa.Table.from_pandas(pd.read_parquet(table), preserve_index=False)

    class Sockless(Trainer):
        def _preprocessing_texts(self, products):
            return products[products.kind != "sock"]

    for products in ([table], frame, open_table(frame)):
        for kind, n in ((Trainer, 3), (Sockless, 2)):
            catalog = kind(photos, products, ["kind"], text="description")._load_catalog()
            assert len(set(catalog.truth()["kind"]) - {None}) == n


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


def test_clusters_are_made_unless_switched_off(make_trainer):
    trainer = make_trainer(clusterization_params={"n_clusters": 5})
    trainer.train_heads_only()
    scores = pd.read_csv(trainer.experiment_dir / "clusters/clusters.csv", index_col=0)
    assert set(scores.index) == {"kind", "colour"}
    assert (trainer.experiment_dir / "clusters/clusters.png").is_file()
    trainer.clusterization_params = None
    trainer.train_heads_only()
    assert not (trainer.experiment_dir / "clusters").exists()
    with pytest.raises(DataError, match="no parameter of clusterization_params 'n_cluster': did you mean 'n_clusters'"):
        make_trainer(clusterization_params={"n_cluster": 5})


def test_all_attributes_hold_their_defaults_and_are_read_when_a_training_begins(make_trainer, tmp_path):
    fresh = Trainer("photos", "texts")
    assert fresh.ruclip_train_params["epochs"] == 5
    assert fresh.ruclip_train_params["optimizer_params"] == {
        "lr": 5e-5,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "weight_decay": 0.2,
    }
    assert fresh.heads_train_params["classificator_params"]["hidden_channels"] == [512]
    assert fresh.clusterization_params == {"n_clusters": 1000, "n_components": 50, "seed": 42}
    assert (len(fresh.characteristics), fresh.min_products_in_sub_cat) == (7, 10)
    assert fresh._all_settings()[0].heads == HeadSettings()

    trainer = make_trainer(heads_train_params={"epochs": 9}, clusterization_params={})
    trainer.heads_train_params["epochs"] = 2
    trainer.heads_train_params["classificator_params"]["hidden_channels"] = [24]
    trainer.ruclip_train_params["num_last_resblocks_to_train"] = 2
    trainer.characteristics.remove("colour")
    trainer.min_products_in_sub_cat, trainer.clean_text, trainer.save_dir = 4, True, str(tmp_path / "elsewhere")
    trainer.clusterization_params["n_clusters"] = 3
    training = trainer.train_heads_only(experiment_name="changed")
    run = Run.load(tmp_path / "elsewhere/changed")
    heads = run.settings["heads"]
    assert (heads["epochs"], heads["hidden"], heads["min_products_per_label"]) == (2, 24, 4)
    assert not heads["rare_labels"]
    assert run.encoder.endswith("+clean")
    assert list(training.evaluation.characteristics) == ["kind"]
    clusters = pd.read_parquet(run.folder / "clusters/assignment.parquet")["cluster"]
    assert clusters.nunique() == 3
    assert trainer._all_settings()[1].last_blocks == 2
    trainer.characteristics = trainer.min_products_in_sub_cat = trainer.heads_train_params = None  # as if never named
    assert trainer._load_catalog().columns.characteristics == ()
    assert trainer._all_settings()[0].heads == make_trainer()._all_settings()[0].heads
    trainer.path_to_dfs = "another.parquet"
    assert trainer.path_to_texts == trainer.path_to_dfs == "another.parquet"


def test_a_training_shows_stages_and_bars_unless_quiet(make_trainer, capsys, monkeypatch):
    trainer = make_trainer(clusterization_params={"n_clusters": 5}, quiet=False)
    trainer.train_heads_only()
    shown = capsys.readouterr().err
    assert "Embedding 90 products with" in shown
    assert "90/90" in shown
    assert "Clustering the embeddings" in shown
    with make_trainer()._progress(None, trainer._load_catalog()) as callbacks:
        callbacks.on_stage("not shown")
    assert capsys.readouterr().err == ""


def test_subclasses_of_the_published_package_train(tiny_ruclip, tmp_path):
    make_marketplace(tmp_path / "school", products=150, layout="wildberries")
    seen = []

    class OldTrainer(Trainer):
        def _loading_texts(self):
            products = super()._loading_texts()
            seen.append(products)
            return products[products["nm"] % 2 == 0]

        def _preprocessing_texts(self, df, clean):
            df = super()._preprocessing_texts(df, clean)
            df["nm"] = df["nm"].apply(lambda nm: str(nm) + ".jpg")
            return df

    trainer = OldTrainer(tmp_path / "school/images.zip", tmp_path / "school", ruclip_model=str(tiny_ruclip), quiet=True)
    assert list(trainer._loading_texts()) == [
        "nm",
        "title",
        "description",
        "characteristics",
        "category",
        "sub_category",
        "isadult",
    ]
    assert isinstance(seen[0]["characteristics"].dropna().iloc[0], bytes)
    catalog = trainer._load_catalog()
    plain = Trainer(tmp_path / "school/images.zip", tmp_path / "school")._load_catalog()
    whole = pd.DataFrame({**plain.truth(), "text": plain.texts()}, index=plain.ids)
    truth = pd.DataFrame({**catalog.truth(), "text": catalog.texts()}, index=[id_[:-4] for id_ in catalog.ids])
    pd.testing.assert_frame_equal(truth, whole[whole.index.astype(int) % 2 == 0].loc[truth.index])
    assert catalog.ids[0].endswith(".jpg")
    (products,) = catalog.batches(1000)
    found = sum(catalog.locate(image) is not None for images in products.images for image in images)
    assert found > 0.9 * len(catalog)


def test_channels_and_the_column_of_photos_can_be_named(shop_files):
    table = pd.read_parquet(shop_files[0]).assign(file=lambda rows: rows["nm"].astype(str) + ".jpg", nm="x")
    catalog = Trainer(shop_files[1], table, ["kind"], photo="file", channels="bgr", text="description")._load_catalog()
    assert catalog.images.channels == "bgr"
    assert catalog.columns.photo == "file"


class RecordingTask:
    """A ClearML task that writes down what it is told."""

    def __init__(self):
        self.scalars, self.lines, self.settings, self.artifacts = [], [], {}, {}

    def get_logger(self):
        return self

    def connect(self, settings, name):
        self.settings[name] = settings

    def upload_artifact(self, name, content):
        self.artifacts[name] = content

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
    assert task.settings["settings"]["heads.epochs"] == len(training.fitted.history)
    assert {series for title, series, _ in task.scalars if title == "macro-F1"} == {"kind", "colour", "mean"}
    score = task.artifacts["scores"]["characteristics"]["kind"]["macro_f1"]
    assert score == training.evaluation.characteristics["kind"].macro_f1
    assert (task.artifacts["report"] / "report.md").is_file()


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
