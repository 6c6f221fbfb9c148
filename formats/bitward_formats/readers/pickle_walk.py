"""A pickle machine that makes nothing: containers, numbers and strings become plain nodes, all else inert records.

What a pickle wants imported, called or built is written down (which global, with which arguments and state) and never done: no name
is looked up, no class is made, so a hostile pickle can only describe. That is also why files whose classes are not installed can be
read. Nodes are compared by identity alone; nothing here hashes or compares a container, whose depth the pickle chooses.

Opcodes of protocols 0 to 5, after the reference description in CPython's ``pickletools``. Steps, nodes, marks and stack are counted
against limits; long strings and bytes are passed over and kept as their length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from bitward_formats.errors import PickleSyntaxError, PickleTooLargeError
from bitward_formats.readers.pickle_nodes import Blob, Call, Global, Listing, Mapping, Persistent
from bitward_formats.readers.pickle_tape import Tape

STEP_LIMIT = 1 << 24
"""Opcodes in all pickles of a file. A tensor takes about forty."""
NODE_LIMIT = 1 << 21
"""Containers and records in all pickles of a file. A tensor takes seven; each has a few hundred bytes here at most."""
UNPACKED_LIMIT_BYTES = 1 << 26
"""Most bytes of pickles that lie packed in an archive; others are read in pieces, at any length."""
STACK_LIMIT = 1 << 20
MARK_LIMIT = 1 << 16
MEMO_INDEX_LIMIT = 1 << 32
TEXT_LIMIT_BYTES = 65_535
"""Longer strings cannot be names of tensors; they are kept as their length."""
INTEGER_LIMIT_BYTES = 255


@dataclass(slots=True)
class Budget:
    """What all pickles of a file together may still take."""

    unpacked_bytes: int = UNPACKED_LIMIT_BYTES
    steps: int = STEP_LIMIT
    nodes: int = NODE_LIMIT


_PLAIN = {
    ord("N"): None,
    0x88: True,
    0x89: False,
}
_NUMBERS = {
    ord("J"): struct.Struct("<i"),
    ord("K"): struct.Struct("<B"),
    ord("M"): struct.Struct("<H"),
    ord("G"): struct.Struct(">d"),
}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
# (bytes of the length, how the contents are read: as bytes where there is no encoding)
_COUNTED = {
    ord("X"): (4, "utf-8"),
    0x8C: (1, "utf-8"),
    0x8D: (8, "utf-8"),
    ord("T"): (4, "latin-1"),
    ord("U"): (1, "latin-1"),
    ord("B"): (4, ""),
    ord("C"): (1, ""),
    0x8E: (8, ""),
    0x96: (8, ""),
}
_EXTENSIONS = {0x82: 1, 0x83: 2, 0x84: 4}
_GETS = {ord("h"): 1, ord("j"): 4}
_PUTS = {ord("q"): 1, ord("r"): 4}


class Machine:
    """Walks one pickle; ``load`` gives its root node. ``tape`` then stands behind it, ``persistents`` lists all of those met."""

    def __init__(self, tape: Tape, budget: Budget) -> None:
        self._tape = tape
        self._budget = budget
        self._stack: list[object] = []
        self._marks: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self._handlers = self._table()
        self.persistents: list[Persistent] = []

    def load(self) -> object:
        """The node that the pickle describes.

        Raises PickleSyntaxError for what is no pickle, PickleTooLargeError where a limit is passed.
        """
        tape, handlers = self._tape, self._handlers
        left = self._budget.steps
        try:
            while True:
                code = tape.byte()
                if code == 0x2E:
                    return self._pop()
                left -= 1
                if left < 0:
                    raise PickleTooLargeError(f"the pickle takes more than {STEP_LIMIT} steps")
                handler = handlers.get(code)
                if handler is None:
                    raise PickleSyntaxError(f"no pickle opcode {code:#04x} at {tape.place - 1}")
                handler(code)
        finally:
            self._budget.steps = left

    def _table(self) -> dict[int, Callable[[int], None]]:
        table: dict[int, Callable[[int], None]] = {ord(code): handler for code, handler in self._text_handlers()}
        groups: list[tuple[dict[int, object], Callable[[int], None]]] = [
            (dict(_PLAIN), lambda code: self._push(_PLAIN[code])),
            (dict(_NUMBERS), self._number),
            (dict(_TUPLES), lambda code: self._push_node(self._take_last(_TUPLES[code]))),
            (dict(_COUNTED), self._counted),
            (dict(_EXTENSIONS), lambda code: self._push_node(Global("copyreg", f"extension {self._count(_EXTENSIONS[code])}"))),
            (dict(_GETS), lambda code: self._get(self._count(_GETS[code]))),
            (dict(_PUTS), lambda code: self._put(self._count(_PUTS[code]))),
        ]
        for codes, handler in groups:
            table.update(dict.fromkeys(codes, handler))
        table.update(self._binary_handlers())
        return table

    def _text_handlers(self) -> list[tuple[str, Callable[[int], None]]]:
        """Protocols 0 and 1, whose opcodes are printable."""
        return [
            ("(", lambda _: self._mark()),
            (")", lambda _: self._push(())),
            ("]", lambda _: self._push_node(Listing())),
            ("}", lambda _: self._push_node(Mapping())),
            ("0", lambda _: self._discard()),
            ("1", lambda _: self._ignore(self._pop_mark())),
            ("2", lambda _: self._push(self._top())),
            ("t", lambda _: self._push_node(tuple(self._pop_mark()))),
            ("l", lambda _: self._push_node(Listing(self._pop_mark()))),
            ("d", lambda _: self._push_node(Mapping(self._pairs(self._pop_mark())))),
            ("a", lambda _: self._extend([self._pop()])),
            ("e", lambda _: self._extend(self._pop_mark())),
            ("s", lambda _: self._set(list(self._take_last(2)))),
            ("u", lambda _: self._set(self._pop_mark())),
            ("I", lambda _: self._push(self._text_integer())),
            ("L", lambda _: self._push(self._text_integer())),
            ("F", lambda _: self._push(self._text_float())),
            ("S", lambda _: self._push(self._quoted())),
            ("V", lambda _: self._push(self._tape.line().decode("raw_unicode_escape", "replace"))),
            ("g", lambda _: self._get(self._text_integer())),
            ("p", lambda _: self._put(self._text_integer())),
            ("c", lambda _: self._push_node(Global(self._text(), self._text()))),
            ("i", lambda _: self._instance(Global(self._text(), self._text()), self._pop_mark())),
            ("o", lambda _: self._object(self._pop_mark())),
            ("R", lambda _: self._call(self._take_last(2))),
            ("b", lambda _: self._build()),
            ("P", lambda _: self._persistent(self._text())),
            ("Q", lambda _: self._persistent(self._pop())),
        ]

    def _binary_handlers(self) -> dict[int, Callable[[int], None]]:
        """Protocols 2 to 5 but for those in the tables above. Frames and buffers have no meaning here."""
        return {
            0x80: lambda _: self._ignore(self._tape.byte()),
            0x95: lambda _: self._tape.skip(8),
            0x8A: lambda _: self._push(self._long(self._count(1))),
            0x8B: lambda _: self._push(self._long(self._count(4))),
            0x8F: lambda _: self._push_node(Listing()),
            0x90: lambda _: self._extend(self._pop_mark()),
            0x91: lambda _: self._push_node(Listing(self._pop_mark())),
            0x93: lambda _: self._stack_global(),
            0x94: lambda _: self._put(len(self._memo)),
            0x81: lambda _: self._call(self._take_last(2)),
            0x92: lambda _: self._call_with_keywords(self._take_last(3)),
            0x97: lambda _: self._push_node(Blob(0)),
            0x98: lambda _: None,
        }

    # The stack.

    def _push(self, value: object) -> None:
        if len(self._stack) >= STACK_LIMIT:
            raise PickleTooLargeError(f"more than {STACK_LIMIT} values wait on the pickle's stack at {self._tape.place}")
        self._stack.append(value)

    def _push_node(self, node: object) -> None:
        self._budget.nodes -= 1
        if self._budget.nodes < 0:
            raise PickleTooLargeError(f"the pickle makes more than {NODE_LIMIT} objects")
        self._push(node)

    def _pop(self) -> object:
        if not self._stack:
            raise self._error("takes a value from an empty stack")
        return self._stack.pop()

    def _top(self) -> object:
        if not self._stack:
            raise self._error("needs a value on an empty stack")
        return self._stack[-1]

    def _take_last(self, count: int) -> tuple[object, ...]:
        if len(self._stack) < count:
            raise self._error(f"takes {count} values from a stack of {len(self._stack)}")
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        return values

    def _mark(self) -> None:
        if len(self._marks) >= MARK_LIMIT:
            raise PickleTooLargeError(f"more than {MARK_LIMIT} marks are open at {self._tape.place}")
        self._marks.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[object]:
        if not self._marks:
            raise self._error("goes back to a mark that is not there")
        values, self._stack = self._stack, self._marks.pop()
        return values

    def _discard(self) -> None:
        """POP takes the mark where nothing stands above it."""
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _ignore(self, value: object) -> None:
        pass

    def _put(self, index: int) -> None:
        if not 0 <= index < MEMO_INDEX_LIMIT:
            raise self._error("uses a memo index out of range")
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self._error("reads an empty place of the memo")
        self._push(self._memo[index])

    # Numbers and strings.

    def _count(self, length_bytes: int) -> int:
        return int.from_bytes(self._tape.take(length_bytes), "little")

    def _number(self, code: int) -> None:
        form = _NUMBERS[code]
        self._push(form.unpack(self._tape.take(form.size))[0])

    def _long(self, length: int) -> object:
        if length > INTEGER_LIMIT_BYTES:
            self._tape.skip(length)
            return Blob(length)
        return int.from_bytes(self._tape.take(length), "little", signed=True)

    def _counted(self, code: int) -> None:
        length_bytes, encoding = _COUNTED[code]
        length = self._count(length_bytes)
        if length > TEXT_LIMIT_BYTES:
            self._tape.skip(length)
            self._push_node(Blob(length))
            return
        data = self._tape.take(length)
        self._push(data.decode(encoding, "replace") if encoding else data)

    def _text(self) -> str:
        return self._tape.line().decode("utf-8", "replace")

    def _text_integer(self) -> int:
        text = self._tape.line().rstrip(b"L")
        try:
            if len(text) > INTEGER_LIMIT_BYTES:
                raise ValueError
            return int(text)
        except ValueError:
            raise self._error("has no integer where one belongs") from None

    def _text_float(self) -> float:
        try:
            return float(self._tape.line())
        except ValueError:
            raise self._error("has no number where one belongs") from None

    def _quoted(self) -> str:
        text = self._tape.line().strip()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            raise self._error("has a string without quotes")
        inner = text[1:-1]
        return inner.decode("latin-1") if b"\\" not in inner else inner.decode("unicode_escape", "replace")

    # Records.

    def _pairs(self, values: list[object]) -> list[tuple[object, object]]:
        if len(values) % 2:
            raise self._error("sets a key without a value")
        return list(zip(values[::2], values[1::2], strict=True))

    def _extend(self, values: list[object]) -> None:
        target = self._top()
        if not isinstance(target, (Listing, Call)):
            raise self._error("adds to what is no list")
        target.items.extend(values)

    def _set(self, values: list[object]) -> None:
        target = self._top()
        if not isinstance(target, (Mapping, Call)):
            raise self._error("sets a key of what is no dict")
        target.pairs.extend(self._pairs(values))

    def _call(self, values: tuple[object, ...]) -> None:
        function, args = values
        if not isinstance(args, tuple):
            raise self._error("calls with arguments that are no tuple")
        self._push_node(Call(function, args))

    def _call_with_keywords(self, values: tuple[object, ...]) -> None:
        function, args, keywords = values
        if not isinstance(args, tuple) or not isinstance(keywords, Mapping):
            raise self._error("calls with arguments that are no tuple and dict")
        self._push_node(Call(function, args, pairs=list(keywords.pairs)))

    def _instance(self, function: Global, values: list[object]) -> None:
        self._push_node(Call(function, tuple(values)))

    def _object(self, values: list[object]) -> None:
        if not values:
            raise self._error("makes an object without a class")
        self._push_node(Call(values[0], tuple(values[1:])))

    def _persistent(self, pid: object) -> None:
        node = Persistent(pid)
        self._push_node(node)
        self.persistents.append(node)

    def _stack_global(self) -> None:
        module, name = self._take_last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._error("names a global by what is no string")
        self._push_node(Global(module, name))

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if not isinstance(target, Call):
            raise self._error("gives state to what is no object")
        # A second state would replace attributes of the first; both may hold tensors.
        target.state = state if target.state is None else (target.state, state)

    def _error(self, does: str) -> PickleSyntaxError:
        return PickleSyntaxError(f"the pickle {does}, before {self._tape.place}")
