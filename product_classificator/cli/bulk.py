"""`predict` and `embed` in units, in several processes or on several machines; `status` and `join`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from product_classificator.catalog import Catalog
from product_classificator.classificator import Classificator
from product_classificator.classificator.rows import OutputOptions
from product_classificator.cli import console
from product_classificator.cli.options import ClusterOptions, Embed, Join, Predict, Status
from product_classificator.cluster.plan import Plan, Totals, finish, make_plan
from product_classificator.cluster.runners import LocalRunner, RayRunner, Runner, import_ray, running
from product_classificator.cluster.storage import Storage
from product_classificator.cluster.work import Recipe, embedding, predicting
from product_classificator.embeddings.progress import bars
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import Encoder, cores
from product_classificator.errors import DataError
from product_classificator.predict_file import FORMATS, PredictSummary, join_parts, predict_with
from product_classificator.remote.paths import as_path


def runner_of(options: ClusterOptions) -> Runner | None:
    """Return who does the work in units, `None` if this process does it; what that needs is checked."""
    address, cpus, gpus = options.cluster, options.cpus_per_worker, options.gpus_per_worker
    if address is None:
        return None
    if address == "local":
        return LocalRunner(options.workers or max(int(cores() / max(cpus, 1)), 1), gpus)
    if address != "auto" and not address.startswith("ray://"):
        raise DataError(f"a cluster is local, auto or ray://host:10001, got {address!r}")
    import_ray()
    return RayRunner(address, options.workers, gpus, cpus)


def predict_in_units(
    runner: Runner | None,
    options: Predict,
    catalog: Catalog,
    classificator: Classificator,
    store: EmbeddingStore | None,
) -> PredictSummary | None:
    """Predict in units; without a runner only their plan is written."""
    out, rows = str(options.out), options.by.unit_rows
    written = OutputOptions(options.top_k, options.min_precision, options.bom)
    work = predicting(classificator, catalog, written, store)
    loading = {"heads_ver": str(as_path(str(options.run)).absolute()), "model_name": options.encoder.encoder}
    loading |= {"device": options.encoder.device, "dtype": options.encoder.dtype}
    recipe = Recipe.of(catalog, loading, written, store and store.folder.absolute())
    if runner:
        with _bar(len(catalog)) as on_rows:
            return predict_with(runner, work, out, recipe=recipe, rows=rows, on_rows=on_rows)
    plan = make_plan(Storage(out), catalog.table, work.facts, rows, asdict(recipe))
    console.log.print(f"{plan.n_units} units of {plan.n_rows} rows in all: do each, then join them")
    console.log.print(f"next:   product-classificator predict --plan {out} --unit N   (0 to {plan.n_units - 1})")
    console.log.print(f"        product-classificator join {out} --out FILE")
    return None


def embed_in_units(runner: Runner, options: Embed, catalog: Catalog, encoder: Encoder) -> Totals:
    """Embed in units; every worker writes shards of its own into the store."""
    chosen, rows = options.encoder, options.by.unit_rows
    loading = {"name": chosen.encoder or "lite", "device": chosen.device, "dtype": chosen.dtype}
    work = embedding(encoder, catalog, EmbeddingStore(options.out, encoder, reads=False))
    recipe, units = Recipe.of(catalog, loading, None, options.out.absolute()), Storage(options.out / "units.parts")
    with (
        _bar(len(catalog)) as on_rows,
        running(units, work, runner, recipe=recipe, rows=rows, on_rows=on_rows) as (plan, _),
    ):
        return finish(plan)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    with bars() as progress:
        task = progress.add_task("products", total=total, notes="")
        yield lambda rows: progress.update(task, completed=rows)


def _open_plan(folder: Path) -> Plan:
    """Open the plan of a folder, of a store, or of a file that is not finished."""
    paths = (folder / "units.parts", folder.with_name(folder.name + ".parts"), folder)
    return Plan.open(Storage(next((path for path in paths if path.is_dir()), folder)))


def status(options: Status) -> None:
    """Print how far a plan is."""
    plan = _open_plan(options.folder)
    now = plan.progress()
    counts = f"{now['running']} running, {len(now['quarantined'])} in quarantine"
    console.out.print(f"{now['units']} of {plan.n_units} units done, {counts}")
    left = timedelta(seconds=round((plan.n_rows - now["rows"]) / now["rate"])) if now["rate"] else "unknown"
    console.out.print(f"{now['rows']} of {plan.n_rows} rows done, {now['rate']:.0f} a second, time left: {left}")
    for unit, error in now["quarantined"].items():
        console.out.print(f"  {unit}: {error}", soft_wrap=True)


def join(options: Join) -> None:
    """Check all parts, write `_SUCCESS.json`, and join the parts to a file."""
    plan = _open_plan(options.folder)
    if options.out and options.out.suffix.lower() not in FORMATS:
        raise DataError(f"predictions are written as {', '.join(FORMATS)}, got {options.out.name}")
    totals = finish(plan)
    if options.out:
        join_parts(plan, options.out, bom=options.bom)
    console.log.print(f"{totals.rows} rows in {options.out or plan.storage}")
    console.print_counts("rows with warnings", totals.warnings)
