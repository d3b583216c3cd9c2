"""Cuts the towers of a CLIP-like network in two: a frozen part, whose answers can be kept, and the last blocks.

`hidden_states` computes what goes into the first of the last blocks; `Tail` computes the rest from there. Both run the
network's own forward pass (masks, pooling and projections stay its business): the frozen part is left by an exception
where the last blocks begin, and in the tail a block that answers the kept states stands for all frozen ones. So any
model of transformers fits whose towers hold their blocks in one list.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from product_classificator.errors import DataError

Side = Literal["image", "text"]
SIDES: tuple[Side, ...] = ("image", "text")
_TOWERS = {"image": "vision_model", "text": "text_model"}
_FEATURES = {"image": "get_image_features", "text": "get_text_features"}
# What follows the blocks and is trained with them, as in the published system: norms and projections.
_TRAINED_AFTER = {
    "image": ("vision_model.post_layernorm", "vision_model.head", "visual_projection"),
    "text": ("text_model.final_layer_norm", "text_model.head", "text_model.pre_LN", "text_projection"),
}


@dataclass(frozen=True)
class _Blocks:
    """Where a tower holds its blocks."""

    owner: str
    name: str
    count: int


def _blocks_of(model: nn.Module, side: Side) -> _Blocks:
    found = []
    tower = _TOWERS[side]
    for path, module in model.named_modules():
        is_list = path.startswith(tower) and isinstance(module, nn.ModuleList)
        if is_list and len({type(block) for block in module.children()}) == 1:
            owner, _, name = path.rpartition(".")
            found.append(_Blocks(owner, name, len(list(module.children()))))
    if not found:
        raise DataError(f"{type(model).__name__} has no list of blocks in {tower}: it cannot be tuned")
    return max(found, key=lambda blocks: blocks.count)


class _Reached(Exception):  # noqa: N818 - not an error, but how the frozen part is left
    """Carries the states that reach the first of the last blocks."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def hidden_states(model: nn.Module, side: Side, inputs: Mapping[str, Tensor], last_blocks: int) -> Tensor:
    """Returns (n, tokens, width): what goes into the first of the last blocks.

    Args:
        model: a whole model of transformers.
        side: "image" or "text".
        inputs: prepared photos or texts, n rows.
        last_blocks: how many blocks come after.

    Raises:
        DataError: the tower has fewer blocks.
    """
    blocks = _blocks_of(model, side)
    _check(last_blocks, blocks, side)
    first = model.get_submodule(blocks.owner)._modules[blocks.name][blocks.count - last_blocks]  # type: ignore[index]

    def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = first.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        getattr(model, _FEATURES[side])(**inputs)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise DataError(f"the blocks of {type(model).__name__} are not used by its {side} tower: it cannot be tuned")


def _check(last_blocks: int, blocks: _Blocks, side: Side) -> None:
    if not 1 <= last_blocks <= blocks.count:
        raise DataError(f"the {side} tower has {blocks.count} blocks, {last_blocks} cannot be trained: ask for fewer")


class _Kept(nn.Module):
    """Stands for what comes before the last blocks: answers the kept states, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        return self.hidden


class Tail(nn.Module):
    """The last blocks of both towers, with what follows them; the frozen part is left out.

    Args:
        model: a whole model of transformers; its parts are copied, it is not changed.
        last_blocks: how many blocks of each tower.

    Attributes:
        scale: what cosines are multiplied by: the temperature that the network was trained with.

    Raises:
        DataError: a tower has fewer blocks, or no blocks are found.
    """

    def __init__(self, model: nn.Module, last_blocks: int) -> None:
        super().__init__()
        self._kept = {side: _Kept() for side in SIDES}
        self._names: dict[str, str] = {}
        memo: dict[int, Any] = {}  # what stands here is not copied: its replacement is taken
        found = {side: _blocks_of(model, side) for side in SIDES}
        for side, blocks in found.items():
            _check(last_blocks, blocks, side)
            listed = model.get_submodule(f"{blocks.owner}.{blocks.name}")
            memo |= {id(block): nn.Identity() for block in list(listed.children())[:-last_blocks]}
            memo[id(model.get_submodule(_embeddings_of(model, side)))] = self._kept[side]
        self.model: nn.Module = deepcopy(model, memo).requires_grad_(False)
        for side, blocks in found.items():
            owner = self.model.get_submodule(blocks.owner)
            last = list(owner.get_submodule(blocks.name).children())[-last_blocks:]
            setattr(owner, blocks.name, nn.ModuleList([self._kept[side], *last]))
            for place, block in enumerate(last, 1):
                self._train(
                    block,
                    f"{blocks.owner}.{blocks.name}.{place}",
                    f"{blocks.owner}.{blocks.name}.{blocks.count - last_blocks + place - 1}",
                )
            for path in _TRAINED_AFTER[side]:
                module = self._submodule(path)
                if module is not None:
                    self._train(module, path, path)
        self.scale = float(self.model.get_parameter("logit_scale").detach().exp())

    def _submodule(self, path: str) -> nn.Module | None:
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return None

    def _train(self, module: nn.Module, here: str, there: str) -> None:
        module.requires_grad_(True)
        for name, _ in module.named_parameters():
            self._names[f"{here}.{name}"] = f"{there}.{name}"

    def of_images(self, hidden: Tensor) -> Tensor:
        """Returns (n, dim) unit vectors of photos from their kept states (n, tokens, width)."""
        return self._features("image", hidden, {"pixel_values": hidden})

    def of_texts(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, dim) unit vectors of texts from their kept states (n, tokens, width) and their token ids."""
        return self._features("text", hidden, inputs)

    def _features(self, side: Side, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        self._kept[side].hidden = hidden
        try:
            output = getattr(self.model, _FEATURES[side])(**inputs)
        finally:
            self._kept[side].hidden = None
        found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return nn.functional.normalize(found.float(), dim=-1)

    def trained(self) -> dict[str, Tensor]:
        """Returns the trained parameters, as copies, under the names they have in the whole model."""
        here = dict(self.model.named_parameters())
        return {there: here[name].detach().clone() for name, there in self._names.items()}

    def load_trained(self, weights: Mapping[str, Tensor]) -> None:
        """Sets the trained parameters; `weights` as `trained` gave them."""
        here = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, there in self._names.items():
                here[name].copy_(weights[there])


def _embeddings_of(model: nn.Module, side: Side) -> str:
    tower = _TOWERS[side]
    paths: list[str] = [
        path for path, _ in model.named_modules() if path.startswith(tower) and path.endswith(".embeddings")
    ]
    if not paths:
        raise DataError(f"{type(model).__name__} has no embeddings in {tower}: it cannot be tuned")
    return min(paths, key=len)
