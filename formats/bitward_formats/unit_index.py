"""The index of a directory that is protected as one unit (SPEC, section 8)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bitward_formats.errors import LayoutError, NotASidecarError, SidecarDamagedError, SidecarLimitError
from bitward_formats.frozen import dataclass
from bitward_formats.merkle import unit_root
from bitward_formats.pages import GAP_PAGES, PAYLOAD_BYTES, Fetch, Section, page_bytes, pages_for, paginate
from bitward_formats.sidecar import read_doubled
from bitward_formats.superblock import KIND_UNIT, Superblock, encode_superblock, with_salt, with_superblock

UNIT_INDEX_NAME = "bitward-unit.ward"
PATH_LIMIT_BYTES = 4096
_ENTRY_TAIL = struct.Struct("<Q32s")


@dataclass(frozen=True, slots=True)
class UnitEntry:
    """One file of a unit: its path relative to the directory, as bytes with ``/``; size in bytes; file root."""

    path: bytes
    file_bytes: int
    root: bytes


def check_path(path: bytes) -> None:
    """Refuse a path that could lead out of the unit.

    Raises:
        LayoutError: what is wrong with it.
    """
    parts = path.split(b"/")
    if not 1 <= len(path) <= PATH_LIMIT_BYTES or b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise LayoutError(f"unit index names a path that is not inside the unit: {path[:80]!r}")


def encode_entries(entries: Sequence[UnitEntry]) -> bytes:
    """The unit index stream; entries are put in order."""
    parts = []
    for entry in sorted(entries, key=lambda one: one.path):
        check_path(entry.path)
        parts.append(struct.pack("<H", len(entry.path)) + entry.path + _ENTRY_TAIL.pack(entry.file_bytes, entry.root))
    return b"".join(parts)


def decode_entries(stream: bytes, count: int) -> tuple[UnitEntry, ...]:
    """Read a unit index stream of ``count`` entries.

    Raises:
        LayoutError: malformed, out of order, or a path that leads out of the unit.
    """
    entries: list[UnitEntry] = []
    at = 0
    for _ in range(count):
        head = stream[at : at + 2]
        size = int.from_bytes(head, "little")
        end = at + 2 + size + _ENTRY_TAIL.size
        if len(head) < 2 or end > len(stream):
            raise LayoutError(f"unit index ends within entry {len(entries)}")
        path = stream[at + 2 : at + 2 + size]
        check_path(path)
        if entries and path <= entries[-1].path:
            raise LayoutError("unit index entries are not in order")
        entries.append(UnitEntry(path, *_ENTRY_TAIL.unpack(stream[at + 2 + size : end])))
        at = end
    if at != len(stream):
        raise LayoutError(f"{len(stream) - at} bytes after the last unit index entry")
    return tuple(entries)


def build_unit_index(entries: Sequence[UnitEntry], protected_ns: int = 0, like: Superblock | None = None) -> tuple[bytes, bytes]:
    """The whole index file, and the unit root.

    Args:
        like: the superblock of an index with the same entries, whose free fields (salt, origin and the rest) are kept.
    """
    stream = encode_entries(entries)
    pages = pages_for(len(stream))
    total = 2 + 2 * pages + GAP_PAGES
    root = unit_root(stream)
    draft = Superblock(
        kind=KIND_UNIT,
        leaf_hash=0,
        origin=0,
        groups=(),
        file_bytes=sum(entry.file_bytes for entry in entries),
        mtime_ns=0,
        protected_ns=protected_ns,
        salt=0,
        total_pages=total,
        layout_bytes=len(stream),
        block_count=len(entries),
        root=root,
        trusted_sha256=bytes(32),
        preset="",
    )
    block = with_salt(draft) if like is None else like
    payload = encode_superblock(block)
    gap = 1 + pages
    parts = (
        page_bytes(payload, Section.SUPERBLOCK, 0, 0, 0),
        paginate(stream, Section.UNIT_INDEX, 0, 1, block.salt),
        paginate(bytes(GAP_PAGES * PAYLOAD_BYTES), Section.PADDING, 0, gap, block.salt),
        paginate(stream, Section.UNIT_INDEX, 1, gap + GAP_PAGES, block.salt),
        page_bytes(payload, Section.SUPERBLOCK, 1, total - 1, 0),
    )
    return b"".join(parts), root


@dataclass(frozen=True, slots=True)
class UnitIndex:
    superblock: Superblock
    entries: tuple[UnitEntry, ...]


def read_unit_index(fetch: Fetch, index_bytes: int) -> UnitIndex:
    """Read and check a unit index.

    Raises:
        SidecarError: one named subclass for each way to fail.
    """
    return with_superblock(fetch, index_bytes, lambda block, _: _read_unit_index(fetch, index_bytes, block))


def _read_unit_index(fetch: Fetch, index_bytes: int, block: Superblock) -> UnitIndex:
    if block.kind != KIND_UNIT:
        raise NotASidecarError("this is a file's sidecar, not a directory's index")
    pages = pages_for(block.layout_bytes)
    if block.layout_bytes > index_bytes or block.total_pages != 2 + 2 * pages + GAP_PAGES:
        raise SidecarLimitError("the superblock claims more entries than the index holds")
    stream, _ = read_doubled(fetch, Section.UNIT_INDEX, (1, 1 + pages + GAP_PAGES), block.layout_bytes, block.salt)
    if unit_root(stream) != block.root:
        raise SidecarDamagedError("the unit root does not fit the entries: protect the directory again")
    entries = decode_entries(stream, block.block_count)
    if sum(entry.file_bytes for entry in entries) != block.file_bytes:
        raise SidecarLimitError("the superblock's size is not that of the entries: protect the directory again")
    return UnitIndex(block, entries)
