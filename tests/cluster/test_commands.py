"""The commands of work in units, as people and clusters use them."""

import json

import pandas as pd
import pytest

from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import load_encoder
from tests.cluster.tiny_units import write_table
from tests.command_line import call


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "titles.parquet", 300)


def test_a_plan_is_done_unit_by_unit_and_joined(lite_run, table, tmp_path):
    out = tmp_path / "out"
    options = ("--text", "title", "--out", out, "--plan-only", "--unit-rows", 200)
    printed = call("predict", lite_run[0], table, *options)
    assert "2 units of 300 rows in all: do each, then join them" in printed
    assert f"predict --plan {out} --unit N   (0 to 1)" in printed
    assert "unit 1 (" in call("predict", "--plan", out, "--unit", 1)
    printed = call("status", out)
    assert "1 of 2 units done, 0 running, 0 in quarantine" in printed
    assert "100 of 300 rows done" in printed
    assert "1 of 2 units have no part in" in call("join", out, code=1)
    call("predict", "--plan", out, "--unit", 0)
    assert "300 rows in" in call("join", out, "--out", tmp_path / "joined.csv")
    call("predict", lite_run[0], table, "--text", "title", "--out", tmp_path / "plain.csv")
    assert (tmp_path / "joined.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    assert json.loads((out / "_SUCCESS.json").read_text())["rows"] == 300


def test_wrong_ways_are_named(lite_run, table, tmp_path, monkeypatch):
    out = ("--text", "title", "--out", tmp_path / "out")
    assert "`predict` needs RUN, TABLE and --out, or --plan and --unit" in call("predict", lite_run[0], code=2)
    printed = call("predict", lite_run[0], table, *out, "--cluster", "slurm", code=1)
    assert "a cluster is local, auto or ray://host:10001, got 'slurm'" in printed
    assert "workers need a --cluster" in call("predict", lite_run[0], table, *out, "--workers", 2, code=1)
    monkeypatch.chdir(tmp_path)
    assert "holds no plan (_plan.json)" in call("status", ".", code=1)
    assert "predictions are written as" in call("predict", lite_run[0], table, *out, code=1)
    both = (*out, "--plan-only", "--cluster", "local")
    assert "--plan-only leaves the units to others" in call("predict", lite_run[0], table, *both, code=1)
    assert "--plan and --unit" in call("predict", "--plan", tmp_path, code=2)
    excel = ("--text", "title", "--plan-only", "--out", tmp_path / "out.xls")
    assert "into a folder, got out.xls" in call("predict", lite_run[0], table, *excel, code=1)


def test_units_keep_their_rows_and_what_is_finished_says_so(lite_run, table, tmp_path):
    plan = ("--text", "title", "--out", tmp_path / "out", "--plan-only", "--unit-rows")
    call("predict", lite_run[0], table, *plan, 200)
    printed = call("predict", lite_run[0], table, *plan, 100, code=1)
    assert "has units of 200 rows, which stay as they are, got --unit-rows 100" in printed
    for path in (tmp_path / "out/joined.csv", table):
        assert "must be neither the table nor in a folder" in call("join", tmp_path / "out", "--out", path, code=1)
    (tmp_path / "done.csv").touch()
    assert "is finished: nothing of it is under way" in call("status", tmp_path / "done.csv")


@pytest.mark.cluster
def test_processes_predict_and_embed_a_table(lite_run, table, tmp_path):
    local = ("--text", "title", "--cluster", "local", "--workers", 2, "--unit-rows", 200)  # units as here
    call("predict", lite_run[0], table, "--out", tmp_path / "local.parquet", *local)
    call("predict", lite_run[0], table, "--out", tmp_path / "here.parquet", "--text", "title")
    assert pd.read_parquet(tmp_path / "local.parquet").equals(pd.read_parquet(tmp_path / "here.parquet"))
    printed = call("embed", table, "--out", tmp_path / "store", *local)
    assert "300 products embedded; store:" in printed
    assert len(EmbeddingStore(tmp_path / "store", load_encoder("lite"))) == 300
    assert not (tmp_path / "store/units.parts").exists()
    reuse = ("--text", "title", "--store", tmp_path / "store")
    assert "300 rows in" in call("predict", lite_run[0], table, "--out", tmp_path / "s.csv", *reuse)
