import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from product_classificator.embeddings.products import encode_products
from product_classificator.encoders import PairTower, load_encoder
from product_classificator.encoders.onnx_export import export_encoder
from product_classificator.encoders.torch_clip import torch_network_of
from product_classificator.errors import DataError
from tests.encoders.tiny_models import save_embedding_gemma2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_embedding_gemma2(tmp_path_factory.mktemp("pairs") / "gemma")


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(f"hf:{folder}")


def photos():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 30), (60, 40), (64, 64))
    ]


def vector_of(folder, image=None, text=""):
    """Returns the mean of the vectors of the tokens, by transformers: the photo stands before the text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    first, *others = tokenizer(text)["input_ids"]
    inputs = {}
    if image is not None:
        inputs = dict(AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="pt"))
        others = [5, *[4] * int(inputs.pop("num_soft_tokens_per_image")[0]), 6, *others]
    with torch.inference_mode():
        vector = model(torch.tensor([[first, *others]]), **inputs).last_hidden_state[0].mean(0).numpy()
    return vector / np.linalg.norm(vector)


def test_photo_text_and_both_together_are_vectors_of_one_space(folder, encoder):
    images, texts = photos(), ["red shoe", "a", "ваза"]
    assert encoder.shares_space and isinstance(encoder.text, PairTower)
    expected = {
        "image": (encoder.image.encode(images), [vector_of(folder, image) for image in images]),
        "text": (encoder.text.encode(texts), [vector_of(folder, text=text) for text in texts]),
        "pair": (encoder.text.encode_pairs(texts, images), [*map(vector_of, [folder] * 3, images, texts)]),
    }
    for vectors, reference in expected.values():
        assert np.allclose(vectors, reference, atol=1e-5)
    assert encoder.image.encode([]).shape == encoder.text.encode([]).shape == (0, 24)


def test_the_text_part_of_a_product_with_a_photo_reads_both(encoder):
    one, wide, square = (encoder.image.prepare(photo) for photo in photos())
    images = [[one], "missing", [square], [one, wide], [square]]
    embeddings = encode_products(encoder, list("abcde"), ["red", "red", "", "red", "blue"], images).embeddings
    pairs = encoder.text.encode_pairs(["red", "red", "red", "blue"], [one, one, wide, square])
    both = pairs[1] + pairs[2]
    known = [pairs[0], encoder.text.encode(["red"])[0], np.zeros(24), both / np.linalg.norm(both), pairs[3]]
    assert np.allclose(embeddings.text, known, atol=1e-5)
    assert np.allclose(embeddings.image[[0, 2]], encoder.image.encode([one, square]), atol=1e-5)
    alone = encode_products(encoder, ["a"], None, [[one]]).embeddings
    assert not alone.text.any()


def test_it_is_neither_fine_tuned_nor_exported_nor_changed_by_options(folder, encoder, tmp_path):
    for use in (torch_network_of, lambda encoder: export_encoder(encoder, tmp_path / "exported")):
        with pytest.raises(DataError, match="reads photo and text together can be neither exported nor fine-tuned"):
            use(encoder)
    with pytest.raises(DataError, match=r"reads photo and text together takes neither \+windows nor \+clean, got hf:"):
        load_encoder(f"hf:{folder}+clean")
