"""Opens the photo network of `lite` in ONNX Runtime; its file is written at the first use and kept (`efficientnet`)."""

from importlib.metadata import version
from pathlib import Path

import onnxruntime

from product_classificator.files import kept_file

INPUT, OUTPUT = "pixels", "vectors"
_FORM = 1  # to be raised when `efficientnet` writes another graph


def open_network(weights: Path, fingerprint: str) -> onnxruntime.InferenceSession:
    """Returns the network, computing on one thread.

    Args:
        weights: of the PyTorch network.
        fingerprint: names them.
    """
    path = kept_file(
        f"{fingerprint}-efficientnet-{_FORM}-torch-{version('torch')}.onnx",
        lambda path: path.write_bytes(_written(weights)),
    )
    if path is not None:
        try:
            return _session(path)
        except Exception:  # ONNX Runtime has an exception of its own for each fault, below `Exception` only
            path.unlink(missing_ok=True)  # it is damaged
    return _session(_written(weights))


def _session(network: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(network, options, ["CPUExecutionProvider"])


def _written(weights: Path) -> bytes:
    from product_classificator.encoders.efficientnet import efficientnet_onnx, load_efficientnet

    return efficientnet_onnx(load_efficientnet(weights))
