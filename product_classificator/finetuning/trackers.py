"""Report training progress to a ClearML task, TensorBoard, MLflow, or any other tracker of accelerate."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from product_classificator.errors import DataError, nearest
from product_classificator.training import Callbacks, EpochFacts

PROJECT = "product_classificator"


@contextmanager
def tracking(callbacks: Callbacks, task: Any, folder: Path, settings: Mapping[str, Any]) -> Iterator[Callbacks]:
    """Yield callbacks that also log stages, and losses, recall and macro-F1 per epoch.

    The task is a ClearML task, which is left open; or the name of a tracker of accelerate ("tensorboard", "mlflow",
    "wandb", ...), which gets the settings, may write to `<folder>/<name>`, and is closed at the end; `None`: nothing is
    logged.

    Raises:
        DataError: there is no tracker of that name, or its package is not installed.
    """
    if task is None:
        yield callbacks
    elif isinstance(task, str):
        tracker = _start_tracker(task, folder, settings)
        try:
            yield _tracked(callbacks, lambda title, name, value, step: tracker.log({f"{title}/{name}": value}, step))
        finally:
            tracker.finish()
    else:
        logger = task.get_logger()

        def on_stage(sentence: str) -> None:
            logger.report_text(sentence)
            callbacks.on_stage(sentence)

        yield _tracked(replace(callbacks, on_stage=on_stage), logger.report_scalar)


def _start_tracker(name: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise DataError(f"there is no tracker {name!r}: {nearest(name, LOGGER_TYPE_TO_CLASS)}")
    if name not in map(str, get_available_trackers()):
        raise DataError(f"the tracker {name!r} needs a package that is not installed: pip install {name}")
    PartialState()  # trackers look up there whether this is the main process
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(PROJECT, **({"logging_dir": str(folder / name)} if kind.requires_logging_directory else {}))
    tracker.start()
    (flat,) = pd.json_normalize(dict(settings)).to_dict("records")  # "heads.hidden" and the like
    plain = {key: value if isinstance(value, str | float | int | None) else str(value) for key, value in flat.items()}
    tracker.store_init_configuration(plain)
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

    return replace(callbacks, on_step=on_step, on_epoch=on_epoch)
