"""Write the network of CLIP-like towers as ONNX files, by the exporter of PyTorch."""

import copy
import importlib.util
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from product_classificator.encoders.clip import Network
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.encoders.torch_clip import exportable
from product_classificator.errors import ArtifactError, DataError, MissingExtraError


class _Tower(nn.Module):
    """One tower with its inputs by position, as the exporter wants them."""

    def __init__(self, model: nn.Module, method: str, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self._method, self._names = method, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the (n, dim) features."""
        output = getattr(self.model, self._method)(**dict(zip(self._names, inputs, strict=True)))
        features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return features


def write_tower(network: Network, method: str, inputs: Inputs, path: Path) -> None:
    """Write a tower as an ONNX file; the numbers of rows and of text tokens stay dynamic.

    Args:
        network: computes with PyTorch in float32.
        method: of the model, "get_image_features" or "get_text_features".
        inputs: examples.
        path: of the file.

    Raises:
        DataError: the network is not one of PyTorch in float32.
        ArtifactError: the exporter fails.
        MissingExtraError: the exporter is not installed.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise MissingExtraError("exporting to ONNX", "onnx-export")
    exact = exportable(network)
    if exact.dtype != "float32":
        raise DataError(
            f"exported networks compute in float32, but the encoder computes in {exact.dtype}: "
            "load it with dtype='float32'"
        )
    tower = _Tower(copy.deepcopy(exact.model).to("cpu"), method, list(inputs))
    examples = [torch.from_numpy(array) for array in inputs.values()]
    rows, tokens = torch.export.Dim("rows", max=65_536), torch.export.Dim.AUTO
    shapes = [{0: rows, 1: tokens} if example.ndim == 2 else {0: rows} for example in examples]
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        # The exporter prints, and warns of what later versions will do; neither concerns our users.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                tower,
                tuple(examples),
                path,
                input_names=list(inputs),
                output_names=["features"],
                dynamic_shapes=(tuple(shapes),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter has many, and its messages run to pages
        reason = str(error).strip().split("\n", 1)[0]
        raise ArtifactError(f"this network cannot be exported to ONNX ({reason}): compute with PyTorch") from error
    finally:
        log.setLevel(level)
