"""Turns image part, text part and words of products into logits: the networks of the recipes, as they are fitted.

All networks answer one row of logits for all characteristics, label after label. The joint network shares one hidden
layer between all characteristics, so that rare labels profit from the common ones, and adds a linear model of words,
which sees what a sentence vector blurs (brand, "pack of 2", sizes), or, where there are no words, of the parts
themselves.
The published heads share nothing. What is fitted answers by `inference`, which also knows networks that are not fitted
here: published heads behind a projection, and the zero-shot network, from which the joint one may start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from product_classificator.heads.bag_of_words import BagOfWords
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.shape import NetworkShape
from product_classificator.types import Embeddings, Rows


@dataclass(frozen=True)
class Batch:
    """Products as tensors: image (n, d_i), text (n, d_t) float32; has_image, has_text (n, 1) bool; words (n, w) CSR."""

    image: Tensor
    text: Tensor
    has_image: Tensor
    has_text: Tensor
    words: BagOfWords

    @classmethod
    def of(cls, embeddings: Embeddings, words: BagOfWords, rows: Rows, shape: NetworkShape) -> "Batch":
        """Returns the products of `rows`, without the parts that the network does not use."""
        return cls(
            torch.from_numpy(embeddings.image[rows, : shape.image_dim]),
            torch.from_numpy(embeddings.text[rows, : shape.text_dim]),
            torch.from_numpy(embeddings.has_image[rows][:, None]),
            torch.from_numpy(embeddings.has_text[rows][:, None]),
            words[rows],
        )


class NameScores(nn.Module):
    """How near a product is to the names of the labels: scale x the mean cosine over the parts it has.

    A row of zeros among the names gives its label a score of 0.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("names", torch.zeros(sum(shape.n_labels), shape.name_dim))
        self.register_buffer("scale", torch.zeros(()))

    def compare(self, names: Tensor, scale: float) -> None:
        """Sets the unit vectors of all names, (all labels, name_dim), and what cosines are multiplied by."""
        self.names, self.scale = names, torch.tensor(scale, dtype=torch.float32)

    def forward(self, batch: Batch) -> Tensor:
        """Returns (n, all labels) scores."""
        sides = {"text": (batch.text, batch.has_text), "image": (batch.image, batch.has_image)}
        parts = [sides[side] for side in self.shape.named_sides]
        seen = torch.stack([part * has for part, has in parts]).sum(0)
        n_parts = torch.stack([has for _, has in parts]).sum(0).clamp(min=1)
        scores: Tensor = self.scale * (seen / n_parts) @ self.names.T
        return scores


class WordScores(nn.Module):
    """A linear model of the words: (n, words) sparse rows into (n, labels) logits, with a sparse gradient."""

    def __init__(self, n_words: int, n_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_words, n_labels))

    def start_from(self, names: BagOfWords) -> None:
        """Sets the weights to those of (labels, words) names: a text scores by the words that it shares with them."""
        known = names.tocoo()
        places = torch.from_numpy(known.col).long(), torch.from_numpy(known.row).long()
        with torch.no_grad():
            self.weight.zero_()[places] = torch.from_numpy(known.data)

    def forward(self, words: BagOfWords) -> Tensor:
        """Returns (n, labels) logits."""
        logits: Tensor = _SparseProduct.apply(self.weight, words)  # type: ignore[no-untyped-call]
        return logits


class _SparseProduct(torch.autograd.Function):
    """SciPy's product of sparse rows and dense weights: a step takes 8 ms, 12 with `EmbeddingBag` (137 labels)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, words: BagOfWords) -> Tensor:
        ctx.words, ctx.shape = words, weight.shape
        return torch.from_numpy(words @ weight.detach().numpy())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        by_word = ctx.words.T.tocsr()
        seen = np.flatnonzero(np.diff(by_word.indptr))
        starts = np.append(by_word.indptr[seen], by_word.nnz)
        of_seen = csr_matrix((by_word.data, by_word.indices, starts), shape=(len(seen), by_word.shape[1]))
        rows = torch.from_numpy(of_seen @ gradients[0].contiguous().numpy())
        columns = torch.from_numpy(seen)[None]
        return torch.sparse_coo_tensor(columns, rows, ctx.shape, check_invariants=False, is_coalesced=True), None


class Dropout(nn.Module):
    """Silences a share of units in training, in steps of 1/256: a random byte decides, in a third of torch's time."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, units: Tensor) -> Tensor:
        """Returns (n, units), the others scaled up so that their sum is kept."""
        if not self.training or not self.share:
            return units
        drawn = torch.empty(-(-units.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        is_kept = drawn.view(torch.uint8)[: units.numel()].view(units.shape) >= round(256 * self.share)
        return units * is_kept.to(units.dtype).div_(1 - self.share)


class JointNetwork(nn.Module):
    """One hidden layer over both parts for all characteristics, plus a linear model of the words.

    Without any words the linear model is one of the parts: photos alone, validation macro-F1 of three splits of fashion
    goods .711 without it, .721 with it; beside words it took .002, with half of the photos .002 as well. Where vectors
    of the names of labels are given, their scores are added: training starts from the zero-shot network.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.image_dim + shape.text_dim
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.missing_image = nn.Parameter(torch.zeros(shape.image_dim))
        self.missing_text = nn.Parameter(torch.zeros(shape.text_dim))
        self.trunk = nn.Sequential(
            Dropout(shape.dropout / 2), nn.Linear(width, shape.hidden), nn.ReLU(), Dropout(shape.dropout)
        )
        self.labels = nn.Linear(shape.hidden, sum(shape.n_labels))
        self.straight = None if shape.n_words else nn.Linear(width, sum(shape.n_labels), bias=False)
        if self.straight is not None:
            nn.init.zeros_(self.straight.weight)
        self.words = WordScores(shape.n_words, sum(shape.n_labels))
        self.start = NameScores(shape) if shape.name_dim else None

    def standardise(self, mean: Tensor, scale: Tensor) -> None:
        """Sets the mean and scale, (d_i + d_t,) each, that inputs are freed from."""
        self.mean, self.scale = mean, scale

    def forward(self, batch: Batch) -> Tensor:
        """Returns (n, all labels) logits."""
        has = [
            batch.has_image.expand(-1, self.shape.image_dim),
            batch.has_text.expand(-1, self.shape.text_dim),
        ]
        parts = (torch.cat([batch.image, batch.text], 1) - self.mean) / self.scale
        seen = torch.where(torch.cat(has, 1), parts, 0)
        logits: Tensor = self.labels(self._hidden(seen, batch))
        if self.start is not None:
            logits += self.start(batch)
        logits += self.straight(seen) if self.straight is not None else self.words(batch.words) * batch.has_text
        return logits

    def _hidden(self, seen: Tensor, batch: Batch) -> Tensor:
        """Returns (n, hidden) units.

        What stands for a missing part is multiplied by the weights once, not once a product: the gradient of the
        whole input would cost a third of a step.
        """
        dropped, linear, relu, dropped_again = self.trunk
        weights = self.trunk.get_parameter("1.weight")
        of_image, of_text = torch.split(weights, [self.shape.image_dim, self.shape.text_dim], 1)
        instead = ~batch.has_image * (of_image @ self.missing_image) + ~batch.has_text * (of_text @ self.missing_text)
        # Texts repeat what their words say. Of photos all is needed: photos alone, as above, .707 instead of .711.
        image, text = torch.split(seen, [self.shape.image_dim, self.shape.text_dim], 1)
        hidden: Tensor = dropped_again(relu(linear(torch.cat([image, dropped(text)], 1)) + instead))
        return hidden


class PublishedNetwork(nn.Module):
    """The published heads: for each characteristic its own hidden layer over both parts, nothing shared.

    The published system is `torchvision.ops.MLP(d, [1024, k], dropout=0.2)`, which also has the dropout after the
    last layer; it is kept.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(shape.image_dim + shape.text_dim, shape.hidden),
                nn.ReLU(),
                nn.Dropout(shape.dropout),
                nn.Linear(shape.hidden, n_labels),
                nn.Dropout(shape.dropout),
            )
            for n_labels in shape.n_labels
        )

    def forward(self, batch: Batch) -> Tensor:
        """Returns (n, all labels) logits."""
        parts = torch.cat([batch.image, batch.text], 1)
        return torch.cat([head(parts) for head in self.heads], 1)


Network = JointNetwork | PublishedNetwork
_NETWORKS: Mapping[str, type[Network]] = {"joint": JointNetwork, "published": PublishedNetwork}


def make_network(shape: NetworkShape) -> Network:
    """Returns a network of a recipe to fit, its weights drawn from torch's global generator."""
    return _NETWORKS[shape.recipe](shape)


def fitted(network: Network) -> FittedNetwork:
    """Returns a network as it answers now, without dropout; it shares the memory of its weights."""
    return FittedNetwork(network.shape, {name: weight.numpy() for name, weight in network.state_dict().items()})
