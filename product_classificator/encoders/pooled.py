"""The towers of CLIP, computed only as far as their features ask: the same numbers but for rounding, in less time.

A tower answers one token: of a photo the class token, of a text the end token. So in the last block nothing but that
token has to look at the others and to pass the wide layers: ten twelfths of the block are spared, a fourteenth of a
tower of twelve blocks. The activation of the published networks is computed in place, where transformers makes three
arrays, each of them larger than a cache. Weights, masks and pooling are those of `transformers.CLIPModel`; they are
taken by the names that checkpoints give them.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, PreTrainedModel
from transformers.activations import QuickGELUActivation
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

_QUICK_GELU = 1.702
_LARGEST_ID_ENDS = 2  # this id of the end token stands in old files, and means that the largest id is the end


def is_clip(model: PreTrainedModel) -> TypeGuard[CLIPModel]:
    """Tells whether a network is the one that is computed here; a subclass may compute otherwise."""
    return type(model) is CLIPModel


def image_features(model: CLIPModel, pixel_values: Tensor) -> Tensor:
    """Returns the (n, dim) features of photos, as `get_image_features` pools them.

    Args:
        model: in evaluation mode; its linear layers may be quantised.
        pixel_values: (n, 3, height, width), prepared.
    """
    tower = model.vision_model
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    pooled = _pooled(tower, hidden, torch.zeros(len(hidden), dtype=torch.long, device=hidden.device), is_causal=False)
    features: Tensor = model.visual_projection(tower.post_layernorm(pooled))
    return features


def text_features(model: CLIPModel, input_ids: Tensor) -> Tensor:
    """Returns the (n, dim) features of texts, as `get_text_features` pools them.

    Args:
        model: in evaluation mode; its linear layers may be quantised.
        input_ids: (n, tokens), filled up behind the end token.
    """
    tower = model.text_model
    ends = input_ids if tower.eos_token_id == _LARGEST_ID_ENDS else (input_ids == tower.eos_token_id).int()
    pooled = _pooled(tower, tower.embeddings(input_ids), ends.argmax(1), is_causal=True)
    features: Tensor = model.text_projection(tower.final_layer_norm(pooled))
    return features


def _pooled(tower: PreTrainedModel, hidden: Tensor, rows: Tensor, *, is_causal: bool) -> Tensor:
    """Returns the (n, width) states of one token of each input behind all blocks."""
    heads = tower.config.num_attention_heads
    *blocks, last = tower.encoder.layers
    for block in blocks:
        asked, keys, values = _projections(block, hidden, hidden, heads)
        mixed = functional.scaled_dot_product_attention(asked, keys, values, is_causal=is_causal)
        hidden = _answered(block, hidden, mixed)
    own = hidden[torch.arange(len(rows), device=rows.device), rows].unsqueeze(1)
    asked, keys, values = _projections(last, own, hidden, heads)
    seen = torch.arange(hidden.shape[1], device=rows.device) <= rows[:, None] if is_causal else None
    mask = None if seen is None else seen[:, None, None]
    mixed = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=mask)
    return _answered(last, own, mixed).squeeze(1)


def _projections(block: CLIPEncoderLayer, asking: Tensor, asked: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries of the tokens that ask, keys and values of those that are asked: (n, heads, tokens, width)."""
    attention, normed = block.self_attn, block.layer_norm1(asked)
    own = normed if asking is asked else block.layer_norm1(asking)
    pairs = ((attention.q_proj, own), (attention.k_proj, normed), (attention.v_proj, normed))
    queries, keys, values = (layer(states).unflatten(-1, (heads, -1)).transpose(1, 2) for layer, states in pairs)
    return queries, keys, values


def _answered(block: CLIPEncoderLayer, hidden: Tensor, mixed: Tensor) -> Tensor:
    """Returns the states behind a block, given those before it and what attention has mixed."""
    hidden = hidden + block.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))
    wide = _activated(block.mlp.activation_fn, block.mlp.fc1(block.layer_norm2(hidden)))
    states: Tensor = hidden + block.mlp.fc2(wide)
    return states


def _activated(activation: nn.Module, states: Tensor) -> Tensor:
    """Returns what an activation makes of states, which may be overwritten."""
    if isinstance(activation, QuickGELUActivation):
        return (states * _QUICK_GELU).sigmoid_().mul_(states)
    found: Tensor = activation(states)
    return found
