"""Show the progress of a training on stderr, and log it to a ClearML task or a tracker of accelerate (TensorBoard)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from product_classificator.embeddings.progress import bars, log, product_bar
from product_classificator.errors import DataError, nearest
from product_classificator.evaluation import Evaluation, evaluation_json
from product_classificator.training import Callbacks, EpochFacts

PROJECT = "product_classificator"


@contextmanager
def tracking(callbacks: Callbacks, task: Any, folder: Path, settings: Mapping[str, Any]) -> Iterator[Callbacks]:
    """Yield callbacks that also log stages, losses, recall and macro-F1 per epoch, and in the end the scores.

    The task is a ClearML task, which also gets the settings, and scores and report as artefacts, and is left open; or
    the name of a tracker of accelerate ("tensorboard", "mlflow", "wandb", ...), which gets the settings, and the report
    if it can show one, may write to `<folder>/<name>`, and is closed at the end; `None`: nothing is logged.

    Raises:
        DataError: there is no tracker of that name, or its package is not installed.
    """
    if task is None:
        yield callbacks
    elif isinstance(task, str):
        tracker = _start_tracker(task, folder, settings)

        def on_result(report: Path, evaluation: Evaluation) -> None:
            if hasattr(tracker, "log_artifacts"):  # that of MLflow
                tracker.log_artifacts(str(report), "report")
            elif hasattr(tracker.tracker, "add_text"):  # that of TensorBoard, which shows Markdown
                tracker.tracker.add_text("report", (report / "report.md").read_text("utf-8"))
            callbacks.on_result(report, evaluation)

        logged = replace(callbacks, on_result=on_result)
        try:
            yield _tracked(logged, lambda title, name, value, step: tracker.log({f"{title}/{name}": value}, step))
        finally:
            tracker.finish()
    else:
        logger = task.get_logger()
        task.connect(_flat(settings), name="settings")

        def on_stage(sentence: str) -> None:
            logger.report_text(sentence)
            callbacks.on_stage(sentence)

        def on_result(report: Path, evaluation: Evaluation) -> None:
            task.upload_artifact("scores", evaluation_json(evaluation))
            task.upload_artifact("report", report)  # a folder, which ClearML zips
            callbacks.on_result(report, evaluation)

        yield _tracked(replace(callbacks, on_stage=on_stage, on_result=on_result), logger.report_scalar)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings as "heads.hidden" and the like, with plain values."""
    (flat,) = pd.json_normalize(dict(settings)).to_dict("records")
    return {key: value if isinstance(value, str | float | int | None) else str(value) for key, value in flat.items()}


@contextmanager
def training_progress(total: int) -> Iterator[Callbacks]:
    """Show the progress of a training on stderr: a line per stage and epoch, bars over `total` products and steps."""

    def on_step(epoch: int, step: int, of: int, loss: float) -> None:
        progress.update(steps, completed=step, total=of, description=f"epoch {epoch}, loss {loss:.3f}", visible=True)

    def on_epoch(facts: EpochFacts) -> None:
        values = {"validation loss": facts.valid_loss, "recall@1": facts.recall_at_1, "loss": facts.train_loss}
        values["macro-F1 of the heads"] = facts.valid_macro_f1
        shown = [f"{name} {value:.3f}" for name, value in values.items() if value is not None]
        shown += [f"{facts.seconds:.1f} s"] if facts.seconds else []
        log.print(f"   epoch {facts.epoch:>2}  {'  '.join(shown)}")

    with bars() as progress:
        on_chunk = product_bar(progress, total)
        steps = progress.add_task("steps", total=None, visible=False, notes="")
        on_products = partial(progress.advance, progress.task_ids[0])
        yield Callbacks(partial(log.print, style="bold"), on_chunk, on_epoch, on_products, on_step)


def _start_tracker(name: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise DataError(f"there is no tracker {name!r}: {nearest(name, LOGGER_TYPE_TO_CLASS)}")
    if name not in map(str, get_available_trackers()):
        raise DataError(f"the tracker {name!r} needs a package that is not installed: pip install {name}")
    PartialState()  # trackers look up there whether this is the main process
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(PROJECT, **({"logging_dir": str(folder / name)} if kind.requires_logging_directory else {}))
    tracker.start()
    tracker.store_init_configuration(_flat(settings))
    return tracker


def _tracked(callbacks: Callbacks, log: Callable[[str, str, float, int], None]) -> Callbacks:
    def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
        log("contrastive loss", "step", loss, (epoch - 1) * steps + step)
        if callbacks.on_step:
            callbacks.on_step(epoch, step, steps, loss)

    def on_epoch(facts: EpochFacts) -> None:
        is_finetuning = facts.valid_loss is not None
        loss = ("contrastive loss", "train") if is_finetuning else ("train loss", "all characteristics")
        curves = {
            loss: facts.train_loss,
            ("contrastive loss", "valid"): facts.valid_loss,
            ("recall@1", "valid"): facts.recall_at_1,
            ("valid macro-F1", "mean"): facts.valid_macro_f1,
            **{("valid macro-F1", name): score for name, score in facts.characteristics.items()},
        }
        for (title, series), value in curves.items():
            if value is not None:
                log(title, series, value, facts.epoch)
        if callbacks.on_epoch:
            callbacks.on_epoch(facts)

    def on_result(report: Path, evaluation: Evaluation) -> None:
        scores = {name: score.macro_f1 for name, score in evaluation.characteristics.items()}
        for name, macro_f1 in (scores | {"mean": evaluation.mean_macro_f1}).items():
            if macro_f1 is not None:
                log("macro-F1", name, macro_f1, 0)
        callbacks.on_result(report, evaluation)

    return replace(callbacks, on_step=on_step, on_epoch=on_epoch, on_result=on_result)
