"""The HTTP interface of a service, as a FastAPI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from product_classificator.serving.answers import InferAnswer, InferRequest, classified, embedded, infer_answer
from product_classificator.serving.body import Authorized, Incoming, uploads_of
from product_classificator.serving.model import ModelSource, ServedModel
from product_classificator.serving.observe import Observed, problem
from product_classificator.serving.schemas import (
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    EmbedRequest,
    ErrorAnswer,
    ModelsAnswer,
    State,
)
from product_classificator.serving.service import Load, RefusedError, Service
from product_classificator.serving.settings import ServeSettings

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_REFUSALS = {
    401: "No valid API key.",
    404: "There is no such model.",
    408: "The body did not arrive within the deadline.",
    413: "The body is too large.",
    415: "Neither JSON nor a form.",
    422: "The request does not fit the schema or the model.",
    429: "The quota of the key is used up; see Retry-After.",
    500: "A bug; see the log.",
    503: "The queue is full; see Retry-After.",
    504: "The deadline has passed.",
}
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
            service.close()

    about = "Predicts product characteristics from photos and text."
    name, number = "product_classificator", version("product_classificator")
    app = FastAPI(title=name, version=number, description=about, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    for error in (RequestValidationError, HTTPException):
        app.add_exception_handler(error, _refused)
    _add_answers(app, service)
    _add_operation(app, service)
    _add_pages(app)
    app.add_middleware(Observed, service=service)
    return app


def _refused(request: Request, error: Exception) -> Response:
    """Answer every refusal in one form."""
    if isinstance(error, RequestValidationError):
        error = HTTPException(422, "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors()))
    assert isinstance(error, HTTPException)  # noqa: S101 - this handles no other
    return problem(request.state.request_id, error)


def json_answer(answer: BaseModel, status: int = 200) -> Response:
    """Return a model as JSON."""
    return Response(answer.model_dump_json(), status, media_type="application/json")


def documented(body: type[BaseModel] | None = None) -> dict[str, Any]:
    """Return the OpenAPI description of an endpoint that reads its body itself."""
    statuses = _REFUSALS if body else {status: _REFUSALS[status] for status in (401, 500)}
    responses = {status: {"model": ErrorAnswer, "description": text} for status, text in statuses.items()}
    if body is None:
        return {"responses": responses}
    json_body = {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}
    content = {"application/json": json_body, "multipart/form-data": {"schema": _FORM}}
    return {"responses": responses, "openapi_extra": {"requestBody": {"required": True, "content": content}}}


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/classify", response_model=ClassifyAnswer, **documented(ClassifyRequest))
    async def classify(incoming: Incoming) -> Response:
        """Classify 1 to 64 products; each answers with its own status."""
        with incoming.held() as body:
            return json_answer(await classified(body, *await body.read_products(ClassifyRequest)))

    @app.post("/v1/embed", response_model=EmbedAnswer, **documented(EmbedRequest))
    async def embed(incoming: Incoming) -> Response:
        """Return the vectors of 1 to 64 products."""
        with incoming.held() as body:
            _, uploads = await body.read_products(EmbedRequest)
            return json_answer(await embedded(body, uploads))

    @app.get("/v1/models", response_model=ModelsAnswer, **documented())
    async def models(_: Authorized) -> Response:
        """Describe the model in service."""
        return json_answer(ModelsAnswer(models=[service.model.facts(service.reload_error)]))

    @app.post("/v2/models/{name}/infer", response_model=InferAnswer, **documented(InferRequest))
    async def infer(name: str, incoming: Incoming) -> Response:
        """Classify products that come as columns."""
        if name != service.model.name:
            raise RefusedError(404, f"there is no model {name[:100]!r}, only {service.model.name!r}")
        with incoming.held() as body:
            columns = await body.read_json(InferRequest)
            wanted = columns.products()
            return json_answer(infer_answer(await classified(body, wanted, uploads_of(wanted)), columns.id))


def _add_operation(app: FastAPI, service: Service) -> None:
    unready: dict[int | str, dict[str, Any]] = {503: {"model": State, "description": "Not healthy, or not ready."}}

    @app.get("/healthz", response_model=State, responses=unready)
    @app.get("/v2/health/live", response_model=State, responses=unready)
    async def live() -> Response:
        """Report health; a process that is stuck must be restarted."""
        is_alive = service.is_alive()
        return json_answer(State(state="alive" if is_alive else "stuck"), 200 if is_alive else 503)

    @app.get("/readyz", response_model=State, responses=unready)
    @app.get("/v2/health/ready", response_model=State, responses=unready)
    async def ready() -> Response:
        """Report readiness: a simple product has just gone through the batcher."""
        reason = await service.check_ready()
        return json_answer(State(state="unready" if reason else "ready", reason=reason or None), 503 if reason else 200)


def _add_pages(app: FastAPI) -> None:
    folder = files("product_classificator.serving") / "page"
    for path, (name, media_type) in _PAGE.items():
        page = Response((folder / name).read_bytes(), media_type=media_type, headers=_PAGE_HEADERS)
        app.add_api_route(path, lambda page=page: page, include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="API",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    app.mount("/docs", StaticFiles(packages=[("fastapi_standalone_docs", "static/swagger")]))

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            bodies: Any = [(body, "validation") for body in (ClassifyRequest, EmbedRequest, InferRequest)]
            _, models = models_json_schema(bodies, ref_template="#/components/schemas/{model}")
            schema["components"]["schemas"].update(models["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
