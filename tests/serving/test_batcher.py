import asyncio
import threading
import time
from concurrent.futures import wait
from dataclasses import dataclass

import pytest

from product_classificator.serving.batcher import Batcher, BatchLimits


@dataclass(frozen=True)
class Item:
    value: object
    size: tuple[int, int] = (1, 1)


class Doubler:
    """Doubles values; records its batches, and waits while `gate` is closed."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def __call__(self, lane, items):
        self.batches.append((lane, [item.value for item in items]))
        self.entered.release()
        self.gate.wait()
        if any(item.value == "poison" for item in items):
            raise MemoryError("poison")
        if any(item.value == "exit" for item in items):
            raise SystemExit
        return [item.value * 2 for item in items]


@pytest.fixture
def compute():
    return Doubler()


@pytest.fixture
def make(compute):
    batchers, loop = [], asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    class Threaded(Batcher):
        """Used from another thread than that of its event loop."""

        def submit(self, *args, **options):
            return asyncio.run_coroutine_threadsafe(super().submit(*args, **options), loop)

        def close(self):
            asyncio.run_coroutine_threadsafe(super().close(), loop).result(5)

    def make(wait_s=0.005, compute=compute, on_batch=lambda *_: None, **limits):
        batchers.append(Threaded(compute, BatchLimits(**limits), on_batch, wait_s))
        return batchers[-1]

    yield make
    compute.gate.set()
    for batcher in batchers:
        batcher.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def items(*values):
    return [Item(value) for value in values]


def hold(compute, batcher):
    """Make the batcher busy until the gate is opened; returns the job that keeps it busy."""
    compute.gate.clear()
    future = batcher.submit("a", items(0))
    compute.entered.acquire()
    return future


def test_results_come_back_in_order(make):
    assert make().submit("a", items(1, 2, 3)).result(5) == [2, 4, 6]


def test_jobs_that_come_during_a_computation_are_computed_together(make, compute):
    batcher = make()
    first = hold(compute, batcher)
    futures = [batcher.submit("a", items(n)) for n in range(1, 5)]
    compute.gate.set()
    assert first.result(5) == [0]
    assert [future.result(5) for future in futures] == [[2], [4], [6], [8]]
    assert compute.batches == [("a", [0]), ("a", [1, 2, 3, 4])]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [({"items": 2}, [2, 2]), ({"pixels": 3}, [3, 1]), ({"chars": 1}, [1] * 4), ({"jobs": 2}, [2, 2]), ({}, [4])],
)
def test_a_batch_keeps_every_limit(make, compute, limits, sizes):
    batcher = make(**limits)
    hold(compute, batcher)
    futures = [batcher.submit("a", items(n)) for n in range(4)]
    compute.gate.set()
    wait(futures, 5)
    assert [len(values) for _, values in compute.batches[1:]] == sizes


def test_a_job_larger_than_a_batch_is_computed_alone(make, compute):
    assert make(items=2).submit("a", items(1, 2, 3)).result(5) == [2, 4, 6]


def test_lanes_are_not_mixed_and_none_starves(make, compute):
    batcher = make()
    hold(compute, batcher)
    futures = [batcher.submit(lane, items(n)) for n, lane in enumerate("abab")]
    compute.gate.set()
    wait(futures, 5)
    assert compute.batches[1:] == [("a", [0, 2]), ("b", [1, 3])]


@pytest.mark.parametrize("poison", ["poison", "exit"])
def test_an_item_that_fails_fails_alone(make, compute, poison):
    batcher = make()
    hold(compute, batcher)
    good = [batcher.submit("a", items(n)) for n in range(5)]
    bad = batcher.submit("a", items("x", poison, "y"))
    compute.gate.set()
    assert [future.result(5) for future in good] == [[n * 2] for n in range(5)]
    assert bad.result(5)[0] == "xx"
    assert isinstance(bad.result(5)[1], MemoryError | SystemExit)
    assert bad.result(5)[2] == "yy"
    assert batcher.submit("a", items(7)).result(5) == [14]  # it goes on


def test_a_computation_that_loses_results_fails(make):
    (failed,) = make(compute=lambda *_: []).submit("a", items(1)).result(5)
    assert isinstance(failed, RuntimeError)


def test_cancelled_and_late_jobs_are_not_computed(make, compute):
    batcher = make()
    hold(compute, batcher)
    cancelled, late = batcher.submit("a", items(1)), batcher.submit("a", items(2), time.monotonic())
    good = batcher.submit("a", items(3))
    assert cancelled.cancel()
    compute.gate.set()
    assert good.result(5) == [6]
    with pytest.raises(TimeoutError, match="the deadline passed before the products were computed"):
        late.result(5)
    assert compute.batches[1:] == [("a", [3])]


def test_a_first_job_overtakes_the_queue(make, compute):
    batcher = make(jobs=1)
    hold(compute, batcher)
    futures = [batcher.submit("a", items(1)), batcher.submit("a", items(2), first=True)]
    compute.gate.set()
    wait(futures, 5)
    assert [values for _, values in compute.batches[1:]] == [[2], [1]]


def test_an_idle_batcher_does_not_wait_for_more(make):
    batcher = make(wait_s=30.0)
    assert batcher.submit("a", items(1)).result(5) == [2]


def test_a_busy_batcher_waits_for_a_full_batch_but_not_long(make, compute):
    batcher = make(items=2, wait_s=0.3)
    batcher.submit("a", items(0)).result(5)
    first, second = batcher.submit("a", items(1)), batcher.submit("a", items(2))
    wait([first, second], 5)
    assert compute.batches[1:] == [("a", [1, 2])]
    assert batcher.submit("a", items(3)).result(5) == [6]


def test_it_says_how_long_it_has_been_stuck(make, compute):
    batcher = make()
    hold(compute, batcher)
    time.sleep(0.02)
    assert 0.01 < batcher.stuck_s() < 5
    compute.gate.set()
    batcher.close()
    assert batcher.stuck_s() == 0


def test_closing_computes_what_is_queued(make, compute):
    batcher = make(jobs=1)
    hold(compute, batcher)
    futures = [batcher.submit("a", items(n)) for n in range(3)]
    compute.gate.set()
    batcher.close()
    assert [future.result(0) for future in futures] == [[0], [2], [4]]


def test_a_batch_that_cannot_be_counted_stops_nothing(make):
    batcher = make(on_batch=lambda *_: 1 / 0)
    assert [batcher.submit("a", items(n)).result(5) for n in (1, 2)] == [[2], [4]]
