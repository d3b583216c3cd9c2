"""The review page with a million products: opening, the next product, memory.

    python benchmarks/review_page.py [--rows 1000000] [--decisions 200] [--cache FOLDER]

Table and bulk predictions are generated, their photos are a thousand drawn ones in a zip; the run is that of a small
synthetic shop. The command is started as people start it, twice: the first opening makes the files beside the run.
"Next" is a decision over HTTP, from the request to the next product, written to the disk in between; .3 s pass before
each, less than people take, in which the page prepares the product that follows.
"""

import argparse
import html
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import parse, save

from product_classificator import make_marketplace, read_catalog, train_heads
from product_classificator.heads import HeadBundle

SHOP_PRODUCTS, BATCH, PAUSE_S = 1_000, 50_000, 0.3


def prepare(folder: Path, rows: int) -> tuple[Path, Path, Path, Path]:
    """Return run, table, photos and predictions, made once."""
    run, table, predictions = folder / "run", folder / f"table-{rows}.parquet", folder / f"predictions-{rows}.parquet"
    shop = make_marketplace(folder / "shop", SHOP_PRODUCTS)
    if not (run / "run.json").is_file():
        train_heads(read_catalog(shop.table, shop.images), run)
    texts = pq.read_table(shop.table, columns=["nm", "title", "description"]).to_pydict()
    labels, random = HeadBundle.load(run / "bundle").labels, np.random.default_rng(0)
    writers = []
    for start in () if predictions.is_file() else range(0, rows, BATCH):
        n = min(BATCH, rows - start)
        chosen = random.integers(0, SHOP_PRODUCTS, n)
        ids = pa.array(np.arange(start, start + n)).cast(pa.string())
        products = {"nm": ids, "photo": pa.array([f"{texts['nm'][i]}.jpg" for i in chosen])}
        for name in ("title", "description"):
            products[name] = pa.array([f"{texts[name][i]} {start + k}" for k, i in enumerate(chosen)])
        predicted = {"nm": ids}
        for name, names in labels.items():
            first = random.beta(5, 1, n).astype(np.float32)
            order = np.argsort(random.random((n, len(names))), axis=1)[:, :3]
            for rank in range(order.shape[1]):
                column = name if rank == 0 else f"{name}_{rank + 1}"
                predicted[column] = pa.array(np.array(names, object)[order[:, rank]])
                predicted[f"{column}_probability"] = first if rank == 0 else (1 - first) / 2**rank
            predicted[f"{name}_decision"] = pa.array(np.where(first > 0.9, "auto", "review"))
        for i, (path, content) in enumerate(((table, products), (predictions, predicted))):
            part = pa.table(content)
            if start == 0:
                writers.append(pq.ParquetWriter(path.with_suffix(".tmp"), part.schema))
            writers[i].write_table(part)
    for writer, path in zip(writers, (table, predictions), strict=False):
        writer.close()
        path.with_suffix(".tmp").rename(path)
    return run, table, shop.images, predictions


def memory_mb(pid: int) -> dict[str, float]:
    """Return the resident memory of a process, now and at most."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM")}


def measure(command: list[str], port: int, decisions: int) -> dict[str, object]:
    """Start the command, decide some products, and return what it took."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        token = next(line for line in process.stdout if line.startswith("token: ")).split()[1]
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        opened_s = time.perf_counter() - began
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True, timeout=120) as client:
            client.post("/login", data={"secret": token, "name": "Anna"})
            began = time.perf_counter()
            page = client.get("/").text
            first_page_s = time.perf_counter() - began
            client.headers["X-CSRF-Token"] = re.search(r'"X-CSRF-Token": "(\w+)"', page)[1]
            took_ms = []
            for _ in range(decisions):
                fields = dict(re.findall(r'<input type="hidden" name="(\w+)"(?: id="\w+")? value="([^"]*)"', page))
                fields = {name: html.unescape(value) for name, value in fields.items()}
                # Generated labels contradict one another: where none is left, it is "none of these".
                fields |= {f"t{name[1:]}": "1" for name in fields if name.startswith("q")}
                time.sleep(PAUSE_S)
                began = time.perf_counter()
                response = client.post("/decide", data={**fields, "do": "accept"})
                took_ms.append(1000 * (time.perf_counter() - began))
                response.raise_for_status()
                page = response.text
        used = memory_mb(process.pid)
        process.terminate()
    return {
        "opened_s": round(opened_s, 2),
        "first_page_s": round(first_page_s, 3),
        "next_ms": {f"p{p}": round(float(np.percentile(took_ms, p)), 1) for p in (50, 95, 99)},
        "memory_mb": {name: round(value) for name, value in used.items()},
    }


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--decisions", type=int, default=200)
    arguments = parse(parser)
    folder = arguments.cache / "review"
    folder.mkdir(exist_ok=True)
    run, table, images, predictions = prepare(folder, arguments.rows)
    shutil.rmtree(folder / "run.review", ignore_errors=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "product_classificator", "review", str(run), str(table), "--images", str(images)]
    command += ["--photo", "photo", "--predictions", str(predictions), "--port", str(port)]
    results = {opening: measure(command, port, arguments.decisions) for opening in ("first", "later")}
    print(results, save("review_page", {"rows": arguments.rows, "decisions": arguments.decisions, **results}), sep="\n")


if __name__ == "__main__":
    main()
