"""A characteristic of lists all the way: from a table of every format to a run, a report, predictions, and an audit."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from product_classificator.audit import audit_run
from product_classificator.catalog import read_catalog
from product_classificator.classificator import Classificator
from product_classificator.cli.options import ProductOptions
from product_classificator.cli.tables import open_labelled
from product_classificator.errors import DataError
from product_classificator.evaluate_run import evaluate_run
from product_classificator.heads import HeadBundle
from product_classificator.predict_file import OutputOptions, predict_to_file
from product_classificator.runs import Run
from product_classificator.trainer import Trainer
from product_classificator.training import train_heads
from product_classificator.training.taxonomy import read_taxonomy
from product_classificator.types import strings
from tests.command_line import QUICKER_TOML, call
from tests.fakes import TinyEncoder
from tests.fixtures import QUICKER

WORDS = {"warm": "wool", "light": "cotton", "smooth": "silk"}
COLUMNS = {"text": "title", "characteristics": ["kind", "materials"]}


def frame(n: int = 240) -> pd.DataFrame:
    """The title tells the kind, and by words which of three materials a product has."""
    random, rows = np.random.default_rng(0), []
    for number in range(n):
        words = [word for word, p in zip(WORDS, (0.5, 0.4, 0.2), strict=True) if random.random() < p]
        kind = ["cup", "hat", "sock"][number % 3]
        materials = None if number % 19 == 4 else [WORDS[word] for word in words]
        rows.append(
            {"nm": str(number), "title": f"{kind} {' '.join(words)} {number}", "kind": kind, "materials": materials}
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return train_heads(read_catalog(frame(), **COLUMNS), tmp_path_factory.mktemp("run"), QUICKER, encoder=TinyEncoder())


@pytest.fixture
def classificator(training):
    return Classificator.from_parts(TinyEncoder(), training.fitted.bundle)


def test_a_run_keeps_how_its_labels_were_separated(tmp_path):
    table = frame()
    table["materials"] = [None if cell is None else ", ".join([*cell, "new"]) for cell in table.materials]
    catalog = read_catalog(table, text="title", characteristics=["kind"], multi_label="materials")
    train_heads(catalog, tmp_path / "run", QUICKER, encoder=TinyEncoder())
    run = Run.load(tmp_path / "run")
    assert run.columns.label_separator == {"materials": ","}
    few = table.assign(materials=["wool, silk", *["wool"] * (len(table) - 1)])  # by these alone it would not be found
    few.to_csv(tmp_path / "few.csv", index=False)
    assert open_labelled(run, tmp_path / "few.csv", ProductOptions()).truth()["materials"][0] == {"wool", "silk"}


def test_the_labels_of_a_list_are_learned_and_scored(training):
    score = training.evaluation.characteristics["materials"]
    assert score.is_multi_label
    assert score.macro_f1 > 0.9
    assert score.accuracy > 0.7
    assert "materials is multi-label" in (training.run.report / "report.md").read_text()


def test_a_run_remembers_which_characteristics_are_multi_label(training):
    run = Run.load(training.run.folder)
    assert run == training.run
    assert run.columns.multi_label == ("materials",)
    materials = run.load_training_products()[0]["materials"]
    known = frame().set_index("nm").materials.dropna()
    assert {id_: set(labels) for id_, labels in materials.items() if labels is not None} == {
        id_: set(known[id_]) for id_ in materials if id_ in known.index
    }
    assert None in materials.values()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_every_format_of_table_gives_the_same_run(training, tmp_path, suffix):
    table, path, named = frame(), tmp_path / f"t{suffix}", {}
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        cells = [None if item is None else "|".join(item) or "[]" for item in table.materials]
        table.assign(materials=cells).to_csv(path, index=False)
        named = {"multi_label": "materials"}
    again = train_heads(read_catalog(path, **COLUMNS, **named), tmp_path / "run", QUICKER, encoder=TinyEncoder())
    assert again.fitted.bundle.digest == training.fitted.bundle.digest
    assert again.evaluation == training.evaluation


def test_on_its_own_table_a_run_is_judged_on_its_test_part(training, classificator):
    heldout = evaluate_run(training.run, read_catalog(frame(), **COLUMNS), classificator=classificator)
    assert heldout.evaluation == training.evaluation


def test_lists_are_written_in_every_format_and_csv_can_be_read_again(training, classificator, tmp_path):
    catalog = read_catalog(frame(60), text="title", characteristics=[])
    for name in ("p.parquet", "p.jsonl", "p.csv"):
        predict_to_file(classificator, catalog, tmp_path / name, OutputOptions(2, 0.8))
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [json.loads(line)["materials"] for line in lines] == [row["materials"] for row in table]
    assert all(len(row["materials"]) == len(row["materials_probability"]) for row in table)
    assert {row["materials_decision"] for row in table} <= {"auto", "review"}
    assert "kind_2" in table[0]
    assert "materials_2" not in table[0]
    again = read_catalog(tmp_path / "p.csv", text="kind", characteristics=[], multi_label="materials").truth()
    assert again["materials"].tolist() == [frozenset(row["materials"]) for row in table]
    assert [] in [row["materials"] for row in table]


def test_a_product_without_anything_has_no_list(classificator, tmp_path):
    table = frame(30).assign(title=["", *frame(30).title[1:]])
    predict_to_file(classificator, read_catalog(table, text="title", characteristics=[]), tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet")["materials"].to_pylist()[0] is None


def test_classify_products_gives_lists(classificator):
    found = classificator.classify_products(["hat warm light", "hat 77"])
    assert set(found["materials"][0]) == {"wool", "cotton"}
    assert found == {"kind": ["hat", "hat"], "materials": [found["materials"][0], []]}


def test_an_audit_finds_the_label_that_was_left_out_of_a_list(training, tmp_path):
    table = frame()
    row = next(i for i, item in enumerate(table.materials) if item == ["wool", "cotton"])
    table.at[row, "materials"] = ["cotton"]
    audit = audit_run(training.run, read_catalog(table, **COLUMNS), tmp_path / "audit", encoder=TinyEncoder())
    found = pd.read_parquet(audit.table).query("characteristic == 'materials'")
    first = found[found.row == row].iloc[0]
    assert (first.label, first.suggested) == ("cotton", "cotton, wool")
    assert first.suggested_probability > 0.5
    assert "'cotton, wool'" in first.reason


def test_lists_have_no_taxonomy(training):
    truth = {"kind": strings(["cup", "hat"]), "materials": strings([frozenset(["wool"]), None])}
    with pytest.raises(DataError, match="a multi-label characteristic cannot be part of a hierarchy: leave out"):
        read_taxonomy(pd.DataFrame({"materials": ["wool"], "kind": ["hat"]}), truth)


def test_a_trainer_takes_lists_also_through_its_hooks(tmp_path):
    class Louder(Trainer):
        def _preprocessing_texts(self, products):
            return products.assign(title=products.title.str.upper())

    frame(120).to_parquet(tmp_path / "t.parquet")
    settings = replace(QUICKER, heads=replace(QUICKER.heads, epochs=2))
    trainer = Louder(
        None,
        tmp_path / "t.parquet",
        ["kind", "materials"],
        clusterization_params={"n_clusters": 8},
        ruclip_model="lite",
        save_dir=tmp_path / "experiments",
        settings=settings,
    )
    training = trainer.train_heads_only()
    assert [each.name for each in training.fitted.bundle.characteristics if each.is_multi_label] == ["materials"]
    assert (trainer.experiment_dir / "clusters/clusters.csv").read_text().count("materials,") == 1


def test_the_command_line_takes_lists_from_csv(tmp_path):
    table = frame(120)
    cells = [None if item is None else "|".join(item) or "[]" for item in table.materials]
    table.assign(materials=cells).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "settings.toml").write_text(QUICKER_TOML)
    common = ["--text", "title", "--config", tmp_path / "settings.toml", "--out", tmp_path / "run"]
    printed = call("train", tmp_path / "t.csv", "--characteristics", "kind", "--multi-label", "materials", *common)
    assert "multi-label materials" in printed
    run = tmp_path / "run"
    assert HeadBundle.load(run / "bundle")["materials"].is_multi_label
    assert "multi-label" in call("info", run)
    assert "materials" in call("evaluate", run, tmp_path / "t.csv")
    text = "hat warm light"
    assert "wool" in call("classify", run, "--text", text, "--explain", "--top-k", "1", "--min-precision", "0.3")
    shown = json.loads(call("classify", run, "--text", text, "--json", "--top-k", "1", "--min-precision", "0.3"))
    assert list(shown["materials"]) == ["labels", "decision", "probabilities"]
    assert shown["materials"]["labels"] == [each["label"] for each in shown["materials"]["probabilities"]][:2]
    assert list(shown["kind"][0]) == ["label", "probability", "decision"]
