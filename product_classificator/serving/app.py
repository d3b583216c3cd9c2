"""The HTTP interface of a service, as a FastAPI application."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from product_classificator.serving import schemas
from product_classificator.serving.answers import InferAnswer, InferRequest, classified, embedded, inferred
from product_classificator.serving.call import Call, RefusedError
from product_classificator.serving.keys import Key
from product_classificator.serving.model import ModelSource, ServedModel
from product_classificator.serving.observe import Observed, problem
from product_classificator.serving.service import Load, Service
from product_classificator.serving.settings import MEGABYTE, ServeSettings

Schema = TypeVar("Schema", bound=BaseModel)

_PAGE = {"/": ("page.html", "html"), "/page.js": ("page.js", "javascript"), "/page.css": ("page.css", "css")}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of every page: nothing from elsewhere, and no inline script or style."""
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": schemas.ErrorAnswer, "description": "No valid API key."},
    404: {"model": schemas.ErrorAnswer, "description": "There is no such model."},
    408: {"model": schemas.ErrorAnswer, "description": "The body did not arrive within the deadline."},
    413: {"model": schemas.ErrorAnswer, "description": "The body is too large."},
    415: {"model": schemas.ErrorAnswer, "description": "Neither JSON nor a form."},
    422: {"model": schemas.ErrorAnswer, "description": "The request does not fit the schema or the model."},
    429: {"model": schemas.ErrorAnswer, "description": "The quota of the key is used up; see Retry-After."},
    500: {"model": schemas.ErrorAnswer, "description": "A bug; see the log."},
    503: {"model": schemas.ErrorAnswer, "description": "The queue is full; see Retry-After."},
    504: {"model": schemas.ErrorAnswer, "description": "The deadline has passed."},
}
_UNREADY: dict[int | str, dict[str, Any]] = {503: {"model": schemas.State, "description": "Not healthy, or not ready."}}
_BODIES = {
    "/v1/classify": schemas.ClassifyRequest,
    "/v1/embed": schemas.EmbedRequest,
    "/v2/models/{name}/infer": InferRequest,
}
_REF = "#/components/schemas/{model}"
_FORM = {
    "type": "object",
    "description": "The n-th text, photo and id belong to the n-th product; the other fields are those of the JSON.",
    "properties": {
        "text": {"type": "array", "items": {"type": "string"}},
        "photo": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "id": {"type": "array", "items": {"type": "string"}},
    },
}


def create_app(source: ModelSource, settings: ServeSettings, load: Load = ServedModel.load) -> FastAPI:
    """Load a model and return the application that serves it; its `state.service` is the `Service`.

    `load` makes the model; tests pass another.

    Raises:
        DataError: there is no such encoder or device.
        ArtifactError: model or keys are missing or damaged.
    """
    service = Service(source, settings, load)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await service.close()

    about = "Predicts product characteristics from photos and text."
    name, number = "product_classificator", version("product_classificator")
    app = FastAPI(title=name, version=number, description=about, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    for error in (RequestValidationError, HTTPException):
        app.add_exception_handler(error, _refused)
    _add_answers(app, service)
    _add_operation(app, service)
    _add_pages(app)
    app.add_middleware(Observed, closes=lambda: service.is_draining)
    return app


def _refused(request: Request, error: Exception) -> Response:
    """Answer every refusal in one form."""
    if isinstance(error, RequestValidationError):
        error = HTTPException(422, "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors()))
    assert isinstance(error, HTTPException)  # noqa: S101 - this handles no other
    return problem(request.state.request_id, error)


async def authorize(
    request: Request,
    authorization: Annotated[str | None, Header(description="Bearer KEY, if the service has keys.")] = None,
    x_api_key: Annotated[str | None, Header(description="The key, as an alternative.")] = None,
) -> Key | None:
    """Return the key of a request; 401 without a valid one, unless the service has no keys."""
    service: Service = request.app.state.service
    if service.keys is None:
        return None
    scheme, _, secret = (authorization or "").partition(" ")
    key = service.keys.find(x_api_key or (secret.strip() if scheme.lower() == "bearer" else ""))
    if key is None:
        raise RefusedError(401, "a request needs a valid API key: Authorization: Bearer KEY")
    request.state.log["key"] = key.name
    return key


async def call_of(
    request: Request,
    key: Annotated[Key | None, Depends(authorize)],
    x_timeout_ms: Annotated[
        int | None, Header(ge=1, le=schemas.MAX_TIMEOUT_MS, description="Deadline; else 504.")
    ] = None,
) -> Call:
    """Return an authorized request, with its deadline and the limits of its body."""
    service: Service = request.app.state.service
    deadline = time.monotonic() + (x_timeout_ms or service.settings.timeout_ms) / 1000
    return Call(request, key, deadline, int(service.settings.max_body_mb * MEGABYTE), service.hold_bytes)


Incoming = Annotated[Call, Depends(call_of)]


def _json(answer: BaseModel, status: int = 200) -> Response:
    return Response(answer.model_dump_json(), status, media_type="application/json")


def _add_answers(app: FastAPI, service: Service) -> None:
    async def answered(
        call: Call, schema: type[Schema], answer: Callable[[Service, Call, Schema], Awaitable[BaseModel]]
    ) -> Response:
        try:
            return _json(await answer(service, call, await call.read(schema)))
        finally:
            call.release()

    @app.post("/v1/classify", response_model=schemas.ClassifyAnswer, responses=_REFUSALS)
    async def classify(call: Incoming) -> Response:
        """Classify 1 to 64 products; each answers with its own status."""
        return await answered(call, schemas.ClassifyRequest, classified)

    @app.post("/v1/embed", response_model=schemas.EmbedAnswer, responses=_REFUSALS)
    async def embed(call: Incoming) -> Response:
        """Return the vectors of 1 to 64 products."""
        return await answered(call, schemas.EmbedRequest, embedded)

    @app.post("/v2/models/{name}/infer", response_model=InferAnswer, responses=_REFUSALS)
    async def infer(name: str, call: Incoming) -> Response:
        """Classify products that come as columns."""
        if name != service.model.name:
            raise RefusedError(404, f"there is no model {name[:100]!r}, only {service.model.name!r}")
        return await answered(call, InferRequest, inferred)


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses={status: _REFUSALS[status] for status in (401, 500)})
    async def models(_: Annotated[Key | None, Depends(authorize)]) -> schemas.ModelsAnswer:
        """Describe the model in service."""
        return schemas.ModelsAnswer(models=[service.model.facts(service.reload_error)])

    @app.get("/healthz", response_model=schemas.State, responses=_UNREADY)
    @app.get("/v2/health/live", response_model=schemas.State, responses=_UNREADY)
    async def live() -> Response:
        """Report health; a process that is stuck must be restarted."""
        is_alive = service.is_alive()
        return _json(schemas.State(state="alive" if is_alive else "stuck"), 200 if is_alive else 503)

    @app.get("/readyz", response_model=schemas.State, responses=_UNREADY)
    @app.get("/v2/health/ready", response_model=schemas.State, responses=_UNREADY)
    async def ready() -> Response:
        """Report readiness: a simple product has just gone through the batcher."""
        reason = await service.check_ready()
        return _json(
            schemas.State(state="unready" if reason else "ready", reason=reason or None), 503 if reason else 200
        )


def _add_pages(app: FastAPI) -> None:
    folder = files("product_classificator.serving") / "page"
    for path, (name, kind) in _PAGE.items():
        page = Response((folder / name).read_bytes(), media_type=f"text/{kind}", headers=PAGE_HEADERS)
        app.add_api_route(path, lambda page=page: page, include_in_schema=False)
    docs = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="API",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    app.add_api_route("/docs", lambda: docs, include_in_schema=False)
    app.mount("/docs", StaticFiles(packages=[("fastapi_standalone_docs", "static/swagger")]))
    bodies: Any = [(body, "validation") for body in _BODIES.values()]
    _, models = models_json_schema(bodies, ref_template=_REF)
    schema = app.openapi()  # endpoints that read their bodies themselves are described here
    schema["components"]["schemas"].update(models["$defs"])
    for path, body in _BODIES.items():
        json_schema = {"$ref": _REF.format(model=body.__name__)}
        content = {"application/json": {"schema": json_schema}, "multipart/form-data": {"schema": _FORM}}
        schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
