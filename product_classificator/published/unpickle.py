"""Reads the pickles of published heads as data: a few opcodes, and a few names that become stand-ins of this module.

`torch.load(weights_only=True)` and `pickle.Unpickler` hash any key of a dict: a pickle of 300 bytes, a nested tuple,
stops them for years. The Unpickler written in Python (`pickle._Unpickler`) lets its opcodes be replaced and refused.
"""

import math
import pickle
import re
from collections.abc import Mapping
from io import BytesIO
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

# What protocols 2 to 4 use for constants, containers, names and calls; items and states are handled below.
_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES "
    "SHORT_BINBYTES EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS MEMOIZE BINPUT "
    "LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BINPERSID"
)
_FLOATS = "<f4"


class Dtype:
    """Stand-in for `numpy.dtype`: numbers, truth values and texts only."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|U\d{1,5}", code):
            raise ValueError(f"expected numbers, texts or truth values, found dtype {code[:20]!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """Stand-in for arrays of NumPy (`_reconstruct`, then their state) and for storages and tensors of torch."""

    values: npt.NDArray[Any] = np.empty(0)

    def __init__(self, values: object = None, *_: object) -> None:
        if isinstance(values, np.ndarray):
            self.values = values

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_by_column, raw = state
        self.values = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if is_by_column else "C")


class Module:
    """Stand-in for a module of torch or an estimator of scikit-learn: keeps its attributes."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class OrderedDict(dict[Any, Any]):
    """Stand-in for `collections.OrderedDict`, which is made empty and whose attributes are left out."""

    def __init__(self) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _scalar(dtype: Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.dtype)[0].item()


def _tensor(storage: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Array:
    if len(shape) > 2 or strides != (*shape[1:], 1):
        raise ValueError(f"a tensor of {shape[:3]} is expected to lie row by row")
    return Array(storage.values[offset : offset + math.prod(shape)].reshape(shape))


_LAYERS = ("container Sequential", "linear Linear", "activation ReLU", "dropout Dropout")
NAMES: Mapping[str, Any] = {
    "numpy dtype": Dtype,
    "numpy ndarray": Array,
    **{f"numpy.{core}.multiarray _reconstruct": Array for core in ("core", "_core")},  # NumPy 1 and 2
    **{f"numpy.{core}.multiarray scalar": _scalar for core in ("core", "_core")},
    "collections OrderedDict": OrderedDict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch FloatStorage": _FLOATS,
    **{f"torch.nn.modules.{layer}": type(layer.split()[1], (Module,), {}) for layer in _LAYERS},
    **dict.fromkeys(
        ("torchvision.ops.misc MLP", "sklearn.decomposition._pca PCA", "__builtin__ set", "builtins set"), Module
    ),
}
""""module name" -> its stand-in; any other name is refused."""


def read_pickle(data: bytes, entries: Mapping[str, bytes] = MappingProxyType({})) -> Any:
    """Read a pickle without importing or calling anything that it names; if it needs that, raise `ValueError`.

    In the `entries` of an archive of `torch.save` the numbers of a storage are in "data/<key>".
    """
    try:
        return _PlainUnpickler(BytesIO(data), entries).load()
    except Exception as error:  # a hostile pickle can cause any
        refused = f"the opcode {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(refused or type(error).__name__) from error


class _PlainUnpickler(pickle._Unpickler):
    stack: list[Any]

    def __init__(self, file: BytesIO, entries: Mapping[str, bytes]) -> None:
        super().__init__(file)
        self.entries = entries

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module} {name}"
        if full_name not in NAMES:
            raise ValueError(f"it names {full_name[:100]!r}")
        return NAMES[full_name]

    def persistent_load(self, pid: Any) -> Array:
        kind, dtype, key, _, length = pid
        if kind != "storage" or dtype != _FLOATS or not isinstance(key, str):
            raise ValueError("it names a persistent id")
        raw = self.entries.get(f"data/{key}", b"")
        if len(raw) != length * np.dtype(_FLOATS).itemsize:
            raise ValueError(f"a tensor of {length} numbers does not fit into its {len(raw)} bytes")
        return Array(np.frombuffer(raw, _FLOATS))

    def build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].__setstate__(state)  # only instances of stand-ins have one

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def set_items(self) -> None:
        self._update(self.pop_mark())  # type: ignore[attr-defined]

    def _update(self, items: list[Any]) -> None:
        # A tuple as a key would have to be hashed, and a small pickle can nest one that takes years.
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, str | int) for key in items[::2]):
            raise ValueError("it sets items of something other than a dict, or keys other than texts and numbers")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch: ClassVar[dict[int, Any]] = {
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES.split()},
        pickle.BUILD[0]: build,
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
    }
