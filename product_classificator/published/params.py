"""Translate the parameters of the published `Trainer` into settings; classes may be given or named."""

from collections.abc import Mapping, Sequence
from typing import Any

from product_classificator.errors import DataError, nearest
from product_classificator.finetuning import FinetuneSettings
from product_classificator.training import HeadSettings
from product_classificator.training.settings import with_changes

# Published parameter -> field of our settings, or the values it may have.
_SHARED: Mapping[str, str | tuple[str, ...]] = {
    "optimizer": ("Adam", "AdamW"),
    "batch_size": "batch_size",
    "optimizer_params": ("a dictionary",),
    "optimizer_params.lr": "learning_rate",
    "optimizer_params.weight_decay": "weight_decay",
}
_HEADS: Mapping[str, str | tuple[str, ...]] = {
    **_SHARED,
    "criterion": ("CrossEntropyLoss",),
    "classificator": ("MLP",),
    "classificator_params": ("a dictionary",),
    "classificator_params.activation": ("ReLU",),
    "classificator_params.in_channels": "",  # ignored: it follows from the encoder
    "classificator_params.hidden_channels": "hidden",
    "classificator_params.dropout": "dropout",
    "epochs": "epochs",
}
_FINETUNING: Mapping[str, str | tuple[str, ...]] = {
    **_SHARED,
    "img_criterion": ("CrossEntropyLoss",),
    "txt_criterion": ("CrossEntropyLoss",),
    "epochs": "epochs",
    "num_last_resblocks_to_train": "last_blocks",
    "optimizer_params.betas": "betas",
    "optimizer_params.eps": "eps",
}


def as_params(settings: HeadSettings | FinetuneSettings, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return settings as a dictionary of the published `Trainer`, changed; `published_heads` reads it back."""
    params: dict[str, Any] = {}
    for name, target in (_HEADS if isinstance(settings, HeadSettings) else _FINETUNING).items():
        outer, _, key = name.rpartition(".")
        if isinstance(target, str):
            value = getattr(settings, target, None)
            value = [value] if target == "hidden" else value
        else:
            value = {} if target == ("a dictionary",) else target[-1]
        (params[outer] if outer else params)[key] = value
    for name, value in (changes or {}).items():
        are_dicts = isinstance(value, Mapping) and isinstance(params.get(name), dict)
        params[name] = {**params[name], **value} if are_dicts else value
    return params


def published_heads(params: Mapping[str, Any], base: HeadSettings | None = None) -> HeadSettings:
    """Return `base`, or the defaults, changed as `heads_train_params` says; what heads cannot do is a `DataError`."""
    changes = _translated(params, "heads_train_params", _HEADS)
    hidden = changes.get("hidden")
    if isinstance(hidden, Sequence):
        if len(hidden) != 1:
            raise DataError(f"hidden_channels of heads_train_params must name one hidden layer, got {list(hidden)}")
        changes["hidden"] = hidden[0]
    return with_changes(base or HeadSettings(), changes)


def published_finetuning(params: Mapping[str, Any]) -> FinetuneSettings:
    """Return how the last blocks are fine-tuned, as `ruclip_train_params` asks for; errors as `published_heads`."""
    return with_changes(FinetuneSettings(), _translated(params, "ruclip_train_params", _FINETUNING))


def _translated(params: Mapping[str, Any], where: str, names: Mapping[str, str | tuple[str, ...]]) -> dict[str, Any]:
    """Return published parameters under the names of our settings, without those that have fixed values."""
    flat: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for name, value in params.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
    for name, value in flat.items():
        if name not in names:
            raise DataError(f"{where} has no {name!r}: {nearest(name, names)}")
        given = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
        if isinstance(target := names[name], str):
            changes[target] = value
        elif given not in target:
            raise DataError(f"{name} of {where} must be {' or '.join(target)}, got {given}")
    changes.pop("", None)
    return changes
