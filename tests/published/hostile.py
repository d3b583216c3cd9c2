"""Pickles that would do harm if they were run; each would leave the file `ran`, or take the machine with it."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

Bytes = Callable[[Path], bytes]


class Runs:
    """Pickles to a call of `function` with `args`."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def calls(module: str, name: str, *args: str) -> bytes:
    """Returns the opcodes that call a global of protocol 0 with texts."""
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, args)) + b"tR"


def touch(ran: Path) -> str:
    return f"open({str(ran)!r}, 'w')"


HOSTILE: dict[str, Bytes] = {
    "a call of the shell": lambda ran: b"\x80\x02" + calls("posix", "system", f"touch {ran}") + b".",
    "a call of eval": lambda ran: pickle.dumps(Runs(eval, touch(ran))),
    "a call inside a label": lambda ran: pickle.dumps({"sex": {0: "a", 1: Runs(exec, touch(ran))}}),
    "a call inside the state of an allowed object": lambda ran: (
        b"\x80\x02csklearn.decomposition._pca\nPCA\n)\x81}"
        + text("mean_")
        + calls("builtins", "eval", touch(ran))
        + b"sb."
    ),
    "a name put together from the memo": lambda ran: (
        b"\x80\x04"
        + text("system")
        + b"q\x00"
        + text("posix")
        + b"q\x01h\x01h\x00\x93("
        + text(f"touch {ran}")
        + b"tR."
    ),
    "a dotted name below an allowed one": lambda ran: (
        b"\x80\x04" + text("numpy") + text("dtype.__reduce__") + b"\x93(" + text(str(ran)) + b"tR."
    ),
    "INST": lambda ran: b"(" + text(touch(ran)) + b"ibuiltins\neval\n.",
    "OBJ": lambda ran: b"(cbuiltins\neval\n" + text(touch(ran)) + b"o.",
    "NEWOBJ_EX": lambda _: b"\x80\x04cnumpy\nndarray\n)}\x92.",
    "an extension of copyreg": lambda _: b"\x80\x02\x82\x01.",
    "a persistent id": lambda ran: b"\x80\x02" + text(str(ran)) + b"Q.",
    "attributes of a function": lambda _: b"\x80\x02cnumpy\ndtype\n}" + text("__call__") + text("x") + b"sb.",
    "a call of what is no name": lambda ran: b"\x80\x02" + text("eval") + b"(" + text(touch(ran)) + b"tR.",
    "a key that takes years to hash": lambda _: b"\x80\x02})" + b"q\x01h\x01\x86" * 100 + b"Ns.",
    "a constructor's key that takes years to hash": lambda _: (
        b"\x80\x02ccollections\nOrderedDict\n]])" + b"q\x01h\x01\x86" * 100 + b"aNaa\x85R."
    ),
    "items of what is no dict": lambda _: b"\x80\x02]" + text("a") + b"Ns.",
    "attributes of a class": lambda _: b"\x80\x02cnumpy\ndtype\nN}" + text("__new__") + text("x") + b"s\x86b.",
    "a call of a list": lambda _: b"\x80\x02])R.",
    "a memory of gigabytes": lambda _: b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
}
