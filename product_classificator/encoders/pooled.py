"""The towers of CLIP, computed only as far as their features ask, in less time than transformers takes.

A tower answers one token: of a photo the class token, of a text the end token. So in the last block nothing but that
token has to look at the others and to pass the wide layers: ten twelfths of the block are spared, a fourteenth of a
tower of twelve blocks. The activation of the published networks needs one array, where transformers makes three of
several megabytes each. Weights, masks and pooling are those of `transformers.CLIPModel`, taken by the names that
checkpoints give them, and so are the features, but for rounding. Layers in int8 round by the range of what they see;
in the last block that is another, so features differ a little (cosine .9997 with six blocks), and are as near to those
of float32.

Nothing of transformers is imported: whoever has such a network has imported it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

_CLIP = "transformers.models.clip.modeling_clip.CLIPModel"
_QUICK_GELU = 1.702
_LARGEST_ID_ENDS = 2  # this id of the end token stands in old files, and means that the largest id is the end


def features_of(model: "PreTrainedModel", inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the (n, dim) features of photos or of texts; `None` where the network has to compute in its own way.

    That is where it is no CLIP (a subclass may compute otherwise), or is asked for what CLIP-like encoders here do not
    ask for.

    Args:
        model: in evaluation mode; its linear layers may be quantised.
        inputs: `pixel_values` (n, 3, height, width), or `input_ids` (n, tokens) with or without `attention_mask`.
    """
    if f"{type(model).__module__}.{type(model).__qualname__}" != _CLIP or not _has_blocks(model):
        return None
    if inputs.keys() == {"pixel_values"}:
        return _image_features(model, inputs["pixel_values"])
    if inputs.keys() - {"attention_mask"} == {"input_ids"}:
        return _text_features(model, inputs["input_ids"], inputs.get("attention_mask"))
    return None


def _has_blocks(model: "CLIPModel") -> bool:
    return all(len(tower.encoder.layers) for tower in (model.vision_model, model.text_model))


def _image_features(model: "CLIPModel", pixel_values: Tensor) -> Tensor:
    tower = model.vision_model
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    class_tokens = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    features: Tensor = model.visual_projection(tower.post_layernorm(_pooled(tower, hidden, class_tokens)))
    return features


def _text_features(model: "CLIPModel", ids: Tensor, mask: Tensor | None) -> Tensor | None:
    tower = model.text_model
    ends = (ids if tower.eos_token_id == _LARGEST_ID_ENDS else (ids == tower.eos_token_id).int()).argmax(1)
    # A token sees those before it. So a mask that leaves them all until the end, as padding on the right does, is none.
    if mask is not None and not (mask.cumsum(1).gather(1, ends[:, None])[:, 0] == ends + 1).all():
        return None
    pooled = _pooled(tower, tower.embeddings(ids), ends, is_causal=True)
    features: Tensor = model.text_projection(tower.final_layer_norm(pooled))
    return features


def _pooled(tower: "PreTrainedModel", hidden: Tensor, places: Tensor, *, is_causal: bool = False) -> Tensor:
    """Returns the (n, width) states behind all blocks of one token of each input, at `places` (n,)."""
    *blocks, last = tower.encoder.layers
    for block in blocks:
        queries, keys, values = _projections(block, hidden, hidden)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=is_causal)
        hidden = _behind(block, hidden, mixed)
    own = hidden.take_along_dim(places[:, None, None], 1)
    queries, keys, values = _projections(last, own, hidden)
    tokens = torch.arange(hidden.shape[1], device=places.device)
    seen = (tokens <= places[:, None])[:, None, None] if is_causal else None
    mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
    return _behind(last, own, mixed).squeeze(1)


def _projections(block: "CLIPEncoderLayer", asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries of the tokens that ask, keys and values of those that are asked: (n, heads, tokens, head)."""
    attention, normed = block.self_attn, block.layer_norm1(asked)
    own = normed if asking is asked else block.layer_norm1(asking)
    pairs = ((attention.q_proj, own), (attention.k_proj, normed), (attention.v_proj, normed))
    by_head = (attention.num_heads, -1)
    queries, keys, values = (layer(states).unflatten(-1, by_head).transpose(1, 2) for layer, states in pairs)
    return queries, keys, values


def _behind(block: "CLIPEncoderLayer", hidden: Tensor, mixed: Tensor) -> Tensor:
    """Returns the states behind a block, given those before it and what attention has mixed."""
    hidden = hidden + block.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))
    wide = _activated(block.mlp.activation_fn, block.mlp.fc1(block.layer_norm2(hidden)))
    states: Tensor = hidden + block.mlp.fc2(wide)
    return states


def _activated(activation: nn.Module, states: Tensor) -> Tensor:
    if type(activation).__name__ == "QuickGELUActivation":
        return (states * _QUICK_GELU).sigmoid_().mul_(states)
    found: Tensor = activation(states)
    return found
