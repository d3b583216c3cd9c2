"""The service without HTTP: admission, decoding ahead, the batcher, and the model that may be replaced."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from product_classificator.encoders import cores
from product_classificator.errors import ArtifactError
from product_classificator.serving import metrics
from product_classificator.serving.batcher import Batcher, BatchLimits, Failed
from product_classificator.serving.keys import Key, KeyFile, KeyRing
from product_classificator.serving.model import (
    ModelSource,
    ServedItem,
    ServedModel,
    ServedResult,
    Upload,
    Wanted,
    signature,
)
from product_classificator.serving.settings import MEGABYTE, ServeSettings
from product_classificator.types import Explanation

logger = logging.getLogger(__name__)

_CANARY_SECONDS, _CANARY_FRESH_SECONDS = 5.0, 1.0
_STUCK_SECONDS, _WATCH_SECONDS = 120.0, 2.0
_COMPUTING_SHARE = 0.8  # of the time that is left; the rest goes into decoding and sending

Load = Callable[[ModelSource, ServeSettings], ServedModel]
Done = TypeVar("Done")
Step = Callable[[], Coroutine[Any, Any, Done]]
Answer = tuple[ServedModel, Sequence[ServedItem], Sequence["ServedResult | Failed"]]
"""The model that answered, decoded products, and the result of each."""


class RefusedError(HTTPException):
    """A request that gets no answer: HTTP status, a sentence, and seconds after which it may be sent again."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        seconds = None if retry_after_s is None else min(max(1, math.ceil(retry_after_s)), 60)
        super().__init__(status, message, None if seconds is None else {"Retry-After": str(seconds)})


class Service:
    """Answers products; must be used from one event loop.

    Args:
        source, settings: what to serve, and how.
        load: makes the model.

    Attributes:
        model: in service; replaced by `reload`.
        is_draining: whether the service is shutting down; it answers, but is not ready.
        reload_error: why the newest model was refused, if it was.
    """

    def __init__(self, source: ModelSource, settings: ServeSettings, load: Load = ServedModel.load) -> None:
        self.source, self.settings, self._load = source, settings, partial(load, source, settings)
        self.keys = KeyRing(KeyFile.read(settings.keys).keys, settings.workers) if settings.keys else None
        self._key_signature = signature(settings.keys) if settings.keys else ()
        self._signature = signature(source.path)
        self.model = self._load()
        metrics.MODEL.labels(self.model.name, self.model.fingerprint).set(1)
        limits = BatchLimits(items=settings.batch, jobs=1 if settings.reproducible else settings.batch)
        self._batcher = Batcher(_run, limits, metrics.count_batch)
        self._decoders = ThreadPoolExecutor(min(settings.threads or cores(), 4), "decode")
        self._explainer = ThreadPoolExecutor(1, "explain")  # nearest products take long: they never block decoding
        self.is_draining, self._held_bytes, self._held_products = False, 0, 0
        self.reload_error: str | None = None
        self._reloading = asyncio.Lock()
        self._canary_at, self._canary_error = float("-inf"), ""

    async def admitted(self, key: Key | None, n: int, deadline: float, gone: Step[None], answer: Step[Done]) -> Done:
        """Do the work of n products until `deadline` (of `time.monotonic`), or until `gone()`: the client hung up.

        Raises:
            RefusedError: the queue is full (503), the quota used up (429), or the deadline has passed (504).
            ClientDisconnect: the client has hung up; what was not started is dropped.
        """
        self._admit(n, deadline)
        tasks: list[asyncio.Task[Any]] = []
        try:
            self.charge(key, n)
            work, hung_up = asyncio.create_task(answer()), asyncio.create_task(gone())
            tasks = [work, hung_up]
            await asyncio.wait(tasks, timeout=deadline - time.monotonic(), return_when="FIRST_COMPLETED")
            if hung_up.done() and not work.done():
                raise ClientDisconnect
            if work.done():
                return work.result()
            raise TimeoutError
        except TimeoutError:
            raise RefusedError(504, "the deadline passed before the products were computed") from None
        finally:
            for task in tasks:
                task.cancel()
            self._hold(-n)

    async def answer(self, uploads: Sequence[Upload], wanted: Wanted, deadline: float) -> Answer:
        """Decode and compute admitted products."""
        model, loop = self.model, asyncio.get_running_loop()

        async def decoded(upload: Upload) -> ServedItem:
            if not upload.photo:  # texts do not queue behind photos
                return model.decode(upload)
            return await loop.run_in_executor(self._decoders, model.decode, upload)

        items = await asyncio.gather(*map(decoded, uploads))
        # What was prepared for an older model is computed by it.
        future = self._batcher.submit((model, wanted), items, deadline)
        return model, items, await asyncio.wrap_future(future)

    async def explain(self, result: ServedResult) -> Mapping[str, Explanation]:
        """Return the reasons for the predictions of one product."""
        return await asyncio.get_running_loop().run_in_executor(self._explainer, result.explain)

    def _admit(self, n: int, deadline: float) -> None:
        """Let n products in, or refuse at once what would wait in vain."""
        held, per_item_s = self._held_products, self._batcher.seconds_per_item
        if held and held + n > self.settings.max_queue:
            rule = f"at most {self.settings.max_queue} products are in work at a time, {held} are"
            raise RefusedError(503, f"{rule}: ask again later", held * per_item_s)
        if held and (held + n) * per_item_s > _COMPUTING_SHARE * (deadline - time.monotonic()):
            rule = f"{held} products are in work, longer than the deadline allows"
            raise RefusedError(503, f"{rule}: ask again later", held * per_item_s)
        self._hold(n)

    def _hold(self, n: int) -> None:
        self._held_products += n
        metrics.QUEUE_PRODUCTS.set(self._held_products)

    def hold_bytes(self, n: int) -> None:
        """Count n bytes of a body (negative: given back); 503 if there are too many."""
        if n > 0 and self._held_bytes + n > self.settings.max_buffer_mb * MEGABYTE:
            raise RefusedError(503, "too many bodies are in memory: ask again later", 1)
        self._held_bytes += n

    def charge(self, key: Key | None, n: int) -> None:
        """Take n products from the quota of a key; 429 if it is used up."""
        if key and self.keys and (wait_s := self.keys.take(key, n)):
            rule = f"the key {key.name!r} has {key.products_per_minute} products a minute, and they are used up"
            raise RefusedError(429, f"{rule}: ask again later", wait_s)

    async def check_ready(self) -> str:
        """Return why the service is not ready, "" if it is: a simple product goes through the batcher."""
        if self.is_draining:
            return "the service is shutting down"
        if time.monotonic() - self._canary_at < _CANARY_FRESH_SECONDS:
            return self._canary_error
        model, self._canary_error = self.model, ""
        try:
            future = self._batcher.submit((model, (1, None)), [model.canary()], first=True)
            results = await asyncio.wait_for(asyncio.wrap_future(future), _CANARY_SECONDS)
            model.check_canary(results)
        except TimeoutError:
            self._canary_error = f"a simple product was not answered within {_CANARY_SECONDS:.0f} s"
        except Exception as error:
            logger.error("the canary was not answered", exc_info=error)
            self._canary_error = "a simple product cannot be answered"
        self._canary_at = time.monotonic()
        return self._canary_error

    def is_alive(self) -> bool:
        """Return whether the batcher works."""
        return self._batcher.stuck_s() < _STUCK_SECONDS

    async def watch(self) -> None:
        """Look for newer models and keys, for ever."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if signature(self.source.path) not in ((), self._signature):
                await self.reload()
            elif self.settings.keys and signature(self.settings.keys) not in ((), self._key_signature):
                self._reload_keys()

    async def reload(self) -> None:
        """Load the model and the keys again; what cannot be loaded is refused, the old one stays in service."""
        async with self._reloading:
            self._reload_keys()
            self._signature = signature(self.source.path)
            try:
                model = await asyncio.to_thread(self._load)  # explanations go on
            except Exception as error:  # whatever is wrong with the new model, the old one works
                self.reload_error = f"{type(error).__name__}: see the log"  # a message may name folders of the server
                metrics.RELOADS.labels("refused").inc()
                logger.error("a newer model was refused, the old one stays: %s", error)
                return
            metrics.MODEL.labels(self.model.name, self.model.fingerprint).set(0)
            metrics.MODEL.labels(model.name, model.fingerprint).set(1)
            metrics.RELOADS.labels("loaded").inc()
            self.model, self.reload_error = model, None
            logger.info("a newer model is in service: %s", model.fingerprint)

    def _reload_keys(self) -> None:
        if self.keys and self.settings.keys:
            self._key_signature = signature(self.settings.keys)
            try:
                self.keys.replace(KeyFile.read(self.settings.keys).keys)
            except ArtifactError as error:
                logger.error("the keys cannot be read, the old ones stay: %s", error)

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        self._batcher.close()
        for pool in (self._decoders, self._explainer):
            pool.shutdown(cancel_futures=True)


def _run(lane: tuple[ServedModel, Wanted], items: Sequence[ServedItem]) -> list[ServedResult]:
    model, wanted = lane
    return model.run(wanted, items)
