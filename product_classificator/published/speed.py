"""How many products a second a classificator answers, and how long each stage takes."""

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from product_classificator.classificator import Classificator
from product_classificator.embeddings.products import ImageInput, ImagesInput, TextsInput, align, encode_products
from product_classificator.errors import DataError

STAGES = ("decode", "image tower", "text tower", "heads")


class SpeedTest:
    """Times a classificator on products in memory, one stage after the other, as `predict` answers a call.

    Bulk prediction decodes in threads while the encoder computes, so it is faster where decoding counts.

    Attributes:
        clf: the classificator.
        tests: what was measured: `info`, the `log` that `test_inference` returned, `products_per_second`, and
            `stages_ms`, the median of each stage in milliseconds per product.
        machine_info: system, processor, cores, memory and GPUs.
    """

    def __init__(self, clf: Classificator) -> None:
        self.clf = clf
        self.tests: list[dict[str, Any]] = []
        self.machine_info = machine_info()

    def test_inference(
        self, texts: TextsInput, images: ImagesInput, batch_size: int, iterations_num: int = 1, warm_iterations: int = 1
    ) -> pd.DataFrame:
        """Time all whole batches, and return the seconds of each (row) in each iteration (column `iter_<i>`).

        Before, `warm_iterations` batches are answered and not counted. Fewer products than one batch are a `DataError`.
        """
        text_list, image_list = align(texts, images)
        starts = range(0, len(text_list) - batch_size + 1, batch_size) if batch_size > 0 else ()
        if not starts:
            raise DataError(f"batch_size must lie between 1 and the {len(text_list)} products, got {batch_size}")
        if iterations_num < 1:
            raise DataError(f"iterations_num must be 1 or more, got {iterations_num}")
        batches = [(text_list[i : i + batch_size], image_list[i : i + batch_size]) for i in starts]
        for _ in range(warm_iterations):
            self._time(*batches[0])
        seconds = np.array([[self._time(*batch) for batch in batches] for _ in range(iterations_num)])
        totals = seconds.sum(axis=2)
        log = pd.DataFrame(totals.T, columns=[f"iter_{i}" for i in range(iterations_num)])
        stages = np.median(seconds.reshape(-1, len(STAGES)), axis=0) / batch_size * 1000
        self.tests.append(
            {
                "info": {"samples_num": len(text_list), "batch_size": batch_size, "iterations_num": iterations_num},
                "log": log,
                "products_per_second": totals.size * batch_size / float(totals.sum()),
                "stages_ms": dict(zip(STAGES, stages.tolist(), strict=True)),
            }
        )
        return log

    def _time(self, texts: Sequence[str], images: Sequence[Sequence[ImageInput]]) -> list[float]:
        """Answer a batch, and return the seconds of each of `STAGES`; parts that the heads do not use take none."""
        clf, ids, times = self.clf, [*map(str, range(len(texts)))], [time.perf_counter()]
        prepared = [*clf._prepared(images, {})] if clf.bundle.image_dim else None
        times.append(time.perf_counter())
        products = encode_products(clf.encoder, ids, None, prepared)
        times.append(time.perf_counter())
        read = encode_products(clf.encoder, ids, texts if clf.bundle.text_dim else None, None).embeddings
        times.append(time.perf_counter())
        embeddings = replace(products.embeddings, text=read.text, has_text=read.has_text)
        clf.judge(replace(products, embeddings=embeddings), texts)
        times.append(time.perf_counter())
        return [float(seconds) for seconds in np.diff(times)]


def machine_info() -> Mapping[str, Any]:
    """Return what decides the speed of this machine; GPUs only if torch is loaded."""
    torch = sys.modules.get("torch")
    n_gpus = torch.cuda.device_count() if torch else 0
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "OS": platform.system(),
        "CPU": platform.processor() or platform.machine(),
        "CPU cores": os.cpu_count(),
        "GPUs": {i: torch.cuda.get_device_name(i) for i in range(n_gpus)} if torch else {},
        "RAM": f"{pages / 2**30:.0f} GB" if pages else "unknown",
    }
