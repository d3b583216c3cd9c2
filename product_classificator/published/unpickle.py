"""Turns a pickle into plain data without running anything of it: constants, containers, and notes of what it names.

A pickle is a program: Python's own reader imports what it names and calls it. Here its opcodes are followed one by
one, and where the program would import, make or call something, a `Record` notes the name, the arguments and the
state. What a record means is for its reader to say, with code of its own. An opcode or a name outside the allow-list
ends it.

An own interpreter, and not `pickle.Unpickler` with a guarded `find_class`: even behind such a guard a pickle may set
attributes on what it is given, ask for gigabytes with one memo number, or hash a tuple that takes years. The cost is
that only opcodes of the protocols 2 to 4 that the published files use are understood.
"""

import pickletools
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from product_classificator.errors import ArtifactError

PERSISTENT = "a persistent id"
"""The name of records that stand for something outside the pickle; refused unless it is in the allow-list."""
ORDERED_DICT = "collections OrderedDict"

_MAX_STEPS = 200_000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Mapping[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_VALUES = {"BINFLOAT", "BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE"}
_VALUES |= {"BINBYTES", "SHORT_BINBYTES"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SKIPPED = {"PROTO", "FRAME", "STOP"}


@dataclass(frozen=True)
class Name:
    """A global that a pickle names: its module and its name, with a space between them."""

    name: str


@dataclass(eq=False)
class Record:
    """Something that a pickle would make or call, and that is noted instead.

    Attributes:
        name: what would be called: its module and its name, with a space between them.
        args: with which arguments.
        state: what its attributes would be set to.
        items: what would be put into it as into a dict.
    """

    name: str
    args: tuple[object, ...]
    state: object = None
    items: dict[object, object] = field(default_factory=dict)


def read_pickle(data: bytes, allowed: AbstractSet[str], where: object) -> object:
    """Reads a pickle as data.

    Args:
        data: the whole pickle.
        allowed: the names that records may have.
        where: the file it comes from, for messages.

    Returns:
        What the pickle holds: constants, tuples, lists, dicts, `Name` and `Record`.

    Raises:
        ArtifactError: the pickle names or does something that is not allowed, or is damaged.
    """
    machine = _Machine(allowed)
    try:
        for step, (opcode, value, _) in enumerate(pickletools.genops(data)):
            if step == _MAX_STEPS:
                raise _RefusedError(f"more than {_MAX_STEPS} steps")
            machine.follow(opcode.name, value)
        return machine.stack.pop()
    except _RefusedError as error:
        raise ArtifactError(
            f"of a pickle only plain tensors, arrays and containers are read, and {where} holds {error}: nothing of it "
            "was run; get the file from those who published it"
        ) from None
    except (ValueError, TypeError, LookupError) as error:
        raise ArtifactError(f"{where} is not a whole pickle ({error}): get the file anew") from error


class _RefusedError(Exception):
    """The pickle does something that is not allowed; the message says what."""


class _Machine:
    """The stack and the memo of a pickle that is followed."""

    def __init__(self, allowed: AbstractSet[str]) -> None:
        self.allowed = allowed
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, object] = {}

    def follow(self, opcode: str, value: Any) -> None:
        """Does what one opcode says, as far as it is harmless."""
        if opcode in _VALUES:
            self.stack.append(value)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            members = [self.stack.pop() for _ in range(_TUPLES[opcode])]
            self.stack.append(tuple(reversed(members)))
        elif opcode in _STEPS:
            _STEPS[opcode](self, value)
        elif opcode not in _SKIPPED:
            raise _RefusedError(f"the opcode {opcode}")

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        marked, self.stack = self.stack, self.below.pop()
        return marked

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def tuple_of_marked(self, _: object) -> None:
        marked = tuple(self._since_mark())
        self.stack.append(marked)

    def append(self, _: object) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: object) -> None:
        self._extend(self._since_mark())

    def _extend(self, members: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _RefusedError("members of something that is no list")
        self.stack[-1].extend(members)

    def set_item(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def set_items(self, _: object) -> None:
        self._update(self._since_mark())

    def _update(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record) and target.name == ORDERED_DICT:
            target = target.items
        # A tuple as a key would have to be hashed, and a small pickle can make one that takes years.
        if not isinstance(target, dict) or not all(isinstance(key, str | int | Record) for key in pairs[::2]):
            raise _RefusedError("items of something that is no dict, or under keys that are no names or numbers")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def name(self, name: str) -> None:
        if name not in self.allowed:
            raise _RefusedError(repr(name[:100]))
        self.stack.append(Name(name))

    def stacked_name(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _RefusedError("a name that is no text")
        self.name(f"{module} {name}")

    def call(self, _: object) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise _RefusedError("a call of something that is no name")
        self.stack.append(Record(called.name, args))

    def build(self, _: object) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record):
            raise _RefusedError("attributes of something that has none")
        self.stack[-1].state = state

    def persistent(self, _: object) -> None:
        args = self.stack.pop()
        if PERSISTENT not in self.allowed or not isinstance(args, tuple):
            raise _RefusedError(PERSISTENT)
        self.stack.append(Record(PERSISTENT, args))


_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_of_marked,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stacked_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
