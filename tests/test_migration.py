"""What a program of 2024 does, unchanged, and every name of 0.0.6 that docs/migration.md lists."""

import pickle
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import huggingface_hub
import pytest
import torch

import product_classificator
from product_classificator import Classificator, SpeedTest, Trainer, make_marketplace, read_catalog, trainer
from product_classificator.runs import Run
from tests.command_line import call
from tests.encoders.tiny_models import tiny_hub
from tests.encoders.tiny_ruclip import CONFIG, write_checkpoint
from tests.fixtures import QUICKER
from tests.test_trainer import RecordingTask

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| `(.+?)`.*? \| (works|alias|gone) \| (.*?) ?\|$", (ROOT / "docs/migration.md").read_text("utf-8"), re.M
)
LABELS = {"category": ["Одежда", "Посуда"], "sub_category": ["Футболки", "Кружки", "Вазы"], "isadult": [True, False]}

CLASSIFYING = """
import pandas as pd
import numpy as np
from PIL import Image
from product_classificator import Classificator, load
from product_classificator.utils import SpeedTest

load('ruclip-vit-base-patch16-384')

df = pd.read_csv('info.csv')
texts = df.descriptions.values
img_names = df.image_names.values

images = []
for img_name in img_names:
    images.append(Image.open('photos/' + img_name))

clf = Classificator()
res = clf.classify_products(texts, images)
titles = [f'{res["category"][i]} {res["sub_category"][i]} {res["isadult"][i]}' for i in range(len(images))]
embeddings = clf.get_products_embeddings(texts, images)

st = SpeedTest(clf)
st.test_inference(texts, images, batch_size=1, warm_iterations=2)
mean = np.mean(st.tests[-1]['log'])
machine = st.machine_info
clf = clf.to('cpu')
"""

TRAINING = """
from pprint import pprint
from product_classificator.training import Trainer
from clearml import Task

task = Task.init(project_name="WB", task_name="ruCLIP training", auto_connect_frameworks={'matplotlib': False})

trainer = Trainer(
    path_to_images='school/images.zip',
    path_to_texts='school/',
)

trainer.ruclip_train_params['epochs'] = 2
trainer.set_cache = False

pprint({
    'pre-trained model': trainer.ruclip_model,
    'ruclip train params': trainer.ruclip_train_params,
    'heads train params': trainer.heads_train_params,
})

trainer.train_ruclip(task)
trainer.end_of_train['del_img_and_txt_tensors'] = True
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder of 2024: the Wildberries tables, photos, the published heads, and a hub with a tiny ruCLIP."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "cache"))
    make_marketplace("school", products=200, layout="wildberries")
    model = write_checkpoint(tmp_path / "hub", vision_layers=1, transformer_layers=1)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", tiny_hub(model, tmp_path / "hub_cache"))
    task = RecordingTask()
    clearml = ModuleType("clearml")
    clearml.Task = type("Task", (), {"init": staticmethod(lambda **_: task)})
    monkeypatch.setitem(sys.modules, "clearml", clearml)
    monkeypatch.setattr(trainer, "TrainSettings", lambda: QUICKER)  # for the sake of time
    return tmp_path, task


def import_heads(folder):
    heads, width = folder / "wb-6_cats-pca", 2 * CONFIG["embed_dim"]
    heads.mkdir()
    for name, labels in LABELS.items():
        layers = (torch.nn.Linear(width, 5), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(5, len(labels)))
        torch.save(torch.nn.Sequential(*layers, torch.nn.Dropout(0.2)), heads / f"{name}.pt")
    (heads / "label_to_char.pkl").write_bytes(pickle.dumps({name: dict(enumerate(LABELS[name])) for name in LABELS}, 4))
    call("import-heads", heads)


def test_products_are_classified_as_in_2024(place):
    folder, _ = place
    import_heads(folder)
    catalog = read_catalog("school", "school/images.zip")
    photos = [f"{id_}.jpg" for id_ in catalog.ids[:6]]
    with ZipFile("school/images.zip") as archive:
        photos = [name for name in photos if name in archive.namelist() and archive.getinfo(name).file_size > 1000]
        archive.extractall("photos", photos)
    lines = [f"кружка {i},{name}" for i, name in enumerate(photos)]
    Path("info.csv").write_text("\n".join(["descriptions,image_names", *lines]), encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(CLASSIFYING, "classifying", "exec"), names)  # noqa: S102
    assert set(names["res"]) == set(LABELS)
    assert names["embeddings"].shape == (len(photos), 32)
    assert names["mean"] > 0


@pytest.mark.slow
def test_a_model_is_trained_as_in_2024(place, capsys):
    _, task = place
    names: dict[str, object] = {}
    exec(compile(TRAINING, "training", "exec"), names)  # noqa: S102
    experiment = names["trainer"].experiment_dir
    run = Run.load(experiment)
    assert run.settings["finetuning"]["epochs"] == 2
    assert run.channels == "bgr"
    assert (experiment / "clusters/clusters.csv").is_file()
    assert set(task.artifacts) == {"scores", "report"}
    shown = capsys.readouterr()
    assert "'epochs': 2" in shown.out
    assert "epoch  2" in shown.err


def resolve(name, instances):
    """Return what a name of the table is, `LookupError` if there is nothing."""
    if match := re.fullmatch(r'clf\.heads\["(\w+)"\]', name):
        return dict.__getitem__(dict(instances["clf"].heads), match[1])
    first, *parts = name.split(".")
    value = instances.get(first) or import_module(first)
    for i, part in enumerate(parts):
        if not hasattr(value, part):
            if not isinstance(value, ModuleType):
                raise LookupError(name)
            try:
                import_module(".".join([first, *parts[: i + 1]]))
            except ModuleNotFoundError as error:
                raise LookupError(name) from error
        value = getattr(value, part)
    return value


@pytest.fixture(scope="module")
def instances():
    clf = Classificator.zero_shot({"category": ["Одежда", "Посуда"]})
    return {"clf": clf, "trainer": Trainer("photos", "texts"), "test": SpeedTest(clf), "Classificator": Classificator}


@pytest.mark.parametrize(("name", "state", "now"), ROWS, ids=[row[0] for row in ROWS])
def test_every_name_is_what_the_migration_page_says(name, state, now, instances):
    if state != "gone":
        resolve(name, instances)
        return
    if name.isidentifier() or "(" not in name:
        with pytest.raises((LookupError, ValueError, TypeError)):
            resolve(name, instances)
    for replacement in re.findall(r"`(product_classificator[\w.]+|(?:trainer|clf)[\w.]+)", now):
        resolve(replacement, instances)
    for function in re.findall(r"`(\w+)\(?", now):
        if function in product_classificator.__all__:
            resolve(f"product_classificator.{function}", instances)


def test_the_page_lists_all_that_is_public_now_and_was_then():
    listed = {row[0].removeprefix("product_classificator.") for row in ROWS}
    assert {"load", "pretrained_heads", "RUCLIP_MODELS", "RUCLIP_FILES", "Classificator", "training.Trainer"} <= listed
    assert len(ROWS) > 80
