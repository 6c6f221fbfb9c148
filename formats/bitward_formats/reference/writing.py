"""The sidecar's pages (SPEC, section 7) and the unit index (section 8), written."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from bitward_formats.errors import LayoutError, SidecarLimitError
from bitward_formats.reference.groups import LaneGroup, check_groups
from bitward_formats.reference.inner import inner_blob
from bitward_formats.reference.layout_stream import blocks_of, check_layout, encode_stored_layout, order_kinds
from bitward_formats.reference.limits import GROUP_LIMIT, LEAF_BYTES, PAGE_BYTES, PATH_LIMIT_BYTES, PAYLOAD_BYTES, Section
from bitward_formats.reference.outer import ParityClass, Slot, classes_of, parities, parity_bytes, slot_content, stripes_of, zones_of
from bitward_formats.reference.packing import pack_lanes
from bitward_formats.reference.plan import PlannedStream, plan_file_sidecar, plan_unit_index
from bitward_formats.reference.tree import file_root, leaf, span_roots, unit_root
from bitward_formats.spans import Layout

MAGIC = bytes.fromhex("89574152440d0a1a")
VERSION = 1
KIND_FILE = 0
KIND_UNIT_INDEX = 1

# Name and struct code of each field, in order (SPEC, section 7.1).
SUPERBLOCK_FIELDS = (
    ("magic", "8s"),
    ("version", "H"),
    ("kind", "B"),
    ("leaf_hash", "B"),
    ("incompatible", "I"),
    ("compatible", "I"),
    ("origin", "B"),
    ("group_count", "B"),
    ("reserved", "2s"),
    ("file_bytes", "Q"),
    ("mtime_ns", "q"),
    ("protected_ns", "Q"),
    ("salt", "Q"),
    ("total_pages", "Q"),
    ("layout_bytes", "Q"),
    ("block_count", "Q"),
    ("root", "32s"),
    ("trusted_sha256", "32s"),
    ("groups", "32s"),
    ("preset", "16s"),
    ("reserved", "3888s"),
)
SUPERBLOCK = struct.Struct("<" + "".join(code for _, code in SUPERBLOCK_FIELDS))

# The same for a page (section 7).
PAGE_FIELDS = (("payload", "4080s"), ("section", "B"), ("copy", "B"), ("reserved", "H"), ("page", "I"), ("check", "Q"))
PAGE = struct.Struct("<" + "".join(code for _, code in PAGE_FIELDS))
CHECKED_BYTES = PAGE_BYTES - 8


class Superblock(NamedTuple):
    """The fields of a superblock that mean something; ``salt`` is made from the others when it is packed as None."""

    kind: int
    leaf_hash: int
    origin: int
    groups: tuple[LaneGroup, ...]
    file_bytes: int
    mtime_ns: int
    protected_ns: int
    total_pages: int
    layout_bytes: int
    block_count: int
    root: bytes
    trusted_sha256: bytes
    preset: str
    salt: int | None = None

    def pack(self) -> bytes:
        """The payload. With no salt given it is XXH3-64 of the payload with zeros for salt and root."""
        groups = b"".join(struct.pack("<BBH", *group) for group in self.groups).ljust(4 * GROUP_LIMIT, b"\0")
        preset = self.preset.encode("ascii")
        if len(preset) > 16:
            raise SidecarLimitError(f"the preset's name {self.preset} is longer than 16 bytes")
        facts = (MAGIC, VERSION, self.kind, self.leaf_hash, 0, 0, self.origin, len(self.groups), b"", self.file_bytes, self.mtime_ns)
        counts, tail = (self.total_pages, self.layout_bytes, self.block_count), (self.trusted_sha256, groups, preset, b"")
        salt = self.salt
        if salt is None:
            salt = xxhash.xxh3_64_intdigest(SUPERBLOCK.pack(*facts, self.protected_ns, 0, *counts, bytes(32), *tail))
        return SUPERBLOCK.pack(*facts, self.protected_ns, salt, *counts, self.root, *tail)


class UnitEntry(NamedTuple):
    """One file of a unit; ``path`` as bytes, relative to the directory."""

    path: bytes
    file_bytes: int
    root: bytes


def build_sidecar(
    file: bytes,
    layout: Layout,
    *,
    groups: Sequence[tuple[int, int, int]],
    leaf_hash: int,
    preset: str,
    origin: int = 0,
    mtime_ns: int = 0,
    protected_ns: int = 0,
    trusted_sha256: bytes = bytes(32),
) -> bytes:
    """The whole sidecar of a file. Deterministic.

    ``groups`` are (selector, cell_log2, stripe_slots). Raises LayoutError, LaneGroupError or MissingExtraError.
    """
    lane_groups = tuple(LaneGroup(*group) for group in groups)
    check_groups(lane_groups)
    stored = order_kinds(layout)
    check_layout(stored)
    if len(file) != layout.file_bytes:
        raise LayoutError(f"a layout of {layout.file_bytes} bytes for a file of {len(file)}")
    layout_stream = encode_stored_layout(stored)
    blocks = blocks_of(stored)
    leaves = [leaf(file[block.offset : block.end], block.index, leaf_hash) for block in blocks]
    root = file_root(len(file), layout_stream, span_roots(stored, blocks, leaves, leaf_hash))
    classes = classes_of(stored, blocks, lane_groups)
    plan = plan_file_sidecar(len(layout_stream), len(blocks) * LEAF_BYTES[leaf_hash], classes, lane_groups)
    streams = {Section.LAYOUT: layout_stream, Section.LEAVES: b"".join(leaves)}
    zone_streams = iter([stream for one in classes for zone in zones_of(one) for stream in zone_parity(file, one, zone, lane_groups)])
    superblock = Superblock(
        KIND_FILE, leaf_hash, origin, lane_groups, len(file), mtime_ns, protected_ns, plan[-1].page_end,
        len(layout_stream), len(blocks), root, trusted_sha256, preset,
    )  # fmt: skip
    contents = []
    for part in plan:
        if part.section in (Section.P, Section.INNER, Section.Q):
            contents.append(next(zone_streams))
        else:
            contents.append(streams.get(part.section, b""))
    return write_pages(superblock.pack(), plan, contents)


def zone_parity(file: bytes, parity_class: ParityClass, zone: Sequence[Slot], groups: Sequence[LaneGroup]) -> tuple[bytes, bytes, bytes]:
    """The three streams of a zone: P's, inner blobs, Q's."""
    p_stream, q_stream = b"", b""
    if parity_class.has_parity:
        for stripe in stripes_of(zone, parity_class.stripe_slots):
            length = parity_bytes(parity_class, stripe)
            p, q = parities([slot_content(file, slot, length) for slot in stripe], parity_class.row_bytes)
            p_stream += pack_lanes(p, parity_class.mask)
            q_stream += pack_lanes(q, parity_class.mask)
    blocks = [placement.block for slot in zone for placement in slot]
    inner_stream = b"".join(inner_blob(file[block.offset : block.end], block.kind, groups) for block in blocks)
    return p_stream, inner_stream, q_stream


def write_pages(superblock: bytes, plan: Sequence[PlannedStream], contents: Sequence[bytes]) -> bytes:
    """All pages of a sidecar: each stream of the plan with its content, cut and sealed."""
    salt = dict(zip((name for name, _ in SUPERBLOCK_FIELDS), SUPERBLOCK.unpack(superblock), strict=True))["salt"]
    pages = []
    for part, content in zip(plan, contents, strict=True):
        if part.section == Section.SUPERBLOCK:
            content = superblock
        for index in range(part.page_count):
            payload = content[index * PAYLOAD_BYTES : (index + 1) * PAYLOAD_BYTES]
            pages.append(seal_page(payload, part.section, part.copy, part.first_page + index, salt))
    return b"".join(pages)


def seal_page(payload: bytes, section: int, copy: int, page: int, salt: int) -> bytes:
    """One page with its trailer."""
    head = PAGE.pack(payload, section, copy, 0, page, 0)[:CHECKED_BYTES]
    seed = 0 if section == Section.SUPERBLOCK else salt
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head, seed=seed))


def unit_index_stream(entries: Sequence[UnitEntry]) -> bytes:
    """The unit index stream, sorted by path. Raises SidecarLimitError for a path that section 8 does not allow."""
    stream = b""
    ordered = sorted(entries)
    for previous, entry in zip([None, *ordered], ordered, strict=False):
        if previous is not None and previous.path == entry.path:
            raise SidecarLimitError(f"the path {entry.path!r} occurs twice")
        check_path(entry.path)
        stream += struct.pack("<H", len(entry.path)) + entry.path + struct.pack("<Q", entry.file_bytes) + entry.root
    return stream


def check_path(path: bytes) -> None:
    """Raise SidecarLimitError unless the path stays inside its directory."""
    if not 1 <= len(path) <= PATH_LIMIT_BYTES or b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise SidecarLimitError(f"the path {path!r} is not one that a unit index may hold")


def build_unit_index(entries: Sequence[UnitEntry], *, origin: int = 0, protected_ns: int = 0) -> bytes:
    """The whole ``bitward-unit.ward`` of a directory. Deterministic; the order of the entries does not matter."""
    stream = unit_index_stream(entries)
    plan = plan_unit_index(len(stream))
    superblock = Superblock(
        KIND_UNIT_INDEX, 0, origin, (), sum(entry.file_bytes for entry in entries), 0, protected_ns, plan[-1].page_end,
        len(stream), len(entries), unit_root(stream), bytes(32), "",
    )  # fmt: skip
    contents = [stream if part.section == Section.UNIT_INDEX else b"" for part in plan]
    return write_pages(superblock.pack(), plan, contents)
