"""Choose who makes of the files of photos what an encoder reads.

Threads do or, where these would keep a GPU waiting, the GPU itself (nvJPEG), else processes with shared memory.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Barrier
from queue import SimpleQueue
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from PIL import Image

from product_classificator.catalog.catalog import Catalog
from product_classificator.catalog.images import ImageSource
from product_classificator.catalog.photo import decode_image, is_plain_jpeg
from product_classificator.encoders import Encoder, cores
from product_classificator.encoders.base import PreparedImage

_MIN_PRODUCTS = 2_000  # processes take seconds to start
Decode: TypeAlias = Callable[[bytes, ImageSource], PreparedImage]


class Feeding(NamedTuple):
    """What decodes a file of a source (or raises `PhotoError`), in how many threads, how many chunks ahead."""

    decode: Decode
    threads: int
    chunks_ahead: int


@contextmanager
def feeding(encoder: Encoder, catalog: Catalog) -> Iterator[Feeding]:
    """Yield how the images of a catalog are decoded for an encoder."""
    tower, exact = encoder.image, on_cpu(encoder)
    preparation = getattr(tower, "preparation", None)
    if (batches := getattr(tower, "batches", None)) is not None:

        def on_gpu(data: bytes, source: ImageSource) -> PreparedImage:
            image = batches(data, is_bgr=source.channels == "bgr") if is_plain_jpeg(data, source.max_pixels) else None
            return image or exact(data, source)

        yield Feeding(on_gpu, threads=128, chunks_ahead=4)  # these read files, and wait for a batch
    elif preparation and hasattr(tower, "batches") and catalog.images and len(catalog) >= _MIN_PRODUCTS:
        with _processes(preparation, exact) as decode:
            yield Feeding(decode, threads=2 * cores(), chunks_ahead=4)
    else:
        yield Feeding(exact, max(cores(), catalog.images.readers if catalog.images else 0), chunks_ahead=1)


def on_cpu(encoder: Encoder) -> Decode:
    """Return what decodes a file in the calling thread."""
    tower = encoder.image
    return lambda data, source: tower.prepare(source.decode(data, tower.min_decode_size))


@contextmanager
def _processes(preparation: Any, exact: Decode) -> Iterator[Decode]:
    """Yield what decodes a file as a square in another process; `exact` goes on if one is killed."""
    size, free, n_slots = (preparation.size_px, preparation.size_px), SimpleQueue[slice](), 4 * cores()
    n_bytes = 3 * preparation.size_px**2
    for start in range(0, n_slots * n_bytes, n_bytes):
        free.put(slice(start, start + n_bytes))
    memory = SharedMemory(create=True, size=n_slots * n_bytes)
    pixels: Any = memory.buf
    context = get_context("spawn")
    pool = ProcessPoolExecutor(cores(), context, _open, (memory.name, preparation, context.Barrier(cores())))

    def decode(data: bytes, source: ImageSource) -> PreparedImage:
        limits = {name: getattr(source, name) for name in ("channels", "max_pixels", "allow_truncated")}
        place = free.get()
        try:
            pool.submit(_decode, place, data, limits).result()
            return Image.frombytes("RGB", size, bytes(pixels[place]))
        except BrokenProcessPool:
            return exact(data, source)
        finally:
            free.put(place)

    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:  # each process would import the script that called this, and run it again
        wait([pool.submit(int) for _ in range(cores())])  # a task starts a process unless one is idle
        sys.modules["__main__"] = main
        yield decode
    finally:
        sys.modules["__main__"] = main
        pool.shutdown(cancel_futures=True)
        pixels.release()
        memory.close()
        memory.unlink()


_OPENED: dict[str, Any] = {}  # in a process that decodes


def _open(name: str, preparation: Any, all_started: Barrier) -> None:
    all_started.wait()
    _OPENED.update(memory=SharedMemory(name), preparation=preparation)


def _decode(place: slice, data: bytes, limits: dict[str, Any]) -> None:
    preparation = _OPENED["preparation"]
    image = preparation.prepare(decode_image(data, min_decode_size=preparation.min_decode_size, **limits))
    _OPENED["memory"].buf[place] = image.tobytes()
