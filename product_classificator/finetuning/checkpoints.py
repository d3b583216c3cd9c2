"""Keeps the state of a tuning, so that a killed one goes on and ends as if nothing had happened.

A state is one safetensors file, so that it is replaced in one step: trained weights, those of the best epoch, the
optimiser's moments, and as metadata the place in the data, the history, and what the tuning is of. The order of the
pairs and the learning rate follow from the place, so no generator needs to be kept.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from product_classificator.errors import ArtifactError
from product_classificator.files import replacing

Weights = dict[str, Tensor]

_FACTS = ("identity", "epoch", "step", "losses", "history", "best_epoch")
_TENSORS = ("weights", "best_weights", "moments")


@dataclass
class FinetuneState:
    """Where a tuning stands.

    Attributes:
        identity: what it is of; another tuning must not go on from it.
        epoch: the epoch that is being trained, from 1.
        step: steps of that epoch that are done.
        losses: of these steps.
        history: one entry per finished epoch, epoch 0 (untuned) first.
        best_epoch: the epoch with the best validation macro-F1.
        weights: trained parameters as they are now.
        best_weights: those of the best epoch.
        moments: state of the optimiser, "<number of the parameter>.<name>" -> tensor.
    """

    identity: str
    epoch: int = 1
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    weights: Weights = field(default_factory=dict)
    best_weights: Weights = field(default_factory=dict)
    moments: Weights = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the state in place of an older one."""
        tensors = {f"{part}/{name}": value for part in _TENSORS for name, value in getattr(self, part).items()}
        facts = {name: getattr(self, name) for name in _FACTS}
        with replacing(path) as temporary:
            save_file(
                {name: value.contiguous() for name, value in tensors.items()},
                temporary,
                metadata={"state": json.dumps(facts)},
            )

    @classmethod
    def load(cls, path: Path) -> "FinetuneState | None":
        """Reads a state; `None` if there is none.

        Raises:
            ArtifactError: it is damaged.
        """
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                state = cls(**json.loads(file.metadata()["state"]))
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    part, _, name_in_part = name.partition("/")
                    getattr(state, part)[name_in_part] = file.get_tensor(name).clone()  # the file will be replaced
            return state
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            raise ArtifactError(f"{path} is damaged ({error}): delete it, and the tuning begins anew") from error


def moments_of(optimizer: torch.optim.Optimizer) -> Weights:
    """Returns copies of the optimiser's state, as tensors with flat names."""
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().clone().cpu()
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def set_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Sets the optimiser's state; `moments` as `moments_of` gave them."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
