import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; read when torch is imported

import pytest

from product_classificator.catalog import read_catalog
from product_classificator.encoders import load_encoder
from product_classificator.evaluation import plots
from product_classificator.training import HeadSettings, TrainSettings, train_heads
from tests.fakes import BlankCanvas, TinyEncoder, shop

QUICK = TrainSettings(heads=HeadSettings(max_epochs=4, hidden=64, batch_size=16, learning_rate=0.01))
DrawingCanvas = plots.FigureCanvasAgg
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory):
    """The cache folder of whoever runs the tests is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def blank_figures():
    """Reports hold blank pictures, see `BlankCanvas`, except in tests that use `drawn_figures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FigureCanvasAgg", BlankCanvas)
        yield


@pytest.fixture(scope="module")
def drawn_figures(blank_figures):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FigureCanvasAgg", DrawingCanvas)
        yield


@pytest.fixture(scope="session")
def shop_files(tmp_path_factory):
    """A table and a zip: the photo tells the colour, the text tells the kind."""
    return shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def catalog(shop_files):
    return read_catalog(*shop_files, text="description", characteristics=["kind", "colour"])


@pytest.fixture(scope="session")
def tiny_training(shop_files, tmp_path_factory):
    """A training with an encoder that needs no weights."""
    catalog = read_catalog(*shop_files, text="description", characteristics=["kind", "colour"])
    return train_heads(catalog, tmp_path_factory.mktemp("runs") / "run", QUICK, encoder=TinyEncoder())


@pytest.fixture(scope="session")
def lite_training(shop_files, tmp_path_factory):
    """A training with the embedded encoder."""
    catalog = read_catalog(*shop_files, text="description", characteristics=["kind", "colour"])
    return train_heads(catalog, tmp_path_factory.mktemp("lite") / "run", QUICK, encoder=load_encoder("lite"))
