from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from product_classificator.heads.bag_of_words import WeightedWords
from product_classificator.heads.network import Network, NetworkShape
from product_classificator.training import torch_network
from product_classificator.training.torch_network import Batch, JointNetwork
from product_classificator.types import Embeddings, strings

SHAPE = NetworkShape(image_dim=3, text_dim=2, n_labels=(2, 3), hidden=8, n_words=4)
BARE = replace(SHAPE, n_words=0)
ROWS = csr_matrix(np.array([[0.5, 0, 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=np.float32))


@pytest.fixture
def network() -> JointNetwork:
    torch.manual_seed(0)
    network = JointNetwork(SHAPE, dropout=0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_()
    return network


@pytest.fixture
def batch() -> Batch:
    """Return three products: with both parts, without a photo, without a text."""
    has_image, has_text = torch.tensor([[True], [False], [True]]), torch.tensor([[True], [True], [False]])
    return Batch(torch.rand(3, 3), torch.rand(3, 2), has_image, has_text, ROWS)


def test_scores_of_words_and_their_gradient_are_those_of_a_dense_product() -> None:
    weight, dense_weight = (torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    weight.requires_grad = dense_weight.requires_grad = True
    scores, dense = torch_network._SparseProduct.apply(weight, ROWS), torch.from_numpy(ROWS.toarray()) @ dense_weight
    assert torch.allclose(scores, dense)
    for output in (scores, dense):
        (output**2).sum().backward()
    assert weight.grad is not None
    assert weight.grad.is_sparse
    assert weight.grad.coalesce().indices().tolist() == [[0, 2]]
    assert torch.allclose(weight.grad.to_dense(), dense_weight.grad)


def test_a_missing_part_is_replaced_by_what_was_learned_for_it(network: JointNetwork, batch: Batch) -> None:
    network.eval()
    image = torch.rand(3)
    with torch.no_grad():
        network.missing[0] = network.hidden.weight[:, :3] @ image
    filled = replace(
        batch,
        image=torch.where(batch.has_image, batch.image, image),
        has_image=torch.ones(3, 1, dtype=torch.bool),
    )
    assert torch.allclose(network(batch), network(filled), atol=1e-5)


def test_what_is_learned_for_a_missing_part_gets_a_gradient(network: JointNetwork, batch: Batch) -> None:
    network(batch).sum().backward()
    assert network.missing.grad is not None
    assert (network.missing.grad.abs().sum(1) > 0).all()


def test_what_is_fitted_is_the_mean_of_the_members(network: JointNetwork, batch: Batch) -> None:
    of_members = network(batch)
    assert of_members.shape == (torch_network.MEMBERS, 3, 5)
    assert of_members.std(0).min() > 0
    assert torch.allclose(of_members.mean(0), network.eval()(batch), atol=1e-5)


FITTED = {
    "joint": SHAPE,
    "without words": BARE,
    "of images": replace(BARE, text_dim=0),
    "of texts": replace(SHAPE, image_dim=0),
    "started from names": replace(SHAPE, label_dim=2),
    "started from names in one space": replace(SHAPE, image_dim=2, label_dim=2, shares_space=True),
}


@pytest.mark.parametrize("shape", FITTED.values(), ids=FITTED)
@pytest.mark.parametrize("n", [0, 1, 9000])
def test_what_is_fitted_answers_in_numpy_as_in_torch_whatever_is_missing(shape: NetworkShape, n: int) -> None:
    draw = np.random.default_rng(0)
    network = JointNetwork(shape, dropout=0.5).eval()
    for weight in network.state_dict().values():
        weight.copy_(torch.from_numpy(draw.uniform(0.5, 1.5, tuple(weight.shape)).astype(np.float32)))
    has_image, has_text = draw.random((2, n)) < 0.6
    image = draw.normal(size=(n, 3)).astype(np.float32) * has_image[:, None]
    text = draw.normal(size=(n, 2)).astype(np.float32) * has_text[:, None]
    embeddings = Embeddings(strings([str(row) for row in range(n)]), image, text, has_image, has_text, "tiny")
    words = csr_matrix(np.float32(draw.random((n, shape.n_words)) < 0.5))
    with torch.inference_mode():
        expected = network(Batch.of(embeddings, words, np.arange(n), shape)).numpy()
    logits = network.fitted().logits(embeddings, WeightedWords(words.data, words.indices, words.indptr))
    assert logits.shape == (n, 5)
    assert np.allclose(logits, expected, atol=1e-5)


def test_weights_of_another_network_are_refused() -> None:
    weights = dict(JointNetwork(SHAPE, dropout=0).fitted().weights)
    double = {**weights, "labels.bias": weights["labels.bias"].astype(np.float64)}
    narrow = {**weights, "labels.bias": weights["labels.bias"][1:]}
    fewer = {name: weight for name, weight in weights.items() if name != "labels.bias"}
    for wrong, what in ((double, "float64"), (narrow, r"\(4,\)"), (fewer, "None")):
        with pytest.raises(ValueError, match=rf"1 do not: labels.bias must be .*\(5,\).*, found .*{what}"):
            Network(SHAPE, wrong)
    more = {**weights, "labels.more": weights["labels.bias"]}
    with pytest.raises(ValueError, match=r"1 do not: labels.more must be None, found"):
        Network(SHAPE, more)


def test_a_shape_of_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label embeddings 5 wide cannot be compared with parts \[2\] wide"):
        replace(SHAPE, label_dim=5)


def test_a_fitted_network_is_equal_to_itself_alone() -> None:
    one, other = (JointNetwork(SHAPE, dropout=0).fitted() for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
