"""The header of a NumPy array file: from its magic bytes to one element type, shape and order.

Used for ``.npy`` files and for the members of ``.npz`` archives. The header's text is a Python literal; it is read by a small grammar
of its own and never evaluated. Of an element type that is not a plain number (records, objects, strings, dates, the nameless bytes as
which NumPy writes bfloat16) only the place of its bytes is kept.

Sources: ``numpy.lib.format`` (the NPY format, versions 1.0 to 3.0) and the array interface protocol (type strings).
"""

from __future__ import annotations

import math
import re

from bitward_formats import records
from bitward_formats.errors import (
    DuplicateKeyError,
    FormatVersionError,
    HeaderSyntaxError,
    HeaderTooLargeError,
    HeaderTooShortError,
    TensorBoundsError,
    TensorSizeError,
)
from bitward_formats.frozen import dataclass
from bitward_formats.readers.file_view import Fetch
from bitward_formats.spans import OPAQUE_KIND, Role, Span

MAGIC = b"\x93NUMPY"
HEADER_LIMIT_BYTES = 1 << 20
"""Longest header. NumPy itself reads no more than 10,000 bytes of one unless told to; records of many fields need more."""
DIMS_LIMIT = 64
"""NumPy's own limit (NPY_MAXDIMS of version 2)."""
NESTING_LIMIT = 64
"""How deep the brackets of a record type may nest."""
BYTES_LIMIT = 1 << 63
"""An array of more bytes has no index."""

_PREFIX_BYTES = 8
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
_KEYS = ("descr", "fortran_order", "shape")

_SPACE = re.compile(r"[ \t\n\r\f]*+")
_STRING = re.compile(r"""[bBuU]?(?:'([^'\\\n]*+(?:\\.[^'\\\n]*+)*+)'|"([^"\\\n]*+(?:\\.[^"\\\n]*+)*+)")""")
_SHAPE = re.compile(r"\([ \t\n\r\f]*+(?:(?:[0-9]{1,20}+L?[ \t\n\r\f]*+,?+[ \t\n\r\f]*+){1,64}+)?\)")
_NUMBER = re.compile(r"([0-9]+)L?[ \t\n\r\f]*(,?)")
_BOOLEAN = re.compile(r"True|False")
_ATOM = re.compile(r"[A-Za-z0-9_.+-]++")
_TYPE = re.compile(r"([<>=|]?)([a-zA-Z])([0-9]{0,10})(.*)", re.DOTALL)

_PLAIN = {
    "b1": "BOOL",
    **{f"i{size}": f"I{8 * size}" for size in (1, 2, 4, 8)},
    **{f"u{size}": f"U{8 * size}" for size in (1, 2, 4, 8)},
    **{f"f{size}": f"F{8 * size}" for size in (2, 4, 8)},
    "c8": "C64",
    "c16": "C128",
}


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What a header says: where the elements begin, their label (``F32``, ``F32.BE@1,0``; empty if opaque) and the shape.

    ``element_bytes`` is 0 where it is not known (records, objects); ``meaning`` tells why an array is opaque.
    """

    header_bytes: int
    dtype: str
    dims: tuple[int, ...]
    element_bytes: int
    meaning: str = ""


def read_header(fetch: Fetch, offset: int, length: int) -> ArrayHeader:
    """The header of the array which the ``length`` bytes from ``offset`` hold. Raises CheckpointError."""
    start = fetch(offset, min(length, _PREFIX_BYTES + 4))
    if start[: len(MAGIC)] != MAGIC:
        raise HeaderSyntaxError(f"byte {offset}: the array does not begin with NumPy's magic bytes")
    if len(start) < _PREFIX_BYTES:
        raise HeaderTooShortError(f"byte {offset}: the array ends after {len(start)} bytes, within its version")
    major, minor = start[6], start[7]
    if major not in _LENGTH_BYTES or minor:
        raise FormatVersionError(f"byte {offset + 6}: version {major}.{minor} of the NPY format is not known")
    text_start = _PREFIX_BYTES + _LENGTH_BYTES[major]
    text_bytes = int.from_bytes(start[_PREFIX_BYTES:text_start], "little")
    if text_bytes > HEADER_LIMIT_BYTES:
        raise HeaderTooLargeError(f"byte {offset + 8}: the header claims {text_bytes} bytes; {HEADER_LIMIT_BYTES} are read at most")
    if len(start) < text_start or text_bytes > length - text_start:
        raise HeaderTooShortError(f"byte {offset + 8}: the header claims {text_bytes} bytes; the array has {length} in all")
    text = fetch(offset + text_start, text_bytes)
    if len(text) != text_bytes:
        raise HeaderTooShortError(f"the file ended after {len(text)} of the header's {text_bytes} bytes")
    try:
        literal = text.decode("utf-8" if major == 3 else "latin-1")
    except UnicodeDecodeError as error:
        raise HeaderSyntaxError(f"byte {offset + text_start + error.start} of the header is not UTF-8") from None
    descr, fortran_order, dims = _Literal(literal).header()
    return _described(text_start + text_bytes, descr, fortran_order, dims)


def array_spans(header: ArrayHeader, offset: int, length: int, name: str) -> list[Span]:
    """The spans of one array file that lies at ``offset``: header, elements, and what follows them.

    Raises TensorBoundsError if the elements do not fit ``length``.
    """
    data_offset, data_bytes = offset + header.header_bytes, length - header.header_bytes
    spans = [Span(Role.HEADER, OPAQUE_KIND, offset, header.header_bytes)]
    if not header.element_bytes:
        return spans + ([Span(Role.DATA, OPAQUE_KIND, data_offset, data_bytes)] if data_bytes else [])
    wanted = math.prod(header.dims) * header.element_bytes
    if wanted > data_bytes:
        raise TensorBoundsError(f"the array at byte {offset} takes {wanted} bytes; {data_bytes} are there")
    if header.dtype:
        spans.append(Span(Role.TENSOR, records.kind_of(header.dtype), data_offset, wanted, header.dtype, header.dims, name))
    elif wanted:
        spans.append(Span(Role.DATA, OPAQUE_KIND, data_offset, wanted))
    if wanted < data_bytes:
        # Several arrays may be saved one after another into one file; loading takes the first.
        spans.append(Span(Role.TRAILER, OPAQUE_KIND, data_offset + wanted, data_bytes - wanted))
    return spans


def _described(header_bytes: int, descr: str | None, fortran_order: bool, dims: tuple[int, ...]) -> ArrayHeader:
    """The header with its type string understood, as far as it says what a number is."""
    if descr is None:
        return ArrayHeader(header_bytes, "", dims, 0, "records")
    match = _TYPE.fullmatch(descr)
    if match is None:
        raise HeaderSyntaxError("descr is no type string")
    order, kind, digits, rest = match.groups()
    if kind == "O":
        return ArrayHeader(header_bytes, "", dims, 0, "pickled objects")
    element_bytes = int(digits or 0) * (4 if kind == "U" else 1)
    elements = math.prod(dim or 1 for dim in dims)
    if elements * max(element_bytes, 1) >= BYTES_LIMIT:
        raise TensorSizeError("the shape has more elements than a file can hold")
    element = _PLAIN.get(kind + digits, "") if not rest else ""
    if not element:
        return ArrayHeader(header_bytes, "", dims, element_bytes, f"elements of type {descr[:20]!a}")
    if element_bytes > 1 and order not in ("<", ">"):
        return ArrayHeader(header_bytes, "", dims, element_bytes, "elements of an unstated byte order")
    # One long dimension at most: the orders are the same.
    axes = tuple(reversed(range(len(dims)))) if fortran_order and sum(dim != 1 for dim in dims) > 1 else ()
    label = str(records.Label(element, order == ">" and element_bytes > 1, axes))
    return ArrayHeader(header_bytes, label, dims, element_bytes)


class _Literal:
    """A place in the header's text: one dictionary of three known keys."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def header(self) -> tuple[str | None, bool, tuple[int, ...]]:
        """descr (``None`` if it is no string), fortran_order and shape."""
        values: dict[str, str | bool | tuple[int, ...] | None] = {}
        self._expect("{")
        while self._peek() != "}":
            key = self._string()
            if key not in _KEYS:
                raise self._error(f"one of the keys {', '.join(_KEYS)} before it,")
            if key in values:
                raise DuplicateKeyError(f"{key} occurs twice in the header")
            self._expect(":")
            values[key] = self._value(key)
            if self._peek() != ",":
                break
            self._place += 1
        self._expect("}")
        if self._peek():
            raise self._error("the end")
        descr, fortran_order, dims = (values.get(key, "") for key in _KEYS)
        if len(values) != len(_KEYS) or not isinstance(fortran_order, bool) or not isinstance(dims, tuple):
            raise HeaderSyntaxError(f"the header must have {', '.join(_KEYS)}")
        return descr if isinstance(descr, str) else None, fortran_order, dims

    def _value(self, key: str) -> str | bool | tuple[int, ...] | None:
        if key == "shape":
            return self._shape()
        mark = self._peek()
        if key == "fortran_order":
            return self._take(_BOOLEAN, "True or False") == "True"
        if mark and mark in "([":
            self._skip()
            return None
        return self._string()

    def _string(self) -> str:
        self._peek()
        match = _STRING.match(self._text, self._place)
        if match is None:
            raise self._error("a string")
        self._place = match.end()
        return match[1] if match[1] is not None else match[2] or ""

    def _shape(self) -> tuple[int, ...]:
        text = self._take(_SHAPE, f"a tuple of at most {DIMS_LIMIT} numbers")
        numbers = _NUMBER.findall(text)
        # All but the last number need a comma behind them; a lone one too, or it is no tuple.
        if not all(comma for _, comma in numbers[:-1]) or (len(numbers) == 1 and not numbers[0][1]):
            raise self._error("a tuple before it,")
        return tuple(int(digits) for digits, _ in numbers)

    def _skip(self) -> None:
        """Passes over a list or tuple of any contents, which is only held to its brackets and tokens."""
        closers: list[str] = []
        while True:
            mark = self._peek()
            if mark and mark in "([":
                if len(closers) == NESTING_LIMIT:
                    raise HeaderTooLargeError(f"brackets in the header nest deeper than {NESTING_LIMIT}")
                closers.append(")" if mark == "(" else "]")
                self._place += 1
            elif mark and mark in ")]":
                self._expect(closers.pop())
                if not closers:
                    return
            elif mark == ",":
                self._place += 1
            else:
                match = _STRING.match(self._text, self._place) or _ATOM.match(self._text, self._place)
                if match is None:
                    raise self._error("a literal")
                self._place = match.end()

    def _take(self, pattern: re.Pattern[str], wanted: str) -> str:
        self._peek()
        match = pattern.match(self._text, self._place)
        if match is None:
            raise self._error(wanted)
        self._place = match.end()
        return match[0]

    def _peek(self) -> str:
        """The first character of the next token, without taking it; empty at the end."""
        match = _SPACE.match(self._text, self._place)
        if match is not None:
            self._place = match.end()
        return self._text[self._place : self._place + 1]

    def _expect(self, mark: str) -> None:
        if self._peek() != mark:
            raise self._error(ascii(mark))
        self._place += 1

    def _error(self, wanted: str) -> HeaderSyntaxError:
        found = self._text[self._place : self._place + 1]
        return HeaderSyntaxError(f"{wanted} was expected at character {self._place} of the header, not {found or 'the end'!a}")
