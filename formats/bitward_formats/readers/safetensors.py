"""The safetensors format: a length, a JSON header, and the tensors' bytes without gap or overlap.

The header is hostile input. It is bounded before it is read and taken apart one entry at a time, so that no structure grows larger
than a small multiple of it. Every way to be wrong is a named error. The rules are the format's own (its README and what its reference
library refuses); what it leaves open is settled on the safe side: no name twice, no name or shape that a layout cannot hold.

Only the header is checked, and against the file's size; the tensors' bytes are not read.
"""

from __future__ import annotations

import math
import re
import sys
from operator import attrgetter
from typing import TypeGuard

from bitward_formats import records
from bitward_formats.errors import (
    DuplicateKeyError,
    HeaderSyntaxError,
    HeaderTooLargeError,
    HeaderTooShortError,
    TensorBoundsError,
    TensorHoleError,
    TensorOverlapError,
    TensorSizeError,
    UnknownDtypeError,
)
from bitward_formats.frozen import dataclass
from bitward_formats.readers.file_view import Fetch, FileView
from bitward_formats.readers.jsonwalk import Cursor, shown
from bitward_formats.spans import OPAQUE_KIND, Layout, RecordKind, Role, Span

NAME = "safetensors"
SUFFIXES: tuple[str, ...] = (".safetensors",)

LENGTH_BYTES = 8
HEADER_LIMIT_BYTES = 100_000_000
"""The reference library's own limit."""
DIMS_LIMIT = 255
"""More dimensions do not fit the layout stream (SPEC, section 2.1)."""
ELEMENTS_LIMIT = 1 << 64
"""The reference library counts elements in 64 bits. The non-zero dimensions of a shape are held to that even beside a zero."""
DTYPES = frozenset({
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4",
    "C64", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL",
})  # fmt: skip
"""The reference library's element types. Other labels that records know are not this format's."""
_ELEMENTS = {dtype: (records.kind_of(dtype), records.element_bits(dtype)) for dtype in DTYPES}
"""Record kind and bits of each: looked up once, since a hostile header has a million tensors."""
METADATA_KEY = "__metadata__"
METADATA_KEYS_LIMIT = 65_536
"""Most keys of the metadata; real files have hundreds. All of them are remembered, to find one that comes twice."""

_KINDS_LIMIT = 4096
"""Pairs of dtype and shape that are remembered while a header is read."""
_USUAL_MEMBER = re.compile(
    rb',~"([^"\\\x00-\x1f]{0,65535}+)"~:~'
    rb'\{~("dtype"~:~"([A-Z0-9_]{1,16}+)"~,~"shape"~:~\[~((?:#(?:~,~#){0,7}+)?+)~\])~,~"data_offsets"~:~\[~(#)~,~(#)~\]~\}'
    .replace(b"~", rb"[ \t\n\r]*+").replace(b"#", rb"(?:0|[1-9][0-9]{0,18}+)")
)  # fmt: skip
"""A comma and a member, as the reference library and json.dumps write them: few dimensions, no escapes, no other keys."""


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:
    """Whether the name ends as it should, or the file begins with a possible length and an opening brace."""
    if name.lower().endswith(SUFFIXES):
        return True
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    return head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" and length <= min(file_bytes - LENGTH_BYTES, HEADER_LIMIT_BYTES)


def read_layout(view: FileView) -> Layout:
    """The header span and one span per tensor, empty tensors included, in the order of their offsets.

    Memory stays below ten times the header. Raises one of the CheckpointErrors.
    """
    return _read(view, None)


def read_layout_and_metadata(view: FileView) -> tuple[Layout, dict[str, str] | None]:
    """As :func:`read_layout`, and what the header says beside the tensors, if anything: for loaders, which hand it on."""
    kept: list[dict[str, str]] = []
    layout = _read(view, kept)
    return layout, kept[0] if kept else None


def _read(view: FileView, kept: list[dict[str, str]] | None) -> Layout:
    """``kept``, where given, gets the metadata."""
    file_bytes = view.size
    header = _read_header(view.fetch, file_bytes)
    data_offset = LENGTH_BYTES + len(header)
    spans = _read_tensors(header, data_offset, file_bytes - data_offset, kept)
    del header
    # Two stable sorts instead of one by pairs, which would cost a tuple per tensor. Of the tensors at one offset the empty ones come
    # first, in the header's order: the only order that tiles.
    spans.sort(key=attrgetter("length"))
    spans.sort(key=attrgetter("offset"))
    _check_tiling(spans, data_offset, file_bytes)
    spans.insert(0, Span(Role.HEADER, OPAQUE_KIND, 0, data_offset))
    return Layout(NAME, file_bytes, tuple(spans))


def _read_header(fetch: Fetch, file_bytes: int) -> bytes:
    """The header's JSON text, with its length checked before it is read."""
    if file_bytes < LENGTH_BYTES:
        raise HeaderTooShortError(f"the file has {file_bytes} bytes; the header's length alone takes {LENGTH_BYTES}")
    prefix = fetch(0, LENGTH_BYTES)
    if len(prefix) != LENGTH_BYTES:
        raise HeaderTooShortError(f"the file ended after {len(prefix)} bytes, within the header's length")
    length = int.from_bytes(prefix, "little")
    if length > HEADER_LIMIT_BYTES:
        raise HeaderTooLargeError(f"the header claims {length} bytes; the format allows {HEADER_LIMIT_BYTES}")
    if length > file_bytes - LENGTH_BYTES:
        raise HeaderTooShortError(f"the header claims {length} bytes; the file has {file_bytes - LENGTH_BYTES} after the length")
    header = fetch(LENGTH_BYTES, length)
    if len(header) != length:
        raise HeaderTooShortError(f"the file ended after {len(header)} of the header's {length} bytes")
    if header[:1] != b"{":
        raise HeaderSyntaxError(f"the header must begin with '{{', not {header[:1]!r}")
    return header


def _read_tensors(header: bytes, data_offset: int, data_bytes: int, kept: list[dict[str, str]] | None) -> list[Span]:
    """One span per tensor in the header's order, each checked by itself."""
    spans: list[Span] = []
    seen: set[str] = set()
    cursor = Cursor(header, LENGTH_BYTES)
    for name in cursor.members():
        if name in seen:
            raise DuplicateKeyError(f"{shown(name)} occurs twice")
        seen.add(name)
        if name == METADATA_KEY:
            _take_metadata(cursor, kept)
        else:
            spans.append(_tensor_span(name, cursor.flat_object(), data_offset, data_bytes))
        _take_usual(cursor, spans, seen, data_offset, data_bytes)
    cursor.expect_end()
    return spans


def _take_usual(cursor: Cursor, spans: list[Span], seen: set[str], data_offset: int, data_bytes: int) -> None:
    """Takes the members that follow as long as they are written in the usual way and nothing is wrong with them.

    A hostile header can have a million. What is left, and what is wrong with it, is for the careful way to say.
    """
    kinds: dict[bytes, _Known | None] = {}
    for match in cursor.run(_USUAL_MEMBER):
        name_bytes, element, begin_digits, end_digits = match.group(1, 2, 5, 6)
        known = kinds.get(element)
        if known is None:
            known = kinds[element] = _known(match[3].decode(), match[4])
            if len(kinds) > _KINDS_LIMIT:
                kinds.clear()
        name, begin, end = name_bytes.decode("utf-8"), int(begin_digits), int(end_digits)
        if known is None or end - begin != known.length or end > data_bytes or name in seen or name == METADATA_KEY:
            return
        seen.add(name)
        spans.append(Span(Role.TENSOR, known.kind, data_offset + begin, known.length, known.dtype, known.dims, name))


@dataclass(frozen=True, slots=True)
class _Known:
    """What all members of one dtype and shape have in common."""

    kind: RecordKind
    length: int
    dtype: str
    dims: tuple[int, ...]


def _known(dtype: str, shape: bytes) -> _Known | None:
    """``None`` if anything is wrong."""
    dims = list(map(int, shape.split(b","))) if shape.strip() else []
    if dtype not in _ELEMENTS:
        return None
    kind, element_bits = _ELEMENTS[dtype]
    try:
        length = _tensor_bytes("", dims, element_bits)
    except TensorSizeError:
        return None
    return _Known(kind, length, sys.intern(dtype), tuple(dims))


def _take_metadata(cursor: Cursor, kept: list[dict[str, str]] | None) -> None:
    """Goes over the metadata: an object of strings. The texts mean nothing here, and go into ``kept`` only where it is given."""
    seen: set[str] = set()
    texts: dict[str, str] = {}
    for key in cursor.members():
        if key in seen:
            raise DuplicateKeyError(f"{shown(key)} occurs twice in {METADATA_KEY}")
        if len(seen) == METADATA_KEYS_LIMIT:
            raise HeaderTooLargeError(f"{METADATA_KEY} has more than {METADATA_KEYS_LIMIT} keys")
        seen.add(key)
        if kept is None:
            cursor.skip_string()
        else:
            texts[key] = cursor.long_string()
    if kept is not None:
        kept.append(texts)


def _tensor_span(name: str, entry: dict[str, object], data_offset: int, data_bytes: int) -> Span:
    """The span of one tensor. ``data_offsets`` count from the header's end; keys which the format does not know are let be."""
    dtype, dims, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not dtype:
        raise HeaderSyntaxError(f"{shown(name)}: dtype must be the name of an element type")
    if not _are_counts(dims):
        raise HeaderSyntaxError(f"{shown(name)}: shape must be a list of non-negative integers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise HeaderSyntaxError(f"{shown(name)}: data_offsets must be two non-negative integers")
    if len(dims) > DIMS_LIMIT:
        raise HeaderSyntaxError(f"{shown(name)} has {len(dims)} dimensions; the most is {DIMS_LIMIT}")
    if dtype not in _ELEMENTS:
        raise UnknownDtypeError(f"{shown(name)}: unknown element type {dtype[:40]!r}; this version knows {', '.join(sorted(DTYPES))}")
    kind, element_bits = _ELEMENTS[dtype]
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise TensorBoundsError(f"{shown(name)} claims {_brief(begin)} .. {_brief(end)} of the {data_bytes} bytes of data")
    length = _tensor_bytes(name, dims, element_bits)
    if length != end - begin:
        raise TensorSizeError(f"{shown(name)}: {dtype} of shape {_brief(dims)} takes {length} bytes; its range has {end - begin}")
    # Interned, because every entry of the header brings a string of its own.
    return Span(Role.TENSOR, kind, data_offset + begin, length, sys.intern(dtype), tuple(dims), name)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    """Whether it is a list of non-negative integers; bool is an int to Python, but not here."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _tensor_bytes(name: str, dims: list[int], element_bits: int) -> int:
    elements = 1
    for dim in dims:
        elements *= dim or 1
        if elements >= ELEMENTS_LIMIT:
            raise TensorSizeError(f"{shown(name)}: shape {_brief(dims)} has more elements than 64 bits can count")
    length, rest = divmod(math.prod(dims) * element_bits, 8)
    if rest:
        raise TensorSizeError(f"{shown(name)}: {math.prod(dims)} elements of {element_bits} bits do not fill whole bytes")
    return length


def _check_tiling(spans: list[Span], data_offset: int, file_bytes: int) -> None:
    """Sorted tensors must cover the data section, each byte once."""
    position, last = data_offset, ""
    for span in spans:
        if span.offset < position:
            raise TensorOverlapError(f"{shown(span.name)} begins {position - span.offset} bytes before the end of {shown(last)}")
        if span.offset > position:
            raise TensorHoleError(f"{span.offset - position} bytes before {shown(span.name)} belong to no tensor")
        position, last = span.end, span.name
    if position < file_bytes:
        raise TensorHoleError(f"{file_bytes - position} bytes at the end of the file belong to no tensor")


def _brief(value: int | list[int]) -> str:
    """A number or shape for a message: hostile ones have thousands of digits."""
    if isinstance(value, list):
        numbers = [_brief(number) for number in value[:8]]
        return f"[{', '.join(numbers)}{', …' if len(value) > 8 else ''}]"
    return str(value) if value < ELEMENTS_LIMIT else "2^64 or more"
