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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import httpx2 as httpx
import numpy as np
from pydantic import BaseModel, ValidationError

from product_classificator.errors import ProductClassificatorError
from product_classificator.serving import schemas
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
    """A product to send; a photo is the bytes of a file, its path, or its URL, if the service fetches photos."""

    id: str | None
    text: str | None
    photo: bytes | Path | str | None


class Client(AbstractContextManager["Client"]):
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

    def __exit__(self, *_: object) -> None:
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
    ) -> schemas.ClassifyAnswer:
        """Classify 1 to 64 products; arguments as in `Classificator.predict`.

        Raises:
            ServiceError: the service was not reached, or refused the request as a whole.
            OSError: a photo cannot be read.
        """
        names = None if characteristics is None else list(characteristics)
        options = {"characteristics": names, "top_k": top_k, "min_precision": min_precision, "explain": explain}
        return self._send(schemas.ClassifyAnswer, "/v1/classify", _body(products, **options))

    def embed(self, products: Sequence[ProductInput]) -> schemas.EmbedAnswer:
        """Return the vectors of 1 to 64 products, for `vector`; errors as in `classify`."""
        return self._send(schemas.EmbedAnswer, "/v1/embed", _body(products))

    def model(self) -> schemas.ModelFacts:
        """Describe the model in service; errors as in `classify`."""
        return self._send(schemas.ModelsAnswer, "/v1/models").models[0]

    def _send(self, schema: type[Answer], path: str, body: Any = None) -> Answer:
        """Post a body, or get an answer without one."""
        method, deadline = "GET" if body is None else "POST", time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            left_s = max(deadline - time.monotonic(), 0)
            pause_s = _PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1)  # noqa: S311 - no secret
            headers = {"X-Timeout-Ms": str(min(max(1, int(left_s * 1000)), schemas.MAX_TIMEOUT_MS))}
            try:
                response = self._http.request(
                    method, path, json=body, headers=headers, timeout=left_s + _SENDING_SECONDS
                )
            except httpx.TransportError as error:
                refusal = ServiceError(f"{self._http.base_url} does not answer: {type(error).__name__} {error}")
            else:
                if response.status_code not in _FOR_NOW:
                    return _answer(schema, response)
                refusal = _refusal(response)
                retry_after = response.headers.get("Retry-After", "")
                pause_s = max(pause_s, float(retry_after) if retry_after.isdecimal() else 0.0)
            if attempt == self._retries or time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
        raise refusal


def vector(encoded: str | None) -> Floats | None:
    """Return a vector of `Client.embed` as (dim,) float32; `None` if the product has none."""
    return None if encoded is None else np.frombuffer(base64.b64decode(encoded), dtype="<f4").astype(np.float32)


def _body(products: Sequence[ProductInput], **options: Any) -> dict[str, Any]:
    rows = [dict(product) for product in products]
    for row in rows:
        photo = row.get("photo")
        data = photo.read_bytes() if isinstance(photo, Path) else photo
        row["photo"] = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {"products": rows, **options}


def _answer(schema: type[Answer], response: httpx.Response) -> Answer:
    if response.status_code != 200:
        raise _refusal(response)
    try:
        return schema.model_validate_json(response.content)
    except ValidationError as error:
        rule = f"{response.url} does not answer like this service"
        raise ServiceError(f"{rule}: {error.errors()[0]['msg']}", 200) from error


def _refusal(response: httpx.Response) -> ServiceError:
    try:
        message = schemas.ErrorAnswer.model_validate_json(response.content).error.message
    except ValidationError:
        message = response.reason_phrase
    request_id = response.headers.get("X-Request-Id", "")
    return ServiceError(f"{response.status_code}: {message}", response.status_code, request_id)
