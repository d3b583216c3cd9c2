"""Load on the service, over the loopback of one machine that also runs the clients.

    python benchmarks/serve.py [--rounds 3] [--overload-s 60]       # needs the extra `serve`

Trains heads on a synthetic shop with `lite` and serves them. Measured: start and memory; products per second against
bulk `predict` of the same texts and photos, in turns, by wall time and by CPU time (other programs slow the
former down); the latency of a service whose model costs nothing, which is what HTTP, decoding and the batcher add; and
three times the load that the service can bear: what is refused, the latency of what is not, memory.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import httpx2 as httpx
import numpy as np
import pandas as pd
import uvicorn
from common import save
from startup import prepare

from product_classificator.classificator import Classificator
from product_classificator.serving.app import create_app
from product_classificator.serving.model import ModelSource, ServedModel
from product_classificator.serving.settings import ServeSettings

TICKS = os.sysconf("SC_CLK_TCK")
DEADLINE_MS = 3000


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / TICKS


@contextmanager
def serving(run: Path, *options: str) -> Iterator[tuple[int, httpx.Client, dict[str, float]]]:
    """Serve a run in a process of its own; yields its id, a client, and what its start took."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "product_classificator", "serve", str(run), "--port", str(port), *options]
    start = time.monotonic()
    command += ["--metrics-port", "0", "--drain-seconds", "0"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            while True:
                try:
                    client.get("/readyz").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.02)
            took = {"wall_s": time.monotonic() - start, "cpu_s": cpu_s(process.pid), "rss_mb": rss_mb(process.pid)}
            yield process.pid, client, took
        process.send_signal(signal.SIGTERM)


def products_of(folder: Path) -> tuple[list[str], list[bytes]]:
    """Return texts and photos of the shop."""
    table = pd.read_parquet(folder / "shop/products.parquet")
    with ZipFile(folder / "shop/images.zip") as archive:
        names = {Path(name).stem: name for name in archive.namelist()}
        photos = [archive.read(names[str(nm)]) if str(nm) in names else b"" for nm in table.nm]
    return (table.title.fillna("") + "\n" + table.description.fillna("")).tolist(), photos


def body_of(texts: list[str], photos: list[bytes]) -> bytes:
    """Return a request."""
    pairs = zip(texts, photos, strict=True)
    products = [{"text": text, "photo": b64encode(photo).decode() or None} for text, photo in pairs]
    return json.dumps({"products": products, "min_precision": 0.9}).encode()


def post(client: httpx.Client, body: bytes, deadline_ms: int = 60_000) -> int:
    """Send a request and return its status."""
    headers = {"Content-Type": "application/json", "X-Timeout-Ms": str(deadline_ms)}
    return client.post("/v1/classify", content=body, headers=headers).status_code


def saturation(run: Path, texts: list[str], photos: list[bytes], rounds: int) -> dict[str, object]:
    """Return products per second of bulk prediction and of the service, in turns."""
    classificator, n = Classificator(heads_ver=run), len(texts)
    large = [body_of(texts[i : i + 64], photos[i : i + 64]) for i in range(0, n, 64)]
    small = [body_of([text], [photo]) for text, photo in zip(texts, photos, strict=True)]
    ways: dict[str, list[tuple[float, float]]] = {"bulk predict": [], "requests of 64": [], "requests of 1": []}
    with serving(run) as (pid, client, _), ThreadPoolExecutor(64) as many, ThreadPoolExecutor(3) as few:
        for turn in range(rounds + 1):
            for way, samples in ways.items():
                own = pid if way != "bulk predict" else os.getpid()
                start, cpu = time.monotonic(), cpu_s(own)
                if way == "bulk predict":
                    classificator.predict(
                        texts, [photo or None for photo in photos], min_precision=0.9, errors="status"
                    )
                else:
                    pool, bodies = (few, large) if way == "requests of 64" else (many, small)
                    assert set(pool.map(lambda body: post(client, body), bodies)) == {200}
                if turn:  # the first one warms up
                    samples.append((n / (time.monotonic() - start), n / (cpu_s(own) - cpu)))
    bulk = np.median(ways["bulk predict"], axis=0)
    return {
        way: {
            "products_per_s": round(float(np.median(samples, axis=0)[0]), 1),
            "wall_ratio": round(float(np.median(samples, axis=0)[0] / bulk[0]), 2),
            "cpu_ratio": round(float(np.median(samples, axis=0)[1] / bulk[1]), 2),
        }
        for way, samples in ways.items()
    }


class FreeModel(ServedModel):
    """Answers every batch with results that are known already."""

    def run(self, wanted, items):
        """Answer at once."""
        if not hasattr(FreeModel, "known"):
            FreeModel.known = super().run(wanted, items[:1])
        return FreeModel.known * len(items)


def overhead(run: Path, text: str, photo: bytes) -> dict[str, float]:
    """Return the latency at concurrency 1 of a service whose model costs nothing, in ms."""
    model = FreeModel("free", Classificator(heads_ver=run), 10**8, datetime.now(UTC))
    app = create_app(ModelSource(run), ServeSettings(), lambda *_: model)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        body, took = body_of([text], [photo]), []
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            for _ in range(1000):
                start = time.perf_counter()
                assert post(client, body) == 200
                took.append((time.perf_counter() - start) * 1000)
        server.should_exit = True
        thread.join()
    return {f"p{q}_ms": round(float(np.percentile(took[100:], q)), 1) for q in (50, 90, 99)}


def overload(run: Path, texts: list[str], photos: list[bytes], rate: float, seconds: float) -> dict[str, object]:
    """Send single products at a fixed rate for some seconds."""
    bodies = [body_of([text], [photo]) for text, photo in zip(texts, photos, strict=True)]
    statuses, took, memory = Counter[int](), [], []
    with serving(run) as (pid, client, _), ThreadPoolExecutor(200) as pool:

        def send(number: int) -> None:
            sent = time.monotonic()
            status = post(client, bodies[number % len(bodies)], DEADLINE_MS)
            statuses[status] += 1
            if status == 200:
                took.append((time.monotonic() - sent) * 1000)

        list(pool.map(lambda body: post(client, body), bodies[:64]))
        start = time.monotonic()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            pool.submit(send, number)
            if number % int(rate * 5) == 0:
                memory.append(round(rss_mb(pid)))
        pool.shutdown()
    percentiles = {f"accepted_p{q}_ms": round(float(np.percentile(took, q))) for q in (50, 99)}
    return {"sent_per_s": round(rate, 1), "seconds": seconds, "deadline_ms": DEADLINE_MS, **percentiles} | {
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "rss_mb_every_5_s": memory,
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overload-s", type=float, default=60)
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        run, (texts, photos) = folder / "run", products_of(folder)
        with serving(run) as (_, _, start):
            results: dict[str, object] = {"start": {key: round(value, 2) for key, value in start.items()}}
        results["load_average"] = round(os.getloadavg()[0], 1)
        results["saturation"] = saturated = saturation(run, texts, photos, arguments.rounds)
        results["overhead"] = overhead(run, texts[0], next(filter(None, photos)))
        rate = 3 * saturated["requests of 1"]["products_per_s"]
        results["overload"] = overload(run, texts, photos, rate, arguments.overload_s)
    print(json.dumps(results, indent=1))
    save("serve", results)


if __name__ == "__main__":
    main()
