import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from product_classificator import Classificator, push_to_hub
from product_classificator.classificator.opening import open_heads
from product_classificator.errors import ArtifactError, DataError
from product_classificator.integrations.hub import copy_shared
from product_classificator.runs import Run
from tests.command_line import call
from tests.local_hub import local_hub

REPOSITORY = "me/heads"
OF_PRODUCTS = {"split.parquet", "labels.parquet", "out_of_fold.safetensors"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with local_hub(tmp_path_factory.mktemp("hub_cache")) as hub:
        yield hub


@pytest.fixture
def pushed(hub, lite_run):
    """A run of `lite`, pushed."""
    push_to_hub(lite_run[0], REPOSITORY, license="apache-2.0")
    return hub.repositories[REPOSITORY]


def answers(classificator):
    predictions = classificator.predict(["A nice cup", "A hat", None], [np.full((9, 9, 3), 90, np.uint8)] * 3)
    return {name: matrix.tobytes() for name, matrix in predictions.probabilities.items()}


def test_a_pushed_run_answers_to_the_last_bit_as_it_does_here(pushed, lite_run):
    fetched = Classificator.from_pretrained(REPOSITORY)
    assert answers(fetched) == answers(Classificator.from_run(lite_run[0]))
    assert fetched.bundle.digest == Classificator.from_run(lite_run[0]).bundle.digest
    assert fetched.run.columns == Run.load(lite_run[0]).columns


def test_neither_products_nor_reports_nor_other_files_are_pushed(pushed, lite_run):
    bundle = {f"bundle/{name}" for name in ("manifest.json", "weights.safetensors", "words.json")}
    assert set(pushed) == {".gitattributes", "README.md", "run.json"} | bundle
    assert str(lite_run[0].resolve()).encode() not in b"".join(pushed.values())


def test_paths_of_this_machine_are_not_shared(lite_run, tmp_path):
    folder = shutil.copytree(lite_run[0], tmp_path / "run")
    run = Run.load(folder)
    files = {"taxonomy": "/home/anna/tree.csv", "corrections": "/home/anna/review.sqlite"}
    replace(run, settings={**run.settings, **files}).save()
    copy_shared(folder, tmp_path / "shared")
    settings = Run.load(tmp_path / "shared").settings
    assert (settings["taxonomy"], settings["corrections"]) == ("tree.csv", "review.sqlite")


@pytest.mark.filterwarnings("ignore:It seems that you are about to commit a data file")
def test_products_are_pushed_on_request_and_leave_with_the_next_push(hub, lite_run):
    push_to_hub(lite_run[0], "me/with-products", with_products=True)
    files = hub.repositories["me/with-products"]
    assert OF_PRODUCTS | {"embeddings/store.json"} <= set(files)
    assert open_heads("hf://me/with-products").run.has_training_products
    push_to_hub(lite_run[0], "me/with-products")
    assert not OF_PRODUCTS & set(files)
    assert not any(name.startswith("embeddings/") for name in files)


def test_only_files_of_a_run_are_fetched(hub, pushed):
    pushed["model.pkl"] = pushed["bundle/evil.bin"] = b"cos\nsystem"
    open_heads(f"hf://{REPOSITORY}")
    assert not {"model.pkl", "bundle/evil.bin"} & set(hub.fetched)


def test_a_new_repository_is_private_unless_it_is_to_be_public(hub, pushed, lite_run):
    push_to_hub(lite_run[0], "me/public", private=False)
    assert [hub.created[name]["visibility"] for name in (REPOSITORY, "me/public")] == ["private", "public"]


def test_the_card_shows_scores_data_use_and_limits(pushed, lite_run):
    card = pushed["README.md"].decode()
    report = json.loads((lite_run[0] / "report/report.json").read_text("utf-8"))
    for name, score in report["evaluation"]["characteristics"].items():
        assert f"| {name} | {len(score['labels'])} | {score['macro_f1']:.3f} |" in card
    for heading in ("## Scores", "## Data", "## Intended use", "## Limits", "license: apache-2.0", "model-index:"):
        assert heading in card
    assert f'Classificator.from_pretrained("{REPOSITORY}")' in card


@pytest.mark.slow
def test_an_export_can_be_pushed_and_its_card_says_that_there_is_no_report(hub, lite_export):
    push_to_hub(lite_export[0], "me/export")
    assert "come without a report" in hub.repositories["me/export"]["README.md"].decode()
    opened = open_heads("hf://me/export@main")  # checks all files against their sha256
    assert opened.bundle.digest == open_heads(lite_export[0]).bundle.digest


def test_an_encoder_that_is_a_folder_of_this_machine_is_refused(lite_run, tmp_path):
    run = Run.load(shutil.copytree(lite_run[0], tmp_path / "run"))
    replace(run, encoder="/srv/ruclip").save()
    with pytest.raises(DataError, match="others must be able to load the encoder, found /srv/ruclip: export the run"):
        push_to_hub(tmp_path / "run", REPOSITORY)


def test_what_the_hub_refuses_or_lacks_is_an_error_of_ours(hub, lite_run, monkeypatch):
    with pytest.raises(ArtifactError, match="me/none is not on this machine and cannot be fetched"):
        open_heads("hf://me/none")
    monkeypatch.setattr(hub, "refuses_commits", True)
    with pytest.raises(ArtifactError, match="me/refused must be a repository that you may write to"):
        push_to_hub(lite_run[0], "me/refused")


def test_commands_take_a_repository_for_a_run(pushed):
    assert "with the encoder lite" in call("info", f"hf://{REPOSITORY}")
