"""The sidecar file (SPEC, section 7): this module and the superblock's are the only ones that know its offsets.

Reading takes a ``fetch`` function and checks in the order of SPEC 7.2; nothing is allocated from a number that has not
been held against the length of the sidecar that is really there.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitward_formats.blocks import BlockTable
from bitward_formats.digest import LeafHash
from bitward_formats.errors import NotASidecarError, SidecarDamagedError, SidecarError, SidecarLimitError
from bitward_formats.frozen import dataclass
from bitward_formats.geometry import Geometry, Zone
from bitward_formats.groups import LaneGroups
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
    unsound,
)
from bitward_formats.spans import Layout
from bitward_formats.superblock import KIND_FILE, Superblock, decode_superblock, encode_superblock, with_superblock

_PAGES_AT_ONCE = 256
_MENDED_PAGES_LIMIT = 16
"""Most pages of one stream on which the search for a single flip (20 ms each) is spent."""
_MENDED_PARITY_LIMIT = 64
"""Likewise of all parity pages together: with more, the sidecar has lost regions, not bits."""
_LEAST_SHARE_LEFT = 8
"""A sidecar torn to less than this fraction is refused: it bounds what a hostile superblock can make a reader allocate."""


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
    return with_superblock(fetch, sidecar_bytes, lambda block, lost: _read_sidecar(fetch, sidecar_bytes, block, lost))


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


def lost_pages(fetch: Fetch, sidecar: Sidecar) -> Iterator[int]:
    """Numbers of all pages of a sidecar that fail their check, parity included."""
    plan, salt = sidecar.plan, sidecar.superblock.salt
    if not _is_superblock(fetch, sidecar, 0, 0):
        yield 0
    for section, copy, first, count in plan.sections():
        for at in range(first, first + count, _PAGES_AT_ONCE):
            here = min(_PAGES_AT_ONCE, first + count - at)
            chunk = memoryview(fetch(at * PAGE_BYTES, here * PAGE_BYTES))
            yield from unsound(chunk, section, copy, at, salt)
            yield from range(at + -(-len(chunk) // PAGE_BYTES), at + here)  # beyond the end of a sidecar that was cut
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
