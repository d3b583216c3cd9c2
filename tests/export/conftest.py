"""Runs with encoders that can be exported."""

import pytest

from product_classificator import Classificator, load_encoder, train_heads
from product_classificator.catalog import read_catalog
from product_classificator.export import export_classificator
from product_classificator.runtime import Exported
from product_classificator.training import HeadSettings, TrainSettings
from tests.encoders.tiny_ruclip import write_checkpoint

QUICK = TrainSettings(heads=HeadSettings(max_epochs=4, hidden=32, batch_size=16, learning_rate=0.01))


@pytest.fixture(scope="session")
def lite_run(shop_files, tmp_path_factory):
    catalog = read_catalog(*shop_files, text="description", characteristics=["kind", "colour"])
    out = tmp_path_factory.mktemp("lite") / "run"
    train_heads(catalog, out, QUICK, encoder=load_encoder("lite"))
    return out


@pytest.fixture(scope="session")
def lite(lite_run):
    return Classificator.from_run(lite_run)


@pytest.fixture(scope="session")
def exported_folder(lite, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "lite"
    export_classificator(lite, folder)
    return folder


@pytest.fixture(scope="session")
def exported(exported_folder):
    return Exported.load(exported_folder)


@pytest.fixture(scope="session")
def ruclip_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
