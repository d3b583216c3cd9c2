"""The towers of CLIP as this package computes them, beside those of transformers."""

import copy

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from product_classificator.encoders.pooled import features_of
from product_classificator.encoders.torch_clip import Compute, TorchNetwork

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
END, LEGACY_END = 3, 2


def clip(eos_token_id=END, activation="quick_gelu", layers=3):
    torch.manual_seed(0)
    shape = {**SHAPE, "hidden_act": activation, "num_hidden_layers": layers}
    text = CLIPTextConfig(**shape, vocab_size=50, max_position_embeddings=20, eos_token_id=eos_token_id)
    vision = CLIPVisionConfig(**shape, image_size=32, patch_size=8)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # as they are born, they are too small to tell one token from another
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


def texts(end=END):
    """Returns texts of five lengths; one has an end twice, and one has none."""
    ids = torch.randint(4, 40, (6, 12), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((12, 9, 2, 5, 1)):
        ids[row, length - 1] = end
        ids[row, length:] = 0
    ids[1, 3] = end
    return ids


def photos():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def assert_same(model, inputs, atol=1e-5, min_cosine=None):
    ask = model.get_image_features if "pixel_values" in inputs else model.get_text_features
    with torch.inference_mode():
        found, known = features_of(model, inputs), ask(**inputs).pooler_output
    assert found is not None
    if min_cosine is None:
        assert torch.allclose(found, known, atol=atol)
    else:
        assert torch.cosine_similarity(found.float(), known.float()).min() > min_cosine


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "relu"])
@pytest.mark.parametrize("layers", [1, 3])
def test_features_are_those_of_transformers(activation, layers):
    model = clip(activation=activation, layers=layers)
    assert_same(model, {"pixel_values": photos()})
    assert_same(model, {"input_ids": texts()})


def test_an_old_end_token_is_the_largest_id():
    assert_same(clip(eos_token_id=LEGACY_END), {"input_ids": texts(end=49)})


def test_features_are_those_of_transformers_in_bfloat16():
    model = clip().to(torch.bfloat16)
    assert_same(model, {"pixel_values": photos().to(torch.bfloat16)}, min_cosine=0.999)
    assert_same(model, {"input_ids": texts()}, min_cosine=0.999)


def test_features_are_those_of_transformers_in_int8_but_for_its_rounding():
    towers = TorchNetwork(clip(), 16, Compute("cpu", "int8", 1))
    assert_same(towers.model, {"pixel_values": photos()}, min_cosine=0.99)
    assert_same(towers.model, {"input_ids": texts()}, min_cosine=0.99)


def test_padding_on_the_right_needs_no_mask_and_padding_on_the_left_is_left_to_the_network():
    model, ids = clip(), texts()
    right = torch.ones_like(ids)
    right[2, 2:] = 0
    assert_same(model, {"input_ids": ids, "attention_mask": right})
    left = torch.ones_like(ids)
    left[0, :3] = 0
    assert features_of(model, {"input_ids": ids, "attention_mask": left}) is None


class Other(CLIPModel):
    """May compute otherwise."""


def test_what_is_not_known_is_left_to_the_network():
    model, values = clip(), photos()
    assert features_of(model, {"pixel_values": values, "interpolate_pos_encoding": values}) is None
    assert features_of(model, {"input_ids": texts(), "position_ids": texts()}) is None
    other = copy.deepcopy(model)
    other.__class__ = Other
    assert features_of(other, {"pixel_values": values}) is None
    assert features_of(clip(layers=0), {"pixel_values": values}) is None


def test_towers_take_this_way_for_clip_and_the_networks_own_for_others(monkeypatch):
    inputs = {"pixel_values": photos().numpy()}, {"input_ids": texts().numpy()}
    own, other = (TorchNetwork(clip(), 16, Compute("cpu", "float32", 1)) for _ in range(2))
    other.model.__class__ = Other
    whole = other.image_features(inputs[0]), other.text_features(inputs[1])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole network was asked")

    for name in ("get_image_features", "get_text_features"):
        monkeypatch.setattr(CLIPModel, name, refuse)
    assert abs(own.image_features(inputs[0]) - whole[0]).max() < 1e-5
    assert abs(own.text_features(inputs[1]) - whole[1]).max() < 1e-5
    for ask, given in zip((other.image_features, other.text_features), inputs, strict=True):
        with pytest.raises(AssertionError, match="whole network"):
            ask(given)
