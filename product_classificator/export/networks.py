"""Turns the dense part of fitted heads into an ONNX network: all of `heads.inference`, but for the words branch.

What does not depend on the product is computed here once: the mean and scale of the inputs, and what stands for a
missing part, become part of constants.
"""

from product_classificator.graphs import Graph
from product_classificator.heads.network import FittedNetwork
from product_classificator.heads.shape import NetworkShape
from product_classificator.types import Floats

_OUTPUT = "logits"


def heads_onnx(network: FittedNetwork) -> bytes:
    """Returns the ONNX file of a network.

    It takes those of `image` (n, image_dim), `text` (n, text_dim), `has_image` and `has_text` (n, 1), all float32, that
    the network uses, and answers `logits`, (n, all labels) float32, without those of words.
    """
    graph = _HeadsGraph(network)
    answers = {"joint": graph.joint, "published": graph.published, "zero-shot": graph.names}
    logits = answers[network.shape.recipe](network.shape)
    graph.add("Identity", logits, output=_OUTPUT)
    n_labels = sum(network.shape.n_labels)
    return graph.file("heads", graph.used, {_OUTPUT: (n_labels,)})


class _HeadsGraph(Graph):
    """The nodes so far, and the inputs that they use: name -> lengths of their axes but the first."""

    def __init__(self, network: FittedNetwork) -> None:
        super().__init__()
        self.used: dict[str, tuple[int]] = {}
        self._widths = {"image": network.shape.image_dim, "text": network.shape.text_dim}
        self._sides = [side for side, width in self._widths.items() if width]
        self._weights = network.weights

    def joint(self, shape: NetworkShape) -> str:
        """Adds the hidden layer over both parts, what leads straight to the labels, and the names of labels."""
        parts, instead = [], []
        first = self._weights["trunk.1.weight"]
        start = 0
        for side in self._sides:
            own = slice(start, start := start + self._widths[side])
            part = self.add("Sub", self._part(side), self.constant(self._weights["mean"][own]))
            part = self.add("Div", part, self.constant(self._weights["scale"][own]))
            parts.append(self.add("Mul", part, self._has(side)))
            missing = first[:, own] @ self._weights[f"missing_{side}"]
            lacks = self.add("Sub", self.constant(1), self._has(side))
            instead.append(self.add("Mul", lacks, self.constant(missing[None])))
        seen = self._beside(parts)
        hidden = self.linear(seen, first, self._weights["trunk.1.bias"])
        for each in instead:
            hidden = self.add("Add", hidden, each)
        hidden = self.add("Relu", hidden)
        logits = self.linear(hidden, self._weights["labels.weight"], self._weights["labels.bias"])
        if not shape.n_words:
            logits = self.add("Add", logits, self.linear(seen, self._weights["straight.weight"]))
        return self.add("Add", logits, self.names(shape)) if shape.name_dim else logits

    def published(self, shape: NetworkShape) -> str:
        """Adds a hidden layer for each characteristic."""
        last = self._beside([self._part(side) for side in self._sides])
        if shape.projected:
            components = self._weights["components"]
            last = self.add("Sub", last, self.constant(self._weights["mean"]))
            last = self.linear(last, components)
        heads = []
        for number in range(len(shape.n_labels)):
            own = {
                part: self._weights[f"heads.{number}.{part}"] for part in ("0.weight", "0.bias", "3.weight", "3.bias")
            }
            hidden = self.add("Relu", self.linear(last, own["0.weight"], own["0.bias"]))
            heads.append(self.linear(hidden, own["3.weight"], own["3.bias"]))
        return self._beside(heads)

    def names(self, shape: NetworkShape) -> str:
        """Adds the comparison with the names of the labels."""
        names: Floats = self._weights["start.names"] * self._weights["start.scale"]
        seen = [self.add("Mul", self._part(side), self._has(side)) for side in shape.named_sides]
        n_parts = [self._has(side) for side in shape.named_sides]
        total, count = (each[0] if len(each) == 1 else self.add("Add", *each) for each in (seen, n_parts))
        mean = self.add("Div", total, self.add("Max", count, self.constant(1)))
        return self.linear(mean, names)

    def _part(self, side: str) -> str:
        self.used[side] = (self._widths[side],)
        return side

    def _has(self, side: str) -> str:
        self.used[f"has_{side}"] = (1,)
        return f"has_{side}"

    def _beside(self, parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=1)
