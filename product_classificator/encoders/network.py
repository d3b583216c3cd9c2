"""Opens the photo network of `lite` in ONNX Runtime; its file is written at the first use and kept (`efficientnet`)."""

from importlib.metadata import version
from pathlib import Path

import onnxruntime

from product_classificator.files import forget, kept_file

INPUT, OUTPUT = "pixels", "vectors"
_FORM = 2  # to be raised when `efficientnet` writes another graph


def open_network(weights: Path, fingerprint: str) -> onnxruntime.InferenceSession:
    """Returns the network, computing on one thread.

    Args:
        weights: of the PyTorch network.
        fingerprint: names them.
    """
    path = kept_file(
        f"{fingerprint}-efficientnet-{_FORM}-torch-{version('torch')}.onnx",
        lambda path: path.write_bytes(network_of(weights)),
    )
    if path is not None:
        try:
            return session_of(path)
        except Exception:  # ONNX Runtime has an exception of its own for each fault, below `Exception` only
            forget(path)  # it is damaged
    return session_of(network_of(weights))


def session_of(network: Path | bytes) -> onnxruntime.InferenceSession:
    """Returns a network, or the file of one, computing on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(network, options, ["CPUExecutionProvider"])


def network_of(weights: Path) -> bytes:
    """Returns the ONNX file of the PyTorch network with these weights."""
    from product_classificator.encoders.efficientnet import efficientnet_onnx, load_efficientnet

    return efficientnet_onnx(load_efficientnet(weights))
