import json
import multiprocessing
import os
import signal
import time
from codecs import BOM_UTF8
from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest

from product_classificator.catalog import read_catalog
from product_classificator.classificator import Classificator
from product_classificator.classificator.work import predicting
from product_classificator.embeddings.embed import CHUNK_PRODUCTS
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.errors import ArtifactError, DataError
from product_classificator.evaluate_run import evaluate_run
from product_classificator.predict_file import OutputOptions, PredictSummary, predict_to_file
from product_classificator.training import train_heads
from tests.command_line import call
from tests.fakes import TinyEncoder, jpeg
from tests.fixtures import QUICKER
from tests.slow_prediction import predict_slowly

WARNINGS = {"set_aside:image_missing,text_empty": 6, "image_truncated": 6, "text_empty": 6}


@pytest.fixture
def classificator(tiny_training):
    return Classificator.from_parts(TinyEncoder(), tiny_training.fitted.bundle)


def parts(out):
    return sorted(out.with_name(f"{out.name}.parts").glob("parts/*/[!.]*.parquet"))


def read(path):
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": lambda p: pd.read_json(p, lines=True)}
    readers[".xlsx"] = pd.read_excel
    return readers[path.suffix](path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".xlsx"])
def test_every_row_is_written_in_order_with_labels_and_status(classificator, catalog, tmp_path, suffix):
    if suffix == ".xlsx":
        pytest.importorskip("openpyxl")
    out = tmp_path / f"predictions{suffix}"
    summary = predict_to_file(classificator, catalog, out)
    frame = read(out)
    assert frame.nm.astype(str).tolist() == list(catalog.ids)
    assert list(frame) == ["nm", "kind", "kind_probability", "colour", "colour_probability", "status"]
    assert frame.kind_probability.dropna().between(1 / 3, 1).all()
    assert frame.status[0] == "ok"
    assert frame.status[7] == "set_aside:image_missing,text_empty"
    assert pd.isna(frame.kind[7])
    assert frame.status[9] == "image_truncated"
    assert (summary.rows, summary.resumed) == (240, 0)
    assert summary.warnings == WARNINGS
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_small_parts_become_large_groups_of_rows(classificator, tmp_path):
    n = 3 * CHUNK_PRODUCTS
    catalog = read_catalog(pd.DataFrame({"nm": range(n), "title": "a cup"}), text="title")
    predict_to_file(classificator, catalog, tmp_path / "p.parquet")
    assert pq.ParquetFile(tmp_path / "p.parquet").num_row_groups == 1


def test_excel_shows_every_letter_and_computes_nothing(classificator, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    catalog = read_catalog(pd.DataFrame({"код": ["=1+1", "\x01б"], "title": ["a cup", "a hat"]}))
    for name in ("p.csv", "p.xlsx"):
        predict_to_file(classificator, catalog, tmp_path / name, OutputOptions(bom=True))
    assert (tmp_path / "p.csv").read_bytes().startswith('\ufeff"код","kind"'.encode())
    cells = next(iter(openpyxl.load_workbook(tmp_path / "p.xlsx").active.columns))
    assert [(cell.value, cell.data_type) for cell in cells] == [("код", "s"), ("=1+1", "s"), ("б", "s")]


def test_excel_computes_nothing_of_a_csv_and_it_reads_back(classificator, tmp_path):
    ids = ["=1+1", "+7", "-3", "@SUM(1)", "a=1", '=HYPERLINK("https://x.example","y")']
    catalog = read_catalog(pd.DataFrame({"-код": ids, "title": "a cup"}), id="-код")
    predict_to_file(classificator, catalog, tmp_path / "p.csv", OutputOptions(bom=True))
    cells = pd.read_csv(tmp_path / "p.csv", dtype=str)
    assert cells["'-код"].tolist() == ["'=1+1", "'+7", "'-3", "'@SUM(1)", "a=1", f"'{ids[-1]}"]
    again = read_catalog(tmp_path / "p.csv", id="-код", text="kind")
    assert (again.ids.tolist(), again.texts()) == (ids, ["cup"] * 6)
    predict_to_file(classificator, catalog, tmp_path / "plain.csv")
    assert pd.read_csv(tmp_path / "plain.csv", dtype=str)["-код"].tolist() == ids


def test_more_rows_than_excel_holds_are_refused(classificator, catalog, tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    monkeypatch.setattr("product_classificator.predict_file._MAX_EXCEL_ROWS", 239)
    with pytest.raises(DataError, match=r"Excel holds 239 rows, the table has 240: write \.csv or \.parquet"):
        predict_to_file(classificator, catalog, tmp_path / "p.xlsx")


def test_top_k_adds_columns_up_to_the_number_of_labels(classificator, catalog, tmp_path):
    predict_to_file(classificator, catalog, tmp_path / "p.parquet", OutputOptions(top_k=9))
    frame = pd.read_parquet(tmp_path / "p.parquet")
    probabilities = frame[["colour_probability", "colour_2_probability", "colour_3_probability"]]
    assert "colour_4" not in frame
    assert (probabilities.sum(axis=1)[frame.status == "ok"] - 1).abs().max() < 1e-5
    assert (probabilities.colour_probability >= probabilities.colour_2_probability)[frame.status == "ok"].all()


def test_with_a_target_precision_each_value_is_accepted_or_for_review(classificator, catalog, tmp_path):
    summary = predict_to_file(classificator, catalog, tmp_path / "p.parquet", OutputOptions(2, 0.9))
    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert list(frame)[:6] == ["nm", "kind", "kind_probability", "kind_decision", "kind_2", "kind_2_probability"]
    assert set(frame.kind_decision) == {"auto", "review"}
    assert frame.kind_decision[7] == "review"
    assert summary.accepted == {name: (frame[f"{name}_decision"] == "auto").sum() for name in ("kind", "colour")}
    accepted = frame[frame.kind_decision == "auto"]
    assert len(accepted) > 100
    assert (accepted.kind == pd.read_parquet(catalog.table.name).kind[accepted.index]).mean() > 0.9


def test_stored_embeddings_are_not_encoded_again(tiny_training, catalog, tmp_path):
    encoder = TinyEncoder()
    store = EmbeddingStore(tiny_training.run.store, encoder)
    classificator = Classificator.from_parts(encoder, tiny_training.fitted.bundle)
    predict_to_file(classificator, catalog, tmp_path / "stored.jsonl", store=store)
    assert encoder.image.encoded == 0
    predict_to_file(classificator, catalog, tmp_path / "fresh.jsonl")
    assert (tmp_path / "stored.jsonl").read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_a_killed_call_is_resumed_and_ends_like_an_undisturbed_one(tiny_training, classificator, tmp_path):
    n = 8 * CHUNK_PRODUCTS + 10
    pd.DataFrame({"nm": range(n), "title": [f"a cup {i}" for i in range(n)]}).to_parquet(tmp_path / "t.parquet")
    out = tmp_path / "killed.csv"
    process = multiprocessing.get_context("spawn").Process(
        target=predict_slowly, args=(tiny_training.run.bundle, tmp_path / "t.parquet", out)
    )
    process.start()
    while len(parts(tmp_path / "killed.csv")) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not out.exists()
    catalog = read_catalog(tmp_path / "t.parquet", text="title")
    summary = predict_to_file(classificator, catalog, out)
    assert summary.resumed >= 3 * CHUNK_PRODUCTS
    assert classificator.encoder.text.encoded == n - summary.resumed
    predict_to_file(classificator, catalog, tmp_path / "whole.csv")
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def interrupted(classificator, catalog, out, *options):
    class StopError(Exception):
        pass

    def stop(chunk):
        raise StopError

    with pytest.raises(StopError):
        predict_to_file(classificator, catalog, out, *options, on_chunk=stop)


def test_one_file_is_written_by_one_process_at_a_time(classificator, catalog, tmp_path):
    out = tmp_path / "p.csv"

    def start_again(chunk):
        with pytest.raises(DataError, match=r"another process is writing p.csv: wait for it, or name another output"):
            predict_to_file(classificator, catalog, out)

    predict_to_file(classificator, catalog, out, on_chunk=start_again)
    assert len(read(out)) == 240
    with pytest.raises(ZeroDivisionError):
        predict_to_file(classificator, catalog, out, on_chunk=lambda chunk: 1 / 0)
    assert predict_to_file(classificator, catalog, out).resumed == 240
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_parts_of_another_setting_are_not_mixed_in(classificator, catalog, tmp_path, caplog):
    interrupted(classificator, catalog, tmp_path / "p.csv")
    summary = predict_to_file(classificator, catalog, tmp_path / "p.csv", OutputOptions(top_k=2))
    assert summary.resumed == 0
    assert "is of another table, run or setting: starting again" in caplog.text
    interrupted(classificator, catalog, tmp_path / "p.csv", OutputOptions(min_precision=0.9))
    assert predict_to_file(classificator, catalog, tmp_path / "p.csv", OutputOptions(min_precision=0.8)).resumed == 0
    interrupted(classificator, catalog, tmp_path / "p.csv", OutputOptions(min_precision=0.9))
    options = OutputOptions(min_precision=0.9, bom=True)  # the mark is no part of the parts
    assert predict_to_file(classificator, catalog, tmp_path / "p.csv", options).resumed > 0
    assert (tmp_path / "p.csv").read_bytes().startswith(BOM_UTF8)


def test_parts_of_a_changed_frame_are_not_mixed_in(classificator, tmp_path):
    frame = pd.DataFrame({"nm": range(5), "title": list("abcde")})
    interrupted(classificator, read_catalog(frame), tmp_path / "p.csv")
    assert predict_to_file(classificator, read_catalog(frame), tmp_path / "p.csv").resumed == 5
    interrupted(classificator, read_catalog(frame), tmp_path / "p.csv")
    frame.loc[2, "title"] = "changed"
    assert predict_to_file(classificator, read_catalog(frame), tmp_path / "p.csv").resumed == 0


def test_what_an_interrupted_call_noticed_in_the_table_is_in_the_summary(classificator, tmp_path):
    table = tmp_path / "t.parquet"
    frame = pd.DataFrame({"nm": range(300), "title": ["x" * 100_001, *["a cup"] * 299]})
    frame.to_parquet(table, row_group_size=100)
    interrupted(classificator, read_catalog(table), tmp_path / "p.csv")
    summary = predict_to_file(classificator, read_catalog(table), tmp_path / "p.csv")
    assert (summary.resumed, summary.warnings) == (200, {"cells_cut": 1})


def test_parts_after_a_gap_are_predicted_again(classificator, catalog, tmp_path):
    interrupted(classificator, catalog, tmp_path / "p.csv")
    (part,) = parts(tmp_path / "p.csv")
    part.rename(part.with_name(part.name.replace("000000000000", "000000000300")))
    assert predict_to_file(classificator, catalog, tmp_path / "p.csv") == PredictSummary(240, 0, WARNINGS)


def test_a_damaged_part_is_predicted_again(classificator, catalog, tmp_path, caplog):
    interrupted(classificator, catalog, tmp_path / "p.csv")
    (part,) = parts(tmp_path / "p.csv")
    part.write_bytes(part.read_bytes()[:100])
    assert predict_to_file(classificator, catalog, tmp_path / "p.csv") == PredictSummary(240, 0, WARNINGS)
    assert "is damaged, its products are predicted again" in caplog.text


def test_a_file_named_like_a_frame_is_not_taken_for_it(classificator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DataFrame").touch()
    for titles in (list("abcde"), list("fghij")):
        catalog = read_catalog(pd.DataFrame({"nm": range(5), "title": titles}))
        interrupted(classificator, catalog, tmp_path / "p.csv")
        state = (tmp_path / "p.csv.parts/_plan.json").read_text()
        assert str(tmp_path) not in state
    assert predict_to_file(classificator, catalog, tmp_path / "p.csv").resumed == 5


@pytest.mark.parametrize("name", ["sales.parquet", "notes.json", "a-b.parquet"])
def test_a_foreign_folder_in_the_way_is_not_touched(classificator, catalog, tmp_path, name):
    (tmp_path / "p.csv.parts").mkdir()
    (tmp_path / "p.csv.parts" / name).write_bytes(b"mine")
    with pytest.raises(DataError, match=f"is needed for unfinished work, but holds other files: {name}"):
        predict_to_file(classificator, catalog, tmp_path / "p.csv")
    assert (tmp_path / "p.csv.parts" / name).read_bytes() == b"mine"


def test_an_output_whose_columns_would_share_a_name_is_refused(classificator, tmp_path):
    frame = pd.DataFrame({"kind_probability": [1], "description": ["a"]})
    catalog = read_catalog(frame, id="kind_probability", text="description")
    with pytest.raises(DataError, match="several would be kind_probability"):
        predict_to_file(classificator, catalog, tmp_path / "p.csv")
    frame = pd.DataFrame({"kind_decision": [1], "description": ["a"]})
    catalog = read_catalog(frame, id="kind_decision", text="description")
    with pytest.raises(DataError, match="several would be kind_decision"):
        predict_to_file(classificator, catalog, tmp_path / "p.csv", OutputOptions(min_precision=0.9))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("p.xls", {}, r"predictions are written as .parquet, .csv, .jsonl, .xlsx, got p.xls"),
        ("p.csv", {"min_precision": 95}, r"min_precision must be between 0 and 1 \(exclusive\), got 95"),
        ("p.csv", {"top_k": 0}, "top_k must be 1 or more, got 0"),
        ("nowhere/p.csv", {}, "the output must be a file in an existing folder"),
    ],
)
def test_bad_arguments_are_named(classificator, catalog, tmp_path, name, options, message):
    with pytest.raises(DataError, match=message):
        predict_to_file(classificator, catalog, tmp_path / name, OutputOptions(**options))


def test_heads_without_thresholds_are_refused_before_any_work(tiny_training, catalog, tmp_path):
    bundle = replace(tiny_training.fitted.bundle, novelty=None)
    with pytest.raises(ArtifactError, match="decisions need thresholds"):
        predict_to_file(
            Classificator.from_parts(TinyEncoder(), bundle),
            catalog,
            tmp_path / "p.csv",
            OutputOptions(min_precision=0.9),
        )
    assert not list(tmp_path.iterdir())


def test_the_table_itself_is_never_overwritten(classificator, catalog):
    with pytest.raises(DataError, match="the output must not be the table or the photos themselves"):
        predict_to_file(classificator, catalog, catalog.table.name)


def test_predictions_are_not_written_among_the_files_of_a_table(classificator, tmp_path):
    pd.DataFrame({"nm": [1], "title": ["cup"]}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"must not be in the folder that is the table, where the next call reads it"):
        predict_to_file(classificator, read_catalog(tmp_path), tmp_path / "p.csv")


def test_nothing_is_written_where_the_next_call_reads_it_as_the_table(tmp_path):
    frame = pd.DataFrame({"nm": range(4), "title": "cup", "kind": list("abab")})
    (tmp_path / "shop/deep").mkdir(parents=True)
    frame.to_parquet(tmp_path / "shop/a.parquet")
    for table in (tmp_path / "shop", [tmp_path / "shop"], tmp_path / "shop/**/*.parquet"):
        catalog = read_catalog(table, characteristics="kind")
        for folders in ({"out": "shop/run"}, {"out": "run", "store": "shop/deep/store"}):
            paths = {name: tmp_path / folder for name, folder in folders.items()}
            with pytest.raises(
                DataError, match=r"output must not be in the folder that is the table.* name a path out"
            ):
                train_heads(catalog, settings=QUICKER, encoder=TinyEncoder(), **paths)
    for table, out in (("shop/*.parquet", "shop/p.parquet"), ("shop/a.parquet", "shop/a.parquet")):
        with pytest.raises(DataError, match="the output must not be the table or the photos themselves"):
            read_catalog(tmp_path / table).check_output(tmp_path / out)
        read_catalog(tmp_path / table).check_output(tmp_path / "shop/run")
    assert "must not be in the folder" in call("embed", tmp_path / "shop", "--out", tmp_path / "shop/s", code=1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.parquet", "deep", "shop"]


def test_an_empty_table_is_named(classificator, tmp_path):
    empty = pd.DataFrame({"nm": [], "title": []})
    with pytest.raises(DataError, match="there is nothing to predict: DataFrame has no rows"):
        predict_to_file(classificator, read_catalog(empty), tmp_path / "p.csv")


def test_json_lines_hold_null_where_nothing_is_predicted(classificator, catalog, tmp_path):
    predict_to_file(classificator, catalog, tmp_path / "p.jsonl")
    row = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[7])
    assert row["kind"] is None
    assert row["kind_probability"] is None


def test_other_photos_of_a_frame_are_another_input(tmp_path, tiny_training):
    frame = pd.DataFrame({"nm": [1, 2], "description": ["a cup", "a hat"], "image": ["a.jpg", "b.jpg"]})
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    classificator = Classificator.from_parts(TinyEncoder(), tiny_training.fitted.bundle)
    catalogs = [
        read_catalog(frame.assign(image=names), tmp_path, id="nm", text="description", photo="image")
        for names in (["a.jpg", "b.jpg"], ["b.jpg", "a.jpg"], ["a.jpg", "b.jpg"])
    ]
    states = {json.dumps(predicting(classificator, catalog, OutputOptions()).facts) for catalog in catalogs}
    assert len(states) == 2


def test_a_table_of_which_the_heads_read_nothing_is_refused_before_any_work(shop_files, tmp_path):
    table, photos = shop_files
    texts = read_catalog(table, text="description", characteristics=["kind"])
    training = train_heads(texts, tmp_path / "run", QUICKER, encoder=TinyEncoder())
    encoder = TinyEncoder()
    classificator = Classificator.from_parts(encoder, training.fitted.bundle)
    catalog = read_catalog(table, photos, text=[], characteristics=["kind"])
    for refused in (
        lambda: predict_to_file(classificator, catalog, tmp_path / "p.csv"),
        lambda: evaluate_run(training.run, catalog, classificator=classificator),
    ):
        with pytest.raises(DataError, match="for these heads a product needs a text, none was given"):
            refused()
    assert encoder.image.encoded == 0
    assert not list(tmp_path.glob("p.*"))
