"""Two ONNX files, as `onnx` writes them, in the place of the towers of a network; ONNX Runtime computes."""

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnxruntime

from product_classificator.encoders.base import check_threads
from product_classificator.encoders.clip import images_per_batch, tokens_per_batch
from product_classificator.encoders.preprocessing import Inputs
from product_classificator.errors import ArtifactError
from product_classificator.types import Floats

_AXES, _PATCH_PX = 4, 16  # pixels have axes of photo, channel, height, width
IMAGE_FILE, TEXT_FILE = "image.onnx", "text.onnx"


def is_exported(folder: Path) -> bool:
    """Says whether a folder holds exported towers."""
    return (folder / IMAGE_FILE).is_file() and (folder / TEXT_FILE).is_file()


class OnnxNetwork:
    """Towers of two ONNX files; see `Towers`.

    Args:
        folder: holds what `export_towers` wrote.
        device: "cpu", or "cuda" where ONNX Runtime has it; "auto": CUDA where ONNX Runtime has it.
        threads: CPU threads; `None`: the cores this process may use.
        files: those that are needed; the other side has the width 0.

    Raises:
        ArtifactError: the files are not there or damaged.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        threads: int | None = None,
        files: Collection[str] = (IMAGE_FILE, TEXT_FILE),
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = check_threads(threads)
        providers = ["CPUExecutionProvider"]
        if device.startswith(("auto", "cuda")) and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self._sessions = {name: onnxruntime.InferenceSession(folder / name, options, providers) for name in files}
        except Exception as error:  # ONNX Runtime has an exception of its own for each fault, below `Exception` only
            raise ArtifactError(f"the towers in {folder} cannot be read ({error}): export them again") from error
        device = "cpu" if len(providers) == 1 else "cuda"
        self.tokens_per_batch = tokens_per_batch(device)
        self.images_per_batch = images_per_batch(device, self._patches())
        widths = {name: int(session.get_outputs()[0].shape[1]) for name, session in self._sessions.items()}
        self.dim, self.dtype = max(widths.values()), "float32"

    def _patches(self) -> int | None:
        """Returns how many patches a photo has if they are of a common size; the file does not tell theirs."""
        if IMAGE_FILE not in self._sessions:
            return None
        shapes = [taken.shape for taken in self._sessions[IMAGE_FILE].get_inputs()]
        sizes = [shape[2:] for shape in shapes if len(shape) == _AXES and all(isinstance(n, int) for n in shape[2:])]
        return max(1, math.prod(side // _PATCH_PX for side in sizes[0])) if sizes else None

    def image_features(self, inputs: Inputs) -> Floats:
        """Returns (n, image_dim) float32."""
        return _run(self._sessions[IMAGE_FILE], inputs)

    def text_features(self, inputs: Inputs) -> Floats:
        """Returns (n, text_dim) float32."""
        return _run(self._sessions[TEXT_FILE], inputs)


def _run(session: onnxruntime.InferenceSession, inputs: Inputs) -> Floats:
    found: Floats = session.run(None, dict(inputs))[0]
    return found.astype(np.float32, copy=False)
