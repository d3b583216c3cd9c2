from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from product_classificator.heads.network import Batch, JointNetwork, NetworkShape, WordScores

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
