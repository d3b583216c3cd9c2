"""The towers of CLIP as this package computes them, beside those of transformers."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from product_classificator.encoders.pooled import image_features, is_clip, text_features
from product_classificator.encoders.towers import Compute, TorchTowers

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
END, LEGACY_END = 3, 2


def clip(eos_token_id: int = END, activation: str = "quick_gelu", layers: int = 3) -> CLIPModel:
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


def texts(end: int) -> torch.Tensor:
    """Returns texts of five lengths, with something behind their end that must not be read."""
    ids = torch.randint(4, 40, (5, 12), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((12, 9, 2, 5, 1)):
        ids[row, length - 1] = end
        ids[row, length:] = 0
    return ids


def photos() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("layers", [1, 3])
def test_features_are_those_of_transformers(activation, layers):
    model = clip(activation=activation, layers=layers)
    with torch.inference_mode():
        assert torch.allclose(
            image_features(model, photos()), model.get_image_features(photos()).pooler_output, atol=1e-5
        )
        assert torch.allclose(
            text_features(model, texts(END)), model.get_text_features(texts(END)).pooler_output, atol=1e-5
        )


def test_an_old_end_token_is_the_largest_id():
    model = clip(eos_token_id=LEGACY_END)
    ids = texts(49)
    with torch.inference_mode():
        assert torch.allclose(text_features(model, ids), model.get_text_features(ids).pooler_output, atol=1e-5)


def test_what_stands_behind_the_end_changes_nothing():
    model, ids = clip(), texts(END)
    filled = torch.where(ids == 0, torch.full_like(ids, 7), ids)
    with torch.inference_mode():
        assert torch.allclose(text_features(model, ids), text_features(model, filled), atol=1e-6)


def test_given_states_are_not_overwritten():
    model, values, ids = clip(), photos(), texts(END)
    before = [weight.clone() for weight in model.parameters()]
    with torch.inference_mode():
        first = image_features(model, values), text_features(model, ids)
        second = image_features(model, values), text_features(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(values, photos())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_towers_take_this_way_for_clip_and_the_networks_own_for_others(monkeypatch):
    class Other(CLIPModel):
        """May compute otherwise."""

    towers = TorchTowers(clip(), 16, Compute("cpu", "float32", 1))
    inputs = {"pixel_values": photos().numpy()}, {"input_ids": texts(END).numpy()}
    expected = towers.of_images(inputs[0]), towers.of_texts(inputs[1])
    assert is_clip(towers.model)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole network was asked")

    for name in ("get_image_features", "get_text_features"):
        monkeypatch.setattr(CLIPModel, name, refuse)
    assert (towers.of_images(inputs[0]) == expected[0]).all()
    assert (towers.of_texts(inputs[1]) == expected[1]).all()
    towers.model.__class__ = Other
    for ask, given in zip((towers.of_images, towers.of_texts), inputs, strict=True):
        with pytest.raises(AssertionError, match="whole network"):
            ask(given)


def test_inputs_of_another_kind_go_to_the_network():
    towers = TorchTowers(clip(), 16, Compute("cpu", "float32", 1))
    ids = texts(END)
    masked = {"input_ids": ids.numpy(), "attention_mask": (ids != 0).long().numpy()}
    with torch.inference_mode():
        known = towers.model.get_text_features(ids, attention_mask=(ids != 0).long()).pooler_output.numpy()
    assert abs(towers.of_texts(masked) - known).max() < 1e-6
