"""The sidecar file (SPEC, section 7): the only module that knows its offsets.

Reading takes a ``fetch`` function and checks in the order of SPEC 7.2; nothing is allocated from a number that has not
been held against the length of the sidecar that is really there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import xxhash

from bitward_formats.blocks import BlockTable
from bitward_formats.digest import LeafHash
from bitward_formats.errors import (
    LaneGroupError,
    NotASidecarError,
    SidecarDamagedError,
    SidecarError,
    SidecarLimitError,
    SidecarTooShortError,
    UnsupportedVersionError,
)
from bitward_formats.geometry import Geometry, Zone
from bitward_formats.groups import LaneGroup, LaneGroups, Selector, check_groups
from bitward_formats.layout import decode_layout, encode_layout
from bitward_formats.merkle import file_root, span_roots
from bitward_formats.pages import (
    GAP_PAGES,
    PAGE_BYTES,
    PAYLOAD_BYTES,
    Fetch,
    Section,
    is_sound,
    mend_flip,
    page_bytes,
    pages_for,
    paginate,
    reconcile,
)
from bitward_formats.spans import Layout

T = TypeVar("T")

MAGIC = b"\x89WARD\r\n\x1a"
VERSION = 1
KNOWN_INCOMPATIBLE = 0
KIND_FILE, KIND_UNIT = 0, 1
ORIGINS = ("first-seen", "trusted", "sealed")

SUPERBLOCK = struct.Struct("<8sHBBIIBBHQqQQQQQ32s32s32s16s")
_MENDED_PAGES_LIMIT = 16
"""Most pages of one stream on which the search for a single flip (20 ms each) is spent."""
_MENDED_PARITY_LIMIT = 64
"""Likewise of all parity pages together: with more, the sidecar has lost regions, not bits."""
_LEAST_SHARE_LEFT = 8
"""A sidecar torn to less than this fraction is refused: it bounds what a hostile superblock can make a reader allocate."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """The superblock's fields; see SPEC 7.1. ``root`` is the file root, or of a unit index the unit root."""

    kind: int
    leaf_hash: int
    origin: int
    groups: LaneGroups
    file_bytes: int
    mtime_ns: int
    protected_ns: int
    salt: int
    total_pages: int
    layout_bytes: int
    block_count: int
    root: bytes
    trusted_sha256: bytes
    preset: str
    compatible: int = 0

    @property
    def origin_label(self) -> str:
        return ORIGINS[self.origin]

    @property
    def is_trusted(self) -> bool:
        return any(self.trusted_sha256)


def encode_superblock(block: Superblock) -> bytes:
    """The superblock's payload, 4080 bytes."""
    table = b"".join(struct.pack("<BBH", *_group_fields(group)) for group in block.groups)
    head = SUPERBLOCK.pack(
        *(MAGIC, VERSION, block.kind, block.leaf_hash, 0, block.compatible, block.origin, len(block.groups), 0),
        *(block.file_bytes, block.mtime_ns, block.protected_ns, block.salt, block.total_pages, block.layout_bytes),
        *(block.block_count, block.root, block.trusted_sha256, table, block.preset.encode("latin-1")),
    )
    return head.ljust(PAYLOAD_BYTES, b"\0")


def _group_fields(group: LaneGroup) -> tuple[int, int, int]:
    return group.selector, group.cell_log2, group.stripe_slots


def with_salt(block: Superblock) -> Superblock:
    """The superblock with the salt that writers use: XXH3-64 of the payload with salt and root zero."""
    payload = encode_superblock(replace(block, salt=0, root=bytes(32)))
    return replace(block, salt=xxhash.xxh3_64_intdigest(payload, 0))


def decode_superblock(payload: bytes) -> Superblock:
    """Parse a superblock whose page check held.

    Raises:
        NotASidecarError, UnsupportedVersionError, SidecarLimitError, LaneGroupError: in this order.
    """
    (magic, version, kind, leaf_hash, incompatible, compatible, origin, group_count, _, *rest) = SUPERBLOCK.unpack_from(payload)
    if magic != MAGIC:
        raise NotASidecarError("not a Bitward sidecar: wrong magic")
    if version != VERSION:
        raise UnsupportedVersionError(f"sidecar version {version}; this Bitward reads version {VERSION}: use a newer one")
    if incompatible & ~KNOWN_INCOMPATIBLE:
        raise UnsupportedVersionError(f"sidecar uses unknown features {incompatible:#x}: use a newer Bitward")
    file_bytes, mtime_ns, protected_ns, salt, total_pages, layout_bytes, block_count, root, trusted, table, preset = rest
    if kind not in (KIND_FILE, KIND_UNIT) or origin >= len(ORIGINS):
        raise SidecarLimitError(f"unknown sidecar kind {kind} or origin {origin}")
    if group_count > 8:
        raise LaneGroupError(f"{group_count} lane groups, at most 8 are allowed")
    groups = []
    for selector, cell_log2, stripe_slots in struct.iter_unpack("<BBH", table[: 4 * group_count]):
        if selector > max(Selector):
            raise LaneGroupError(f"unknown lane selector {selector}")
        groups.append(LaneGroup(Selector(selector), cell_log2, stripe_slots))
    if kind == KIND_FILE:
        check_groups(tuple(groups))
        if leaf_hash not in tuple(LeafHash):
            raise UnsupportedVersionError(f"unknown leaf hash {leaf_hash}: use a newer Bitward")
    label = preset.rstrip(b"\0").decode("latin-1")  # a label without force: whatever it holds survives being written again
    return Superblock(
        *(kind, leaf_hash, origin, tuple(groups), file_bytes, mtime_ns, protected_ns, salt, total_pages, layout_bytes),
        *(block_count, root, trusted, label, compatible),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every stream of a file's sidecar lies, in pages. Follows from layout, groups and leaf hash."""

    layout_stream: bytes
    leaf_stream_bytes: int
    geometry: Geometry
    table: BlockTable
    padding_page: int
    leaves_b_page: int
    layout_b_page: int
    total_pages: int

    @property
    def layout_a_page(self) -> int:
        return 1

    @property
    def leaves_a_page(self) -> int:
        return 1 + pages_for(len(self.layout_stream))

    def sections(self) -> Iterator[tuple[Section, int, int, int]]:
        """(section, copy, first page, page count) of everything between the superblocks, without empty ones."""
        layout_pages, leaf_pages = pages_for(len(self.layout_stream)), pages_for(self.leaf_stream_bytes)
        yield Section.LAYOUT, 0, self.layout_a_page, layout_pages
        yield Section.LEAVES, 0, self.leaves_a_page, leaf_pages
        for zone in self.geometry.zones:
            yield Section.P, 0, zone.p_page, zone.inner_page - zone.p_page
            yield Section.INNER, 0, zone.inner_page, zone.q_page - zone.inner_page
            yield Section.Q, 0, zone.q_page, zone.end_page - zone.q_page
        yield Section.PADDING, 0, self.padding_page, self.leaves_b_page - self.padding_page
        yield Section.LEAVES, 1, self.leaves_b_page, leaf_pages
        yield Section.LAYOUT, 1, self.layout_b_page, layout_pages


def plan_sidecar(layout: Layout, groups: LaneGroups, leaf_hash: int, layout_stream: bytes | None = None) -> Plan:
    """Lay out the sidecar of a file."""
    stream = encode_layout(layout) if layout_stream is None else layout_stream
    table = BlockTable(layout)
    leaf_bytes = table.count * LeafHash(leaf_hash).leaf_bytes
    first = 1 + pages_for(len(stream)) + pages_for(leaf_bytes)
    geometry = Geometry(table, groups, first, PAYLOAD_BYTES)
    leaves_b = max(geometry.end_page, first + GAP_PAGES)
    layout_b = leaves_b + pages_for(leaf_bytes)
    total = layout_b + pages_for(len(stream)) + 1
    return Plan(stream, leaf_bytes, geometry, table, geometry.end_page, leaves_b, layout_b, total)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The checked metadata of a file's sidecar. ``lost_pages`` lists metadata pages that had to be taken from elsewhere."""

    superblock: Superblock
    layout: Layout
    leaves: bytes
    plan: Plan
    lost_pages: tuple[int, ...]

    @property
    def leaf_bytes(self) -> int:
        return LeafHash(self.superblock.leaf_hash).leaf_bytes

    def leaf(self, block_number: int) -> bytes:
        return self.leaves[block_number * self.leaf_bytes : (block_number + 1) * self.leaf_bytes]


def metadata_pages(sidecar: Superblock, layout_stream: bytes, leaves: bytes, plan: Plan) -> Iterator[tuple[int, bytes]]:
    """(page number, pages) of everything but parity: what a writer puts down last."""
    salt = sidecar.salt
    payload = encode_superblock(sidecar)
    yield 0, page_bytes(payload, Section.SUPERBLOCK, 0, 0, 0)
    yield plan.layout_a_page, paginate(layout_stream, Section.LAYOUT, 0, plan.layout_a_page, salt)
    yield plan.leaves_a_page, paginate(leaves, Section.LEAVES, 0, plan.leaves_a_page, salt)
    padding = bytes((plan.leaves_b_page - plan.padding_page) * PAYLOAD_BYTES)
    yield plan.padding_page, paginate(padding, Section.PADDING, 0, plan.padding_page, salt)
    yield plan.leaves_b_page, paginate(leaves, Section.LEAVES, 1, plan.leaves_b_page, salt)
    yield plan.layout_b_page, paginate(layout_stream, Section.LAYOUT, 1, plan.layout_b_page, salt)
    yield plan.total_pages - 1, page_bytes(payload, Section.SUPERBLOCK, 1, plan.total_pages - 1, 0)


def read_superblock(fetch: Fetch, sidecar_bytes: int) -> tuple[Superblock, list[int]]:
    """The superblock and the numbers of superblock pages that were lost.

    Raises:
        SidecarTooShortError, NotASidecarError and what :func:`decode_superblock` raises.
    """
    if sidecar_bytes < 2 * PAGE_BYTES:
        raise SidecarTooShortError(f"{sidecar_bytes} bytes are too few for a sidecar: make it again with 'bitward protect'")
    last = sidecar_bytes // PAGE_BYTES - 1
    copies = [fetch(0, PAGE_BYTES), fetch(last * PAGE_BYTES, PAGE_BYTES)]
    sound = [is_sound(page, Section.SUPERBLOCK, copy, number, 0) for copy, (page, number) in enumerate(zip(copies, (0, last), strict=True))]
    if any(sound):
        block = decode_superblock(copies[0 if sound[0] else 1][:PAYLOAD_BYTES])
        if block.total_pages == last + 1:
            return block, [number for number, good in zip((0, last), sound, strict=True) if not good]
        return block, [] if sound[0] else [0]
    payload = reconcile(copies[0], copies[1], Section.SUPERBLOCK, (0, last), 0)
    if payload is not None:
        return decode_superblock(payload), [0, last]
    for number in range(last, 0, -1):
        page = fetch(number * PAGE_BYTES, PAGE_BYTES)
        if page[PAYLOAD_BYTES:PAYLOAD_BYTES + 1] == b"\x01" and is_sound(page, Section.SUPERBLOCK, 1, number, 0):
            return decode_superblock(page[:PAYLOAD_BYTES]), [0]
    raise NotASidecarError("no sound superblock: this is not a Bitward sidecar, or too little of it is left")


def with_either_superblock(fetch: Fetch, sidecar_bytes: int, read: Callable[[Superblock, list[int]], T]) -> T:
    """What ``read`` makes of a sidecar, given its superblock and the superblock pages that were lost.

    A disk that loses a write leaves an old page with a right check. So if ``read`` fails with the first copy, it is tried with the last.

    Raises:
        SidecarError: as the first copy has it.
    """
    block, lost = read_superblock(fetch, sidecar_bytes)
    try:
        return read(block, lost)
    except SidecarError:
        last = sidecar_bytes // PAGE_BYTES - 1
        page = fetch(last * PAGE_BYTES, PAGE_BYTES)
        if 0 in lost or not is_sound(page, Section.SUPERBLOCK, 1, last, 0):
            raise
        with suppress(SidecarError):
            other = decode_superblock(page[:PAYLOAD_BYTES])
            if other != block:
                return read(other, [0])
        raise


def read_doubled(fetch: Fetch, section: Section, starts: tuple[int, int], stream_bytes: int, salt: int) -> tuple[bytes, list[int]]:
    """A stream that is stored twice, page by page from whichever copy is sound; and the numbers of lost pages.

    Raises:
        SidecarDamagedError: a page is lost in both copies.
    """
    count = pages_for(stream_bytes)
    first = memoryview(fetch(starts[0] * PAGE_BYTES, count * PAGE_BYTES))
    parts: list[bytes | memoryview] = []
    lost: list[int] = []
    for index in range(count):
        page = first[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
        if is_sound(page, section, 0, starts[0] + index, salt):
            parts.append(page[:PAYLOAD_BYTES])
            continue
        lost.append(starts[0] + index)
        other = fetch((starts[1] + index) * PAGE_BYTES, PAGE_BYTES)
        if is_sound(other, section, 1, starts[1] + index, salt):
            parts.append(other[:PAYLOAD_BYTES])
            continue
        lost.append(starts[1] + index)
        mended = None
        if len(lost) <= 2 * _MENDED_PAGES_LIMIT:
            mended = reconcile(bytes(page), other, section, (starts[0] + index, starts[1] + index), salt)
        if mended is None:
            raise SidecarDamagedError(f"both copies of {section.name.lower()} page {index} are lost: make the sidecar again")
        parts.append(mended)
    return b"".join(parts)[:stream_bytes], lost


def read_sidecar(fetch: Fetch, sidecar_bytes: int) -> Sidecar:
    """Read and check a file's sidecar, all but its parity.

    Raises:
        SidecarError: one named subclass for each way to fail.
    """
    return with_either_superblock(fetch, sidecar_bytes, lambda block, lost: _read_sidecar(fetch, sidecar_bytes, block, lost))


def _read_sidecar(fetch: Fetch, sidecar_bytes: int, block: Superblock, lost: list[int]) -> Sidecar:
    if block.kind != KIND_FILE:
        raise NotASidecarError("this is a directory's index, not a file's sidecar")
    leaf_bytes = block.block_count * LeafHash(block.leaf_hash).leaf_bytes
    if block.layout_bytes + leaf_bytes > sidecar_bytes or block.file_bytes >= 1 << 62:
        raise SidecarLimitError("the superblock claims more layout or leaves than the sidecar holds")
    fixed = 2 + 2 * (pages_for(block.layout_bytes) + pages_for(leaf_bytes))
    if block.total_pages < fixed + GAP_PAGES:
        raise SidecarLimitError(f"{block.total_pages} pages are too few for what the superblock claims")
    layout_pages = pages_for(block.layout_bytes)
    starts = (1, block.total_pages - 1 - layout_pages)
    stream, lost_layout = read_doubled(fetch, Section.LAYOUT, starts, block.layout_bytes, block.salt)
    layout = decode_layout(stream, block.file_bytes)
    if sum(span.block_count for span in layout.spans) != block.block_count:
        raise SidecarLimitError("the layout's blocks are not as many as the superblock says")
    plan = plan_sidecar(layout, block.groups, block.leaf_hash, stream)
    if plan.total_pages * PAGE_BYTES > _LEAST_SHARE_LEFT * sidecar_bytes:
        raise SidecarLimitError(f"the sidecar should have {plan.total_pages} pages; too few of them are left")
    if plan.total_pages != block.total_pages:
        raise SidecarLimitError(f"{block.total_pages} pages, the layout needs {plan.total_pages}")
    starts = (plan.leaves_a_page, plan.leaves_b_page)
    leaves, lost_leaves = read_doubled(fetch, Section.LEAVES, starts, leaf_bytes, block.salt)
    size = LeafHash(block.leaf_hash).leaf_bytes
    if file_root(block.file_bytes, stream, span_roots(layout, leaves, block.leaf_hash, size)) != block.root:
        raise SidecarDamagedError("the root does not fit layout and leaves: make the sidecar again")
    return Sidecar(block, layout, leaves, plan, tuple(lost + lost_layout + lost_leaves))


def lost_pages(fetch: Fetch, sidecar: Sidecar, pages_at_once: int = 256) -> Iterator[int]:
    """Numbers of all pages of a sidecar that fail their check, parity included."""
    plan, salt = sidecar.plan, sidecar.superblock.salt
    if not _is_superblock(fetch, sidecar, 0, 0):
        yield 0
    for section, copy, first, count in plan.sections():
        for at in range(first, first + count, pages_at_once):
            here = min(pages_at_once, first + count - at)
            chunk = memoryview(fetch(at * PAGE_BYTES, here * PAGE_BYTES))
            for index in range(here):
                if not is_sound(chunk[index * PAGE_BYTES : (index + 1) * PAGE_BYTES], section, copy, at + index, salt):
                    yield at + index
    if not _is_superblock(fetch, sidecar, 1, plan.total_pages - 1):
        yield plan.total_pages - 1


def _is_superblock(fetch: Fetch, sidecar: Sidecar, copy: int, number: int) -> bool:
    """Whether a page holds this sidecar's superblock, not that of an older one."""
    page = fetch(number * PAGE_BYTES, PAGE_BYTES)
    if not is_sound(page, Section.SUPERBLOCK, copy, number, 0):
        return False
    try:
        return decode_superblock(page[:PAYLOAD_BYTES]) == sidecar.superblock
    except SidecarError:
        return False


@dataclass(frozen=True, slots=True)
class ParityStream:
    """A parity stream of a zone: ``data`` with zeros where pages are lost, ``lost`` as byte ranges of the stream."""

    data: bytearray
    lost: tuple[tuple[int, int], ...]

    def is_lost(self, start: int, end: int) -> bool:
        return any(low < end and start < high for low, high in self.lost)


MendedPages = dict[int, bytes | None]
"""Pages in which a single flip was looked for: mended, or ``None`` if it was more than that."""


def read_parity(
    fetch: Fetch, sidecar: Sidecar, zone: Zone, section: Section, start: int, end: int, mended: MendedPages | None = None
) -> ParityStream:
    """Bytes ``start .. end`` of the P, Q or inner stream of a zone. A single flip in a page is undone on the way.

    Args:
        mended: kept by the caller from one call to the next, so that no page is searched twice, and not more than a few in all.
    """
    mended = {} if mended is None else mended
    page = {Section.P: zone.p_page, Section.INNER: zone.inner_page, Section.Q: zone.q_page}[section]
    low, high = start // PAYLOAD_BYTES, pages_for(end)
    raw = fetch((page + low) * PAGE_BYTES, (high - low) * PAGE_BYTES)
    data, lost = bytearray(), []
    for index in range(high - low):
        number = page + low + index
        chunk = raw[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
        if not is_sound(chunk, section, 0, number, sidecar.superblock.salt):
            if number not in mended and len(mended) < _MENDED_PARITY_LIMIT:
                mended[number] = mend_flip(chunk, section, 0, number, sidecar.superblock.salt)
            repaired = mended.get(number)
            if repaired is None:
                at = (low + index) * PAYLOAD_BYTES - start
                lost.append((max(at, 0), min(at + PAYLOAD_BYTES, end - start)))
            chunk = repaired or bytes(PAGE_BYTES)
        data += chunk[:PAYLOAD_BYTES]
    begin = start - low * PAYLOAD_BYTES
    return ParityStream(data[begin : begin + end - start], tuple(lost))
