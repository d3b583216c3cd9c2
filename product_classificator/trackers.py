"""Report training progress to a ClearML task, TensorBoard, MLflow, or any other tracker of accelerate."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVarTuple

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from product_classificator.errors import DataError, MissingExtraError, nearest
from product_classificator.finetuning import FinetuneCallbacks
from product_classificator.training import Callbacks, EpochFacts

PROJECT = "product_classificator"
_EXTRAS = ("clearml", "tensorboard")
_Arguments = TypeVarTuple("_Arguments")


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
    """A tracker of accelerate as a `TaskLogger`; trackers have no log of lines."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        self._tracker.log({f"{title}/{series}": value}, step=iteration)

    def report_text(self, text: str) -> None:
        pass


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
        DataError: there is no tracker of that name, or its package is not installed (`MissingExtraError` if it has an
            extra).
    """
    if not isinstance(task, str):
        yield None if task is None else task.get_logger()
        return
    if task not in LOGGER_TYPE_TO_CLASS:
        raise DataError(f"there is no tracker {task!r}: {nearest(task, LOGGER_TYPE_TO_CLASS)}")
    if task not in map(str, get_available_trackers()):
        if task in _EXTRAS:
            raise MissingExtraError(f"the tracker {task!r}", task)
        raise DataError(f"the tracker {task!r} needs a package that is not installed: pip install {task}")
    PartialState()  # trackers look up there whether this is the main process
    kind = LOGGER_TYPE_TO_CLASS[task]
    tracker: Any = kind(PROJECT, **({"logging_dir": str(folder / task)} if kind.requires_logging_directory else {}))
    tracker.start()
    tracker.store_init_configuration(dict(_flat(settings)))
    try:
        yield _TrackerLogger(tracker)
    finally:
        tracker.finish()


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

    def log_epoch(epoch: EpochFacts) -> None:
        logger.report_scalar("train loss", "all characteristics", epoch.train_loss, epoch.epoch)
        for name, score in {**epoch.valid_macro_f1, "mean": epoch.mean_valid_macro_f1}.items():
            logger.report_scalar("valid macro-F1", name, score, epoch.epoch)

    on_stage = _both(logger.report_text, callbacks.on_stage)
    return replace(callbacks, on_stage=on_stage, on_epoch=_both(log_epoch, callbacks.on_epoch))


def tracked_finetuning(callbacks: FinetuneCallbacks, logger: TaskLogger | None) -> FinetuneCallbacks:
    """Return callbacks that also log stages, the loss of each step, and losses, recall and macro-F1 per epoch."""
    if logger is None:
        return callbacks

    def log_step(epoch: int, step: int, steps: int, loss: float) -> None:
        logger.report_scalar("contrastive loss", "step", loss, (epoch - 1) * steps + step)

    def log_epoch(row: Mapping[str, Any]) -> None:
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

    on_stage, on_step = _both(logger.report_text, callbacks.on_stage), _both(log_step, callbacks.on_step)
    return replace(callbacks, on_stage=on_stage, on_step=on_step, on_epoch=_both(log_epoch, callbacks.on_epoch))


def _both(
    log: Callable[[*_Arguments], None], callback: Callable[[*_Arguments], None] | None
) -> Callable[[*_Arguments], None]:
    def log_and_call(*arguments: *_Arguments) -> None:
        log(*arguments)
        if callback is not None:
            callback(*arguments)

    return log_and_call
