"""Processes of this machine that do units: equal parts, failures, quarantine."""

import json
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import fsspec
import pandas as pd
import pytest
from pyarrow import fs

from product_classificator.catalog import read_catalog
from product_classificator.cli.bulk import _capped, run_one
from product_classificator.cluster import storage
from product_classificator.cluster.drive import Driver, Failure, Worker
from product_classificator.cluster.plan import make_plan
from product_classificator.cluster.runners import LocalRunner, RayRunner, import_ray, running
from product_classificator.cluster.storage import Storage, single_driver
from product_classificator.cluster.work import Recipe
from product_classificator.errors import ArtifactError, DataError, MissingExtraError
from product_classificator.predict_file import finish
from product_classificator.remote import paths
from tests.cluster.tiny_units import tiny_work, write_table


def run(work, out, runner):
    with running(Storage(out), work[0], runner, recipe=work[1], rows=256) as (plan, resumed):
        return plan, resumed, finish(plan)


def parts_of(out):
    return {path.name: path.read_bytes() for path in out.glob("parts/*/*.parquet")}


def test_parts_are_byte_equal_for_any_number_of_workers(bundle, notes, tmp_path):
    work = tiny_work(bundle, write_table(tmp_path / "t.parquet", 1_500), notes)
    run(work, tmp_path / "here", LocalRunner())
    done = []
    with running(Storage(tmp_path / "two"), work[0], LocalRunner(2), recipe=work[1], rows=256, on_rows=done.append) as (
        plan,
        _,
    ):
        finish(plan)
    assert parts_of(tmp_path / "here") == parts_of(tmp_path / "two")
    assert (len(done), done[-1]) == (plan.n_units, 1_500)
    assert len({line.split()[1] for line in (notes / "encoded.txt").read_text().splitlines()}) >= 2  # one may do all
    assert not list(tmp_path.glob("*.lock"))
    assert not (tmp_path / "two/_driver.json").exists()


def test_a_unit_that_always_fails_ends_in_quarantine_and_the_others_are_done(bundle, notes, tmp_path):
    work = tiny_work(bundle, write_table(tmp_path / "t.parquet", 800, _450="fail", _790="kill"), notes)
    for n in range(9):
        (notes / f"kill-{n}").touch()
    with pytest.raises(
        ArtifactError, match=r"2 of 4 units have no part in .*unit 2 .*t\.parquet, rows 400 to 599\): Value"
    ):
        run(work, tmp_path / "out", LocalRunner(1, retry_s=0.01))
    assert len(parts_of(tmp_path / "out")) == 2
    assert len(list(notes.glob("kill-*"))) == 6
    entries = [json.loads(path.read_text()) for path in sorted((tmp_path / "out/quarantine").iterdir())]
    assert [entry["error"].partition(" ")[0] for entry in entries] == ["ValueError:", "its"]
    assert not (tmp_path / "out/_SUCCESS.json").exists()


def finished(error=None, result=None):
    outcome = Future()
    outcome.set_exception(error) if error else outcome.set_result(result)
    return outcome


def drive(plan, run, **options):
    """Drives a plan with a worker of this process, for which `run` does units."""

    def outcome(make):
        try:
            return finished(result=make())
        except RuntimeError as error:
            return finished(error)

    def make_worker(number):
        return Worker(lambda: outcome(options.get("open", lambda: None)), lambda unit: outcome(lambda: run(unit)), int)

    Driver(plan, make_worker, 60.0, 0.0).run(options.get("n_workers", 1), lambda **_: None, lambda unit: None)


@pytest.fixture
def plan(bundle, notes, tmp_path):
    work = tiny_work(bundle, write_table(tmp_path / "t.parquet", 1_500, group=100), notes)

    return make_plan(Storage(tmp_path / "out"), work[0].catalog.table, work[0].facts, 100)


def test_ten_units_that_fail_in_a_row_end_the_job(plan):
    with pytest.raises(ArtifactError, match="10 units in a row failed, the last one: no network"):
        drive(plan, lambda unit: Failure("no network"))


def test_a_full_disk_ends_the_job_at_once(plan):
    calls = []
    with pytest.raises(DataError, match="cannot be written: no room: make room and run the same command again"):
        drive(plan, lambda unit: calls.append(unit) or Failure("no room", is_final=True))
    assert len(calls) == 1


def test_workers_that_cannot_start_are_named(plan):
    with pytest.raises(ArtifactError, match="no worker can start: no such model"):
        drive(plan, lambda unit: None, open=lambda: Failure("no such model"))

    def die():
        raise RuntimeError("killed\nwith a long trace")

    with pytest.raises(ArtifactError, match=r"no worker can start: its worker ended \(RuntimeError: killed\)"):
        drive(plan, lambda unit: None, open=die, n_workers=2)


def test_workers_refuse_what_has_changed_since_the_plan(bundle, notes, tmp_path):
    table = write_table(tmp_path / "t.parquet", 300)
    work = tiny_work(bundle, table, notes)
    write_table(table, 400)
    with pytest.raises(ArtifactError, match=r"no worker can start: .*must stay as they were when the plan was made"):
        run(work, tmp_path / "out", LocalRunner(1))


def test_a_table_in_memory_cannot_be_opened_by_others(bundle, notes, tmp_path):
    catalog = read_catalog(pd.DataFrame({"nm": [1], "title": ["cup"]}))
    with pytest.raises(DataError, match=r"workers open the table themselves.*got DataFrame: save it as parquet"):
        Recipe.of(catalog, {}, None, None)


def test_a_plan_without_a_recipe_is_continued_only_by_who_made_it(plan):
    with pytest.raises(ArtifactError, match="can be continued only by the call that began it"):
        run_one(plan, 0)


def test_without_ray_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"work on a Ray cluster needs an extra .*product_classificator\[ray\]"):
        import_ray()
    with pytest.raises(MissingExtraError):
        RayRunner().run(None, None, None, None, None)


def test_a_worker_that_never_opens_is_replaced_and_then_given_up(plan, monkeypatch):
    monkeypatch.setattr("product_classificator.cluster.drive._OPEN_SECONDS", 0.1)
    worker = Worker(Future, lambda unit: Future(), int)
    with pytest.raises(ArtifactError, match=r"no worker can start: it took longer than its deadline of 0\.1 s"):
        Driver(plan, lambda number: worker, None, 0.0).run(1, lambda **_: None, int)


def test_a_worker_that_dies_is_replaced_though_another_never_starts(plan):
    made = []

    def make_worker(number):
        made.append(number)

        def run(unit):
            return finished(RuntimeError("preempted") if unit.number == 12 and made.count(1) == 1 else None)

        return Worker(lambda: finished(None if number else RuntimeError("no room")), run, int)

    Driver(plan, make_worker, None, 0.0).run(2, lambda **_: None, lambda unit: None)
    assert made.count(1) == 2


def test_a_pool_that_breaks_when_a_unit_is_handed_over_is_a_dead_worker(plan):
    calls = []

    def make_worker(number):
        def run(unit):
            calls.append(unit)
            if len(calls) == 1:
                raise BrokenProcessPool("it ended between two units")
            return finished()

        return Worker(finished, run, int)

    Driver(plan, make_worker, None, 0.0).run(1, lambda **_: None, lambda unit: None)
    assert len(calls) == plan.n_units + 1


def test_what_a_store_fails_is_tried_more_often_than_what_a_unit_fails(plan):
    calls = []

    def run(unit):
        calls.append(unit.number)
        return Failure.of(ValueError("bad") if unit.number else OSError("503")) if unit.number < 2 else None

    drive(plan, run)
    assert (calls.count(0), calls.count(1), calls.count(2)) == (6, 3, 1)


def test_workers_are_as_many_as_have_a_gpu():
    assert [_capped(8, share, 2) for share in (1, 0.5, 2)] == [2, 4, 1]
    with pytest.raises(DataError, match=r"workers with 1 GPUs each need as many, 0 are visible"):
        _capped(2, 1, 0)


def test_a_lease_is_renewed_while_nothing_beats(monkeypatch):
    files = fsspec.get_filesystem_class("memory")()
    monkeypatch.setitem(paths._FILE_SYSTEMS, ("held:", "shop"), fs.PyFileSystem(fs.FSSpecHandler(files)))
    monkeypatch.setattr(storage, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(storage, "_BEAT_SECONDS", 0.1)
    with single_driver(Storage("held://shop/out")) as beat:
        time.sleep(0.8)
        beat()
        with (
            pytest.raises(DataError, match="another process is writing out"),
            single_driver(Storage("held://shop/out")),
        ):
            pass
    assert not Storage("held://shop/out").list()
    with single_driver(Storage("held://shop/out")):
        monkeypatch.setattr(type(files), "_open", lambda *_, **__: 1 / 0)  # what is done stays done
