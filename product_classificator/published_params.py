"""Turns the parameters of the published `Trainer` into settings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from product_classificator.errors import DataError, nearest
from product_classificator.finetuning.contrastive import FinetuneSettings
from product_classificator.training import HeadSettings
from product_classificator.training.settings import first_fault

Settings = TypeVar("Settings", HeadSettings, FinetuneSettings)

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


def published_tuning(params: Mapping[str, Any]) -> FinetuneSettings:
    """Returns how the last blocks are tuned, as `ruclip_train_params` asks for.

    Args:
        params: as the published `Trainer` took them: epochs, batch_size, num_last_resblocks_to_train, optimizer,
            optimizer_params (lr, betas, eps, weight_decay), img_criterion, txt_criterion.

    Raises:
        DataError: a parameter is unknown, or asks for what the tuning does not have.
    """
    flat = _flat(params, "ruclip_train_params", (*_ONLY_TUNED, *_TUNED), _ONLY_TUNED)
    return _checked(FinetuneSettings(), {_TUNED[name]: value for name, value in flat.items() if name in _TUNED})


def _checked(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Returns settings with changes, whose types are checked like those of a settings file."""
    try:
        return TypeAdapter(type(settings)).validate_python({**asdict(settings), **changes})
    except ValidationError as error:
        raise DataError(first_fault(error, "parameter")) from error


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
    """Return how heads are fitted, with the changes that `heads_train_params` asks for.

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
    hidden = flat.get("classificator_params.hidden_channels", [HeadSettings().hidden])
    hidden = [hidden] if isinstance(hidden, int) else hidden
    if len(hidden) != 1:
        raise DataError(f"hidden_channels of heads_train_params must name one hidden layer, got {list(hidden)}")
    settings = HeadSettings(seed=seed)
    epochs = changes.get("max_epochs", settings.max_epochs)
    return _checked(settings, {"hidden": hidden[0], "patience": epochs, **changes})
