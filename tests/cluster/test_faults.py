"""What goes wrong on many machines: nothing is lost, nothing is twice, nothing is half-written."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from io import BytesIO
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from pyarrow import fs

from product_classificator.cluster import storage as cluster_storage
from product_classificator.cluster.plan import make_plan
from product_classificator.cluster.runners import LocalRunner, RayRunner, running
from product_classificator.cluster.storage import DRIVER, Storage
from product_classificator.errors import ArtifactError, DataError
from product_classificator.predict_file import finish
from product_classificator.remote import paths
from tests.cluster.tiny_units import encoded, tiny_work, write_table

pytestmark = pytest.mark.cluster
ROWS, UNIT_ROWS, UNITS = 1_600, 100, 16
DELAY_S = 0.1


def run(work, out, runner):
    with running(Storage(out), work[0], runner, recipe=work[1], rows=UNIT_ROWS) as (plan, resumed):
        finish(plan)
        return plan, resumed


def check_whole(out, rows=ROWS):
    """Every row once, in order, and no file but whole parts."""
    parts = sorted(out.glob("parts/*/*"))
    assert pd.concat(map(pd.read_parquet, parts)).nm.tolist() == [*map(str, range(rows))]
    assert not list(out.rglob(".*"))
    assert json.loads((out / "_SUCCESS.json").read_text())["rows"] == rows


def n_done(out):
    return len(list(out.glob("parts/*/[!.]*")))


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def drive_slowly(bundle, table, notes, out, processes):
    run(tiny_work(bundle, table, notes, DELAY_S), out, LocalRunner(processes))


def start(*arguments):
    process = multiprocessing.get_context("spawn").Process(target=drive_slowly, args=arguments)
    process.start()
    return process


def test_a_worker_that_is_killed_at_any_unit_costs_nothing_but_that_unit(bundle, notes, tmp_path):
    row = random.randrange(ROWS)
    table = write_table(tmp_path / "t.parquet", ROWS, **{f"_{row}": "kill"})
    (notes / "kill-0").touch()
    run(tiny_work(bundle, table, notes), tmp_path / "out", LocalRunner(2, retry_s=0.1))
    check_whole(tmp_path / "out")
    assert not list(notes.glob("kill-*"))
    assert len(encoded(notes)) == UNITS + 1


def test_a_driver_that_is_killed_is_resumed_and_its_workers_end_with_it(bundle, notes, tmp_path):
    table, out = write_table(tmp_path / "t.parquet", ROWS), tmp_path / "out"
    process = start(bundle, table, notes, out, 2)
    wait_for(lambda: n_done(out) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    pids = {int(line.split()[1]) for line in (notes / "encoded.txt").read_text().splitlines()}
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert not (out / "_SUCCESS.json").exists()
    _, resumed = run(tiny_work(bundle, table, notes), out, LocalRunner(2))
    assert resumed >= 3 * UNIT_ROWS
    for leftover in out.rglob(".*.tmp"):  # younger than an hour
        leftover.unlink()
    check_whole(out)
    assert len(encoded(notes)) <= UNITS + 2


def test_a_second_driver_is_refused_while_the_first_one_works(bundle, notes, tmp_path):
    table, out = write_table(tmp_path / "t.parquet", ROWS), tmp_path / "out"
    process = start(bundle, table, notes, out, 1)
    wait_for(lambda: n_done(out) >= 1)
    with pytest.raises(DataError, match="another process is writing out: wait for it, or name another output"):
        run(tiny_work(bundle, table, notes), out, LocalRunner())
    process.join()
    check_whole(out)
    assert len(encoded(notes)) == UNITS


def test_a_unit_that_takes_too_long_and_one_that_always_kills_end_in_quarantine(bundle, notes, tmp_path):
    table = write_table(tmp_path / "t.parquet", 500, _150="hang", _350="kill")
    for n in range(9):
        (notes / f"kill-{n}").touch()
    with pytest.raises(ArtifactError, match=r"2 of 5 units .*deadline of 3 s; .*BrokenProcessPool"):
        run(tiny_work(bundle, table, notes), tmp_path / "out", LocalRunner(2, deadline_s=3.0, retry_s=0.01))
    assert n_done(tmp_path / "out") == 3
    assert len(list(notes.glob("kill-*"))) == 6


def predict_on_a_full_disk(bundle, table, notes, out):
    work = tiny_work(bundle, table, notes)
    make_plan(Storage(out), work[0].catalog.table, work[0].facts, UNIT_ROWS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))  # a file that grows beyond it fails, as on a full disk
    with pytest.raises(DataError, match=r"cannot be written: OSError: .*make room and run the same command again"):
        run(work, out, LocalRunner(1))


def test_a_full_disk_ends_the_job_and_leaves_no_half_part(bundle, notes, tmp_path):
    table, out = write_table(tmp_path / "t.parquet", ROWS), tmp_path / "out"
    process = multiprocessing.get_context("spawn").Process(
        target=predict_on_a_full_disk, args=(bundle, table, notes, out)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not list(out.glob("parts/*/*"))
    run(tiny_work(bundle, table, notes), out, LocalRunner())
    check_whole(out)


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    yield ray
    ray.shutdown()


def test_ray_makes_the_parts_that_one_process_makes(ray, bundle, notes, tmp_path):
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    work = tiny_work(bundle, write_table(tmp_path / "t.parquet", ROWS, _333="kill"), notes)
    (notes / "kill-0").touch()
    run(work, tmp_path / "ray", RayRunner(workers=2, retry_s=0.1))
    run(work, tmp_path / "here", LocalRunner())
    ray.shutdown()
    check_whole(tmp_path / "ray")
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("parts/*/*")} for n in ("here", "ray"))
    assert ours == theirs
    assert len(encoded(notes)) == 2 * UNITS + 1


def test_a_node_that_leaves_the_ray_cluster_costs_no_row(ray, bundle, notes, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        leaving = cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False)
        out, removed = tmp_path / "out", []

        def leave(rows):
            workers = {line.split()[1] for line in (notes / "encoded.txt").read_text().splitlines()}
            # While both work, unless one is so late that the other has nearly done all.
            if (len(workers) == 2 or rows >= 3 * ROWS / 4) and not removed:
                removed.append(cluster.remove_node(leaving, allow_graceful=False))

        work = tiny_work(bundle, write_table(tmp_path / "t.parquet", ROWS), notes, DELAY_S)
        runner = RayRunner(workers=2, retry_s=0.1)
        with running(Storage(out), work[0], runner, recipe=work[1], rows=UNIT_ROWS, on_rows=leave) as (plan, _):
            finish(plan)
        check_whole(out)
        assert removed
        assert len(encoded(notes)) <= UNITS + 2
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def bucket(monkeypatch):
    """An object store on the loopback, for this process and those that it starts."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setattr(paths, "_FILE_SYSTEMS", {})
    monkeypatch.setattr(paths, "_WITH_SECRETS", set())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name, value in {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    import boto3

    shop = boto3.resource("s3", endpoint_url=url).create_bucket(Bucket="shop")
    yield shop
    shop.objects.all().delete()  # what is in it outlives the server
    server.stop()


def parts_in(bucket):
    objects = sorted(bucket.objects.filter(Prefix="out/parts/"), key=lambda part: part.key)
    return [part.get()["Body"].read() for part in objects]


def test_an_object_store_holds_the_parts_that_a_disk_holds(bucket, bundle, notes, tmp_path):
    table = write_table(tmp_path / "t.parquet", ROWS)
    bucket.upload_file(str(table), "t.parquet")
    url = "s3://shop/t.parquet"
    work = tiny_work(bundle, url, notes)
    plan, _ = run(work, "s3://shop/out", LocalRunner(2))
    local, _ = run(tiny_work(bundle, table, notes), tmp_path / "out", LocalRunner())
    columns = [pd.read_parquet(BytesIO(part)) for part in parts_in(bucket)]
    assert pd.concat(columns).equals(pd.concat(map(pd.read_parquet, sorted((tmp_path / "out").glob("parts/*/*")))))
    assert plan.n_units == local.n_units
    assert "_SUCCESS.json" in plan.storage.list()
    assert DRIVER not in plan.storage.list()
    assert run(work, "s3://shop/out", LocalRunner())[1] == ROWS


def test_a_second_driver_on_an_object_store_is_refused_until_the_first_is_dead(
    bucket, bundle, notes, tmp_path, monkeypatch
):
    bucket.upload_file(str(write_table(tmp_path / "t.parquet", 300)), "t.parquet")
    work, storage = tiny_work(bundle, "s3://shop/t.parquet", notes), Storage("s3://shop/out")
    storage.write_json(DRIVER, {"id": "another", "time": time.time() - 10})
    with pytest.raises(DataError, match="another process is writing out: wait for it, or name another output"):
        run(work, "s3://shop/out", LocalRunner())
    monkeypatch.setattr(cluster_storage, "LEASE_SECONDS", 0)
    run(work, "s3://shop/out", LocalRunner())


class FaultyFiles(fsspec.get_filesystem_class("memory")):
    """Files in memory, a third of whose writes fail and all of whose reads are slow."""

    protocol, store, pseudo_dirs, chance, n_failed = "faulty", {}, [""], random.Random(0), 0

    def pipe_file(self, path, value, **options):
        if self.chance.random() < 1 / 3:
            FaultyFiles.n_failed += 1
            raise OSError("the store answers 503")
        super().pipe_file(path, value, **options)

    def _open(self, path, *arguments, **options):
        time.sleep(0.02)
        return super()._open(path, *arguments, **options)


def test_a_store_that_fails_now_and_then_costs_time_and_nothing_else(bundle, notes, tmp_path, monkeypatch):
    system = fs.PyFileSystem(fs.FSSpecHandler(FaultyFiles()))
    monkeypatch.setitem(paths._FILE_SYSTEMS, paths.as_path("faulty://shop").parts[:2], system)
    work = tiny_work(bundle, write_table(tmp_path / "t.parquet", ROWS), notes)
    for _ in range(200):
        try:
            plan, _ = run(work, "faulty://shop/out", LocalRunner())
            break
        except DataError as error:
            assert "the store answers 503" in str(error)
    assert FaultyFiles.n_failed > 3
    assert len(encoded(notes)) <= UNITS + 2 * FaultyFiles.n_failed
    rows = [plan.read(unit)[0] for unit, _ in plan.parts()]
    assert [id_ for part in rows for id_ in part["nm"].to_pylist()] == [*map(str, range(ROWS))]
