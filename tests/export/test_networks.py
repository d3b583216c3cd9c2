from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from product_classificator.export.networks import heads_onnx
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.shape import NetworkShape
from product_classificator.types import Embeddings, strings

JOINT = NetworkShape("joint", 6, 4, 0, (3, 2), hidden=8, dropout=0.5)
PUBLISHED = replace(JOINT, recipe="published")
ZERO_SHOT = NetworkShape("zero-shot", 0, 4, 0, (3, 2), hidden=0, dropout=0, name_dim=4)
SHAPES = {
    "joint": JOINT,
    "joint, of photos": replace(JOINT, text_dim=0),
    "joint, of texts": replace(JOINT, image_dim=0),
    "joint, started from names": replace(JOINT, name_dim=4),
    "joint, started from names in one space": replace(JOINT, image_dim=4, name_dim=4, shares_space=True),
    "published": PUBLISHED,
    "published, projected": replace(PUBLISHED, projected=5),
    "zero-shot": ZERO_SHOT,
    "zero-shot in one space": replace(ZERO_SHOT, image_dim=4, shares_space=True),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("n", [0, 1, 9])
def test_every_network_answers_as_in_numpy_whatever_is_missing(shape, n):
    draw = np.random.default_rng(0)
    weights = {name: draw.uniform(0.5, 1.5, axes).astype(np.float32) for name, axes in shape.weights().items()}
    network = FittedNetwork(shape, {name: np.asarray(weight) for name, weight in weights.items()})
    has_image, has_text = draw.random((2, n)) < 0.6
    image = draw.normal(size=(n, 6)).astype(np.float32) * has_image[:, None]
    text = draw.normal(size=(n, 4)).astype(np.float32) * has_text[:, None]
    embeddings = Embeddings(strings([str(row) for row in range(n)]), image, text, has_image, has_text, "tiny")
    known = network.logits(embeddings, Vocabulary((), np.empty(0, np.float32)).weigh([""] * n))

    session = onnxruntime.InferenceSession(heads_onnx(network), providers=["CPUExecutionProvider"])
    inputs = {
        "image": image[:, : shape.image_dim],
        "text": text,
        "has_image": has_image[:, None].astype(np.float32),
        "has_text": has_text[:, None].astype(np.float32),
    }
    found = session.run(None, {each.name: inputs[each.name] for each in session.get_inputs()})[0]
    assert found.shape == (n, 5)
    assert np.allclose(found, known, atol=1e-5)
