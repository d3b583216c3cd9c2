"""Turns the parameters of the published `Trainer` into settings, and its ClearML task into a watch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from product_classificator.errors import DataError, nearest
from product_classificator.heads import EpochFacts, HeadSettings
from product_classificator.training.contrast import TuneSettings
from product_classificator.training.run import Watch
from product_classificator.training.tune import TuneWatch

Settings = TypeVar("Settings", HeadSettings, TuneSettings)

_ONLY: Mapping[str, tuple[str, ...]] = {
    "criterion": ("CrossEntropyLoss",),
    "optimizer": ("Adam", "AdamW"),
    "classificator": ("MLP",),
    "classificator_params.activation": ("ReLU",),
}
_RENAMED: Mapping[str, str] = {
    "epochs": "max_epochs",
    "batch_size": "batch_size",
    "optimizer_params.lr": "learning_rate",
    "optimizer_params.weight_decay": "weight_decay",
    "classificator_params.dropout": "dropout",
}
_KNOWN = (*_ONLY, *_RENAMED, "classificator_params.hidden_channels", "classificator_params.in_channels")


_TUNED: Mapping[str, str] = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "num_last_resblocks_to_train": "last_blocks",
    "optimizer_params.lr": "learning_rate",
    "optimizer_params.betas": "betas",
    "optimizer_params.eps": "eps",
    "optimizer_params.weight_decay": "weight_decay",
}
_ONLY_TUNED: Mapping[str, tuple[str, ...]] = {
    "img_criterion": ("CrossEntropyLoss",),
    "txt_criterion": ("CrossEntropyLoss",),
    "optimizer": ("Adam", "AdamW"),
}


def published_tuning(params: Mapping[str, Any]) -> TuneSettings:
    """Returns how the last blocks are tuned, as `ruclip_train_params` asks for.

    Args:
        params: as the published `Trainer` took them: epochs, batch_size, num_last_resblocks_to_train, optimizer,
            optimizer_params (lr, betas, eps, weight_decay), img_criterion, txt_criterion.

    Raises:
        DataError: a parameter is unknown, or asks for what the tuning does not have.
    """
    flat = _flat(params, "ruclip_train_params", (*_ONLY_TUNED, *_TUNED), _ONLY_TUNED)
    return _checked(TuneSettings(), {_TUNED[name]: value for name, value in flat.items() if name in _TUNED})


def _checked(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Returns settings with changes, whose types are checked like those of a settings file."""
    try:
        return TypeAdapter(type(settings)).validate_python({**asdict(settings), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"parameter {where}: {first['msg']}, got {first['input']!r}") from error


def _flat(
    params: Mapping[str, Any], where: str, known: Sequence[str], only: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Returns parameters with dotted names, checked."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        inner = name in ("optimizer_params", "classificator_params")
        if inner and not isinstance(value, Mapping):
            raise DataError(f"{name} of {where} must be a dictionary, got {value!r}")
        flat |= {f"{name}.{key}": item for key, item in value.items()} if inner else {name: value}
    for name, value in flat.items():
        if name not in known:
            raise DataError(f"{where} has no {name!r}: {nearest(name, known)}")
        given = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
        if name in only and given not in only[name]:
            raise DataError(f"{name} of {where} must be {' or '.join(only[name])}, got {given}")
    return flat


def published_settings(params: Mapping[str, Any], seed: int = 0) -> HeadSettings:
    """Returns the published recipe with the changes that `heads_train_params` asks for.

    Args:
        params: as the published `Trainer` took them: criterion, optimizer, optimizer_params (lr, weight_decay),
            classificator, classificator_params (hidden_channels, dropout, activation; in_channels follows from the
            encoder), epochs, batch_size. Classes may be given or named.
        seed: of weights, order and dropout.

    Raises:
        DataError: a parameter is unknown, or asks for what the heads do not have.
    """
    flat = _flat(params, "heads_train_params", _KNOWN, _ONLY)
    changes = {_RENAMED[name]: value for name, value in flat.items() if name in _RENAMED}
    hidden = flat.get("classificator_params.hidden_channels", [HeadSettings.published().hidden])
    hidden = [hidden] if isinstance(hidden, int) else hidden
    if len(hidden) != 1:
        raise DataError(f"hidden_channels of heads_train_params must name one hidden layer, got {list(hidden)}")
    settings = HeadSettings.published(seed)
    epochs = changes.get("max_epochs", settings.max_epochs)
    return _checked(settings, {"hidden": hidden[0], "patience": epochs, **changes})


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


def watched_by(task: Task, watch: Watch) -> Watch:
    """Returns a watch that tells a ClearML task, too: a line per stage, a point per epoch and characteristic."""
    log = task.get_logger()

    def on_stage(sentence: str) -> None:
        log.report_text(sentence)
        watch.on_stage(sentence)

    def on_epoch(epoch: EpochFacts) -> None:
        log.report_scalar("train loss", "all characteristics", epoch.train_loss, epoch.epoch)
        for name, score in {**epoch.valid_macro_f1, "mean": epoch.mean_valid_macro_f1}.items():
            log.report_scalar("valid macro-F1", name, score, epoch.epoch)
        if watch.on_epoch is not None:
            watch.on_epoch(epoch)

    return replace(watch, on_stage=on_stage, on_epoch=on_epoch)


def tuning_watched_by(task: Task, watch: TuneWatch) -> TuneWatch:
    """Returns a watch that tells a ClearML task, too: a line per stage, points per epoch."""
    log = task.get_logger()

    def on_stage(sentence: str) -> None:
        log.report_text(sentence)
        watch.on_stage(sentence)

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
                log.report_scalar(title, series, value, row["epoch"])
        if watch.on_epoch is not None:
            watch.on_epoch(row)

    return replace(watch, on_stage=on_stage, on_epoch=on_epoch)
