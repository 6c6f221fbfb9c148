"""The layout stream (SPEC, section 2.1) and the blocks that follow from it (2.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bitward_formats.errors import LayoutError
from bitward_formats.reference.limits import BLOCK_LIMIT_BYTES, KIND_LIMIT, NAME_LIMIT_BYTES, RECORD_LIMIT_BYTES, SPAN_LIMIT, divide_up
from bitward_formats.spans import OPAQUE_KIND, Layout, RecordKind, Role, Span


@dataclass(frozen=True, slots=True)
class StoredLayout:
    """A layout with its kinds as the stream lists them, which decides the order of the classes; one kind index per span."""

    layout: Layout
    kinds: tuple[RecordKind, ...]
    kind_indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """``length`` bytes of the file at ``offset``; number ``index`` of its span, ``number`` of the file."""

    number: int
    span_index: int
    index: int
    kind_index: int
    kind: RecordKind
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def is_full(self) -> bool:
        return self.length == block_bytes(self.kind.record_bytes)


def block_bytes(record_bytes: int) -> int:
    """Length of a full block."""
    return record_bytes * (BLOCK_LIMIT_BYTES // record_bytes)


def order_kinds(layout: Layout) -> StoredLayout:
    """List a layout's kinds in the order in which its spans first use them. Without spans there is the opaque kind alone."""
    kinds: list[RecordKind] = []
    for span in layout.spans:
        if span.kind not in kinds:
            kinds.append(span.kind)
    indexes = tuple(kinds.index(span.kind) for span in layout.spans)
    return StoredLayout(layout, tuple(kinds) or (OPAQUE_KIND,), indexes)


def blocks_of(stored: StoredLayout) -> list[Block]:
    """All blocks of the file, by number."""
    blocks: list[Block] = []
    for span_index, span in enumerate(stored.layout.spans):
        full_bytes = block_bytes(span.kind.record_bytes)
        for index in range(divide_up(span.length, full_bytes)):
            start = index * full_bytes
            length = min(full_bytes, span.length - start)
            blocks.append(Block(len(blocks), span_index, index, stored.kind_indexes[span_index], span.kind, span.offset + start, length))
    return blocks


def count_blocks(stored: StoredLayout) -> int:
    """What ``len(blocks_of(stored))`` would be, without making the list: its length is not to be trusted yet."""
    return sum(divide_up(span.length, block_bytes(span.kind.record_bytes)) for span in stored.layout.spans)


def check_layout(stored: StoredLayout) -> None:
    """Raise LayoutError unless sections 2 and 2.1 allow this layout."""
    layout = stored.layout
    if not 1 <= len(stored.kinds) <= KIND_LIMIT:
        raise LayoutError(f"{len(stored.kinds)} record kinds; there must be 1 to {KIND_LIMIT}")
    if len(layout.spans) > SPAN_LIMIT:
        raise LayoutError(f"{len(layout.spans)} spans; there may be {SPAN_LIMIT}")
    for kind in stored.kinds:
        if not 1 <= kind.record_bytes <= RECORD_LIMIT_BYTES or len(kind.critical_mask) != kind.record_bytes:
            raise LayoutError(f"a record of {kind.record_bytes} bytes with a mask of {len(kind.critical_mask)}")
    at = 0
    for number, span in enumerate(layout.spans):
        if span.offset != at:
            raise LayoutError(f"span {number} starts at {span.offset}, not at {at}")
        if span.length % span.kind.record_bytes:
            raise LayoutError(f"span {number} of {span.length} bytes is not a whole number of records of {span.kind.record_bytes}")
        if span.role != Role.TENSOR and (span.kind != OPAQUE_KIND or span.dtype or span.dims or span.name):
            raise LayoutError(f"span {number} is opaque and yet has a record kind, dtype, shape or name")
        at = span.end
    if stored != order_kinds(layout):
        raise LayoutError("the record kinds are not listed once each in the order of their first use")
    if at != layout.file_bytes:
        raise LayoutError(f"the spans end at {at}, the file at {layout.file_bytes}")


def encode_layout(layout: Layout) -> bytes:
    """The layout stream; kinds in the order in which the spans first use them. Raises LayoutError."""
    stored = order_kinds(layout)
    check_layout(stored)
    return encode_stored_layout(stored)


def encode_stored_layout(stored: StoredLayout) -> bytes:
    """The layout stream with the kinds in the order given."""
    format_name = stored.layout.format_name.encode("ascii")
    stream = struct.pack("<B", len(format_name)) + format_name
    stream += struct.pack("<H", len(stored.kinds))
    for kind in stored.kinds:
        stream += struct.pack("<H", kind.record_bytes) + kind.critical_mask
    stream += struct.pack("<I", len(stored.layout.spans))
    return stream + b"".join(
        encode_span(span, kind_index) for span, kind_index in zip(stored.layout.spans, stored.kind_indexes, strict=True)
    )


def encode_span(span: Span, kind_index: int) -> bytes:
    """One entry of the spans table."""
    dtype, name = span.dtype.encode("ascii"), span.name.encode("utf-8")
    if len(name) > NAME_LIMIT_BYTES:
        raise LayoutError(f"a name of {len(name)} bytes; {NAME_LIMIT_BYTES} are allowed")
    entry = struct.pack("<BHQQ", span.role, kind_index, span.offset, span.length)
    entry += struct.pack("<B", len(dtype)) + dtype
    entry += struct.pack("<B", len(span.dims)) + b"".join(struct.pack("<Q", dim) for dim in span.dims)
    return entry + struct.pack("<I", len(name)) + name


class _Cursor:
    """Takes fields from the front of a stream; the stream's end before a field's is an error."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, byte_count: int) -> bytes:
        if byte_count > len(self.data) - self.at:
            raise LayoutError(f"the layout ends at byte {len(self.data)}, in the middle of a field")
        self.at += byte_count
        return self.data[self.at - byte_count : self.at]

    def number(self, byte_count: int) -> int:
        return int.from_bytes(self.take(byte_count), "little")

    def text(self, byte_count: int, encoding: str) -> str:
        try:
            return self.take(byte_count).decode(encoding)
        except UnicodeDecodeError as error:
            raise LayoutError(f"text before byte {self.at} of the layout is not {encoding}") from error


def decode_layout(data: bytes, file_bytes: int) -> Layout:
    """The layout of a stream for a file of ``file_bytes`` bytes. Raises LayoutError."""
    return decode_stored_layout(data, file_bytes).layout


def decode_stored_layout(data: bytes, file_bytes: int) -> StoredLayout:
    """As decode_layout, with the kinds as the stream lists them."""
    cursor = _Cursor(data)
    format_name = cursor.text(cursor.number(1), "ascii")
    kind_count = cursor.number(2)
    if not 1 <= kind_count <= KIND_LIMIT:
        raise LayoutError(f"{kind_count} record kinds; there must be 1 to {KIND_LIMIT}")
    kinds: list[RecordKind] = []
    for _ in range(kind_count):
        record_bytes = cursor.number(2)
        kinds.append(RecordKind(record_bytes, cursor.take(record_bytes)))
    span_count = cursor.number(4)
    if span_count > SPAN_LIMIT:
        raise LayoutError(f"{span_count} spans; there may be {SPAN_LIMIT}")
    pairs = [_decode_span(cursor, kinds) for _ in range(span_count)]
    if cursor.at != len(data):
        raise LayoutError(f"{len(data) - cursor.at} bytes follow the last span of the layout")
    layout = Layout(format_name, file_bytes, tuple(span for span, _ in pairs))
    stored = StoredLayout(layout, tuple(kinds), tuple(index for _, index in pairs))
    check_layout(stored)
    return stored


def _decode_span(cursor: _Cursor, kinds: list[RecordKind]) -> tuple[Span, int]:
    role, kind_index = cursor.number(1), cursor.number(2)
    if role not in list(Role):
        raise LayoutError(f"unknown role {role}")
    if kind_index >= len(kinds):
        raise LayoutError(f"kind {kind_index} of {len(kinds)}")
    offset, length = cursor.number(8), cursor.number(8)
    dtype = cursor.text(cursor.number(1), "ascii")
    dims = tuple(cursor.number(8) for _ in range(cursor.number(1)))
    name_bytes = cursor.number(4)
    if name_bytes > NAME_LIMIT_BYTES:
        raise LayoutError(f"a name of {name_bytes} bytes; {NAME_LIMIT_BYTES} are allowed")
    name = cursor.text(name_bytes, "utf-8")
    return Span(Role(role), kinds[kind_index], offset, length, dtype, dims, name), kind_index
