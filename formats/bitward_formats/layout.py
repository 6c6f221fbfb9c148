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


class _Cursor:
    """Reads forward through untrusted bytes and never past their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise LayoutError(f"layout stream ends at byte {len(self.data)}, needed {end}")
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
        spans = []
        offset = 0
        for _ in range(span_count):
            span = _decode_span(cursor, kinds)
            if span.offset != offset:
                raise LayoutError(f"span at offset {span.offset}, expected {offset}: spans must tile the file")
            offset = span.end
            spans.append(span)
    except UnicodeDecodeError as error:
        raise LayoutError(f"layout text is not valid at stream byte {cursor.at}: {error.reason}") from None
    if offset != file_bytes:
        raise LayoutError(f"spans end at {offset}, the file has {file_bytes} bytes")
    if cursor.at != len(data):
        raise LayoutError(f"{len(data) - cursor.at} bytes after the last span")
    layout = Layout(format_name, file_bytes, tuple(spans))
    if kinds_of(layout) != tuple(kinds):
        raise LayoutError("record kinds are not listed in the order of their first use")
    return layout


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


def _decode_span(cursor: _Cursor, kinds: list[RecordKind]) -> Span:
    role, kind_index, offset, length, dtype_bytes = cursor.unpack("<BHQQB")
    dtype = cursor.take(dtype_bytes).decode("ascii")
    (dim_count,) = cursor.unpack("<B")
    dims = cursor.unpack(f"<{dim_count}Q")
    (name_bytes,) = cursor.unpack("<I")
    if name_bytes > NAME_LIMIT_BYTES:
        raise LayoutError(f"a name of {name_bytes} bytes, at most {NAME_LIMIT_BYTES} are allowed")
    name = cursor.take(name_bytes).decode()
    if role > max(Role):
        raise LayoutError(f"unknown span role {role}")
    if kind_index >= len(kinds):
        raise LayoutError(f"span of record kind {kind_index}, there are {len(kinds)}")
    kind = kinds[kind_index]
    if role != Role.TENSOR and (kind != OPAQUE_KIND or dtype or dim_count or name):
        raise LayoutError(f"opaque span at offset {offset} with a record kind, type, shape or name")
    if length % kind.record_bytes:
        raise LayoutError(f"span of {length} bytes is not a multiple of its record of {kind.record_bytes} bytes")
    return Span(Role(role), kind, offset, length, dtype, dims, name)
