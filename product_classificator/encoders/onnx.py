"""The towers of a CLIP-like encoder as ONNX files: exported by PyTorch once, computed by ONNX Runtime after that.

Rows and the length of texts stay dynamic. Whatever the network does with its inputs (causal mask, pooling at the end
token) is in the file, so `OnnxNetwork` takes the same prepared inputs as `TorchNetwork` and answers the same vectors,
which the export checks before it keeps a file. The files compute in float32, whatever the encoder's precision: on the
CPU, ONNX Runtime knows few operations in others.
"""

import copy
import importlib.util
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from product_classificator.encoders.base import Encoder, unit_rows
from product_classificator.encoders.clip import clip_towers
from product_classificator.encoders.onnx_towers import IMAGE_FILE, TEXT_FILE, OnnxNetwork
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.encoders.torch_clip import Compute, TorchNetwork, torch_network_of
from product_classificator.errors import ArtifactError, MissingExtraError
from product_classificator.files import replacing_folder

_LARGEST_DIFFERENCE = 1e-4
_SAMPLE_TEXTS = ("Футболка женская, хлопок 100 %", "Ваза стеклянная высокая для цветов, ручная работа, 30 см", "")


def export_towers(encoder: Encoder, folder: Path, text: str, image: Image.Image) -> None:
    """Writes the towers of an encoder as a new folder, or in place of an older one.

    Args:
        encoder: computes with PyTorch, on any device and in any precision; it is not changed.
        folder: of the two files.
        text: an example, to compare the answers of both ways.
        image: likewise.

    Raises:
        DataError: the encoder does not compute with PyTorch.
        ArtifactError: the network cannot be exported, or the exported towers answer otherwise.
        MissingExtraError: the exporter is not installed.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise MissingExtraError("exporting to ONNX", "onnx-export")
    network = _exact(torch_network_of(encoder))
    image_tower, text_tower = clip_towers(encoder)
    images = image_tower.preparation.inputs([image, image])
    texts = text_tower.preparation.inputs(text_tower.preparation.windows([text, *_SAMPLE_TEXTS])[0])
    with replacing_folder(folder) as new:
        _export(_Tower(network, "get_image_features", images), images, new / IMAGE_FILE)
        _export(_Tower(network, "get_text_features", texts), texts, new / TEXT_FILE)
        exported = OnnxNetwork(new)
        for found, known in (
            (exported.image_features(images), network.image_features(images)),
            (exported.text_features(texts), network.text_features(texts)),
        ):
            difference = float(np.abs(unit_rows(found) - unit_rows(known)).max())
            if not difference <= _LARGEST_DIFFERENCE:
                raise ArtifactError(
                    f"exported towers must answer within {_LARGEST_DIFFERENCE} of PyTorch, found {difference:.2g}: "
                    "use PyTorch for this model"
                )


def _exact(network: TorchNetwork) -> TorchNetwork:
    """Returns a copy that computes in float32 on the CPU."""
    model = copy.deepcopy(network.model).to("cpu", torch.float32)
    return TorchNetwork(model, network.dim, Compute("cpu", "float32", network.threads))


class _Tower(nn.Module):
    """One tower with its inputs by position, as the exporter wants them."""

    def __init__(self, network: TorchNetwork, method: str, inputs: Inputs) -> None:
        super().__init__()
        self.model = network.model
        self._method = method
        self._names = list(inputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the (n, dim) features."""
        output = getattr(self.model, self._method)(**dict(zip(self._names, inputs, strict=True)))
        found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return found


def _export(tower: _Tower, inputs: Inputs, path: Path) -> None:
    examples = [torch.from_numpy(array) for array in inputs.values()]
    rows, tokens = torch.export.Dim("rows", max=65_536), torch.export.Dim.AUTO
    shapes = [{0: rows, 1: tokens} if example.ndim == 2 else {0: rows} for example in examples]
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        # The exporter prints, and warns of what it will do otherwise in later versions; neither concerns our users.
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
