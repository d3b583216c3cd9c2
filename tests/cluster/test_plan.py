"""How a table is cut into units, what a plan knows of them, and what is refused."""

import errno
import gc
import hashlib
import json
import pickle
import tarfile
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import fs

from product_classificator.catalog import read_catalog
from product_classificator.catalog.images import open_images
from product_classificator.catalog.table import open_table
from product_classificator.cli.bulk import progress
from product_classificator.cluster import drive
from product_classificator.cluster.drive import Failure, Units
from product_classificator.cluster.plan import Plan, cut, make_plan, write_plan
from product_classificator.cluster.runners import LocalRunner, running
from product_classificator.cluster.storage import Storage
from product_classificator.cluster.work import Reader, Recipe
from product_classificator.errors import ArtifactError, DataError
from product_classificator.predict_file import finish
from product_classificator.remote import paths
from tests.cluster.tiny_units import encoded, tiny_work, write_table

FACTS = {"fingerprint": "f" * 32, "made_from": {}}


@pytest.fixture
def work(tiny_training, tmp_path):
    (tmp_path / "notes").mkdir()
    table = write_table(tmp_path / "t.parquet", 700)
    return tiny_work(tiny_training.run.bundle, table, tmp_path / "notes")


def ranges(files, rows):
    return [(unit.file, unit.row_in_file, unit.rows, unit.group_row) for unit in cut(files, rows)]


def test_small_row_groups_stay_whole_and_large_ones_are_cut():
    assert ranges([("a", [100, 100, 100]), ("b", [50])], 256) == [
        ("a", 0, 200, 0),
        ("a", 200, 100, 200),
        ("b", 0, 50, 300),
    ]
    assert ranges([("a", [600, 10])], 256) == [
        ("a", 0, 256, 0),
        ("a", 256, 256, 0),
        ("a", 512, 88, 0),
        ("a", 600, 10, 600),
    ]
    assert ranges([("empty", []), ("none", [0])], 256) == []


def test_every_row_is_in_one_unit_and_parts_sort_like_the_table(tmp_path):
    files = [(f"{n}.parquet", [100 * n + 7] * n) for n in range(1, 6)]
    plan = write_plan(Storage(tmp_path), cut(files, 256), **FACTS)
    units = [unit for unit, _ in plan.parts()]
    assert [unit.first_row for unit in units[1:]] == [unit.end for unit in units[:-1]]
    assert plan.n_rows == sum(n for _, groups in files for n in groups) == units[-1].end
    names = [plan.part(unit) for unit in units]
    assert names == sorted(set(names))
    assert plan.unit(3) == units[3]
    with pytest.raises(DataError, match=rf"a unit must be between 0 and {len(units) - 1}, got {len(units)}"):
        plan.unit(len(units))


def test_units_are_listed_a_thousand_at_a_time(tmp_path):
    plan = write_plan(
        Storage(tmp_path), cut((("t", [10]) for _ in range(2_500)), 256), fingerprint="f" * 32, made_from={}
    )
    assert (plan.n_units, plan.n_rows) == (2_500, 25_000)
    assert [plan.part(plan.unit(n)).rpartition("/")[0] for n in (0, 999, 1_000, 2_499)] == [
        f"parts/0000{n}" for n in (0, 0, 1, 2)
    ]
    assert sum(1 for _ in plan.todo()) == 2_500


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "folder", "frame"])
def test_units_hold_the_rows_of_the_table_wherever_reading_begins(tmp_path, kind):
    frame = pd.DataFrame({"nm": range(900), "title": [f"cup {i}" for i in range(900)]})
    path = tmp_path / f"t.{kind}"
    if kind == "folder":
        path.mkdir()
        for n in range(3):
            frame[n * 300 : n * 300 + 300].to_parquet(path / f"{n}.parquet", row_group_size=70)
    elif kind == "parquet":
        frame.to_parquet(path, row_group_size=70)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    catalog = read_catalog(frame if kind == "frame" else path)
    units = list(cut(((file.name, file.row_groups()) for file in catalog.table.files()), 100))
    reader = Reader(catalog)
    for order in (units, units[::-1], units[::2]):
        for unit in order:
            products = [*reader.products(unit)]
            assert [id_ for chunk in products for id_ in chunk.ids] == [*map(str, range(unit.first_row, unit.end))]
            assert products[0].first_row == unit.first_row
            assert products[0].texts[0] == f"cup {unit.first_row}"


def test_rows_without_ids_keep_their_numbers(tmp_path):
    pd.DataFrame({"title": [f"cup {i}" for i in range(500)]}).to_parquet(tmp_path / "t.parquet", row_group_size=100)
    catalog = read_catalog(tmp_path / "t.parquet")
    assert next(catalog.batches(10, first_row=420)).ids[0] == "421"


def test_only_the_row_groups_of_a_unit_are_read(tmp_path):
    table = write_table(tmp_path / "t.parquet", 1_000)
    whole = table.read_bytes()
    damaged = bytearray(whole)
    damaged[200:400] = b"\0" * 200  # in the first row group
    table.write_bytes(damaged)
    catalog = read_catalog(table, text="title")
    (last,) = [unit for unit in cut([("t", open_table(table).row_groups())], 100) if unit.end == 1_000]
    assert [len(chunk) for chunk in Reader(catalog).products(last)] == [100]
    with pytest.raises(DataError, match="is damaged"):
        list(catalog.batches(100))


def test_an_end_of_the_table_that_is_not_there_is_named(work, tmp_path):
    with pytest.raises(DataError, match=r"unit 0 .t, rows 0 to 899. ends too early: the file has changed"):
        list(Reader(work[0].catalog).products(next(cut([("t", [900])], 1_000))))


def run(work, out, rows=256, **options):
    with running(Storage(out), work[0], LocalRunner(**options), recipe=work[1], rows=rows) as (plan, resumed):
        return plan, resumed, finish(plan)


def test_the_last_file_holds_counts_statuses_and_a_sha256_of_all_parts(work, tmp_path):
    _, resumed, totals = run(work, tmp_path / "out")
    success = json.loads((tmp_path / "out/_SUCCESS.json").read_text())
    parts = sorted((tmp_path / "out").glob("parts/*/*.parquet"))
    assert (success["units"], success["rows"], success["statuses"]) == (4, 700, {"ok": 700})
    assert success["sha256"] == hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    assert pd.concat(map(pd.read_parquet, parts)).nm.tolist() == [*map(str, range(700))]
    assert (resumed, totals.warnings) == (0, {})


def test_what_is_done_is_not_done_again(work, tmp_path):
    plan, _, _ = run(work, tmp_path / "out")
    n_calls = len(encoded(tmp_path / "notes"))
    (tmp_path / "out" / plan.part(plan.unit(2))).unlink()
    assert [unit.number for unit in plan.todo()] == [2]
    assert run(work, tmp_path / "out")[1] == 500
    assert len(encoded(tmp_path / "notes")) == n_calls + 1
    with pytest.raises(ArtifactError, match=r"4 of 4 units have no part in .*unit 0 .*rows 0 to 199\): not done yet; "):
        (tmp_path / "out/parts").rename(tmp_path / "elsewhere")
        finish(plan)


def test_another_plan_or_other_files_are_refused(work, tiny_training, tmp_path):
    run(work, tmp_path / "out")
    other = tiny_work(tiny_training.run.bundle, write_table(tmp_path / "u.parquet", 300), tmp_path / "notes")
    with pytest.raises(DataError, match="holds the work of another table, run or setting: name another output"):
        run(other, tmp_path / "out")
    (tmp_path / "out/notes.txt").touch()
    with pytest.raises(DataError, match=r"is needed for unfinished work, but holds other files: notes\.txt"):
        run(work, tmp_path / "out")
    with pytest.raises(ArtifactError, match="holds no plan"):
        Plan.open(Storage(tmp_path / "nowhere"))


def test_the_first_plan_stays_whatever_units_a_later_call_names(work, tmp_path):
    storage = Storage(tmp_path / "out")
    first = make_plan(storage, work[0].catalog.table, work[0].facts, 100)
    assert make_plan(storage, work[0].catalog.table, work[0].facts, 500).n_units == first.n_units == 7


def test_progress_says_what_is_done_and_what_failed(work, tmp_path):
    plan, *_ = run(work, tmp_path / "out")
    (tmp_path / "out" / plan.part(plan.unit(0))).unlink()
    plan.quarantine(plan.unit(0), "no reason")
    now = progress(plan)
    assert (now["units"], now["rows"], now["running"]) == (3, 500, 0)
    assert now["rate"] > 0
    assert now["quarantined"] == {str(plan.unit(0)): "no reason"}


def test_progress_is_known_where_files_have_other_times_or_none(monkeypatch):
    storage = Storage("memory://progress")
    plan = write_plan(storage, cut([("t", [10])], 5), **FACTS)
    plan.write(plan.unit(0), pa.table({"nm": range(5)}))
    assert progress(plan)["rate"] > 0
    system = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory")))
    monkeypatch.setitem(paths._FILE_SYSTEMS, storage.path.parts[:2], system)
    assert (progress(plan)["rows"], progress(plan)["rate"]) == (5, 0)
    storage.clear()


def test_workers_in_another_folder_write_to_the_same_place():
    assert pickle.loads(pickle.dumps(Storage("out"))).path == Path.cwd() / "out"  # noqa: S301


def test_a_changed_photo_is_not_resumed_from_and_other_files_of_its_folder_do_not_matter(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"one")
    first = open_images(photos).identity(ids=True)
    (photos / "out.csv.parts").mkdir()
    (photos / "out.csv.parts/plan.json").touch()
    assert open_images(photos).identity(ids=True) == first
    (photos / "1.jpg").write_bytes(b"another")
    assert open_images(photos).identity(ids=True) != first
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos / "1.jpg", "1.jpg")
    one = open_images(tmp_path / "*.tar").identity(ids=False)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.add(photos / "1.jpg", "2.jpg")
    assert open_images(tmp_path / "*.tar").identity(ids=False) != one


def test_credentials_in_a_url_are_refused_since_workers_lack_them(work, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_WITH_SECRETS", {("s3:", "shop")})
    with pytest.raises(DataError, match="those of s3://shop/run are in the URL: put them into the environment"):
        Recipe.of(work[0].catalog, {"heads_ver": "s3://shop/run"}, None, None)


def test_an_error_is_described_without_secrets_and_with_its_cause():
    try:
        raise DataError("s3://key:secret@shop is full") from OSError(errno.ENOSPC, "no room")
    except DataError as error:
        failure = Failure.of(error)
    assert (failure.is_final, failure.message) == (True, "DataError: s3://shop is full")
    assert "key:" not in failure.trace


def test_a_worker_keeps_what_feeds_it(work, tmp_path, monkeypatch):
    ended = []

    @contextmanager
    def feeding(encoder, catalog):
        yield None
        ended.append(encoder)

    monkeypatch.setattr(drive, "feeding", feeding)
    units = Units(make_plan(Storage(tmp_path / "out"), work[0].catalog.table, work[0].facts, 256), work[1])
    assert units.open() is None
    gc.collect()
    assert not ended
