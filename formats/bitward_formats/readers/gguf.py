"""The GGUF format, versions 2 and 3, either byte order: metadata, tensor infos, and the tensors' bytes, each aligned.

Source: ``docs/gguf.md`` of ggml, and what ggml's own reader (``src/gguf.cpp``) refuses. A part of a split model is a file of its own here.
The metadata means nothing to a layout, except for the alignment: it is passed over, however long its lists of tokens are. Where ggml
wants tensors in one order without holes, this reader takes any order and holes, but no overlap.

Only what stands before the tensors is read.
"""

from __future__ import annotations

import math
from operator import attrgetter

from bitward_formats import records
from bitward_formats.errors import (
    DuplicateKeyError,
    FormatVersionError,
    HeaderSyntaxError,
    HeaderTooLargeError,
    TensorBoundsError,
    TensorOverlapError,
    TensorSizeError,
    UnknownDtypeError,
)
from bitward_formats.readers.byte_cursor import ByteCursor
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.jsonwalk import shown
from bitward_formats.spans import OPAQUE_KIND, Layout, Role, Span

NAME = "gguf"
SUFFIXES: tuple[str, ...] = (".gguf",)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_LIMIT_BYTES = 64 << 20
"""Most bytes before the tensors. The largest vocabularies in use take about 15 MB."""
KEYS_LIMIT = 65_536
"""Most metadata keys; real files have about a hundred. All of them are remembered, to find one that comes twice."""
KEY_LIMIT_BYTES = 65_535
TENSORS_LIMIT = 1_000_000
DIMS_LIMIT = 4
"""ggml's own limit."""
NAME_LIMIT_BYTES = 65_535
"""ggml allows 63 bytes, programs built on it more; a layout holds this many (SPEC, section 2.1)."""
DEPTH_LIMIT = 8
"""Most arrays in arrays. ggml writes and reads none, but the format allows them."""
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = b"general.alignment"

TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
"""``enum ggml_type``. The numbers that are missing were removed; their blocks have another form."""

_U32, _STRING, _ARRAY = 4, 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, _U32: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the values of fixed length, by their type's number."""


def looks_like(head: bytes, file_bytes: int, name: str) -> bool:  # noqa: ARG001 - the readers' common signature
    """Whether the file begins with the format's mark."""
    return head.startswith(MAGIC)


def read_layout(view: FileView) -> Layout:
    """Header, tensors, and the padding between them. Raises one of the CheckpointErrors."""
    cursor = _open(view)
    tensor_count, key_count = cursor.u64(), cursor.u64()
    if tensor_count > TENSORS_LIMIT:
        raise HeaderTooLargeError(f"the header claims {tensor_count} tensors; the most is {TENSORS_LIMIT}")
    if key_count > KEYS_LIMIT:
        raise HeaderTooLargeError(f"the header claims {key_count} metadata keys; the most is {KEYS_LIMIT}")
    alignment = _read_metadata(cursor, key_count)
    infos = _read_infos(cursor, tensor_count)
    header_bytes = cursor.position
    data_offset = -(-header_bytes // alignment) * alignment if infos else header_bytes
    spans, aliases = _place(infos, data_offset, alignment, view.size)
    return Layout(NAME, view.size, tuple(_tile(spans, header_bytes, alignment, view.size)), aliases=aliases)


def _open(view: FileView) -> ByteCursor:
    """A cursor behind the version, in the file's byte order."""
    cursor = ByteCursor(view, HEADER_LIMIT_BYTES)
    if cursor.take(len(MAGIC)) != MAGIC:
        raise HeaderSyntaxError("the file does not begin with GGUF")
    version = cursor.take(4)
    # Versions are small: in the other byte order their lower half is zero, which is how ggml tells.
    cursor.big_endian = version[:2] == b"\0\0"
    number = int.from_bytes(version, "big" if cursor.big_endian else "little")
    if number not in VERSIONS:
        raise FormatVersionError(f"GGUF version {number}; this version of Bitward reads {' and '.join(map(str, VERSIONS))}")
    return cursor


def _read_metadata(cursor: ByteCursor, key_count: int) -> int:
    """Passes over the metadata; returns the alignment of tensors."""
    alignment = DEFAULT_ALIGNMENT
    seen: set[bytes] = set()
    for _ in range(key_count):
        at = cursor.position
        key = cursor.string(KEY_LIMIT_BYTES)
        if key in seen:
            raise DuplicateKeyError(f"{shown(key.decode('utf-8', 'replace'))} occurs twice, at byte {at} again")
        seen.add(key)
        kind = cursor.u32()
        if key == ALIGNMENT_KEY:
            alignment = cursor.u32() if kind == _U32 else 0
            if alignment == 0 or alignment & (alignment - 1):
                raise HeaderSyntaxError(f"the alignment at byte {at} is not a power of two as a number of 32 bits")
        else:
            _skip_value(cursor, kind)
    return alignment


def _skip_value(cursor: ByteCursor, kind: int) -> None:
    """Passes over one value. Arrays may hold arrays: what is left of those that are open is kept as a list, not by recursion."""
    left: list[tuple[int, int]] = [(kind, 1)]
    while left:
        kind, count = left.pop()
        if kind in _VALUE_BYTES:
            cursor.skip(count * _VALUE_BYTES[kind])
        elif kind == _STRING:
            cursor.skip_strings(count)
        elif kind == _ARRAY:
            if count == 0:
                continue
            if len(left) == DEPTH_LIMIT:
                raise HeaderSyntaxError(f"arrays at byte {cursor.position} lie in one another deeper than {DEPTH_LIMIT}")
            left.append((kind, count - 1))
            left.append((cursor.u32(), cursor.u64()))
        else:
            raise HeaderSyntaxError(f"the value at byte {cursor.position} has the unknown type {kind}")


def _read_infos(cursor: ByteCursor, tensor_count: int) -> list[Span]:
    """The tensors in the order of the file, each checked by itself; their offsets still count from the tensors' start."""
    infos: list[Span] = []
    seen: set[str] = set()
    for _ in range(tensor_count):
        at = cursor.position
        raw = cursor.string(NAME_LIMIT_BYTES)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise HeaderSyntaxError(f"the name of a tensor at byte {at} is not UTF-8") from None
        if name in seen:
            raise DuplicateKeyError(f"{shown(name)} occurs twice")
        seen.add(name)
        dim_count = cursor.u32()
        if dim_count > DIMS_LIMIT:
            raise HeaderSyntaxError(f"{shown(name)} has {dim_count} dimensions; the most is {DIMS_LIMIT}")
        dims = tuple(cursor.u64() for _ in range(dim_count))[::-1]
        infos.append(_info(name, dims, cursor.u32(), cursor.u64(), big_endian=cursor.big_endian))
    return infos


def _info(name: str, dims: tuple[int, ...], type_number: int, offset: int, *, big_endian: bool) -> Span:
    """``dims`` are row-major: the file lists them innermost first."""
    element = TYPES.get(type_number)
    if element is None:
        raise UnknownDtypeError(f"{shown(name)} has the ggml type {type_number}, which is not known (any more)")
    form = records.form_of(f"{element}.BE") if big_endian else records.form_of(element)
    label = f"{element}.BE" if form.stored_at else element
    if math.prod(dim or 1 for dim in dims) >= 1 << 63:
        raise TensorSizeError(f"{shown(name)}: its shape has more elements than 63 bits can count")
    if form.elements > 1 and (not dims or dims[-1] % form.elements):
        row = dims[-1] if dims else 1
        raise TensorSizeError(f"{shown(name)}: rows of {row} elements are no whole blocks of {form.elements} ({element})")
    length = math.prod(dims) // form.elements * form.kind.record_bytes
    return Span(Role.TENSOR, form.kind, offset, length, label, dims, name)


def _place(infos: list[Span], data_offset: int, alignment: int, file_bytes: int) -> tuple[list[Span], tuple[tuple[str, str], ...]]:
    """The tensors where they lie in the file, sorted, and further names of the same bytes."""
    placed: list[Span] = []
    aliases: list[tuple[str, str]] = []
    end, last = data_offset, None
    infos.sort(key=attrgetter("length"))
    infos.sort(key=attrgetter("offset"))
    for info in infos:
        if info.offset % alignment:
            raise TensorBoundsError(f"{shown(info.name)} begins at {info.offset} of the data, which is no multiple of {alignment}")
        offset = data_offset + info.offset
        if offset + info.length > file_bytes:
            raise TensorBoundsError(f"{shown(info.name)} claims bytes {offset} .. {offset + info.length}; the file has {file_bytes}")
        span = Span(info.role, info.kind, offset, info.length, info.dtype, info.dims, info.name)
        if last is not None and span.length and (span.offset, span.length, span.dtype) == (last.offset, last.length, last.dtype):
            aliases.append((span.name, last.name))
            continue
        if offset < end:
            raise TensorOverlapError(f"{shown(span.name)} begins {end - offset} bytes before the end of the tensor before it")
        placed.append(span)
        end, last = span.end, span
    return placed, tuple(aliases)


def _tile(tensors: list[Span], header_bytes: int, alignment: int, file_bytes: int) -> list[Span]:
    """All spans: the header, the tensors, and what lies between and behind them."""
    spans = [Span(Role.HEADER, OPAQUE_KIND, 0, header_bytes)]
    for span in tensors:
        if spans[-1].end < span.offset:
            spans.append(Span(Role.GAP, OPAQUE_KIND, spans[-1].end, span.offset - spans[-1].end))
        spans.append(span)
    rest = file_bytes - spans[-1].end
    if rest:
        # The last tensor is padded too; what is longer is none of the format's.
        spans.append(Span(Role.GAP if rest < alignment else Role.TRAILER, OPAQUE_KIND, spans[-1].end, rest))
    return spans
