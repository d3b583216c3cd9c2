"""Writes ONNX networks node by node: the exporters of PyTorch need packages that nothing else here needs."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Floats: TypeAlias = npt.NDArray[np.float32]

_OPSET = 17
_IR_VERSION = 8

FLOAT, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


class Graph:
    """The nodes and constants so far."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: Floats | float) -> str:
        """Adds a constant and returns its name."""
        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        output = output or f"node{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(self, last: str, weight: Floats, bias: Floats | None = None) -> str:
        """Adds a linear layer, of (out, in) weights and (out,) bias as torch keeps them, and returns its output."""
        constants = [self.constant(weight), *([] if bias is None else [self.constant(bias)])]
        return self.add("Gemm", last, *constants, transB=1)

    def file(
        self,
        name: str,
        inputs: Mapping[str, Sequence[int]],
        outputs: Mapping[str, Sequence[int]],
        *,
        input_type: int = FLOAT,
    ) -> bytes:
        """Returns the file of the whole network.

        Args:
            name: of the network.
            inputs: name -> lengths of all axes but the first, which is as long as there are products.
            outputs: likewise, of float32.
            input_type: of all inputs.
        """
        taken, given = (
            [helper.make_tensor_value_info(key, kind, ["n", *lengths]) for key, lengths in values.items()]
            for values, kind in ((inputs, input_type), (outputs, FLOAT))
        )
        graph = helper.make_graph(self._nodes, name, taken, given, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model)
        content: bytes = model.SerializeToString()
        return content
