"""Reads a request: its key, its deadline, and its body, whose bytes are counted as they come, into products."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from product_classificator.errors import culprits
from product_classificator.serving.keys import Key
from product_classificator.serving.model import Upload
from product_classificator.serving.schemas import MAX_PRODUCTS, MAX_TIMEOUT_MS, EmbedRequest
from product_classificator.serving.service import RefusedError, Service
from product_classificator.serving.settings import MEGABYTE

Schema = TypeVar("Schema", bound=BaseModel)

_PARTS = ("id", "text", "photo")
_FORM_FIELD_BYTES = 500_000
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,:]', re.DOTALL)
_NO_TOKEN = bytes(set(range(256)) - set(b'"\\,:/bfnrtu'))  # the rest is in no token, but most of a photo
_MAX_TOKENS = 4000  # 64 products and 1,000 characteristics have 3,000


class _InMemory(MultiPartParser):
    """Never writes uploads to the disk: bodies are small, and the file system may be read-only."""

    spool_max_size = 2**40


@dataclass(eq=False)
class Body:
    """The body of one request, held within the limits of the service until `held` ends."""

    service: Service
    request: Request
    key: Key | None
    deadline: float
    n_bytes: int = field(default=0, init=False)

    @contextmanager
    def held(self) -> Iterator["Body"]:
        """Give the bytes back at the end."""
        try:
            yield self
        finally:
            self.service.hold_bytes(-self.n_bytes)

    async def gone(self) -> None:
        """Return when the client hangs up."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body; raises `RefusedError` if it is too large (413), slow (408), or the service is full (503)."""
        limit, stream = int(self.service.settings.max_body_mb * MEGABYTE), self.request.stream()
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream), self.deadline - time.monotonic())
            except TimeoutError:
                raise RefusedError(408, "the deadline passed before the body was complete") from None
            except StopAsyncIteration:
                return
            if self.n_bytes + len(chunk) > limit:
                await self._discard(stream, 8 * limit)  # a client that is still sending would not see the answer
                raise RefusedError(413, f"a body has at most {limit} bytes: send fewer products")
            self.service.hold_bytes(len(chunk))
            self.n_bytes += len(chunk)
            yield chunk

    async def _discard(self, stream: AsyncIterator[bytes], limit: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.deadline - time.monotonic()):
                async for chunk in stream:
                    limit -= len(chunk)
                    if limit < 0:
                        return

    async def read_json(self, schema: type[Schema]) -> Schema:
        """Read a body of JSON; 422 if it does not fit."""
        content = b"".join([chunk async for chunk in self.chunks()])
        if next(islice(_TOKEN.finditer(content.translate(None, _NO_TOKEN)), _MAX_TOKENS, None), None):
            # Millions of values would block the event loop for seconds.
            raise RefusedError(422, f"a body has at most {MAX_PRODUCTS} products and 1000 characteristics")
        try:
            return schema.model_validate_json(content)
        except ValidationError as error:
            raise invalid(error) from None

    async def read_products(self, schema: type[EmbedRequest]) -> tuple[Any, list[Upload]]:
        """Read JSON or a form into the options of the request and its products."""
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._read_form(schema)
        if kind != "application/json":
            raise RefusedError(415, f"send application/json or multipart/form-data, got {kind!r}")
        wanted = await self.read_json(schema)
        return wanted, uploads_of(wanted)

    async def _read_form(self, schema: type[EmbedRequest]) -> tuple[Any, list[Upload]]:
        limits = {"max_files": MAX_PRODUCTS, "max_fields": 4 * MAX_PRODUCTS, "max_part_size": _FORM_FIELD_BYTES}
        parser = _InMemory(self.request.headers, self.chunks(), **limits)  # type: ignore[arg-type]
        try:
            form = await parser.parse()
        except (MultiPartException, UnicodeError) as error:  # the latter: charset=undefined, punycode
            raise RefusedError(422, f"the form cannot be read: {error}") from None
        values: dict[str, list[Any]] = {}
        for name, value in form.multi_items():
            values.setdefault(name, []).append(await value.read() if isinstance(value, UploadFile) else value)
        await form.close()
        columns = {name: values.pop(name, []) for name in _PARTS}
        uploads = _rows(columns)
        options = {name: value if name == "characteristics" else value[-1] for name, value in values.items()}
        products = [{"id": upload.id, "text": upload.text} for upload in uploads]
        try:
            return schema.model_validate({**options, "products": products}), uploads
        except ValidationError as error:
            raise invalid(error) from None


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[Upload]:
    """Return the products of a form: the n-th text, photo and id belong together."""
    n = max(map(len, columns.values()))
    if wrong := [f"{len(values)} of {name}" for name, values in columns.items() if len(values) not in (0, n)]:
        rule = "a form gives every product a text, a photo and an id, or none of them, in their order"
        raise RefusedError(422, f"{rule}: found {culprits(wrong)} and {n} products; leave parts empty, or send JSON")
    filled = [values or [""] * n for values in columns.values()]
    texts = [[v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in column] for column in filled[:2]]
    return [Upload(id_ or None, text, photo or None) for id_, text, photo in zip(*texts, filled[2], strict=True)]


def uploads_of(request: EmbedRequest) -> list[Upload]:
    """Return the products of a request."""
    return [Upload(product.id, product.text or "", product.photo) for product in request.products]


def invalid(error: ValidationError) -> RefusedError:
    """Return the refusal of a body that does not fit its schema; it repeats nothing of the content."""
    problems = [
        f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return RefusedError(422, f"the body does not fit: {culprits(problems)}")


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


Authorized = Annotated[Key | None, Depends(authorize)]


async def body_of(
    request: Request,
    key: Authorized,
    x_timeout_ms: Annotated[int | None, Header(ge=1, le=MAX_TIMEOUT_MS, description="Deadline; else 504.")] = None,
) -> Body:
    """Return the body of an authorized request, with its deadline."""
    service: Service = request.app.state.service
    timeout_s = (x_timeout_ms or service.settings.timeout_ms) / 1000
    return Body(service, request, key, time.monotonic() + timeout_s)


Incoming = Annotated[Body, Depends(body_of)]
