"""The service without HTTP: admission, decoding ahead, the batcher, and the model that may be replaced."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from product_classificator.catalog.photo import PhotoError
from product_classificator.encoders import cores
from product_classificator.remote.photo_urls import PhotoFetcher
from product_classificator.serving import observe
from product_classificator.serving.batcher import Batcher, BatchLimits
from product_classificator.serving.call import Call, RefusedError
from product_classificator.serving.keys import Key, KeyRing
from product_classificator.serving.model import ModelSource, ServedItem, ServedModel, ServedResult, Wanted, signature
from product_classificator.serving.schemas import ClassifiedProduct, Product
from product_classificator.serving.settings import MEGABYTE, ServeSettings

logger = logging.getLogger(__name__)

FAILED = "failed"
"""Status of a product that made the computation fail."""

_CANARY_SECONDS, _CANARY_FRESH_SECONDS = 5.0, 1.0
_STUCK_SECONDS, _WATCH_SECONDS = 120.0, 2.0
_COMPUTING_SHARE = 0.65  # of the time that is left; the rest goes into decoding and sending
_FETCHING_SHARE, _MAX_FETCHES = 0.5, 16

Load = Callable[[ModelSource, ServeSettings], ServedModel]


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
        self.keys = KeyRing(settings.keys, settings.workers) if settings.keys else None
        self._signatures = self._current_signatures()
        self.model = self._load()
        observe.MODEL.labels(self.model.name, self.model.fingerprint).set(1)
        limits = BatchLimits(items=settings.batch, jobs=1 if settings.reproducible else settings.batch)
        self._batcher = Batcher(lambda lane, items: lane[0].run(lane[1], items), limits, observe.count_batch)
        self._fetcher = PhotoFetcher(self.model.max_photo_bytes) if settings.photo_urls else None
        self._fetching = asyncio.Semaphore(_MAX_FETCHES)
        self._decoders = ThreadPoolExecutor(min(settings.threads or cores(), 4), "decode")
        self._explainer = ThreadPoolExecutor(1, "explain")  # nearest products take long: they never block decoding
        self.is_draining, self._held_bytes, self._held_products = False, 0, 0
        self.reload_error: str | None = None
        self._reloading = asyncio.Lock()
        self._canary_at, self._canary_error = float("-inf"), ""

    async def answer(
        self, call: Call, products: Sequence[Product], wanted: Wanted, *, explain: bool = False
    ) -> tuple[ServedModel, list[ServedResult]]:
        """Answer the products of a call; the model is the one that computed.

        Raises:
            RefusedError: the queue is full (503), the quota used up (429), or the deadline has passed (504).
            ClientDisconnect: the client has hung up; what was not started is dropped.
        """
        with self._admitted(call, len(products)):
            return await call.unless_gone(self._computed(call, products, wanted, explain))

    @contextmanager
    def _admitted(self, call: Call, n: int) -> Iterator[None]:
        """Let n products in, or refuse at once what would wait in vain."""
        held, per_item_s = self._held_products, self._batcher.seconds_per_item
        is_late = (held + n) * per_item_s > _COMPUTING_SHARE * (call.deadline - time.monotonic())
        if held and (is_late or held + n > self.settings.max_queue):
            rule = f"at most {self.settings.max_queue} products are in work at a time, {held} are"
            rule = f"{held} products are in work, longer than the deadline allows" if is_late else rule
            raise RefusedError(503, f"{rule}: ask again later", held * per_item_s)
        self._hold(n)
        try:
            self.charge(call.key, n)
            yield
        finally:
            self._hold(-n)

    def _hold(self, n: int) -> None:
        self._held_products += n
        observe.QUEUE_PRODUCTS.set(self._held_products)

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

    async def _computed(
        self, call: Call, products: Sequence[Product], wanted: Wanted, explain: bool
    ) -> tuple[ServedModel, list[ServedResult]]:
        model, loop = self.model, asyncio.get_running_loop()
        items = await asyncio.gather(*[self._decoded(call, model, product) for product in products])
        # What was prepared for an older model is computed by it.
        computed = await self._batcher.submit((model, wanted), items, call.deadline)
        results = []
        for item, result in zip(items, computed, strict=True):
            if not isinstance(result, ServedResult):
                result = ServedResult(ClassifiedProduct(id=None, status=FAILED, detail=item.detail))
            if explain and result.product.predictions:
                result.product.explanations = await loop.run_in_executor(self._explainer, result.explain)
            results.append(result)
        return model, results

    async def _decoded(self, call: Call, model: ServedModel, product: Product) -> ServedItem:
        text, photo = product.text or "", product.photo
        if not photo:  # texts do not queue behind photos
            return model.decode(text, None)
        decode = partial(asyncio.get_running_loop().run_in_executor, self._decoders, partial(model.decode, text))
        if not (self._fetcher and photo.startswith(("http://", "https://"))):
            return await decode(photo)
        async with self._fetching:  # so many photos are in memory beside the bodies
            try:
                limit_s = _FETCHING_SHARE * (call.deadline - time.monotonic())
                return await decode(await self._fetcher.fetch(photo, limit_s))
            except PhotoError as error:
                return ServedItem(text, error.reason, error.message)

    async def check_ready(self) -> str:
        """Return why the service is not ready, "" if it is: a simple product goes through the batcher."""
        if self.is_draining:
            return "the service is shutting down"
        if time.monotonic() - self._canary_at < _CANARY_FRESH_SECONDS:
            return self._canary_error
        model, self._canary_error = self.model, ""
        try:
            answer = self._batcher.submit((model, (1, None)), [model.canary()], first=True)
            model.check_canary(*await asyncio.wait_for(answer, _CANARY_SECONDS))
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

    def _current_signatures(self) -> list[tuple[object, ...]]:
        return [signature(*self.source.last_files), signature(*[self.settings.keys] if self.settings.keys else [])]

    async def watch(self) -> None:
        """Look for newer models and keys, for ever."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            current, old = self._current_signatures(), self._signatures
            if current[0] not in ((), old[0]):
                await self.reload()
            elif self.keys and current[1] not in ((), old[1]):
                self._signatures = current
                self.keys.reload()

    async def reload(self) -> None:
        """Load the model and the keys again; what cannot be loaded is refused, the old one stays in service."""
        async with self._reloading:
            self._signatures = self._current_signatures()
            if self.keys:
                self.keys.reload()
            try:
                model = await asyncio.to_thread(self._load)  # explanations go on
            except Exception as error:  # whatever is wrong with the new model, the old one works
                self.reload_error = f"{type(error).__name__}: see the log"  # a message may name folders of the server
                observe.RELOADS.labels("refused").inc()
                logger.error("a newer model was refused, the old one stays: %s", error)
                return
            observe.MODEL.labels(self.model.name, self.model.fingerprint).set(0)
            observe.MODEL.labels(model.name, model.fingerprint).set(1)
            observe.RELOADS.labels("loaded").inc()
            self.model, self.reload_error = model, None
            logger.info("a newer model is in service: %s", model.fingerprint)

    async def close(self) -> None:
        """Finish what is queued and end the threads."""
        await self._batcher.close()
        for pool in (self._decoders, self._explainer):
            pool.shutdown(cancel_futures=True)
        if self._fetcher:
            await self._fetcher.close()
