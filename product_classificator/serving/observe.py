"""What operators see: metrics for Prometheus, JSON logs without contents, request ids; and an answer if there is a bug.

Metrics are scraped on a port of their own. Several workers add up through files, which need the environment variable
PROMETHEUS_MULTIPROC_DIR before this module is imported (`server`).
"""

import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from product_classificator.serving.schemas import ErrorAnswer, Problem

logger = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_CLIENT_GONE = 499
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


def serve_metrics(port: int, host: str) -> None:
    """Serve the metrics of this process, or of all workers, from a thread until the process ends (port 0: not)."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    if port:
        start_http_server(port, host, registry)


class Observed:
    """The outermost layer of the application; `closes`: whether connections end with an answer."""

    def __init__(self, app: ASGIApp, closes: Callable[[], bool]) -> None:
        self._app, self._closes = app, closes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), _CLIENT_GONE
        proposed = Headers(scope=scope).get("x-request-id", "")
        request_id = proposed if _REQUEST_ID.fullmatch(proposed) else uuid4().hex
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "log": {}}

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, headers = message["status"], MutableHeaders(raw=message["headers"])
                headers["x-request-id"] = request_id
                if self._closes() or status in (408, 413):
                    headers["connection"] = "close"
                message["headers"] = headers.raw
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except ClientDisconnect:
            pass
        except Exception as error:
            logger.error("a request failed", exc_info=error, extra={"fields": {"request_id": request_id}})
            if status == _CLIENT_GONE:
                refusal = HTTPException(500, "the service failed, its log says where")
                await problem(request_id, refusal)(scope, receive, observed_send)
        route, took_s = getattr(scope.get("route"), "path", "unmatched"), time.perf_counter() - start
        REQUESTS.labels(route, str(status)).inc()
        REQUEST_SECONDS.labels(route).observe(took_s)
        facts = {"request_id": request_id, "method": scope["method"], "route": route, "status": status}
        level = logging.DEBUG if route in ("/healthz", "/readyz") and status == 200 else logging.INFO
        logger.log(level, "request", extra={"fields": {**facts, "ms": round(took_s * 1000, 1), **state["log"]}})


def problem(request_id: str, error: HTTPException) -> Response:
    """Return the answer of a request that gets none."""
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    body = ErrorAnswer(error=Problem(code=code, message=str(error.detail), request_id=request_id))
    return Response(body.model_dump_json(), error.status_code, error.headers, "application/json")


class JsonFormatter(logging.Formatter):
    """One JSON object per line; of an exception its type and place, since its message may hold a text of a product."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            frames = traceback.extract_tb(record.exc_info[2])[-8:]
            values["error"] = record.exc_info[0].__name__
            values["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(values, ensure_ascii=False)


def log_json(level: int = logging.INFO) -> None:
    """Write all logs of this process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in (__package__, "uvicorn"):
        logging.getLogger(name).setLevel(level)
