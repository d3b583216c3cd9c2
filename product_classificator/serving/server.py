"""Runs the application in this process, or in several workers; SIGTERM drains, SIGHUP loads the model again."""

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

import uvicorn

from product_classificator.errors import ProductClassificatorError
from product_classificator.serving.model import ModelSource
from product_classificator.serving.observe import log_json
from product_classificator.serving.service import Service
from product_classificator.serving.settings import ServeSettings

logger = logging.getLogger(__name__)
_GRACE_SECONDS = 30
_MAX_HEADER_BYTES = 65_536
_spawn = multiprocessing.get_context("spawn")  # threads of ONNX Runtime and BLAS do not survive a fork


def run(source: ModelSource, settings: ServeSettings) -> int:
    """Serve until a signal ends it, and return the exit code.

    Raises:
        OSError: the address is in use, or is not this machine's.
        DataError, ArtifactError: as in `create_app`; with several workers, they are logged instead.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=2048) as listener:
        # asyncio does it only for sockets made with their protocol; without it, answers wait 40 ms for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if settings.workers == 1:
            return _serve(source, settings, listener)
        log_json()
        directory = tempfile.mkdtemp(prefix="product-classificator-metrics-")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        try:
            return _Supervisor(source, settings, listener).run()
        finally:
            shutil.rmtree(directory, ignore_errors=True)


class _Server(uvicorn.Server):
    """Serves on for a while after SIGTERM, and then ends with exit code 0; sets `ready` when it listens."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Any = None) -> None:
        super().__init__(config)
        self._service, self._ready, self._drains_until = service, ready, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain after the first SIGTERM, end after another signal."""
        drains = sig == signal.SIGTERM and not self._service.is_draining
        self._drains_until = time.monotonic() + (self._service.settings.drain_seconds if drains else 0)
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
    from product_classificator.serving import metrics  # the supervisor imports neither, or later
    from product_classificator.serving.app import create_app

    app = create_app(source, settings)
    log_json()
    stop_metrics = metrics.serve(settings.metrics_port, settings.host) if ready is None else None
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    _Server(config, app.state.service, ready).run([listener])
    if stop_metrics:
        stop_metrics()
    return 0


def _work(source: ModelSource, settings: ServeSettings, listener: socket.socket, ready: Any) -> None:
    """Serve in a process of a supervisor."""
    log_json()
    try:
        sys.exit(_serve(source, settings, listener, ready))
    except (ProductClassificatorError, OSError) as error:
        logger.error("a worker cannot start: %s", error)
        sys.exit(1)


class _Supervisor:
    """Starts workers that share a socket, passes signals on, and starts those again that die."""

    def __init__(self, source: ModelSource, settings: ServeSettings, listener: socket.socket) -> None:
        self._arguments = source, settings, listener
        self._settings = settings
        self._workers: dict[Any, Any] = {}  # process -> the event that it is ready
        self._is_ending = False

    def run(self) -> int:
        """Supervise until a signal ends the workers; 1 if one could not start, or ended badly."""
        from product_classificator.serving import metrics  # after its environment variable is set

        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
            signal.signal(number, self._pass_on)
        stop_metrics = metrics.serve(self._settings.metrics_port, self._settings.host)
        code = 0
        for _ in range(self._settings.workers):
            self._start()
        while self._workers:
            wait([process.sentinel for process in self._workers], timeout=1)
            for process in [process for process in self._workers if not process.is_alive()]:
                was_ready = self._workers.pop(process).is_set()
                metrics.forget_worker(process.pid)
                if self._is_ending:
                    code = max(code, int(process.exitcode != 0))
                elif was_ready:
                    logger.error("worker %d died (exit code %s), another starts", process.pid, process.exitcode)
                    self._start()
                else:
                    code = 1
                    self._pass_on(signal.SIGTERM, None)
        stop_metrics()
        return code

    def _start(self) -> None:
        ready = _spawn.Event()
        process = _spawn.Process(target=_work, args=(*self._arguments, ready))
        process.start()
        self._workers[process] = ready

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._is_ending |= number in (signal.SIGTERM, signal.SIGINT)
        for process in self._workers:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)
