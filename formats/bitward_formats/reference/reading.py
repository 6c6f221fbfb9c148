"""A sidecar, read in the order of SPEC, section 7.2. Every number is checked before it is used.

What the twin leaves out: it does not try to put together a page of layout or leaves that is lost in both copies.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from bitward_formats.errors import (
    NotASidecarError,
    SidecarDamagedError,
    SidecarLimitError,
    SidecarTooShortError,
    UnsupportedVersionError,
)
from bitward_formats.reference.groups import LaneGroup, check_groups
from bitward_formats.reference.layout_stream import Block, StoredLayout, blocks_of, count_blocks, decode_stored_layout
from bitward_formats.reference.limits import GAP_PAGES, GROUP_LIMIT, LEAF_BYTES, PAGE_BYTES, PAYLOAD_BYTES, Section, divide_up
from bitward_formats.reference.outer import ParityClass, classes_of
from bitward_formats.reference.plan import PlannedStream, plan_file_sidecar, plan_unit_index
from bitward_formats.reference.tree import file_root, span_roots, unit_root
from bitward_formats.reference.writing import (
    CHECKED_BYTES,
    KIND_FILE,
    KIND_UNIT_INDEX,
    MAGIC,
    PAGE,
    SUPERBLOCK,
    SUPERBLOCK_FIELDS,
    VERSION,
    Superblock,
    UnitEntry,
    check_path,
)

# The fewest bytes of an entry of the unit index: a path of one byte.
UNIT_ENTRY_LEAST_BYTES = 2 + 1 + 8 + 32


@dataclass(frozen=True, slots=True)
class PartlyRead:
    """A stream of which pages may be lost: ``known`` has a one for each bit that was read, the others are zero in ``data``."""

    data: bytes
    known: bytes


@dataclass(frozen=True, slots=True)
class ReadSidecar:
    """What a sidecar says about a file. ``streams`` holds P, INNER and Q by (section, class, zone)."""

    superblock: Superblock
    stored: StoredLayout
    blocks: list[Block]
    leaves: list[bytes]
    classes: list[ParityClass]
    streams: dict[tuple[Section, int, int], PartlyRead]


def read_sidecar(sidecar: bytes) -> ReadSidecar:
    """Check and take apart a file's sidecar. Raises SidecarError in its kinds."""
    superblock = read_superblock(sidecar)
    if superblock.kind != KIND_FILE:
        raise NotASidecarError("this is the sidecar of a directory, not of a file")
    check_groups(superblock.groups)
    leaf_bytes = LEAF_BYTES[superblock.leaf_hash]
    _check_lengths(sidecar, superblock, superblock.block_count * leaf_bytes)
    copies = _plan_of_copies(superblock, superblock.block_count * leaf_bytes)
    layout_stream = _read_either(sidecar, superblock, [part for part in copies if part.section == Section.LAYOUT])
    stored = decode_stored_layout(layout_stream, superblock.file_bytes)
    if count_blocks(stored) != superblock.block_count:
        raise SidecarLimitError(f"{superblock.block_count} blocks are claimed, the layout has {count_blocks(stored)}")
    blocks = blocks_of(stored)
    classes = classes_of(stored, blocks, superblock.groups)
    plan = plan_file_sidecar(len(layout_stream), len(blocks) * leaf_bytes, classes, superblock.groups)
    if plan[-1].page_end != superblock.total_pages:
        raise SidecarLimitError(f"{superblock.total_pages} pages are claimed, the layout makes {plan[-1].page_end}")
    leaf_stream = _read_either(sidecar, superblock, [part for part in copies if part.section == Section.LEAVES])
    leaves = [leaf_stream[at : at + leaf_bytes] for at in range(0, len(leaf_stream), leaf_bytes)]
    root = file_root(superblock.file_bytes, layout_stream, span_roots(stored, blocks, leaves, superblock.leaf_hash))
    if root != superblock.root:
        raise SidecarDamagedError("the file root does not fit the layout and the leaves")
    parity = [part for part in plan if part.section in (Section.P, Section.INNER, Section.Q)]
    streams = {(part.section, part.class_index, part.zone_index): _read_stream(sidecar, superblock, part) for part in parity}
    return ReadSidecar(superblock, stored, blocks, leaves, classes, streams)


def read_unit_index(sidecar: bytes) -> list[UnitEntry]:
    """Check a directory's sidecar and return its entries. Raises SidecarError in its kinds."""
    superblock = read_superblock(sidecar)
    if superblock.kind != KIND_UNIT_INDEX:
        raise NotASidecarError("this is the sidecar of a file, not of a directory")
    _check_lengths(sidecar, superblock, superblock.block_count * UNIT_ENTRY_LEAST_BYTES)
    plan = plan_unit_index(superblock.layout_bytes)
    if plan[-1].page_end != superblock.total_pages:
        raise SidecarLimitError(f"{superblock.total_pages} pages are claimed, the index makes {plan[-1].page_end}")
    stream = _read_either(sidecar, superblock, [part for part in plan if part.section == Section.UNIT_INDEX])
    if unit_root(stream) != superblock.root:
        raise SidecarDamagedError("the unit root does not fit the unit index")
    entries: list[UnitEntry] = []
    at = 0
    while at < len(stream):
        if len(stream) - at < UNIT_ENTRY_LEAST_BYTES:
            raise SidecarLimitError("the unit index ends in the middle of an entry")
        path_end = at + 2 + int.from_bytes(stream[at : at + 2], "little")
        at, path, rest = path_end + 40, stream[at + 2 : path_end], stream[path_end : path_end + 40]
        check_path(path)
        if len(rest) < 40 or (entries and path <= entries[-1].path):
            raise SidecarLimitError("the unit index ends in the middle of an entry or is not sorted")
        entries.append(UnitEntry(path, int.from_bytes(rest[:8], "little"), rest[8:]))
    if len(entries) != superblock.block_count or sum(entry.file_bytes for entry in entries) != superblock.file_bytes:
        raise SidecarLimitError("the superblock's counts do not fit the unit index")
    return entries


def read_superblock(sidecar: bytes) -> Superblock:
    """The first superblock that can be used: page 0, else the last whole page, else any."""
    page_count = len(sidecar) // PAGE_BYTES
    if page_count < 2:
        raise SidecarTooShortError(f"{len(sidecar)} bytes are fewer than two pages")
    for page in (0, page_count - 1, *range(1, page_count - 1)):
        raw = sidecar[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        payload, section, _, _, _, check = PAGE.unpack(raw)
        is_right = xxhash.xxh3_64_intdigest(raw[:CHECKED_BYTES]) == check
        if is_right and section == Section.SUPERBLOCK and payload.startswith(MAGIC):
            return unpack_superblock(payload)
    raise NotASidecarError("no superblock was found")


def unpack_superblock(payload: bytes) -> Superblock:
    """The fields of a payload. Refuses versions, features, kinds and leaf hashes that are not known."""
    fields = dict(zip((name for name, _ in SUPERBLOCK_FIELDS), SUPERBLOCK.unpack(payload), strict=True))
    if fields["version"] != VERSION:
        raise UnsupportedVersionError(f"version {fields['version']}; this program knows version {VERSION}")
    if fields["incompatible"]:
        raise UnsupportedVersionError(f"incompatible feature bits {fields['incompatible']:#x}")
    if fields["kind"] not in (KIND_FILE, KIND_UNIT_INDEX):
        raise UnsupportedVersionError(f"unknown kind {fields['kind']}")
    if fields["kind"] == KIND_FILE and fields["leaf_hash"] not in LEAF_BYTES:
        raise UnsupportedVersionError(f"unknown leaf hash {fields['leaf_hash']}")
    group_count = min(fields["group_count"], GROUP_LIMIT + 1)
    table = fields["groups"].ljust(4 * (GROUP_LIMIT + 1), b"\0")
    return Superblock(
        kind=fields["kind"],
        leaf_hash=fields["leaf_hash"],
        origin=fields["origin"],
        groups=tuple(LaneGroup(*struct.unpack_from("<BBH", table, 4 * index)) for index in range(group_count)),
        file_bytes=fields["file_bytes"],
        mtime_ns=fields["mtime_ns"],
        protected_ns=fields["protected_ns"],
        total_pages=fields["total_pages"],
        layout_bytes=fields["layout_bytes"],
        block_count=fields["block_count"],
        root=fields["root"],
        trusted_sha256=fields["trusted_sha256"],
        preset=fields["preset"].rstrip(b"\0").decode("ascii", "replace"),
        salt=fields["salt"],
    )


def _check_lengths(sidecar: bytes, superblock: Superblock, leaf_stream_bytes: int) -> None:
    """Refuse numbers that the file which is there cannot hold."""
    if superblock.total_pages * PAGE_BYTES != len(sidecar):
        raise SidecarLimitError(f"{superblock.total_pages} pages are claimed, {len(sidecar)} bytes are there")
    copy_pages = divide_up(superblock.layout_bytes, PAYLOAD_BYTES)
    if superblock.kind == KIND_FILE:
        copy_pages += divide_up(leaf_stream_bytes, PAYLOAD_BYTES)
    elif leaf_stream_bytes > superblock.layout_bytes:
        raise SidecarLimitError(f"{superblock.block_count} entries do not fit into {superblock.layout_bytes} bytes")
    if 2 * (1 + copy_pages) + GAP_PAGES > superblock.total_pages:
        raise SidecarLimitError("layout and leaves as claimed need more pages than there are")


def _plan_of_copies(superblock: Superblock, leaf_stream_bytes: int) -> list[PlannedStream]:
    """Where layout and leaves lie: the plan without classes has the right first copies, and second ones that end with the file."""
    plan = plan_file_sidecar(superblock.layout_bytes, leaf_stream_bytes, [], superblock.groups)
    shift = superblock.total_pages - plan[-1].page_end
    return [part._replace(first_page=part.first_page + shift) if part.copy == 1 else part for part in plan]


def _read_page(sidecar: bytes, superblock: Superblock, part: PlannedStream, index: int) -> bytes | None:
    """The payload of a page of a stream, or None if it is lost."""
    page = part.first_page + index
    raw = sidecar[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
    payload, section, copy, _, number, check = PAGE.unpack(raw)
    if (section, copy, number) != (part.section, part.copy, page):
        return None
    if xxhash.xxh3_64_intdigest(raw[:CHECKED_BYTES], seed=superblock.salt or 0) != check:
        return None
    return bytes(payload)


def _read_either(sidecar: bytes, superblock: Superblock, copies: Sequence[PlannedStream]) -> bytes:
    """A stream that is there twice, each page from the first copy that has it."""
    stream = b""
    for index in range(copies[0].page_count):
        payloads = [_read_page(sidecar, superblock, part, index) for part in copies]
        whole = [payload for payload in payloads if payload is not None]
        if not whole:
            raise SidecarDamagedError(f"page {index} of {copies[0].section.name} is lost in both copies")
        stream += whole[0]
    return stream[: copies[0].stream_bytes]


def _read_stream(sidecar: bytes, superblock: Superblock, part: PlannedStream) -> PartlyRead:
    """A stream of parity, with holes where pages are lost."""
    data, known = b"", b""
    for index in range(part.page_count):
        payload = _read_page(sidecar, superblock, part, index)
        data += payload if payload is not None else bytes(PAYLOAD_BYTES)
        known += (b"\xff" if payload is not None else b"\0") * PAYLOAD_BYTES
    return PartlyRead(data[: part.stream_bytes], known[: part.stream_bytes])
