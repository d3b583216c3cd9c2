from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from product_classificator.heads.bag_of_words import WeightedWords
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.shape import NetworkShape
from product_classificator.training.torch_network import Batch, JointNetwork, WordScores, fitted, make_network
from product_classificator.types import Embeddings, strings

SHAPE = NetworkShape("joint", image_dim=3, text_dim=2, n_words=4, n_labels=(2, 3), hidden=6, dropout=0.0)
ROWS = csr_matrix(np.array([[0.5, 0, 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=np.float32))


@pytest.fixture
def network() -> JointNetwork:
    torch.manual_seed(0)
    network = JointNetwork(SHAPE)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_()
    return network


@pytest.fixture
def batch() -> Batch:
    """Returns three products: with both parts, without a photo, without a text."""
    has_image, has_text = torch.tensor([[True], [False], [True]]), torch.tensor([[True], [True], [False]])
    return Batch(torch.rand(3, 3), torch.rand(3, 2), has_image, has_text, ROWS)


def test_scores_of_words_and_their_gradient_are_those_of_a_dense_product() -> None:
    words = WordScores(4, 5)
    weight = torch.rand(4, 5, requires_grad=True)
    words.weight.data.copy_(weight.data)
    scores, dense = words(ROWS), torch.from_numpy(ROWS.toarray()) @ weight
    assert torch.allclose(scores, dense)
    for each in (scores, dense):
        (each**2).sum().backward()
    assert words.weight.grad is not None
    assert words.weight.grad.is_sparse
    assert words.weight.grad.coalesce().indices().tolist() == [[0, 2]]
    assert torch.allclose(words.weight.grad.to_dense(), weight.grad)


def test_words_start_from_the_names_of_labels() -> None:
    words = WordScores(4, 3)
    names = csr_matrix(np.array([[6, 0, 8, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
    words.start_from(names)
    assert torch.allclose(words(ROWS), torch.tensor([[19.0, 0, 0], [8, 0, 0], [0, 0, 0]]))


def test_without_words_a_layer_leads_straight_to_the_labels(batch: Batch) -> None:
    network = JointNetwork(replace(SHAPE, n_words=0)).eval()
    batch = replace(batch, words=csr_matrix((3, 0), dtype=np.float32))
    assert network.straight is not None
    before = network(batch)
    with torch.no_grad():
        network.straight.weight[:, 0] = 1.0
    seen = torch.where(batch.has_image[:, 0], batch.image[:, 0], 0)
    assert torch.allclose(network(batch) - before, seen[:, None].expand(3, 5), atol=1e-6)


def test_a_missing_part_is_replaced_by_what_was_learned_for_it(network: JointNetwork, batch: Batch) -> None:
    network.eval()
    filled = replace(
        batch,
        image=torch.where(batch.has_image, batch.image, network.missing_image),
        text=torch.where(batch.has_text, batch.text, network.missing_text),
        has_image=torch.ones(3, 1, dtype=torch.bool),
    )
    assert torch.allclose(network(batch)[:2], network(filled)[:2], atol=1e-5)


def test_what_is_learned_for_a_missing_part_gets_a_gradient(network: JointNetwork, batch: Batch) -> None:
    network(batch).sum().backward()
    assert network.missing_image.grad is not None
    assert network.missing_text.grad is not None
    assert network.missing_image.grad.abs().sum() > 0
    assert network.missing_text.grad.abs().sum() > 0


FITTED = {
    "joint": SHAPE,
    "without words": replace(SHAPE, n_words=0),
    "of photos": replace(SHAPE, text_dim=0, n_words=0),
    "of texts": replace(SHAPE, image_dim=0),
    "started from names": replace(SHAPE, name_dim=2),
    "started from names in one space": replace(SHAPE, image_dim=2, name_dim=2, shares_space=True),
    "published": replace(SHAPE, recipe="published", n_words=0),
}


@pytest.mark.parametrize("shape", FITTED.values(), ids=FITTED)
@pytest.mark.parametrize("n", [0, 1, 9000])
def test_what_is_fitted_answers_in_numpy_as_in_torch_whatever_is_missing(shape: NetworkShape, n: int) -> None:
    draw = np.random.default_rng(0)
    network = make_network(shape).eval()
    for weight in network.state_dict().values():
        weight.copy_(torch.from_numpy(draw.uniform(0.5, 1.5, tuple(weight.shape)).astype(np.float32)))
    has_image, has_text = draw.random((2, n)) < 0.6
    image = draw.normal(size=(n, 3)).astype(np.float32) * has_image[:, None]
    text = draw.normal(size=(n, 2)).astype(np.float32) * has_text[:, None]
    embeddings = Embeddings(strings([str(row) for row in range(n)]), image, text, has_image, has_text, "tiny")
    words = csr_matrix(np.float32(draw.random((n, shape.n_words)) < 0.5))
    with torch.inference_mode():
        known = network(Batch.of(embeddings, words, np.arange(n), shape)).numpy()
    found = fitted(network).logits(embeddings, WeightedWords.of(words))
    assert found.shape == (n, 5)
    assert np.allclose(found, known, atol=1e-5)


def test_weights_of_another_network_are_refused() -> None:
    weights = dict(fitted(JointNetwork(SHAPE)).weights)
    double = {**weights, "labels.bias": weights["labels.bias"].astype(np.float64)}
    narrow = {**weights, "labels.bias": weights["labels.bias"][1:]}
    fewer = {name: weight for name, weight in weights.items() if name != "labels.bias"}
    for wrong, what in ((double, "float64"), (narrow, r"\(4,\)"), (fewer, "None")):
        with pytest.raises(ValueError, match=rf"1 are not: of labels.bias is expected .*\(5,\).*, found .*{what}"):
            FittedNetwork(SHAPE, wrong)
    more = {**weights, "labels.more": weights["labels.bias"]}
    with pytest.raises(ValueError, match=r"1 are not: of labels.more is expected None, found"):
        FittedNetwork(SHAPE, more)


def test_a_shape_of_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a recipe is one of \['joint', 'published'\] or 'zero-shot', found 'deep'"):
        replace(SHAPE, recipe="deep").weights()
    with pytest.raises(ValueError, match=r"names 5 wide cannot be compared with parts \[2\] wide"):
        replace(SHAPE, name_dim=5).weights()


def test_a_fitted_network_is_equal_to_itself_alone() -> None:
    one, other = (fitted(JointNetwork(SHAPE)) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
