"""The fixtures of all tests, and trainings and settings that tests share."""

import shutil
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from product_classificator.catalog import read_catalog
from product_classificator.classificator import Classificator
from product_classificator.encoders import load_encoder
from product_classificator.evaluation import plots
from product_classificator.export import export_classificator
from product_classificator.runs import Run
from product_classificator.training import HeadSettings, SplitSettings, TrainSettings, train_heads
from tests.command_line import QUICK_TOML, call
from tests.encoders.tiny_ruclip import write_checkpoint
from tests.fakes import BlankCanvas, TinyEncoder, shop

QUICK = TrainSettings(heads=HeadSettings(epochs=4, hidden=64, batch_size=16, learning_rate=0.01))
QUICKER = replace(QUICK, heads=replace(QUICK.heads, epochs=2), split=SplitSettings(folds=2))
LITE_PRODUCTS = 150
RUCLIP_OPTIONS = "+letterbox+windows+clean"
SHOWN_LABELS = {"kind": ["cup", "hat", "sock"], "sex": ["men", "women"]}
DRAWING = {name: value for name, value in vars(plots).items() if name.startswith("draw_") or name == "FigureCanvasAgg"}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id):
    """A folder of all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(shared_folder):
    """The cache folder of whoever runs the tests is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(shared_folder / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def blank_figures():
    """Reports of trainings hold blank pictures, half of a report's time, except in tests that use `drawn_figures`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in DRAWING:
            patch.setattr(plots, name, BlankCanvas if name == "FigureCanvasAgg" else lambda *_: None)
        yield


@contextmanager
def drawing():
    """Draw figures in spite of `blank_figures`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DRAWING.items():
            patch.setattr(plots, name, value)
        yield


@pytest.fixture(scope="module")
def drawn_figures(blank_figures):
    with drawing():
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


@pytest.fixture
def tiny_run(tiny_training, tmp_path):
    """A copy of the run of `tiny_training` that a test may change, in `tmp_path / "run"`."""
    return Run.load(shutil.copytree(tiny_training.run.folder, tmp_path / "run"))


@pytest.fixture(scope="session")
def once(shared_folder):
    """Makes a folder once for all workers of pytest-xdist; tests read it, and write elsewhere.

    `once(name, make)` calls `make` with the new folder, and returns the folder and the text that `make` returned.
    """

    def made(name: str, make: Callable[[Path], str | None]) -> tuple[Path, str]:
        folder, text = (shared_folder / "once" / each for each in (name, f"{name}.txt"))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not text.exists():  # the last that is written
                printed = make(folder) or ""
                text.write_text(printed, encoding="utf-8")
            return folder, text.read_text(encoding="utf-8")

    return made


@pytest.fixture(scope="session")
def lite_run(once):
    """The folder of a run of the command line with the embedded encoder, its report drawn, and what was printed."""

    def train(folder: Path) -> str:
        table, images = shop(folder, products=LITE_PRODUCTS)
        (folder / "settings.toml").write_text(QUICK_TOML)
        options = ["--text", "description", "--characteristics", "kind,colour", "--config", folder / "settings.toml"]
        with drawing():
            return call("train", table, "--images", images, *options, "--out", folder / "run")

    folder, printed = once("lite", train)
    return folder / "run", printed


@pytest.fixture(scope="session")
def lite_export(once, lite_run):
    """The folder of `lite_run` exported, and what was printed."""
    return once("lite-export", lambda folder: call("export", lite_run[0], "--out", folder))


@pytest.fixture(scope="session")
def ruclip_export(once):
    """A folder with a tiny ruCLIP (`model`) and, with every option, its export for zero-shot labels (`export`)."""

    def export(folder: Path) -> None:
        model = write_checkpoint(folder / "model", vision_layers=1, transformer_layers=1)
        encoder = load_encoder(f"{model}{RUCLIP_OPTIONS}", dtype="float32")
        export_classificator(Classificator.zero_shot(SHOWN_LABELS, ["{}"], encoder=encoder), folder / "export")

    return once("ruclip", export)[0]
