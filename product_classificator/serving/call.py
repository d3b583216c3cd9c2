"""One request: its key, its deadline, and its body, whose bytes are counted as they come, as a checked value."""

import asyncio
import math
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from product_classificator.errors import culprits
from product_classificator.serving.keys import Key
from product_classificator.serving.schemas import MAX_PRODUCTS

Schema = TypeVar("Schema", bound=BaseModel)
Done = TypeVar("Done")

_PARTS = ("id", "text", "photo")
_FORM_FIELD_BYTES = 500_000
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,:]', re.DOTALL)
_NO_TOKEN = bytes(set(range(256)) - set(b'"\\,:/bfnrtu'))  # the rest is in no token, but most of a photo
_MAX_TOKENS = 4000  # 64 products and 1,000 characteristics have 3,000
_DISCARDED_BODIES = 8  # a client that is still sending would not see the refusal


class RefusedError(HTTPException):
    """A request that gets no answer: HTTP status, a sentence, and seconds after which it may be sent again."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        seconds = None if retry_after_s is None else min(max(1, math.ceil(retry_after_s)), 60)
        headers = {"Retry-After": str(seconds)} if seconds else {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        super().__init__(status, message, headers)


class _InMemory(MultiPartParser):
    """Never writes uploads to the disk: bodies are small, and the file system may be read-only."""

    spool_max_size = 2**40


@dataclass(eq=False)
class Call:
    """An authorized request that must be answered by `deadline`, a time of `time.monotonic`.

    `hold_bytes` counts the bytes of its body, or refuses; `release` gives them back.
    """

    request: Request
    key: Key | None
    deadline: float
    max_bytes: int
    hold_bytes: Callable[[int], None]
    _held_bytes: int = field(default=0, init=False)

    def release(self) -> None:
        """Give the bytes back."""
        self.hold_bytes(-self._held_bytes)

    async def read(self, schema: type[Schema]) -> Schema:
        """Read JSON or a form; 408, 413, 415, or 422 if it does not fit the schema, 503 if the service is full."""
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", "multipart/form-data"):
            raise RefusedError(415, f"send application/json or multipart/form-data, got {kind!r}")
        content = await self._content()
        if kind == "multipart/form-data":
            return validated(schema, await _form(self.request, content))
        if next(islice(_TOKEN.finditer(content.translate(None, _NO_TOKEN)), _MAX_TOKENS, None), None):
            # Millions of values would block the event loop for seconds.
            raise RefusedError(422, f"a body has at most {MAX_PRODUCTS} products and 1000 characteristics")
        return validated(schema, content)

    async def _content(self) -> bytes:
        chunks, n_bytes = [], 0
        try:
            async with asyncio.timeout_at(self.deadline):
                async for chunk in self.request.stream():
                    n_bytes += len(chunk)
                    if n_bytes > _DISCARDED_BODIES * self.max_bytes:
                        break
                    if n_bytes <= self.max_bytes:
                        self.hold_bytes(len(chunk))
                        self._held_bytes += len(chunk)
                        chunks.append(chunk)
        except TimeoutError:
            if n_bytes <= self.max_bytes:
                raise RefusedError(408, "the deadline passed before the body was complete") from None
        if n_bytes > self.max_bytes:
            raise RefusedError(413, f"a body has at most {self.max_bytes} bytes: send fewer products")
        return b"".join(chunks)

    async def unless_gone(self, work: Coroutine[Any, Any, Done]) -> Done:
        """Work until the deadline (504), or until the client hangs up (`ClientDisconnect`)."""
        task = asyncio.create_task(work)
        tasks: list[asyncio.Task[Any]] = [task, asyncio.create_task(self._gone())]
        try:
            async with asyncio.timeout_at(self.deadline):
                await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
                if not task.done():
                    raise ClientDisconnect
                return await task
        except TimeoutError:
            raise RefusedError(504, "the deadline passed before the products were computed") from None
        finally:
            for pending in tasks:
                pending.cancel()

    async def _gone(self) -> Any:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


async def _form(request: Request, content: bytes) -> dict[str, Any]:
    """Return a form as its JSON would be: the n-th text, photo and id belong to the n-th product."""

    async def chunks() -> AsyncIterator[bytes]:
        yield content

    limits = {"max_files": MAX_PRODUCTS, "max_fields": 4 * MAX_PRODUCTS, "max_part_size": _FORM_FIELD_BYTES}
    try:
        form = await _InMemory(request.headers, chunks(), **limits).parse()  # type: ignore[arg-type]
    except (MultiPartException, UnicodeError) as error:  # the latter: charset=undefined, punycode
        raise RefusedError(422, f"the form cannot be read: {error}") from None
    fields: dict[str, list[str]] = {name: [] for name in _PARTS}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            data = await value.read()
            value = b64encode(data).decode() if name == "photo" else data.decode("utf-8", "replace")
        fields.setdefault(name, []).append(value)
    await form.close()
    columns = [fields.pop(name) for name in _PARTS]
    n = max(map(len, columns))
    if wrong := [f"{len(c)} of {name}" for name, c in zip(_PARTS, columns, strict=True) if len(c) not in (0, n)]:
        rule = "a form gives every product a text, a photo and an id, or none of them, in their order"
        raise RefusedError(422, f"{rule}: found {culprits(wrong)} and {n} products; leave parts empty, or send JSON")
    rows = zip(*[column or [""] * n for column in columns], strict=True)
    products = [{name: value or None for name, value in zip(_PARTS, row, strict=True)} for row in rows]
    options = {name: values if name == "characteristics" else values[-1] for name, values in fields.items()}
    return {**options, "products": products}


def validated(schema: type[Schema], content: bytes | dict[str, Any]) -> Schema:
    """Return JSON, or the value of one, as a schema; 422 if it does not fit, which repeats nothing of the content."""
    try:
        return schema.model_validate_json(content) if isinstance(content, bytes) else schema.model_validate(content)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise RefusedError(422, f"the body does not fit: {culprits(problems)}") from None
