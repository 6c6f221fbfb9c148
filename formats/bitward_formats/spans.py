"""Spans: named ranges that cover every byte of a file, and the layout that lists them."""

from __future__ import annotations

from enum import IntEnum

from bitward_formats.frozen import dataclass

BLOCK_LIMIT_BYTES = 65536


class Role(IntEnum):
    """What a span holds. The numbers are those of the layout stream (SPEC, section 2.1)."""

    TENSOR = 0
    HEADER = 1
    GAP = 2
    TRAILER = 3
    DATA = 4


@dataclass(frozen=True, slots=True)
class RecordKind:
    """The smallest repeating element of a span: its size and which of its bits change a value by orders of magnitude.

    ``critical_mask`` has ``record_bytes`` bytes; bit ``l % 8`` of byte ``l // 8`` is lane ``l``.
    """

    record_bytes: int
    critical_mask: bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of a full block of this kind: as many whole records as fit into 64 KiB."""
        return BLOCK_LIMIT_BYTES // self.record_bytes * self.record_bytes


OPAQUE_KIND = RecordKind(1, b"\xff")


@dataclass(frozen=True, slots=True)
class Span:
    """A range of a file: a tensor (``name``, ``dtype``, ``dims``), or opaque bytes (all three empty).

    ``offset`` and ``length`` count bytes of the file; ``dims`` is the shape, row-major.
    """

    role: Role
    kind: RecordKind
    offset: int
    length: int
    dtype: str = ""
    dims: tuple[int, ...] = ()
    name: str = ""

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def block_count(self) -> int:
        return -(-self.length // self.kind.block_bytes)


@dataclass(frozen=True, slots=True)
class Layout:
    """All spans of a file in the order of their offsets. They tile ``0 .. file_bytes`` without gap or overlap.

    ``format_name`` is the name of the reader that made it. Two fields are for people and are not stored: ``note`` says what they should
    know, such as why a file fell back to opaque, and ``aliases`` are further names of tensors that share the bytes of a span, as
    (alias, name of the span).
    """

    format_name: str
    file_bytes: int
    spans: tuple[Span, ...]
    note: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
