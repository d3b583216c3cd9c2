"""Splits the towers of a CLIP-like network into a frozen part, whose outputs can be cached, and the last blocks.

`hidden_states` computes the input of the last blocks; `Tail` computes the rest from there. Both run the network's own
forward pass, so masks, pooling and projections stay its business: in the tail a placeholder returns the cached states.
This works for any model of transformers whose towers keep their blocks in one list.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from product_classificator.encoders.clip import Side
from product_classificator.encoders.torch_clip import METHODS, pooled
from product_classificator.errors import DataError

SIDES: tuple[Side, ...] = ("image", "text")
_TOWERS = {"image": "vision_model", "text": "text_model"}
# Norms and projections after the blocks, trained with them as in the published system.
_TRAINED_AFTER = {
    "image": ("vision_model.post_layernorm", "vision_model.head", "visual_projection"),
    "text": ("text_model.final_layer_norm", "text_model.head", "text_model.pre_LN", "text_projection"),
}


@torch.no_grad()
def hidden_states(model: nn.Module, side: Side, inputs: Mapping[str, Tensor], last_blocks: int) -> Tensor:
    """Return the (n, tokens, width) input of the last blocks, given preprocessed images or texts."""
    _blocks(model, side, last_blocks)
    states: tuple[Tensor, ...] = model.get_submodule(_TOWERS[side])(**inputs, output_hidden_states=True).hidden_states
    return states[-1 - last_blocks]


class _Cached(nn.Module):
    """Placeholder for embeddings and frozen blocks: returns the cached states, whatever its input."""

    hidden: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        return self.hidden

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Replace the input of a block."""
        return ((self.hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": self.hidden})


class Tail(nn.Module):
    """The last blocks of both towers and what follows them, copied; parameters keep the names of the whole model.

    Embeddings and frozen blocks of `model` are placeholders; `scale` is the factor of the cosines that the network was
    trained with. Raises `DataError` if a tower has fewer blocks, or none are found.
    """

    def __init__(self, model: nn.Module, last_blocks: int) -> None:
        super().__init__()
        self._cached = {side: _Cached() for side in SIDES}
        trained: list[str] = []
        replaced: dict[int, Any] = {}  # deepcopy takes these instead of copying, so frozen weights cost no memory
        names = {module: name for name, module in model.named_modules()}
        for side in SIDES:
            blocks = _blocks(model, side, last_blocks)
            towers = [
                name for name in names.values() if name.startswith(_TOWERS[side]) and name.endswith(".embeddings")
            ]
            if not towers:
                raise DataError(f"{type(model).__name__} has no embeddings in {_TOWERS[side]}: it cannot be fine-tuned")
            embeddings = model.get_submodule(min(towers, key=len))
            replaced |= dict.fromkeys(map(id, [*blocks[:-last_blocks], embeddings]), self._cached[side])
            trained += [names[block] for block in blocks[-last_blocks:]]
            trained += [name for name in names.values() if name in _TRAINED_AFTER[side]]
        self.model: nn.Module = deepcopy(model, replaced).requires_grad_(False)
        for side, cached in self._cached.items():  # a norm may lie between embeddings and blocks
            first = _blocks(self.model, side, last_blocks)[-last_blocks]
            first.register_forward_pre_hook(cached.enter, with_kwargs=True)
        for name in trained:
            self.model.get_submodule(name).requires_grad_(True)
        self.scale = float(self.model.get_parameter("logit_scale").detach().exp())

    def encode(self, side: Side, hidden: Tensor, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return (n, dim) unit vectors, by cached states (n, tokens, width), and by the token ids and mask of texts."""
        self._cached[side].hidden = hidden
        try:
            output = getattr(self.model, METHODS[side])(**(inputs or {"pixel_values": hidden}))
        finally:
            self._cached[side].hidden = None
        return nn.functional.normalize(pooled(output).float(), dim=-1)

    def trained(self) -> dict[str, Tensor]:
        """Return copies of the trained parameters by name, as `load_state_dict(..., strict=False)` of `model` takes."""
        weights = self.model.named_parameters()
        return {name: weight.detach().clone() for name, weight in weights if weight.requires_grad}


def _blocks(model: nn.Module, side: Side, last_blocks: int) -> list[nn.Module]:
    """Return the blocks of a tower: its longest list of modules of one type."""
    lists = [
        list(module.children())
        for name, module in model.named_modules()
        if name.startswith(_TOWERS[side]) and isinstance(module, nn.ModuleList)
    ]
    uniform = [blocks for blocks in lists if len({type(block) for block in blocks} - {_Cached}) == 1]
    blocks = max(uniform, key=len, default=[])
    if not blocks:
        raise DataError(f"{type(model).__name__} has no list of blocks in {_TOWERS[side]}: it cannot be fine-tuned")
    if not 1 <= last_blocks <= len(blocks):
        raise DataError(f"the {side} tower has {len(blocks)} blocks, {last_blocks} cannot be trained: ask for fewer")
    return blocks
