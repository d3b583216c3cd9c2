"""Gathers the items of many requests into batches, which a thread computes one by one; no item can stop it.

A batch that fails is halved until the items that make it fail are alone; they come back as errors, the others are
answered. An idle batcher starts at once. Requests that come while it computes wait for the next batch, and a busy
batcher waits a few milliseconds for a fuller one. Jobs that are cancelled or too late are dropped uncomputed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)


class BatchLimits(NamedTuple):
    """Most items, pixels, characters and jobs of a batch; a single job may exceed them."""

    items: int = 64
    pixels: int = 16_000_000
    chars: int = 64_000
    jobs: int = 64


@dataclass(eq=False)
class _Job:
    lane: Hashable
    items: Sequence[Any]
    deadline: float
    future: "asyncio.Future[list[Any]]"
    arrived: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        sizes = [item.size for item in self.items]
        self.cost = BatchLimits(len(sizes), sum(pixels for pixels, _ in sizes), sum(chars for _, chars in sizes), 1)

    def is_wanted(self) -> bool:
        if not self.future.done() and time.monotonic() >= self.deadline:
            self.future.set_exception(TimeoutError("the deadline passed before the products were computed"))
        return not self.future.done()


class Batcher:
    """A queue of jobs of one event loop, and the thread that computes them.

    Args:
        compute: lane, n items -> n results; a batch holds jobs of one lane. The `size` of an item is its pixels and its
            characters; tokens are known only to the towers.
        limits: of a batch.
        on_batch: called after every batch, with the number of items and the seconds that each job waited.
        wait_s: longest wait of a busy batcher for a fuller batch.
    """

    def __init__(
        self,
        compute: Callable[[Any, Sequence[Any]], Sequence[Any]],
        limits: BatchLimits,
        on_batch: Callable[[int, Sequence[float]], None] = lambda *_: None,
        wait_s: float = 0.005,
    ) -> None:
        self._compute, self._limits, self._on_batch, self._wait_s = compute, limits, on_batch, wait_s
        self._jobs: list[_Job] = []
        self._thread = ThreadPoolExecutor(1, "batcher")
        self._worker: asyncio.Task[None] | None = None  # while there are jobs
        self._computing_since: float | None = None
        self._last_end = float("-inf")
        self.seconds_per_item = 0.0  # a moving average

    async def submit(
        self, lane: Hashable, items: Sequence[Any], deadline: float = float("inf"), *, first: bool = False
    ) -> list[Any]:
        """Queue items, `first` ahead of all others; returns a result or an error for each, in their order.

        A job that is not started by `deadline`, a time of `time.monotonic`, fails with `TimeoutError`. Cancelling
        drops a job that is not started.
        """
        job = _Job(lane, items, deadline, asyncio.get_running_loop().create_future())
        self._jobs.insert(0 if first else len(self._jobs), job)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await job.future

    def stuck_s(self) -> float:
        """Return for how many seconds the current batch has been computed."""
        return 0.0 if self._computing_since is None else time.monotonic() - self._computing_since

    async def close(self) -> None:
        """Compute what is queued, and end the thread."""
        if self._worker:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        while self._jobs:
            if time.monotonic() - self._last_end < self._wait_s and not self._is_full():
                await asyncio.sleep(self._jobs[0].arrived + self._wait_s - time.monotonic())
            self._jobs = [job for job in self._jobs if job.is_wanted()]
            if jobs := self._fitting():
                self._jobs = [job for job in self._jobs if job not in jobs]
                await self._answer(jobs)

    async def _answer(self, jobs: Sequence[_Job]) -> None:
        self._computing_since = start = time.monotonic()
        items, loop = [item for job in jobs for item in job.items], asyncio.get_running_loop()
        results = await loop.run_in_executor(self._thread, self._results, jobs[0].lane, items)
        self._last_end, self._computing_since = time.monotonic(), None
        change = (self._last_end - start) / len(items) - self.seconds_per_item
        self.seconds_per_item += change * (0.2 if self.seconds_per_item else 1)
        for job in jobs:
            if not job.future.done():
                job.future.set_result(results[: len(job.items)])
            results = results[len(job.items) :]
        try:
            self._on_batch(len(items), [start - job.arrived for job in jobs])
        except Exception as error:  # such as a full disk of the metrics
            logger.error("a batch was not counted", exc_info=error)

    def _is_full(self) -> bool:
        jobs = self._fitting()
        return len(jobs) < len(self._jobs) or sum(len(job.items) for job in jobs) >= self._limits.items

    def _fitting(self) -> list[_Job]:
        """Return the first job, and those of its lane that fit into one batch with it."""
        jobs: list[_Job] = []
        cost: tuple[int, ...] = (0,) * len(self._limits)
        for job in self._jobs:
            if jobs and job.lane != jobs[0].lane:
                continue
            cost = tuple(map(sum, zip(cost, job.cost, strict=True)))
            if jobs and any(value > limit for value, limit in zip(cost, self._limits, strict=True)):
                break
            jobs.append(job)
        return jobs

    def _results(self, lane: Hashable, items: Sequence[Any]) -> list[Any]:
        """Return a result for each item; what fails is computed again in halves."""
        try:
            results = list(self._compute(lane, items))
            if len(results) != len(items):
                raise RuntimeError(f"{len(items)} items were computed, {len(results)} results came back")
            return results
        except BaseException as error:  # whatever an item raises, the thread goes on
            if len(items) == 1:
                logger.warning("a product cannot be computed", exc_info=error)
                return [error]
        middle = len(items) // 2
        return self._results(lane, items[:middle]) + self._results(lane, items[middle:])
