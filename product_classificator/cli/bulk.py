"""`predict` and `embed` in units, in several processes or on several machines; `status` and `join`."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from product_classificator.catalog import Catalog
from product_classificator.classificator import Classificator
from product_classificator.classificator.rows import OutputOptions
from product_classificator.classificator.work import embedding, predicting
from product_classificator.cli import console
from product_classificator.cli.options import ClusterOptions, Embed, Join, Predict, Status
from product_classificator.cluster.drive import Units
from product_classificator.cluster.plan import PLAN, UNIT_ROWS, Plan, Unit, make_plan
from product_classificator.cluster.runners import LocalRunner, RayRunner, Runner, import_ray, running, visible_gpus
from product_classificator.cluster.storage import DRIVER, LEASE_SECONDS, Storage, single_driver
from product_classificator.cluster.work import Recipe
from product_classificator.embeddings.progress import bars
from product_classificator.embeddings.store import EmbeddingStore
from product_classificator.encoders import Encoder, cores
from product_classificator.errors import ArtifactError, DataError
from product_classificator.predict_file import (
    FORMATS,
    PredictSummary,
    Totals,
    check_file,
    check_output,
    finish,
    join_parts,
    parts_folder,
    predict_with,
)
from product_classificator.remote.paths import as_path

_NO_FOLDERS = (".xls", ".xlsm", ".ods", ".tsv", ".txt", ".json", ".feather", ".arrow", ".pq", ".gz", ".zip", ".zst")


def runner_of(options: ClusterOptions) -> Runner | None:
    """Return who does the work in units, `None` if this process does it; what that needs is checked."""
    address, cpus, gpus = options.cluster, options.cpus_per_worker, options.gpus_per_worker
    if address is None:
        if replace(options, unit_rows=None) != ClusterOptions():
            raise DataError("workers need a --cluster: name local, auto or ray://host:10001")
        return None
    if address == "local":
        workers = options.workers or max(int(cores() / max(cpus, 1)), 1)
        return LocalRunner(_capped(workers, gpus, len(visible_gpus())) if gpus else workers, gpus)
    if address != "auto" and not address.startswith("ray://"):
        raise DataError(f"a cluster is local, auto or ray://host:10001, got {address!r}")
    import_ray()
    return RayRunner(address, options.workers, gpus, cpus)


def _capped(workers: int, share: float, n_gpus: int) -> int:
    """Return how many workers have a share of the GPUs; `DataError` if none has."""
    if not (room := int(n_gpus / share + 1e-9)):
        rule = f"workers with {share:g} GPUs each need as many"
        raise DataError(f"{rule}, {n_gpus} are visible: name fewer, or those there are (CUDA_VISIBLE_DEVICES)")
    if room < workers:
        console.log.print(f"{n_gpus} GPUs have room for {room} workers, not for {workers}", style="yellow")
    return min(room, workers)


def predict_in_units(
    runner: Runner | None,
    options: Predict,
    catalog: Catalog,
    classificator: Classificator,
    store: EmbeddingStore | None,
) -> PredictSummary | None:
    """Predict in units; without a runner only their plan is written."""
    out = as_path(str(options.out))
    if out.suffix.lower() in (_NO_FOLDERS if runner else (*_NO_FOLDERS, *FORMATS)):
        files = f"as {', '.join(FORMATS)}, or " if runner else ""
        raise DataError(f"predictions are written {files}into a folder, got {out.name}")
    storage = Storage(parts_folder(out) if runner else out)
    rows = _unit_rows(storage, options.by.unit_rows)
    written = OutputOptions(options.top_k, options.min_precision, options.bom)
    work = predicting(classificator, catalog, written, store)
    loading = {"heads_ver": str(as_path(str(options.run)).absolute()), "model_name": options.encoder.encoder}
    loading |= {"device": options.encoder.device, "dtype": options.encoder.dtype}
    recipe = Recipe.of(catalog, loading, written, store and store.folder.absolute())
    if runner:
        with _bar(len(catalog)) as on_rows:
            return predict_with(runner, work, out, recipe=recipe, rows=rows, on_rows=on_rows)
    check_output(catalog, out)
    with single_driver(storage):
        plan = make_plan(storage, catalog.table, work.facts, rows, asdict(recipe))
    console.log.print(f"{plan.n_units} units of {plan.n_rows} rows in all: do each, then join them")
    console.log.print(f"next:   product-classificator predict --plan {out} --unit N   (0 to {plan.n_units - 1})")
    console.log.print(f"        product-classificator join {out} --out FILE")
    return None


def embed_in_units(runner: Runner, options: Embed, catalog: Catalog, encoder: Encoder) -> Totals:
    """Embed in units; every worker writes shards of its own into the store."""
    chosen = options.encoder
    loading = {"name": chosen.encoder or "lite", "device": chosen.device, "dtype": chosen.dtype}
    work = embedding(encoder, catalog, EmbeddingStore(options.out, encoder, reads=False))
    recipe, units = Recipe.of(catalog, loading, None, options.out.absolute()), Storage(options.out / "units.parts")
    rows = _unit_rows(units, options.by.unit_rows)
    with (
        _bar(len(catalog)) as on_rows,
        running(units, work, runner, recipe=recipe, rows=rows, on_rows=on_rows) as (plan, _),
    ):
        totals = finish(plan)
        units.clear()  # what the store has, it knows itself: kept, they would hide shards that were deleted
        return totals


def _unit_rows(storage: Storage, rows: int | None) -> int:
    """Return the rows of a unit; `DataError` if unfinished work has units of another size than what is wanted."""
    made = storage.read_json(PLAN).get("unit_rows")
    if rows and made and rows != made:
        rule = f"{storage} has units of {made} rows, which stay as they are"
        raise DataError(f"{rule}, got --unit-rows {rows}: leave it out, or delete that folder")
    return rows or UNIT_ROWS


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    with bars() as progress:
        task = progress.add_task("products", total=total, notes="")
        yield lambda rows: progress.update(task, completed=rows)


def run_one(plan: Plan, number: int) -> Unit:
    """Do a unit of a plan with nothing but what the plan says; an `ArtifactError` says why it failed."""
    unit = plan.unit(number)
    if not plan.recipe:
        raise ArtifactError(f"{plan.storage} can be continued only by the call that began it")
    units = Units(plan, Recipe(**plan.recipe))
    if failure := units.open():
        raise ArtifactError(failure.message)
    failure = units.run(unit)
    plan.quarantine(unit, failure and failure.message, failure.trace if failure else "")
    if failure:
        raise ArtifactError(f"{unit} failed: {failure.message}")
    return unit


def _plan_folder(out: Path) -> Path:
    """Return the folder of the plan of an output, which may be a store or a file that is not finished."""
    folders = out / "units.parts", out.with_name(out.name + ".parts")
    return next((folder for folder in folders if folder.is_dir()), out)


def progress(plan: Plan) -> Mapping[str, Any]:
    """Return done units and rows, rows a second of the last ten minutes, units that run, and quarantined ones."""
    n_units = n_rows = recent_rows = 0
    since_s = now_s = time.time()
    for unit, part in plan.parts():
        if part is None:
            continue
        n_units, n_rows, written_s = n_units + 1, n_rows + unit.rows, part.mtime.timestamp() if part.mtime else 0.0
        if written_s > now_s - 600:
            recent_rows, since_s = recent_rows + unit.rows, min(since_s, written_s)
    driver = {"time": 0.0, **plan.storage.read_json(DRIVER)}
    n_running = driver.get("running", 0) if now_s - driver["time"] < LEASE_SECONDS else 0
    rate, why = recent_rows / max(now_s - since_s, 1.0), plan.quarantined()
    return {"units": n_units, "rows": n_rows, "rate": rate, "running": n_running, "quarantined": why}


def status(options: Status) -> None:
    """Print how far a plan is."""
    out = options.folder.absolute()
    if (folder := _plan_folder(out)) == out and (out.is_file() or (out / "store.json").is_file()):
        console.out.print(f"{options.folder} is finished: nothing of it is under way")
        return
    plan = Plan.open(Storage(folder))
    now = progress(plan)
    counts = f"{now['running']} running, {len(now['quarantined'])} in quarantine"
    console.out.print(f"{now['units']} of {plan.n_units} units done, {counts}")
    left = timedelta(seconds=round((plan.n_rows - now["rows"]) / now["rate"])) if now["rate"] else "unknown"
    console.out.print(f"{now['rows']} of {plan.n_rows} rows done, {now['rate']:.0f} a second, time left: {left}")
    for unit, error in now["quarantined"].items():
        console.out.print(f"  {unit}: {error}", soft_wrap=True)


def join(options: Join) -> None:
    """Check all parts, write `_SUCCESS.json`, and join the parts to a file."""
    plan = Plan.open(Storage(_plan_folder(options.folder.absolute())))
    if options.out:
        check_file(options.out, plan.n_rows)
        taken = [plan.storage.path, *map(as_path, (plan.recipe or {}).get("sources", ()))]
        if not {path.resolve() for path in taken}.isdisjoint((out := options.out.resolve(), *out.parents)):
            raise DataError(
                f"the output must be neither the table nor in a folder that is the table or the plan: {options.out}"
            )
    totals = finish(plan, join_parts(plan, options.out, bom=options.bom) if options.out else None)
    console.log.print(f"{totals.rows} rows in {options.out or plan.storage}")
    console.print_counts("rows with warnings", totals.warnings)
