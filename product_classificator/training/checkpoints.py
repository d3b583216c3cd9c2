"""Keeps the state of a tuning, so that a killed one goes on and ends as if nothing had happened.

A state is a folder that is replaced as a whole: trained weights, those of the best epoch, the optimiser's moments (all
as safetensors) and `state.json` with the place in the data, the history, and what the tuning is of. The order of the
pairs and the learning rate follow from the place, so no generator needs to be kept.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from product_classificator.errors import ArtifactError
from product_classificator.files import replacing_folder

Weights = dict[str, Tensor]


@dataclass
class TuneState:
    """Where a tuning stands.

    Attributes:
        identity: what it is of; another tuning must not go on from it.
        epoch: the epoch that is being trained, from 1; 0: none yet.
        step: steps of that epoch that are done.
        losses: of these steps.
        history: one entry per finished epoch, epoch 0 (untuned) first.
        best_epoch: the epoch with the best validation macro-F1.
        weights: trained parameters as they are now.
        best_weights: those of the best epoch.
        moments: state of the optimiser, "<number of the parameter>.<name>" -> tensor.
    """

    identity: str
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    weights: Weights = field(default_factory=dict)
    best_weights: Weights = field(default_factory=dict)
    moments: Weights = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes the state in place of an older one."""
        with replacing_folder(folder) as new:
            for name in ("weights", "best_weights", "moments"):
                save_file({key: value.contiguous() for key, value in getattr(self, name).items()}, new / f"{name}.st")
            facts = {
                name: getattr(self, name) for name in ("identity", "epoch", "step", "losses", "history", "best_epoch")
            }
            (new / "state.json").write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TuneState | None":
        """Reads a state; `None` if there is none.

        Raises:
            ArtifactError: it is damaged.
        """
        if not (folder / "state.json").is_file():
            return None
        try:
            facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            for name in ("weights", "best_weights", "moments"):
                facts[name] = load_file(folder / f"{name}.st")
            return cls(**facts)
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ArtifactError(f"{folder} is damaged ({error}): delete it, and the tuning begins anew") from error


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
