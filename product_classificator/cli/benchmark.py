"""`benchmark`: the speed of a run on this machine; with `lite` and exports it imports nothing of torch."""

import json
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from product_classificator.catalog import Catalog, open_images, read_catalog
from product_classificator.catalog.lookup import EXTENSIONS
from product_classificator.catalog.photo import PhotoError
from product_classificator.classificator import Classificator
from product_classificator.cli import console
from product_classificator.cli.options import Benchmark
from product_classificator.cli.tables import open_catalog, open_once
from product_classificator.demo import make_marketplace
from product_classificator.encoders.clip import dtype_of
from product_classificator.errors import DataError
from product_classificator.files import write_text
from product_classificator.published.speed import STAGES, SpeedTest

_LEAST_PRODUCTS = 50  # of a marketplace


def benchmark(options: Benchmark) -> None:
    """Print products per second, and milliseconds per product of each stage, for each batch size."""
    chosen = options.encoder
    classificator = Classificator(chosen.device, model_name=chosen.encoder, heads_ver=options.run, dtype=chosen.dtype)
    with TemporaryDirectory() as folder:
        texts, photos = _sample(options, classificator, Path(folder))
    columns = ("batch", "products/s", "ms", *STAGES)
    test, table = SpeedTest(classificator), console.result_table(*columns, right=columns)
    sizes = [size for size in options.batch_sizes if size <= len(texts)]
    if not sizes:
        raise DataError(f"a batch must hold no more than the {len(texts)} products: name smaller --batch-sizes")
    for size in sizes:
        with console.log.status(f"batches of {size}"):
            test.test_inference(texts, photos, size)
        speed, stages = test.tests[-1]["products_per_second"], test.tests[-1]["stages_ms"].values()
        table.add_row(str(size), f"{speed:.1f}", *(f"{ms:.1f}" for ms in (1000 / speed, *stages)))
    encoder = {"encoder": classificator.model_name, "dtype": dtype_of(classificator.encoder), "device": chosen.device}
    made = "" if options.table else " (texts, and photos without --images, are generated)"
    n_photos = sum(map(len, photos))
    console.log.print(f"{len(texts)} products, {n_photos} photos{made}; {' '.join(filter(None, encoder.values()))}")
    console.log.print(", ".join(f"{name} {value}" for name, value in test.machine_info.items() if value))
    console.out.print(table)
    console.log.print("ms: of one product, as are those of the stages (median), one stage after the other")
    if options.json is not None:
        results = [{key: value for key, value in one.items() if key != "log"} for one in test.tests]
        content = {"run": str(options.run), **encoder, "machine": test.machine_info, "results": results}
        write_text(options.json, json.dumps(content, ensure_ascii=False, indent=2))


def _sample(options: Benchmark, classificator: Classificator, folder: Path) -> tuple[list[str], list[list[bytes]]]:
    """Return texts and photo files: of a table, or generated, with the photos of `--images` if they are given."""
    products, n = options.products, options.sample
    if options.table is not None:
        table, columns = open_once(options.table, products.encoding)
        return _read(open_catalog(table, columns, products, run=classificator.run), n)
    shop = make_marketplace(folder, max(n, _LEAST_PRODUCTS))
    texts, photos = _read(read_catalog(shop.table, shop.images), n)
    if products.images is not None:
        with open_images(products.images) as source:
            names = [name for name in source.names() if name.lower().endswith(EXTENSIONS)][:n]
            photos = [[source.read(name)] for name in names]
        if not photos:
            raise DataError(f"{products.images} holds no photos: name another folder or zip (--images)")
    return [*islice(cycle(texts), len(photos))], photos


def _read(catalog: Catalog, n: int) -> tuple[list[str], list[list[bytes]]]:
    batch, photos = next(catalog.batches(n)), list[list[bytes]]()
    for images in batch.images:
        photos.append([])
        for image in images:
            with suppress(PhotoError):
                photos[-1].append(catalog.image_bytes(image))
    return batch.texts, photos
