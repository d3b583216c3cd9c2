import numpy as np
import pytest
import torch
from PIL import Image

from product_classificator.encoders import load_encoder
from product_classificator.encoders.clip import clip_towers
from product_classificator.encoders.huggingface import save_encoder
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import DataError
from product_classificator.finetuning.activations import Tail, hidden_states
from tests.encoders import tiny_models
from tests.encoders.tiny_ruclip import write_checkpoint

TEXTS = ["кружка стеклянная", "ваза", "red mug for the house"]


@pytest.fixture(scope="module")
def ruclip(tmp_path_factory):
    return load_encoder(str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")))


def photos(n=3):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)) for _ in range(n)]


def inputs_of(encoder):
    network, (image, text) = torch_network_of(encoder), clip_towers(encoder)
    images = network.tensors(image.preparation.inputs(photos()))
    texts = network.tensors(text.preparation.inputs(text.preparation.windows(TEXTS)[0]))
    return images, texts


def assert_same_vectors(encoder, last_blocks):
    model = torch_network_of(encoder).model
    images, texts = inputs_of(encoder)
    tail = Tail(model, last_blocks)
    with torch.no_grad():
        of_images = tail.encode("image", hidden_states(model, "image", images, last_blocks)).numpy()
        of_texts = tail.encode("text", hidden_states(model, "text", texts, last_blocks), texts).numpy()
    assert np.abs(of_images - encoder.image.encode(photos())).max() < 1e-5
    assert np.abs(of_texts - encoder.text.encode(TEXTS)).max() < 1e-5


@pytest.mark.parametrize("last_blocks", [1, 2])
def test_frozen_part_and_tail_together_are_the_encoder(ruclip, last_blocks):
    assert_same_vectors(ruclip, last_blocks)


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip", "altclip"])
def test_any_clip_like_network_can_be_cut(family, tmp_path):
    encoder = load_encoder(f"hf:{getattr(tiny_models, f'save_{family}')(tmp_path / family)}")
    assert_same_vectors(encoder, 1)


def test_exactly_the_named_parameters_are_trained(ruclip):
    names = set(Tail(torch_network_of(ruclip).model, 1).trained())
    blocks = {name for name in names if ".layers." in name}
    assert {name.split(".layers.")[1].split(".")[0] for name in blocks} == {"1"}
    assert names - blocks == {
        "text_model.final_layer_norm.bias",
        "text_model.final_layer_norm.weight",
        "text_projection.weight",
        "vision_model.post_layernorm.bias",
        "vision_model.post_layernorm.weight",
        "visual_projection.weight",
    }
    assert names <= set(dict(torch_network_of(ruclip).model.named_parameters()))


def test_a_tail_is_small_and_leaves_the_model_alone(ruclip):
    model = torch_network_of(ruclip).model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tail = Tail(model, 1)
    assert sum(weight.numel() for weight in tail.parameters()) < 0.6 * sum(w.numel() for w in model.parameters())
    for weight in tail.parameters():
        weight.data.add_(1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_more_blocks_than_there_are_cannot_be_trained(ruclip):
    with pytest.raises(DataError, match="the image tower has 2 blocks, 3 cannot be trained"):
        Tail(torch_network_of(ruclip).model, 3)


@pytest.mark.parametrize("options", ["", "+windows+clean"])
def test_an_encoder_is_saved_with_other_weights_and_loads_again(ruclip, tmp_path, options):
    encoder = load_encoder(ruclip.name + options)
    tail = Tail(torch_network_of(ruclip).model, 1)
    changed = {name: weight * 1.1 + 0.01 for name, weight in tail.trained().items()}
    name = save_encoder(encoder, changed, tmp_path / "tuned")
    assert name == f"{tmp_path / 'tuned'}{options}"
    loaded = load_encoder(name)
    assert loaded.fingerprint != encoder.fingerprint
    assert np.abs(loaded.text.encode(TEXTS) - encoder.text.encode(TEXTS)).max() > 1e-3
    same = load_encoder(save_encoder(encoder, {}, tmp_path / "same"))
    assert np.array_equal(same.text.encode(TEXTS), encoder.text.encode(TEXTS))


def test_an_encoder_of_transformers_is_saved_as_such(tmp_path):
    encoder = load_encoder(f"hf:{tiny_models.save_clip(tmp_path / 'clip')}")
    changed = {name: weight * 1.1 for name, weight in Tail(torch_network_of(encoder).model, 1).trained().items()}
    loaded = load_encoder(save_encoder(encoder, changed, tmp_path / "tuned"))
    assert np.abs(loaded.image.encode(photos()) - encoder.image.encode(photos())).max() > 1e-4
