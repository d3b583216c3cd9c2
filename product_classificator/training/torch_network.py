"""The network of `heads.network` in torch, as it is fitted.

One hidden layer is shared by all characteristics, so rare labels profit from common ones. A linear model of the words
adds what a sentence embedding blurs (brand, "pack of 2", sizes).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from product_classificator.heads.network import Network, NetworkShape
from product_classificator.training.inputs import BagOfWords
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
        """Return the products of `rows`, without the parts that the network does not use."""
        return cls(
            torch.from_numpy(embeddings.image[rows, : shape.image_dim]).float(),
            torch.from_numpy(embeddings.text[rows, : shape.text_dim]).float(),
            torch.from_numpy(embeddings.has_image[rows][:, None]),
            torch.from_numpy(embeddings.has_text[rows][:, None]),
            words[rows],
        )


MEMBERS = 4


class JointNetwork(nn.Module):
    """`heads.network.Network` with gradients and dropout; the names of its weights are the same.

    Its hidden units are those of four networks, which share inputs and words: each answers for itself while they are
    fitted, and their mean is what is fitted (Gorishniy et al. 2024, "TabM").
    """

    mean: Tensor
    scale: Tensor
    label_embeddings: Tensor

    def __init__(self, shape: NetworkShape, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        width, n_labels = shape.image_dim + shape.text_dim, sum(shape.n_labels)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.hidden = nn.Linear(width, shape.hidden)
        self.missing = nn.Parameter(torch.zeros(2, shape.hidden))
        self.labels = nn.Linear(shape.hidden, n_labels)
        self.word_weights = nn.Parameter(torch.zeros(shape.n_words, n_labels))
        if shape.label_dim:
            self.register_buffer("label_embeddings", torch.zeros(n_labels, shape.label_dim))
        self.text_dropout, self.hidden_dropout = Dropout(dropout / 2), Dropout(dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Return (n, all labels) logits; while fitting, (4, n, all labels) of the networks it consists of."""
        dims = [self.shape.image_dim, self.shape.text_dim]
        has = [batch.has_image.expand(-1, dims[0]), batch.has_text.expand(-1, dims[1])]
        parts = (torch.cat([batch.image, batch.text], 1) - self.mean) / self.scale
        inputs = torch.where(torch.cat(has, 1), parts, 0)
        # Texts repeat what their words say; dropout of images does not pay.
        image, text = torch.split(inputs, dims, 1)
        is_missing = ~torch.cat([batch.has_image, batch.has_text], 1) & (torch.tensor(dims) > 0)
        hidden = self.hidden(torch.cat([image, self.text_dropout(text)], 1)) + is_missing.float() @ self.missing
        hidden = self.hidden_dropout(torch.relu(hidden))
        if self.training:
            of_members = (units.unflatten(1, (MEMBERS, -1)).transpose(0, 1) for units in (hidden, self.labels.weight))
            logits = MEMBERS * torch.bmm(next(of_members), next(of_members).mT) + self.labels.bias
        else:
            logits = self.labels(hidden)
        if self.shape.label_dim:
            logits = logits + self.label_scores(batch)
        if self.shape.n_words:
            word_logits: Tensor = _SparseProduct.apply(self.word_weights, batch.words)  # type: ignore[no-untyped-call]
            logits = logits + word_logits * batch.has_text
        return logits

    def label_scores(self, batch: Batch) -> Tensor:
        """Return (n, all labels) products of label embeddings and the mean of the parts that a product has."""
        parts = [(batch.text, batch.has_text)] if self.shape.text_dim else []
        if self.shape.shares_space and self.shape.image_dim:
            parts.append((batch.image, batch.has_image))
        total = torch.stack([part * has for part, has in parts]).sum(0)
        n_parts = torch.stack([has for _, has in parts]).sum(0).clamp(min=1)
        scores: Tensor = (total / n_parts) @ self.label_embeddings.T
        return scores

    def fitted(self) -> Network:
        """Return the network as it predicts now, without dropout; it shares the memory of its weights."""
        return Network(self.shape, {name: weight.numpy() for name, weight in self.state_dict().items()})


class Dropout(nn.Module):
    """Dropout in steps of 1/256: a random byte per unit decides, which takes a third of the time of torch's dropout."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, units: Tensor) -> Tensor:
        """Return (n, units), the kept ones scaled up so that the expected sum stays the same."""
        if not self.training or not self.share:
            return units
        drawn = torch.empty(-(-units.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        is_kept = drawn.view(torch.uint8)[: units.numel()].view(units.shape) >= round(256 * self.share)
        return units * is_kept.to(units.dtype).div_(1 - self.share)


class _SparseProduct(torch.autograd.Function):
    """SciPy's product of sparse rows and dense weights: a step takes 8 ms, 12 with `EmbeddingBag` (137 labels)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, words: BagOfWords) -> Tensor:
        ctx.words, ctx.shape = words, weight.shape
        return torch.from_numpy(words @ weight.detach().numpy())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        by_word = ctx.words.T.tocsr()
        present = np.flatnonzero(np.diff(by_word.indptr))
        starts = np.append(by_word.indptr[present], by_word.nnz)
        of_present = csr_matrix((by_word.data, by_word.indices, starts), shape=(len(present), by_word.shape[1]))
        rows = torch.from_numpy(of_present @ gradients[0].contiguous().numpy())
        columns = torch.from_numpy(present)[None]
        return torch.sparse_coo_tensor(columns, rows, ctx.shape, check_invariants=False, is_coalesced=True), None
