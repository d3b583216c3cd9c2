"""Wraps the application: request ids, metrics, JSON logs without contents, and an answer when there is a bug."""

import json
import logging
import re
import sys
import time
import traceback
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from product_classificator.serving import metrics
from product_classificator.serving.schemas import ErrorAnswer, Problem
from product_classificator.serving.service import Service

logger = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
CLIENT_GONE = 499


class Observed:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), CLIENT_GONE
        proposed = Headers(scope=scope).get("x-request-id", "")
        request_id = proposed if _REQUEST_ID.fullmatch(proposed) else uuid4().hex
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "log": {}}

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["x-request-id"] = request_id
                if self._service.is_draining or status in (408, 413):
                    headers["connection"] = "close"
                message["headers"] = headers.raw
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except ClientDisconnect:
            pass
        except Exception as error:
            logger.error("a request failed", exc_info=error, extra={"fields": {"request_id": request_id}})
            if status == CLIENT_GONE:
                await problem(request_id, HTTPException(500, "the service failed, its log says where"))(
                    scope, receive, observed_send
                )
        route = getattr(scope.get("route"), "path", "unmatched")
        took_s = time.perf_counter() - start
        metrics.REQUESTS.labels(route, str(status)).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(took_s)
        facts = {"request_id": request_id, "method": scope["method"], "route": route, "status": status}
        fields = {**facts, "ms": round(took_s * 1000, 1), **state["log"]}
        level = logging.DEBUG if route in ("/healthz", "/readyz") and status == 200 else logging.INFO
        logger.log(level, "request", extra={"fields": fields})


def problem(request_id: str, error: HTTPException) -> Response:
    """Return the answer of a request that gets none."""
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    body = ErrorAnswer(error=Problem(code=code, message=str(error.detail), request_id=request_id))
    headers = {**(error.headers or {}), **({"WWW-Authenticate": "Bearer"} if error.status_code == 401 else {})}
    return Response(body.model_dump_json(), error.status_code, headers, "application/json")


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
