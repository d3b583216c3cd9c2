"""Turns the three kinds of published files into arrays and labels: networks of torch, labels, a PCA of scikit-learn.

All three are pickles. They are read as data (`unpickle`), and the records in them are matched here one by one; nothing
of torch, torchvision, scikit-learn or numpy that they name is called. The cost is that a file of another form is
refused, however harmless.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from product_classificator.errors import ArtifactError, culprits
from product_classificator.published.unpickle import ORDERED_DICT, PERSISTENT, Name, Record, read_pickle
from product_classificator.types import Floats

Array: TypeAlias = npt.NDArray[Any]

MAX_BYTES = 2**30
"""Limit of one file, and of what a network's file holds; the published ones have up to 3 MB."""

_SCALARS = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
_ARRAYS = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_DTYPE, _NDARRAY = "numpy dtype", "numpy ndarray"
_PCA = "sklearn.decomposition._pca PCA"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_STORAGES = {"torch FloatStorage": "<f4", "torch DoubleStorage": "<f8", "torch HalfStorage": "<f2"}
_NETWORKS = ("torchvision.ops.misc MLP", "torch.nn.modules.container Sequential")
_LAYERS = (
    "torch.nn.modules.linear Linear",
    "torch.nn.modules.activation ReLU",
    "torch.nn.modules.dropout Dropout",
    "torch.nn.modules.linear Linear",
    "torch.nn.modules.dropout Dropout",
)
_IN_ARRAYS = {*_SCALARS, *_ARRAYS, _DTYPE, _NDARRAY}
_IN_NETWORKS = {*_NETWORKS, *_LAYERS, *_STORAGES, _TENSOR, _PARAMETER, ORDERED_DICT, PERSISTENT}
_IN_NETWORKS |= {"__builtin__ set", "builtins set"}
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,5}")


@dataclass(frozen=True)
class PublishedHead:
    """The weights of one network: Linear, ReLU, Linear.

    Attributes:
        hidden: (hidden, width) float32 and (hidden,) float32, weight and bias of the first layer.
        labels: (labels, hidden) float32 and (labels,) float32, weight and bias of the last.
    """

    hidden: tuple[Floats, Floats]
    labels: tuple[Floats, Floats]


@dataclass(frozen=True)
class Projection:
    """What all heads share: mean (width,), components (projected, width), both float32."""

    mean: Floats
    components: Floats


def read_labels(path: Path) -> dict[str, tuple[str, ...]]:
    """Reads `label_to_char.pkl`: characteristic -> its labels, in the order of their numbers.

    Raises:
        ArtifactError: the file is missing, damaged, dangerous or of another form.
    """
    _check_file(path)
    found = read_pickle(path.read_bytes(), _IN_ARRAYS, path)
    try:
        if not isinstance(found, dict) or not found:
            raise ValueError("a dict of characteristics is expected")
        return {_text(name): _labels(_text(name), numbered) for name, numbered in found.items()}
    except ValueError as error:
        raise _other_form(path, error) from error


def read_projection(path: Path) -> Projection:
    """Reads `pca_all.pkl`; whitening, if there is any, becomes a part of the components.

    Raises:
        ArtifactError: the file is missing, damaged, dangerous or of another form.
    """
    _check_file(path)
    found = read_pickle(path.read_bytes(), {*_IN_ARRAYS, _PCA}, path)
    try:
        match found:
            case Record(
                name=name, state={"mean_": mean, "components_": components, "whiten": bool() as whitens, **rest}
            ):
                mean, components = _floats(mean), _floats(components)
            case _:
                raise ValueError("a fitted PCA is expected")
        if name != _PCA or components.ndim != 2 or mean.shape != components.shape[1:] or not components.size:
            raise ValueError(f"a PCA has a mean (d,) and components (k, d), found {mean.shape} and {components.shape}")
        if whitens:
            variance = _floats(rest.get("explained_variance_"))
            if variance.shape != components.shape[:1]:
                raise ValueError(f"{len(components)} components need as many variances, found {variance.shape}")
            # As scikit-learn: a component without variance is not divided by nothing.
            scale = np.maximum(np.sqrt(np.maximum(variance, 0)), np.finfo(np.float32).eps)
            components = components / scale[:, None]
        return Projection(mean, components)
    except ValueError as error:
        raise _other_form(path, error) from error


def read_head(path: Path) -> PublishedHead:
    """Reads the network of one characteristic: a whole module, or its state dict, as `torch.save` writes them.

    Raises:
        ArtifactError: the file is missing, damaged, dangerous or of another form.
    """
    entries = _unzipped(path)
    if "data.pkl" not in entries:
        raise _other_form(path, "an archive of torch.save has a data.pkl")
    found = read_pickle(entries["data.pkl"], _IN_NETWORKS, path)
    try:
        if entries.get("byteorder", b"little") != b"little":
            raise ValueError("numbers are expected to be little-endian")
        weights = {name: _tensor(tensor, entries) for name, tensor in _weights_of(found).items()}
        if set(weights) != {"0.weight", "0.bias", "3.weight", "3.bias"}:
            raise ValueError(f"layers 0 and 3 with weights and biases are expected, found {culprits(sorted(weights))}")
        hidden, labels = ((weights[f"{i}.weight"], weights[f"{i}.bias"]) for i in (0, 3))
        for weight, bias in (hidden, labels):
            if weight.ndim != 2 or not weight.size or bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"a layer has a weight (out, in) and a bias (out,), found {weight.shape}, {bias.shape}"
                )
        if labels[0].shape[1] != hidden[0].shape[0]:
            raise ValueError(f"the layers do not follow one another: {hidden[0].shape}, then {labels[0].shape}")
        return PublishedHead(hidden, labels)
    except ValueError as error:
        raise _other_form(path, error) from error


def _other_form(path: Path, found: object) -> ArtifactError:
    return ArtifactError(f"{path} is not one of the published files ({found}): get it anew from those who published it")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ArtifactError(f"published heads need {path.name}, and {path} is not there: get all files of one version")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _other_form(path, f"it has {size} bytes, the limit is {MAX_BYTES}")


def _unzipped(path: Path) -> dict[str, bytes]:
    """Returns the entries of an archive of `torch.save`, by their names below its one folder."""
    _check_file(path)
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
            # torch.save compresses nothing, so nothing can be larger than the file is.
            if any(entry.compress_type != ZIP_STORED for entry in entries):
                raise _other_form(path, "an archive of torch.save is not compressed")
            size = sum(entry.file_size for entry in entries)
            if size > MAX_BYTES:
                raise _other_form(path, f"it holds {size} bytes, the limit is {MAX_BYTES}")
            return {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    except (BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
        raise _other_form(path, f"not a whole archive of torch.save: {error}") from error


def _weights_of(found: object) -> dict[str, object]:
    """Returns "<layer>.<weight or bias>" -> the record of a tensor."""
    match found:
        case Record(name=name, state={"_modules": modules}) if name in _NETWORKS:
            layers = _mapping(modules)
        case _:
            return _mapping(found)
    kinds = tuple(layer.name if isinstance(layer, Record) else "" for layer in layers.values())
    if kinds != _LAYERS or list(layers) != [str(i) for i in range(len(_LAYERS))]:
        raise ValueError(
            f"Linear, ReLU, Dropout, Linear, Dropout are expected, found {[k.split()[-1:] for k in kinds]}"
        )
    weights: dict[str, object] = {}
    for number, layer in layers.items():
        match layer:
            case Record(state={"_parameters": parameters}):
                weights |= {f"{number}.{name}": tensor for name, tensor in _mapping(parameters).items()}
    return weights


def _mapping(found: object) -> dict[str, object]:
    items = found.items if isinstance(found, Record) and found.name == ORDERED_DICT else found
    if not isinstance(items, dict):
        raise ValueError("a dict of weights is expected")
    return {_text(name): value for name, value in items.items()}


def _tensor(found: object, entries: Mapping[str, bytes]) -> Floats:
    if isinstance(found, Record) and found.name == _PARAMETER and found.args:
        found = found.args[0]
    match found:
        case Record(
            name=name,
            args=(
                Record(name=where, args=("storage", Name(kind), str() as key, _, int() as length)),
                int() as offset,
                tuple() as shape,
                tuple() as strides,
                *_,
            ),
        ) if name == _TENSOR and where == PERSISTENT and kind in _STORAGES:
            raw = entries.get(f"data/{key}", b"")
        case _:
            raise ValueError("a tensor is expected")
    dtype, size = np.dtype(_STORAGES[kind]), _size(shape)
    if len(raw) != length * dtype.itemsize or not 0 <= offset <= length - size:
        raise ValueError(f"a tensor of {shape} does not fit into its {len(raw)} bytes")
    if strides != tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))):
        raise ValueError(f"a tensor of {shape} is expected to lie row by row")
    return _finite(np.frombuffer(raw, dtype, size, offset * dtype.itemsize).reshape(shape))


def _labels(characteristic: str, numbered: object) -> tuple[str, ...]:
    if not isinstance(numbered, dict):
        raise ValueError(f"{characteristic} needs a dict of numbers and labels")
    labels = {_number(number): _label(label) for number, label in numbered.items()}
    if sorted(labels) != list(range(len(numbered))):
        raise ValueError(f"the labels of {characteristic} are expected to be numbered from 0 without a gap")
    names = tuple(labels[number] for number in range(len(labels)))
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"{characteristic} needs two labels or more, each once")
    return names


def _number(found: object) -> int:
    number = _plain(found)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError("a label is expected to have a whole number")
    return number


def _label(found: object) -> str:
    """Returns a label as catalogs write it: truth values, also those written as words, are "true" and "false"."""
    label = _plain(found)
    return str(label).lower() if isinstance(label, bool) or label in ("True", "False") else _text(label)


def _text(found: object) -> str:
    if not isinstance(found, str) or not found.strip() or found != found.encode(errors="ignore").decode():
        raise ValueError("a name is expected to be text")
    return found


def _plain(found: object) -> object:
    """Returns the Python value of a scalar of numpy; anything else as it is."""
    match found:
        case Record(name=name, args=(dtype, bytes() as raw)) if name in _SCALARS:
            return _values(raw, dtype, ())[()].item()
    return found


def _floats(found: object) -> Floats:
    match found:
        case Record(name=name, state=(int(), tuple() as shape, dtype, bool() as is_by_column, bytes() as raw)) if (
            name in _ARRAYS
        ):
            values = _values(raw, dtype, shape[::-1] if is_by_column else shape)
            return _finite(values.T if is_by_column else values)
    raise ValueError("an array of numbers is expected")


def _values(raw: bytes, found: object, shape: tuple[object, ...]) -> Array:
    match found:
        case Record(name=name, args=(str() as code, *_), state=(int(), ("<" | ">" | "|") as order, *_)) if (
            name == _DTYPE
        ):
            if not _PLAIN_DTYPE.fullmatch(code):
                raise ValueError(f"numbers, texts or true and false are expected, found dtype {code[:20]!r}")
            dtype = np.dtype(code).newbyteorder(order)
        case _:
            raise ValueError("an array needs a plain dtype")
    if _size(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"an array of {shape} {code} does not fit into its {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape)  # type: ignore[arg-type]


def _size(shape: tuple[object, ...]) -> int:
    if not all(isinstance(length, int) and 0 <= length <= MAX_BYTES for length in shape) or len(shape) > 2:
        raise ValueError("at most two dimensions are expected, of whole lengths")
    return math.prod(shape)  # type: ignore[arg-type]


def _finite(values: Array) -> Floats:
    if values.dtype.kind != "f":
        raise ValueError(f"fractions are expected, found {values.dtype}")
    with np.errstate(over="ignore"):
        floats: Floats = np.array(values, dtype=np.float32, order="C")
    if not np.isfinite(floats).all():
        raise ValueError("numbers are expected to be finite")
    return floats
