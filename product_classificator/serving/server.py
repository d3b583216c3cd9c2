"""Runs the application in this process, or in several workers; SIGTERM drains, SIGHUP loads the model again."""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.connection import wait
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from product_classificator.errors import ProductClassificatorError
from product_classificator.serving.app import create_app
from product_classificator.serving.model import ModelSource
from product_classificator.serving.observe import log_json, serve_metrics
from product_classificator.serving.service import Service
from product_classificator.serving.settings import ServeSettings

logger = logging.getLogger(__name__)
_GRACE_SECONDS = 30
_TWICE_SECONDS = 1.0  # a service manager may signal workers, too, to which the supervisor passes the signal on
_AGAIN_SECONDS = 5  # after a worker could not start
_MAX_CONNECTIONS = 900  # below the usual limit of 1,024 open files
_MAX_HEADER_BYTES = 65_536
_spawn = multiprocessing.get_context("spawn")  # threads of ONNX Runtime and BLAS do not survive a fork


def run(source: ModelSource, settings: ServeSettings) -> int:
    """Serve until a signal ends it, and return the exit code.

    Raises:
        OSError: the address is in use, or is not this machine's.
        DataError, ArtifactError: as in `create_app`; with several workers, they are logged instead.
    """
    _until_served()
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=2048) as listener:
        # asyncio does it only for sockets made with their protocol; without it, answers wait 40 ms for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if settings.workers == 1:
            return _serve(source, settings, listener)
        log_json()
        with TemporaryDirectory(prefix="product-classificator-metrics-", ignore_cleanup_errors=True) as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # workers read it, see `observe`
            return _Supervisor(source, settings, listener).run()


def _until_served() -> None:
    """Take signals while the model is loaded; the server sets handlers of its own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _Server(uvicorn.Server):
    """Serves on for a while after SIGTERM, and then ends with exit code 0; sets `ready` when it listens."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Any = None) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._drains_since, self._drains_until = float("-inf"), float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain after the first SIGTERM, end after another signal, unless it is the same one, sent twice."""
        now, drains = time.monotonic(), sig == signal.SIGTERM and not self._service.is_draining
        if drains:
            self._drains_since, self._drains_until = now, now + self._service.settings.drain_seconds
        elif sig != signal.SIGTERM or now - self._drains_since >= _TWICE_SECONDS:
            self._drains_until = now
        self._service.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end: the drain is over, or the supervisor is dead."""
        parent = multiprocessing.parent_process()
        if time.monotonic() >= self._drains_until or (parent and not parent.is_alive()):
            self._service.is_draining = self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP"):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, lambda: asyncio.ensure_future(self._service.reload()))
        host, port = (sockets or self.servers[0].sockets)[0].getsockname()[:2]
        logger.info("ready: http://%s:%d", host, port, extra={"fields": {"port": port}})
        if self._ready is not None:
            self._ready.set()


def _serve(source: ModelSource, settings: ServeSettings, listener: socket.socket, ready: Any = None) -> int:
    """Serve in this process."""
    app = create_app(source, settings)
    log_json()
    if ready is None:  # else the supervisor serves the metrics of all workers
        serve_metrics(settings.metrics_port, settings.host)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http="h11",  # the only one that keeps h11_max_incomplete_event_size
        limit_concurrency=_MAX_CONNECTIONS,
        ws="none",
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    _Server(config, app.state.service, ready).run([listener])
    return 0


def _work(source: ModelSource, settings: ServeSettings, listener: socket.socket, ready: Any) -> None:
    """Serve in a process of a supervisor."""
    _until_served()
    log_json()
    try:
        sys.exit(_serve(source, settings, listener, ready))
    except (ProductClassificatorError, OSError) as error:
        logger.error("a worker cannot start: %s", error)
        sys.exit(1)


class _Supervisor:
    """Starts workers that share a socket, passes signals on, and replaces workers that died."""

    def __init__(self, source: ModelSource, settings: ServeSettings, listener: socket.socket) -> None:
        self._arguments, self._settings = (source, settings, listener), settings
        self._workers: dict[Any, Any] = {}  # process -> the event that it is ready
        self._is_ending = False

    def run(self) -> int:
        """Supervise until a signal ends the workers; 1 if none could start, or one ended badly."""
        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
            signal.signal(number, self._pass_on)
        serve_metrics(self._settings.metrics_port, self._settings.host)
        start_at, code, was_any_ready = 0.0, 0, False
        while self._workers or not self._is_ending:
            while not self._is_ending and len(self._workers) < self._settings.workers and time.monotonic() >= start_at:
                ready = _spawn.Event()
                process = _spawn.Process(target=_work, args=(*self._arguments, ready))
                process.start()
                self._workers[process] = ready
                if self._is_ending:  # since a moment ago
                    process.terminate()
            wait([process.sentinel for process in self._workers], timeout=1)
            was_any_ready |= any(ready.is_set() for ready in self._workers.values())
            for process in [process for process in self._workers if not process.is_alive()]:
                was_ready = self._workers.pop(process).is_set()
                mark_process_dead(process.pid)  # type: ignore[no-untyped-call]  # its gauges go, its counters stay in the sums
                if self._is_ending:  # one that is still importing has no handler for SIGTERM yet
                    code |= int(process.exitcode not in (0, -signal.SIGTERM))
                elif was_any_ready:
                    start_at = time.monotonic() + (0 if was_ready else _AGAIN_SECONDS)
                    logger.error("worker %d died (exit code %s), another starts", process.pid, process.exitcode)
                else:
                    code = 1
                    self._pass_on(signal.SIGTERM)
        return code

    def _pass_on(self, number: int, _: FrameType | None = None) -> None:
        is_end = number in (signal.SIGTERM, signal.SIGINT)
        self._is_ending |= is_end
        for process, ready in self._workers.items():
            if process.is_alive() and process.pid and (is_end or ready.is_set()):  # others load the newest model anyway
                os.kill(process.pid, number)
