"""What Prometheus scrapes, on a port of its own; several workers add up through files.

Those files need the environment variable PROMETHEUS_MULTIPROC_DIR before this module is imported (`server`).
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = Counter("pc_requests_total", "Requests by route and HTTP status.", ["route", "status"])
REQUEST_SECONDS = Histogram("pc_request_seconds", "From first byte to last.", ["route"], buckets=_SECONDS)
QUEUE_SECONDS = Histogram("pc_queue_seconds", "Wait of a decoded request for its batch.", buckets=_SECONDS)
DECODE_SECONDS = Histogram("pc_decode_seconds", "Decoding of one photo.", buckets=_SECONDS)
ENCODE_SECONDS = Histogram("pc_encode_seconds", "Encoding of one batch.", buckets=_SECONDS)
HEADS_SECONDS = Histogram("pc_heads_seconds", "Heads and decisions of one batch.", buckets=_SECONDS)
BATCH_PRODUCTS = Histogram("pc_batch_products", "Products of one batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
QUEUE_PRODUCTS = Gauge("pc_queue_products", "Products in work.", multiprocess_mode="livesum")
PRODUCTS = Counter("pc_products_total", "Answered products by status.", ["status"])
DECISIONS = Counter("pc_decisions_total", "Decisions by characteristic.", ["characteristic", "decision"])
RELOADS = Counter("pc_reloads_total", "Newer models by outcome.", ["outcome"])
MODEL = Gauge("pc_model_info", "1 for the model in service.", ["name", "fingerprint"], multiprocess_mode="livemax")


def count_batch(n_items: int, waited_s: Sequence[float]) -> None:
    """Count a batch, and the seconds that its requests waited."""
    BATCH_PRODUCTS.observe(n_items)
    for seconds in waited_s:
        QUEUE_SECONDS.observe(seconds)


def serve(port: int, host: str) -> Callable[[], None]:
    """Serve the metrics of this process, or of all workers, from a thread (port 0: not); returns what stops it."""
    if port == 0:
        return lambda: None
    registry = REGISTRY
    if DIRECTORY in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    server, thread = start_http_server(port, host, registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def forget_worker(pid: int) -> None:
    """Drop the gauges of a worker that has ended; its counters stay in the sums."""
    if Path(os.environ.get(DIRECTORY, "")).is_dir():
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
