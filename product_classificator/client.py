"""A client of the service (`product-classificator serve`), typed, with retries.

    with Client("http://127.0.0.1:8000", key="pc_...") as client:
        answer = client.classify([{"text": "Чашка белая", "photo": Path("1.jpg")}], min_precision=0.95)
        answer.products[0].predictions["category"].labels

A request that was refused for now (429, 503) is sent again after the seconds that the service names (Retry-After), one
that found no service or lost its connection after a growing pause: answering twice does no harm.
"""

import base64
import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import httpx2 as httpx
import numpy as np
from pydantic import BaseModel, ValidationError

from product_classificator.errors import ProductClassificatorError
from product_classificator.serving.schemas import (
    MAX_TIMEOUT_MS,
    ClassifyAnswer,
    EmbedAnswer,
    ErrorAnswer,
    ModelFacts,
    ModelsAnswer,
)
from product_classificator.types import Floats

Answer = TypeVar("Answer", bound=BaseModel)
_FOR_NOW = (429, 503)
_PAUSE_SECONDS = 0.2
_SENDING_SECONDS = 0.5  # longer than the deadline of the service, whose 504 says more than a broken connection


class ServiceError(ProductClassificatorError):
    """The service gave no answer; `status` is that of HTTP, 0: it was not reached; `request_id` is in its log."""

    def __init__(self, message: str, status: int = 0, request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class ProductInput(TypedDict, total=False):
    """A product to send; a photo is the bytes of a file, or its path."""

    id: str | None
    text: str | None
    photo: bytes | Path | None


class Client:
    """Sends products to a service; safe to use from many threads.

    Args:
        url: of the service.
        key: API key, if the service has keys.
        timeout_s: longest time for an answer, retries included; the service drops what it cannot answer by then.
        retries: how often to send again what was refused for now, or found no service.
        transport: of httpx, for tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, transport=transport)
        self._timeout_s, self._retries = timeout_s, retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(
        self,
        products: Sequence[ProductInput],
        *,
        characteristics: Sequence[str] | None = None,
        top_k: int = 3,
        min_precision: float | None = None,
        explain: bool = False,
    ) -> ClassifyAnswer:
        """Classify 1 to 64 products; arguments as in `Classificator.predict`.

        Raises:
            ServiceError: the service was not reached, or refused the request as a whole.
            OSError: a photo cannot be read.
        """
        body = {
            "products": [_as_json(product) for product in products],
            "characteristics": None if characteristics is None else list(characteristics),
            "top_k": top_k,
            "min_precision": min_precision,
            "explain": explain,
        }
        return self._send(ClassifyAnswer, "POST", "/v1/classify", body)

    def embed(self, products: Sequence[ProductInput]) -> EmbedAnswer:
        """Return the vectors of 1 to 64 products, for `vector`; errors as in `classify`."""
        return self._send(EmbedAnswer, "POST", "/v1/embed", {"products": [_as_json(product) for product in products]})

    def model(self) -> ModelFacts:
        """Describe the model in service; errors as in `classify`."""
        return self._send(ModelsAnswer, "GET", "/v1/models").models[0]

    def _send(self, schema: type[Answer], method: str, path: str, body: Any = None) -> Answer:
        deadline = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            left_s = deadline - time.monotonic()
            pause_s = _PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1)  # noqa: S311 - no secret
            try:
                headers = {"X-Timeout-Ms": str(min(max(1, int(left_s * 1000)), MAX_TIMEOUT_MS))}
                longest_s = max(left_s, 0) + _SENDING_SECONDS
                response = self._http.request(method, path, json=body, headers=headers, timeout=longest_s)
            except httpx.TransportError as error:
                refusal = ServiceError(f"{self._http.base_url} does not answer: {type(error).__name__} {error}")
            else:
                if response.status_code == 200:
                    return _validated(schema, response)
                refusal = _refusal(response)
                if refusal.status not in _FOR_NOW:
                    raise refusal
                retry_after = response.headers.get("Retry-After", "")
                pause_s = max(pause_s, float(retry_after) if retry_after.isdecimal() else 0.0)
            if attempt == self._retries or time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
        raise refusal


def vector(encoded: str | None) -> Floats | None:
    """Return a vector of `Client.embed` as (dim,) float32; `None` if the product has none."""
    return None if encoded is None else np.frombuffer(base64.b64decode(encoded), dtype="<f4").astype(np.float32)


def _as_json(product: ProductInput) -> dict[str, str | None]:
    photo = product.get("photo")
    data = photo.read_bytes() if isinstance(photo, Path) else photo
    encoded = None if data is None else base64.b64encode(data).decode()
    return {"id": product.get("id"), "text": product.get("text"), "photo": encoded}


def _validated(schema: type[Answer], response: httpx.Response) -> Answer:
    try:
        return schema.model_validate_json(response.content)
    except ValidationError as error:
        raise ServiceError(
            f"{response.url} does not answer like this service: {error.errors()[0]['msg']}", 200
        ) from error


def _refusal(response: httpx.Response) -> ServiceError:
    request_id = response.headers.get("X-Request-Id", "")
    try:
        message = ErrorAnswer.model_validate_json(response.content).error.message
    except ValidationError:
        message = response.reason_phrase
    return ServiceError(f"{response.status_code}: {message}", response.status_code, request_id)
