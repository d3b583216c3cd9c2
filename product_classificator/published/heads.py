"""Turns the folder of published heads (2024) into an ordinary bundle.

The published system gave the image part and the text part of ruCLIP, equally wide, in its smaller variant projected by
one PCA, to one small network per characteristic. Its files are pickles, which `unpickle` reads as data.
"""

import logging
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from product_classificator.classificator.opening import PLACE_OF_PUBLISHED
from product_classificator.errors import ArtifactError, culprits
from product_classificator.heads import Characteristic, HeadBundle
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.network import Network, NetworkShape, columns_of
from product_classificator.published.unpickle import Array, Module, read_pickle
from product_classificator.types import Floats

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LABELS, PROJECTION = "label_to_char.pkl", "pca_all.pkl"
MAX_BYTES = 2**26
"""Limit of one file, and of what a network's file holds; the published ones have up to 3 MB."""

_TENSORS = ("0.weight", "0.bias", "3.weight", "3.bias")

Head = Mapping[str, Floats]  # 0.weight (hidden, width), 0.bias (hidden,), 3.weight (labels, hidden), 3.bias (labels,)
Projection = tuple[Floats, Floats]  # mean (width,) and components (projected, width)


def read_published_heads(folder: str | Path, *, encoder_name: str) -> HeadBundle:
    """Read published heads: `<characteristic>.pt`, `label_to_char.pkl` and, if present, `pca_all.pkl`.

    Other files are ignored. The encoder is the one they were trained on; `HeadBundle.bound_to` sets its fingerprint.
    A file that is missing, damaged, of another form or hostile, or does not match the others, is an `ArtifactError`.
    """
    folder = Path(folder)
    all_labels = _read(folder / LABELS, _labels)
    files = {path.stem: path for path in sorted(folder.glob("*.pt"))}
    unlabelled = sorted(set(files) - set(all_labels))
    if unlabelled or not files:
        raise ArtifactError(
            f"every network <characteristic>.pt needs its labels in {LABELS}: {folder} has {len(files)} networks, "
            f"without labels: {culprits(unlabelled)}; get all files of one version"
        )
    labels = {name: names for name, names in all_labels.items() if name in files}
    if len(labels) < len(all_labels):
        logger.info("%s has labels but no network of %s", folder, ", ".join(sorted(set(all_labels) - set(files))))
    heads = {name: _read(files[name], _head) for name in labels}
    path = folder / PROJECTION
    return HeadBundle(
        characteristics=tuple(Characteristic(name, names) for name, names in labels.items()),
        network=_joint_network(folder, labels, heads, _read(path, _projection) if path.exists() else None),
        vocabulary=Vocabulary(),
        encoder_name=encoder_name,
        encoder_fingerprint="",
        facts={"source": "published heads"},
    )


def _joint_network(
    folder: Path, labels: Mapping[str, tuple[str, ...]], heads: Mapping[str, Head], projection: Projection | None
) -> Network:
    """Return all heads as one network: hidden layers one after the other, label weights block-diagonal.

    The projection joins the hidden layer. A missing part was zeros before it, so it is -mean after the mean is taken.
    """
    hidden, reads = next(iter(heads.values()))["0.weight"].shape
    projected, width = (reads, reads) if projection is None else projection[1].shape
    for name, head in heads.items():
        k = len(labels[name])
        expected = dict(zip(_TENSORS, ((hidden, projected), (hidden,), (k, hidden), (k,)), strict=True))
        shapes = {tensor: weights.shape for tensor, weights in head.items()}
        if shapes != expected or not head["0.weight"].size:
            raise ArtifactError(
                f"the published files of {folder} do not fit together: weights of {name} are expected to be "
                f"{expected}, found {shapes}; get all files of one version"
            )
    if width % 2:
        raise ArtifactError(f"image part and text part are expected to be equally wide, and {folder} reads {width}")
    mean = np.zeros(width) if projection is None else projection[0]
    first = np.concatenate([head["0.weight"] for head in heads.values()]).astype(np.float64)
    n_labels = tuple(len(names) for names in labels.values())
    label_weights = np.zeros((sum(n_labels), len(first)))
    for i, (head, rows) in enumerate(zip(heads.values(), columns_of(n_labels), strict=True)):
        label_weights[rows, hidden * i : hidden * (i + 1)] = head["3.weight"]
    first = first if projection is None else first @ projection[1]
    weights = {
        "mean": mean,
        "scale": np.ones(width),
        "missing": -(mean * first).reshape(len(first), 2, -1).sum(2).T,
        "hidden.weight": first,
        "hidden.bias": np.concatenate([head["0.bias"] for head in heads.values()]),
        "labels.weight": label_weights,
        "labels.bias": np.concatenate([head["3.bias"] for head in heads.values()]),
        "word_weights": np.zeros((0, sum(n_labels))),
    }
    shape = NetworkShape(width // 2, width // 2, n_labels, len(first))
    return Network(shape, {name: weight.astype(np.float32) for name, weight in weights.items()})


def _read(path: Path, convert: Callable[[bytes], Result]) -> Result:
    if not path.is_file():
        where = f"name {PLACE_OF_PUBLISHED}, or another folder with all files of one version"
        raise ArtifactError(f"published heads need {path.name}, and {path} is missing: {where}")
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"it has {size} bytes, the limit is {MAX_BYTES}")
        return convert(path.read_bytes())
    except Exception as error:  # a hostile file can cause any
        raise ArtifactError(
            f"{path} is not one of the published files ({error}): nothing in it was executed; get it again from those "
            "who published it"
        ) from error


def _labels(data: bytes) -> dict[str, tuple[str, ...]]:
    characteristics = read_pickle(data)
    if not isinstance(characteristics, dict) or not characteristics:
        raise ValueError("expected a dict of characteristics")
    labels = {}
    for name, numbered in characteristics.items():
        if not isinstance(numbered, dict):
            raise ValueError(f"{_text(name)} needs a dict of numbers and labels")
        if not all(type(number) is int for number in numbered) or sorted(numbered) != list(range(len(numbered))):
            raise ValueError(f"the labels of {_text(name)} must be numbered from 0 without a gap")
        names = tuple(
            # Catalogs write truth values, also those written as words, in lower case.
            str(label).lower() if isinstance(label, bool) or label in ("True", "False") else _text(label)
            for _, label in sorted(numbered.items())
        )
        if len(names) < 2 or len(set(names)) != len(names):
            raise ValueError(f"{_text(name)} needs two labels or more, each once")
        labels[_text(name)] = names
    return labels


def _text(name: object) -> str:
    if not isinstance(name, str) or not name.strip() or name != name.encode(errors="ignore").decode():
        raise ValueError("a name must be text")
    return name


def _projection(data: bytes) -> Projection:
    pca = read_pickle(data)
    if not isinstance(pca, Module) or pca.state.get("whiten") is not False:
        raise ValueError("expected a fitted PCA without whitening")
    mean, components = _floats(pca.state.get("mean_"), 1), _floats(pca.state.get("components_"), 2)
    if mean.shape != components.shape[1:] or not components.size:
        raise ValueError(f"a PCA has a mean (d,) and components (k, d), found {mean.shape} and {components.shape}")
    return mean, components


def _head(data: bytes) -> Head:
    """Return the weights of a whole network as `torch.save` writes it."""
    with ZipFile(BytesIO(data)) as archive:
        members = archive.infolist()
        if any(member.compress_type != ZIP_STORED for member in members):  # nothing can be larger than the file
            raise ValueError("an archive of torch.save is not compressed")
        if (size := sum(member.file_size for member in members)) > MAX_BYTES:
            raise ValueError(f"it holds {size} bytes, the limit is {MAX_BYTES}")
        entries = {member.filename.partition("/")[2]: archive.read(member) for member in members}
    if "data.pkl" not in entries or entries.get("byteorder", b"little") != b"little":
        raise ValueError("an archive of torch.save has a data.pkl, and numbers must be little-endian")
    network = read_pickle(entries["data.pkl"], entries)
    layers = list(network.state.get("_modules", {}).values()) if isinstance(network, Module) else []
    kinds = " ".join(type(layer).__name__ for layer in layers)
    if kinds != "Linear ReLU Dropout Linear Dropout":
        raise ValueError(f"expected Linear ReLU Dropout Linear Dropout, found {kinds or type(network).__name__}")
    parameters = [layer.state.get("_parameters", {}) for layer in layers]
    return {name: _floats(parameters[int(name[0])].get(name[2:]), 1 + name.endswith("weight")) for name in _TENSORS}


def _floats(array: object, n_axes: int) -> Floats:
    if not isinstance(array, Array) or array.values.ndim != n_axes:
        raise ValueError(f"expected an array of {n_axes} axes")
    if array.values.dtype.kind != "f":
        raise ValueError(f"expected fractions, found {array.values.dtype}")
    with np.errstate(over="ignore"):
        floats: Floats = np.array(array.values, dtype=np.float32, order="C")
    if not np.isfinite(floats).all():
        raise ValueError("numbers must be finite")
    return floats
