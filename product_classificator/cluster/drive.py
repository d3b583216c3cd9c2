"""Hands units to workers until each has its part, or is in quarantine."""

import errno
import heapq
import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias

from product_classificator.cluster.plan import QUARANTINE, Plan, Unit
from product_classificator.cluster.storage import Beat
from product_classificator.cluster.work import Reader, Recipe, run_units
from product_classificator.embeddings.feeding import feeding
from product_classificator.errors import ArtifactError, DataError
from product_classificator.remote.paths import without_secrets

logger = logging.getLogger(__name__)

_MAX_FAILURES, _MAX_PASSING_FAILURES, _MAX_DEATHS_AT_START, _MAX_IN_A_ROW = 3, 6, 3, 10
_OPEN_SECONDS = 1_800.0  # that a worker may wait for room, load and open
_LEAST_SECONDS, _SECONDS_PER_ROW = 600.0, 5.0  # that a unit may take, unless a deadline is given
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
OnUnit: TypeAlias = Callable[[Unit], object]


class Failure(NamedTuple):
    """Why a unit has no part; `is_final`: no other unit will have one either; `is_passing`: a store or disk failed."""

    message: str
    is_final: bool = False
    is_passing: bool = False
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Describe an error; what it was raised from counts too."""
        chain = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
            chain.append(cause)
        is_full = any(isinstance(cause, OSError) and cause.errno in _FULL for cause in chain)
        trace = without_secrets("".join(traceback.format_exception(error)))
        is_passing = any(isinstance(cause, OSError) for cause in chain)
        return cls(without_secrets(f"{type(error).__name__}: {error}"), is_full, is_passing, trace)


Outcome: TypeAlias = "Future[Failure | None]"


class Worker(NamedTuple):
    """Does one unit at a time, in another process: after `open`, `run`. An outcome that raises: it is dead."""

    open: Callable[[], Outcome]
    run: Callable[[Unit], Outcome]
    kill: Callable[[], object]


class Units:
    """What a worker's process holds: the work of a plan, opened once."""

    def __init__(self, plan: Plan, recipe: Recipe, threads: int | None = None) -> None:
        self._plan, self._recipe, self._threads = plan, recipe, threads

    def open(self) -> Failure | None:
        """Open the work, and return why that failed."""
        logging.getLogger("product_classificator").setLevel(logging.ERROR)  # each unit would repeat its warnings
        try:
            self._work = self._recipe.open(self._plan, self._threads)
        except Exception as error:
            return Failure.of(error)
        self._reader = Reader(self._work.catalog)
        self._stack = ExitStack()  # dropped, it would end what feeds at once
        self._feed = self._stack.enter_context(feeding(self._work.encoder, self._work.catalog))
        return None

    def run(self, unit: Unit) -> Failure | None:
        """Do a unit, and return why that failed."""
        try:
            deque(run_units(self._plan, self._work, self._reader, [unit], feed=self._feed), 0)
        except Exception as error:
            self._reader = Reader(self._work.catalog)
            return Failure.of(error)
        return None


class Driver:
    """Hands the units of a plan to workers, one at a time each.

    A unit that fails three times (six, over minutes, if a store or disk fails), or takes longer than `deadline_s`
    (`None`: 5 s a row, at least 10 min), is put in quarantine, and the others go on. A worker that dies is replaced;
    the unit that it was doing has failed once.
    """

    def __init__(
        self, plan: Plan, make_worker: Callable[[int], Worker], deadline_s: float | None, retry_s: float
    ) -> None:
        self._plan, self._make_worker, self._deadline_s, self._retry_s = plan, make_worker, deadline_s, retry_s
        self._workers: dict[int, Worker] = {}
        self._running: dict[Outcome, tuple[int, Unit | None, float]] = {}  # worker, unit (None: it opens), since
        self._free, self._retries = list[int](), list[tuple[float, int, Unit]]()  # not before, number, unit
        self._failures, self._in_a_row, self._deaths_at_start = Counter[int](), 0, 0
        self._next: Unit | None = None

    def run(self, n_workers: int, beat: Beat, on_unit: OnUnit) -> None:
        """Run all units that have no part yet; stop where none can start, the disk is full, or ten in a row fail."""
        for name in self._plan.storage.list(QUARANTINE):
            self._plan.storage.delete(f"{QUARANTINE}/{name}")  # another call is another chance
        todo = self._plan.todo()
        self._next = next(todo, None)
        try:
            for number in range(n_workers if self._next else 0):
                self._start(number)
            while self._next or self._retries or self._n_busy():
                self._give(todo)
                beat(running=self._n_busy())
                self._collect(on_unit)
        finally:
            for worker in self._workers.values():
                worker.kill()

    def _n_busy(self) -> int:
        return sum(unit is not None for _, unit, _ in self._running.values())

    def _start(self, number: int) -> None:
        self._workers[number] = self._make_worker(number)
        self._begin(number, None)

    def _begin(self, number: int, unit: Unit | None) -> None:
        worker = self._workers[number]
        try:
            outcome = worker.run(unit) if unit else worker.open()
        except Exception as error:  # it is dead already
            outcome = Future()
            outcome.set_exception(error)
        self._running[outcome] = (number, unit, time.monotonic())

    def _deadline(self, unit: Unit | None) -> float:
        if unit is None:
            return _OPEN_SECONDS
        return self._deadline_s or max(_LEAST_SECONDS, _SECONDS_PER_ROW * unit.rows)

    def _give(self, todo: Iterator[Unit]) -> None:
        """Give units to the free workers."""
        while self._free:
            if self._retries and self._retries[0][0] <= time.monotonic():
                unit = heapq.heappop(self._retries)[2]
            elif self._next is not None:
                unit, self._next = self._next, next(todo, None)
            else:
                return
            self._begin(self._free.pop(), unit)

    def _collect(self, on_unit: OnUnit) -> None:
        """Wait briefly for outcomes and deadlines, and handle them."""
        if not self._running:
            time.sleep(min(self._retry_s, 1.0))
        done, _ = wait(self._running, 1.0, FIRST_COMPLETED)
        for outcome in done:
            number, unit, _ = self._running.pop(outcome)
            try:
                failure = outcome.result()
            except Exception as error:  # each kind of worker dies in its own way
                first_line = next(iter(str(error).splitlines()), "")
                self._bury(number, unit, f"its worker ended ({type(error).__name__}: {first_line})")
                continue
            self._free.append(number)
            if unit is None and failure:
                raise ArtifactError(f"no worker can start: {failure.message}")
            if unit is None:
                self._deaths_at_start = 0
            elif failure:
                self._fail(unit, failure)
            else:
                self._in_a_row = 0
                self._failures.pop(unit.number, None)
                on_unit(unit)
        for outcome, (number, unit, since) in [*self._running.items()]:
            if time.monotonic() - since <= (deadline_s := self._deadline(unit)):
                continue
            del self._running[outcome]
            if unit is not None:
                self._failures[unit.number] = _MAX_FAILURES
            self._bury(number, unit, f"it took longer than its deadline of {deadline_s:g} s")

    def _bury(self, number: int, unit: Unit | None, message: str) -> None:
        """Replace a dead worker, unless workers keep dying at the start."""
        self._workers.pop(number).kill()
        self._deaths_at_start = 0 if unit else self._deaths_at_start + 1
        if self._deaths_at_start < _MAX_DEATHS_AT_START:
            self._start(number)
        elif not self._workers:
            raise ArtifactError(f"no worker can start: {message}")
        if unit is not None:
            self._fail(unit, Failure(message))

    def _fail(self, unit: Unit, failure: Failure) -> None:
        """Try a unit again a little later, or give it up."""
        if failure.is_final:
            way_out = "make room and run the same command again, it goes on where it was"
            raise DataError(f"{self._plan.storage} cannot be written: {failure.message}: {way_out}")
        self._failures[unit.number] += 1
        if (n := self._failures[unit.number]) < (_MAX_PASSING_FAILURES if failure.is_passing else _MAX_FAILURES):
            logger.warning("%s failed, it is tried again: %s", unit, failure.message)
            heapq.heappush(self._retries, (time.monotonic() + self._retry_s * 4 ** (n - 1), unit.number, unit))
            return
        self._plan.storage.patiently(lambda: self._plan.quarantine(unit, failure.message, failure.trace))
        self._in_a_row += 1
        if self._in_a_row >= _MAX_IN_A_ROW:
            raise ArtifactError(f"{self._in_a_row} units in a row failed, the last one: {failure.message}")
