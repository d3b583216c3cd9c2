"""Tells others of a training while it runs: a ClearML task, TensorBoard, MLflow, or any other tracker of accelerate."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from product_classificator.errors import DataError, MissingExtraError, nearest
from product_classificator.finetuning.epochs import FinetuneCallbacks
from product_classificator.training import EpochFacts
from product_classificator.training.train import Callbacks

PROJECT = "product_classificator"
_EXTRAS = ("clearml", "tensorboard")


class TaskLogger(Protocol):
    """The logger of a ClearML task."""

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        """Adds a point to a curve."""

    def report_text(self, text: str) -> None:
        """Adds a line to the log."""


class Task(Protocol):
    """A ClearML task."""

    def get_logger(self) -> TaskLogger:
        """Returns its logger."""


class _Tracker:
    """A tracker of accelerate that is told as a ClearML task is."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        self._tracker.log({f"{title}/{series}": value}, step=iteration)

    def report_text(self, text: str) -> None:
        """Trackers have curves only."""


@contextmanager
def tracking(
    task: Task | str | None, folder: Path, settings: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[TaskLogger | None]:
    """Opens whom a training tells, for the time of the block.

    Args:
        task: a ClearML task, which is not closed; or the name of a tracker of accelerate ("tensorboard", "mlflow",
            "wandb", ...), which is; `None`: nobody.
        folder: of the run; a tracker that writes files does so in `<folder>/<name>`.
        settings: what a tracker of accelerate shows beside the curves; values may be mappings.

    Raises:
        DataError: there is no tracker of that name, or its package is not installed.
        MissingExtraError: as before, of a tracker that has an extra.
    """
    if not isinstance(task, str):
        yield None if task is None else task.get_logger()
        return
    tracker = _open_tracker(task, folder)
    tracker.store_init_configuration(_flat(settings))
    try:
        yield _Tracker(tracker)
    finally:
        tracker.finish()


def _open_tracker(name: str, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise DataError(f"there is no tracker {name!r}: {nearest(name, LOGGER_TYPE_TO_CLASS)}")
    if name not in [str(found) for found in get_available_trackers()]:
        if name in _EXTRAS:
            raise MissingExtraError(f"the tracker {name!r}", name)
        raise DataError(f"the tracker {name!r} needs a package that is not installed: pip install {name}")
    PartialState()  # trackers ask it whether this process is the first
    kind = LOGGER_TYPE_TO_CLASS[name]
    place = {"logging_dir": str(folder / name)} if kind.requires_logging_directory else {}
    tracker = kind(PROJECT, **place)
    tracker.start()
    return tracker


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str | float | bool | None]:
    flat: dict[str, str | float | bool | None] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value if isinstance(value, str | float | int | None) else str(value)
    return flat


def tracked(callbacks: Callbacks, logger: TaskLogger | None) -> Callbacks:
    """Returns a callbacks of a training of heads that tells a logger, too: stages, and a point per epoch and curve."""
    if logger is None:
        return callbacks

    def on_stage(sentence: str) -> None:
        logger.report_text(sentence)
        callbacks.on_stage(sentence)

    def on_epoch(epoch: EpochFacts) -> None:
        logger.report_scalar("train loss", "all characteristics", epoch.train_loss, epoch.epoch)
        for name, score in {**epoch.valid_macro_f1, "mean": epoch.mean_valid_macro_f1}.items():
            logger.report_scalar("valid macro-F1", name, score, epoch.epoch)
        if callbacks.on_epoch is not None:
            callbacks.on_epoch(epoch)

    return replace(callbacks, on_stage=on_stage, on_epoch=on_epoch)


def tracked_finetuning(callbacks: FinetuneCallbacks, logger: TaskLogger | None) -> FinetuneCallbacks:
    """Returns a callbacks of a tuning that tells a logger, too: stages, the loss of each step, points per epoch."""
    if logger is None:
        return callbacks

    def on_stage(sentence: str) -> None:
        logger.report_text(sentence)
        callbacks.on_stage(sentence)

    def on_step(epoch: int, step: int, of: int, loss: float) -> None:
        logger.report_scalar("contrastive loss", "step", loss, (epoch - 1) * of + step)
        if callbacks.on_step is not None:
            callbacks.on_step(epoch, step, of, loss)

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
