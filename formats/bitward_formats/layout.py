"""The layout stream (SPEC, section 2.1): spans and record kinds to bytes and back.

Decoding trusts nothing: every length is checked against the bytes that are left before it is used.
"""

from __future__ import annotations

import struct

from bitward_formats.errors import LayoutError
from bitward_formats.spans import OPAQUE_KIND, Layout, RecordKind, Role, Span

NAME_LIMIT_BYTES = 65535
SPAN_LIMIT = 1 << 24
KIND_LIMIT = 1024
RECORD_LIMIT_BYTES = 512
DIM_LIMIT = 255

_SPAN_HEAD = struct.Struct("<BHQQB")
_ROLES = {int(role): role for role in Role}


def kinds_of(layout: Layout) -> tuple[RecordKind, ...]:
    """The record kinds of a layout in the order of their first use; an empty layout has the opaque kind."""
    kinds = dict.fromkeys(span.kind for span in layout.spans)
    return tuple(kinds) or (OPAQUE_KIND,)


def encode_layout(layout: Layout) -> bytes:
    """The layout stream of a layout.

    Raises:
        LayoutError: a name, shape or count is beyond what the stream can hold.
    """
    kinds = kinds_of(layout)
    if len(kinds) > KIND_LIMIT or len(layout.spans) > SPAN_LIMIT:
        raise LayoutError(f"a layout holds at most {KIND_LIMIT} record kinds and {SPAN_LIMIT} spans")
    kind_index = {kind: index for index, kind in enumerate(kinds)}
    format_name = layout.format_name.encode("ascii")
    parts = [bytes([len(format_name)]), format_name, struct.pack("<H", len(kinds))]
    for kind in kinds:
        parts += (struct.pack("<H", kind.record_bytes), kind.critical_mask)
    parts.append(struct.pack("<I", len(layout.spans)))
    for span in layout.spans:
        name, dtype = span.name.encode(), span.dtype.encode("ascii")
        if len(name) > NAME_LIMIT_BYTES or len(span.dims) > DIM_LIMIT or len(dtype) > 255:
            raise LayoutError(f"tensor name, dtype or shape too long at offset {span.offset}")
        parts += (
            _SPAN_HEAD.pack(span.role, kind_index[span.kind], span.offset, span.length, len(dtype)),
            dtype,
            struct.pack(f"<B{len(span.dims)}QI", len(span.dims), *span.dims, len(name)),
            name,
        )
    return b"".join(parts)


def _ends_early(data: bytes, needed: int) -> LayoutError:
    return LayoutError(f"layout stream ends at byte {len(data)}, needed {needed}")


class _Cursor:
    """Reads forward through untrusted bytes and never past their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise _ends_early(self.data, end)
        chunk = self.data[self.at : end]
        self.at = end
        return chunk

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))


def decode_layout(data: bytes, file_bytes: int) -> Layout:
    """Read a layout stream.

    Raises:
        LayoutError: the stream is malformed, or its spans do not tile ``0 .. file_bytes``.
    """
    cursor = _Cursor(data)
    try:
        format_name = cursor.take(cursor.unpack("<B")[0]).decode("ascii")
        kinds = _decode_kinds(cursor)
        (span_count,) = cursor.unpack("<I")
        if span_count > SPAN_LIMIT:
            raise LayoutError(f"{span_count} spans, at most {SPAN_LIMIT} are allowed")
        spans, used = _decode_spans(cursor, span_count, kinds)
    except UnicodeDecodeError as error:
        raise LayoutError(f"layout text is not valid at stream byte {cursor.at}: {error.reason}") from None
    end = spans[-1].end if spans else 0
    if end != file_bytes:
        raise LayoutError(f"spans end at {end}, the file has {file_bytes} bytes")
    if cursor.at != len(data):
        raise LayoutError(f"{len(data) - cursor.at} bytes after the last span")
    if used != list(range(len(kinds))) if spans else kinds != [OPAQUE_KIND]:
        raise LayoutError("record kinds are not listed in the order of their first use")
    return Layout(format_name, file_bytes, tuple(spans))


def _decode_kinds(cursor: _Cursor) -> list[RecordKind]:
    (kind_count,) = cursor.unpack("<H")
    if not 1 <= kind_count <= KIND_LIMIT:
        raise LayoutError(f"{kind_count} record kinds, 1 to {KIND_LIMIT} are allowed")
    kinds = []
    for _ in range(kind_count):
        (record_bytes,) = cursor.unpack("<H")
        if not 1 <= record_bytes <= RECORD_LIMIT_BYTES:
            raise LayoutError(f"record of {record_bytes} bytes, 1 to {RECORD_LIMIT_BYTES} are allowed")
        kinds.append(RecordKind(record_bytes, cursor.take(record_bytes)))
    if len(set(kinds)) != len(kinds):
        raise LayoutError("a record kind is listed twice")
    return kinds


def _decode_spans(cursor: _Cursor, span_count: int, kinds: list[RecordKind]) -> tuple[list[Span], list[int]]:
    """All spans, and the numbers of their kinds in the order of their first use.

    Every opening of a sidecar comes through here, and a layout has hundreds or thousands: so the loop is spelled out.
    """
    data, at, size = cursor.data, cursor.at, len(cursor.data)
    spans: list[Span] = []
    used: dict[int, None] = {}
    expected = 0
    for _ in range(span_count):
        cursor.at = at
        head_end = at + _SPAN_HEAD.size
        if head_end > size:
            raise _ends_early(data, head_end)
        role_number, kind_index, offset, length, dtype_bytes = _SPAN_HEAD.unpack_from(data, at)
        at = head_end + dtype_bytes
        if at >= size:
            raise _ends_early(data, at + 1)
        dtype, dim_count = data[head_end:at].decode("ascii"), data[at]
        name_start = at + 1 + 8 * dim_count + 4
        if name_start > size:
            raise _ends_early(data, name_start)
        *dims, name_bytes = struct.unpack_from(f"<{dim_count}QI", data, at + 1)
        if name_bytes > NAME_LIMIT_BYTES:
            raise LayoutError(f"a name of {name_bytes} bytes, at most {NAME_LIMIT_BYTES} are allowed")
        at = name_start + name_bytes
        if at > size:
            raise _ends_early(data, at)
        name, role = data[name_start:at].decode(), _ROLES.get(role_number)
        if role is None:
            raise LayoutError(f"unknown span role {role_number}")
        if kind_index >= len(kinds):
            raise LayoutError(f"span of record kind {kind_index}, there are {len(kinds)}")
        used[kind_index] = None
        kind = kinds[kind_index]
        if role is not Role.TENSOR and (kind != OPAQUE_KIND or dtype or dim_count or name):
            raise LayoutError(f"opaque span at offset {offset} with a record kind, type, shape or name")
        if length % kind.record_bytes:
            raise LayoutError(f"span of {length} bytes is not a multiple of its record of {kind.record_bytes} bytes")
        if offset != expected:
            raise LayoutError(f"span at offset {offset}, expected {expected}: spans must tile the file")
        expected = offset + length
        spans.append(Span(role, kind, offset, length, dtype, tuple(dims), name))
    cursor.at = at
    return spans, list(used)
