"""Who runs the units of a plan: this process, some on this machine, or the actors of a Ray cluster."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, TypeAlias

from product_classificator.classificator.work import Work
from product_classificator.cluster.drive import Driver, Failure, OnUnit, Units, Worker
from product_classificator.cluster.plan import SUCCESS, UNIT_ROWS, Plan, Unit, make_plan
from product_classificator.cluster.storage import Beat, Storage, single_driver
from product_classificator.cluster.work import OnChunk, Reader, Recipe, run_units
from product_classificator.errors import DataError, MissingExtraError

_RETRY_S = 1.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalRunner:
    """Runs units in this process, or in `processes` of this machine, each on its share of the cores.

    Here an error is raised as it is, for the person who waits for it; elsewhere, see `Driver`.
    """

    processes: int = 0
    gpus_per_worker: float = 0
    on_chunk: OnChunk | None = None
    deadline_s: float | None = None
    retry_s: float = _RETRY_S

    def run(self, plan: Plan, work: Work, recipe: Recipe | None, beat: Beat, on_unit: OnUnit) -> None:
        """Run all units that have no part yet; `on_unit` is called after each."""
        if self.processes and recipe:
            driver = Driver(plan, partial(_in_process, plan, recipe, self), self.deadline_s, self.retry_s)
            driver.run(self.processes, beat, on_unit)
            return
        reader = Reader(work.catalog)

        def units() -> Iterator[Unit]:
            yield from plan.todo()
            reader.finish()

        for unit in run_units(plan, work, reader, units(), on_chunk=self.on_chunk):
            beat(running=1)
            on_unit(unit)


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    n_devices = sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))
    return [*map(str, range(n_devices))] if visible is None else [name for name in visible.split(",") if name.strip()]


def _in_process(plan: Plan, recipe: Recipe, runner: LocalRunner, number: int) -> Worker:
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:  # what is spawned would import the script of whoever calls this
        pid = pool.submit(os.getpid)
    finally:
        sys.modules["__main__"] = main

    def kill() -> None:
        with suppress(Exception):  # it is dead already
            os.kill(pid.result(timeout=10), signal.SIGKILL)
        pool.shutdown(wait=False, cancel_futures=True)

    return Worker(lambda: pool.submit(_open, plan, recipe, runner, number), lambda unit: pool.submit(_run, unit), kill)


_of_this_process: list[Units] = []


def _open(plan: Plan, recipe: Recipe, runner: LocalRunner, number: int) -> Failure | None:
    Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, mine[number :: runner.processes] or [mine[number % len(mine)]])
    if share := runner.gpus_per_worker:
        first, gpus = int(number * share + 1e-9), visible_gpus()  # those of the caller, whose environment this has
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + max(int(share), 1)])
    _of_this_process[:] = [Units(plan, recipe)]
    return _of_this_process[0].open()


def _run(unit: Unit) -> Failure | None:
    return _of_this_process[0].run(unit)


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


@dataclass(frozen=True)
class RayRunner:
    """Runs units in actors of the Ray cluster at "auto" or "ray://host:10001", or that which is connected already.

    There are as many `workers` as there is room for at the start, unless their number is given.
    """

    address: str = "auto"
    workers: int | None = None
    gpus_per_worker: float = 0
    cpus_per_worker: float = 1
    deadline_s: float | None = None
    retry_s: float = _RETRY_S

    def run(self, plan: Plan, work: Work, recipe: Recipe | None, beat: Beat, on_unit: OnUnit) -> None:
        """Run all units that have no part yet; `on_unit` is called after each."""
        ray = import_ray()
        if not ray.is_initialized():
            try:
                ray.init(self.address, log_to_driver=False)
            except (ConnectionError, RuntimeError) as error:
                raise DataError(f"no Ray cluster answers at {self.address} ({error}): start it (ray start)") from error
        needs, there = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}, ray.cluster_resources()
        room = min(int(there.get(kind, 0) / need) for kind, need in needs.items() if need)
        make_actor = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"])(Units).remote
        if room < (self.workers or 1):
            sentence = "the Ray cluster has room for %d workers of %s now, the others wait for it (%d are wanted)"
            logger.warning(sentence, room, {kind: need for kind, need in needs.items() if need}, self.workers or 1)
        threads = max(int(self.cpus_per_worker), 1)

        def make_worker(_: int) -> Worker:
            actor = make_actor(plan, recipe, threads)
            open_, run = (lambda *unit, call=call: call.remote(*unit).future() for call in (actor.open, actor.run))
            return Worker(open_, run, partial(ray.kill, actor))

        driver = Driver(plan, make_worker, self.deadline_s, self.retry_s)
        driver.run(self.workers or max(room, 1), beat, on_unit)


Runner: TypeAlias = LocalRunner | RayRunner


def import_ray() -> Any:
    """Return the module, which is an extra."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("work on a Ray cluster", "ray") from error
    return ray


@contextmanager
def running(
    storage: Storage,
    work: Work,
    runner: Runner,
    *,
    recipe: Recipe | None = None,
    rows: int = UNIT_ROWS,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> Iterator[tuple[Plan, int]]:
    """Run the plan of a work until every unit has its part, or is in quarantine; yield it, and the rows done before.

    No other driver may write there until the block ends. `on_rows` gets the number of rows that are done. Errors as of
    `make_plan`.
    """
    with single_driver(storage) as beat:
        plan = make_plan(storage, work.catalog.table, work.facts, rows, asdict(recipe) if recipe else None)
        parts = (unit for unit, part in plan.parts() if part)  # those of an object store are not read until the end
        n_done = resumed = sum(unit.rows for unit in parts if not storage.is_local or plan.read(unit)[0])
        if n_done < plan.n_rows:
            storage.delete(SUCCESS)  # of a call before, whose parts are gone
        if n_done:
            on_rows(n_done)

        def on_unit(unit: Unit) -> None:
            nonlocal n_done
            n_done += unit.rows
            on_rows(n_done)

        runner.run(plan, work, recipe, beat, on_unit)
        yield plan, resumed
