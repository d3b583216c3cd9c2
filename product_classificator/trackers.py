"""Reports training progress to a ClearML task, TensorBoard, MLflow, or any other tracker of accelerate."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from product_classificator.errors import DataError, MissingExtraError, nearest
from product_classificator.finetuning import FinetuneCallbacks
from product_classificator.training import Callbacks, EpochFacts

PROJECT = "product_classificator"
_EXTRAS = ("clearml", "tensorboard")


class TaskLogger(Protocol):
    """The logger of a ClearML task."""

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        """Add a point to a curve."""

    def report_text(self, text: str) -> None:
        """Add a line to the log."""


class Task(Protocol):
    """A ClearML task."""

    def get_logger(self) -> TaskLogger:
        """Return its logger."""


class _TrackerLogger:
    """A tracker of accelerate behind the interface of `TaskLogger`."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        self._tracker.log({f"{title}/{series}": value}, step=iteration)

    def report_text(self, text: str) -> None:
        """Do nothing: trackers only have curves."""


@contextmanager
def tracking(
    task: Task | str | None, folder: Path, settings: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[TaskLogger | None]:
    """Open the logger of a task or tracker for the duration of the block.

    Args:
        task: a ClearML task, which is left open; or the name of a tracker of accelerate ("tensorboard", "mlflow",
            "wandb", ...), which is closed at the end.
        folder: of the run; a tracker that writes files does so in `<folder>/<name>`.
        settings: hyperparameters shown by a tracker of accelerate; values may be mappings.

    Raises:
        DataError: there is no tracker of that name, or its package is not installed.
        MissingExtraError: likewise, for a tracker that has an extra.
    """
    if not isinstance(task, str):
        yield None if task is None else task.get_logger()
        return
    tracker = _open_tracker(task, folder)
    tracker.store_init_configuration(dict(_flat(settings)))
    try:
        yield _TrackerLogger(tracker)
    finally:
        tracker.finish()


def _open_tracker(name: str, folder: Path) -> Any:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise DataError(f"there is no tracker {name!r}: {nearest(name, LOGGER_TYPE_TO_CLASS)}")
    if name not in [str(available) for available in get_available_trackers()]:
        if name in _EXTRAS:
            raise MissingExtraError(f"the tracker {name!r}", name)
        raise DataError(f"the tracker {name!r} needs a package that is not installed: pip install {name}")
    PartialState()  # trackers look up there whether this is the main process
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(PROJECT, **({"logging_dir": str(folder / name)} if kind.requires_logging_directory else {}))
    tracker.start()
    return tracker


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float | bool | None]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str | float | int | None) else str(value)


def tracked(callbacks: Callbacks, logger: TaskLogger | None) -> Callbacks:
    """Return callbacks that also log stages, and losses and macro-F1 per epoch of the heads."""
    if logger is None:
        return callbacks

    def on_stage(stage: str) -> None:
        logger.report_text(stage)
        callbacks.on_stage(stage)

    def on_epoch(epoch: EpochFacts) -> None:
        logger.report_scalar("train loss", "all characteristics", epoch.train_loss, epoch.epoch)
        for name, score in {**epoch.valid_macro_f1, "mean": epoch.mean_valid_macro_f1}.items():
            logger.report_scalar("valid macro-F1", name, score, epoch.epoch)
        if callbacks.on_epoch is not None:
            callbacks.on_epoch(epoch)

    return replace(callbacks, on_stage=on_stage, on_epoch=on_epoch)


def tracked_finetuning(callbacks: FinetuneCallbacks, logger: TaskLogger | None) -> FinetuneCallbacks:
    """Return callbacks that also log stages, the loss of each step, and losses, recall and macro-F1 per epoch."""
    if logger is None:
        return callbacks

    def on_stage(stage: str) -> None:
        logger.report_text(stage)
        callbacks.on_stage(stage)

    def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
        logger.report_scalar("contrastive loss", "step", loss, (epoch - 1) * steps + step)
        if callbacks.on_step is not None:
            callbacks.on_step(epoch, step, steps, loss)

    def on_epoch(row: Mapping[str, Any]) -> None:
        curves = {
            ("contrastive loss", "train"): row["train_loss"],
            ("contrastive loss", "valid"): row["valid_loss"],
            ("recall@1", "valid"): row["recall_at_1"],
            ("valid macro-F1", "mean"): row["valid_macro_f1"],
            **{("valid macro-F1", name): score for name, score in row["characteristics"].items()},
        }
        for (title, series), value in curves.items():
            if value is not None:
                logger.report_scalar(title, series, value, row["epoch"])
        if callbacks.on_epoch is not None:
            callbacks.on_epoch(row)

    return replace(callbacks, on_stage=on_stage, on_step=on_step, on_epoch=on_epoch)
