"""The superblock (SPEC, section 7.1): its fields, to bytes and back, and finding it in a sidecar."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import xxhash

from bitward_formats.digest import LeafHash
from bitward_formats.errors import (
    LaneGroupError,
    NotASidecarError,
    SidecarError,
    SidecarTooShortError,
    UnsupportedVersionError,
)
from bitward_formats.frozen import dataclass
from bitward_formats.groups import GROUP_LIMIT, LaneGroup, LaneGroups, Selector, check_groups
from bitward_formats.pages import PAGE_BYTES, PAYLOAD_BYTES, Fetch, Section, is_sound, reconcile

T = TypeVar("T")

MAGIC = b"\x89WARD\r\n\x1a"
VERSION = 1
KNOWN_INCOMPATIBLE = 0
KIND_FILE, KIND_UNIT = 0, 1
ORIGINS = ("first-seen", "trusted", "sealed")

SUPERBLOCK = struct.Struct("<8sHBBIIBBHQqQQQQQ32s32s32s16s")


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


def _decode_groups(table: bytes, count: int) -> LaneGroups:
    if count > GROUP_LIMIT:
        raise LaneGroupError(f"{count} lane groups, at most {GROUP_LIMIT} are allowed")
    groups = []
    for selector, cell_log2, stripe_slots in struct.iter_unpack("<BBH", table[: 4 * count]):
        if selector > max(Selector):
            raise LaneGroupError(f"unknown lane selector {selector}")
        groups.append(LaneGroup(Selector(selector), cell_log2, stripe_slots))
    check_groups(tuple(groups))
    return tuple(groups)


def decode_superblock(payload: bytes) -> Superblock:
    """Parse a superblock whose page check held.

    Raises:
        NotASidecarError, UnsupportedVersionError, LaneGroupError: in this order.
    """
    (magic, version, kind, leaf_hash, incompatible, compatible, origin, group_count, _, *rest) = SUPERBLOCK.unpack_from(payload)
    if magic != MAGIC:
        raise NotASidecarError("not a Bitward sidecar: wrong magic")
    if version != VERSION:
        raise UnsupportedVersionError(f"sidecar version {version}; this Bitward reads version {VERSION}: use a newer one")
    if incompatible & ~KNOWN_INCOMPATIBLE:
        raise UnsupportedVersionError(f"sidecar uses unknown features {incompatible:#x}: use a newer Bitward")
    file_bytes, mtime_ns, protected_ns, salt, total_pages, layout_bytes, block_count, root, trusted, table, preset = rest
    if kind not in (KIND_FILE, KIND_UNIT):
        raise UnsupportedVersionError(f"unknown kind of sidecar {kind}: use a newer Bitward")
    if origin >= len(ORIGINS):
        raise UnsupportedVersionError(f"unknown origin {origin}: use a newer Bitward")
    if kind == KIND_FILE and leaf_hash not in tuple(LeafHash):
        raise UnsupportedVersionError(f"unknown leaf hash {leaf_hash}: use a newer Bitward")
    groups = _decode_groups(table, group_count) if kind == KIND_FILE else ()
    label = preset.rstrip(b"\0").decode("latin-1")  # a label without force: whatever it holds survives being written again
    return Superblock(
        *(kind, leaf_hash, origin, groups, file_bytes, mtime_ns, protected_ns, salt, total_pages, layout_bytes),
        *(block_count, root, trusted, label, compatible),
    )


def superblocks(fetch: Fetch, sidecar_bytes: int) -> list[tuple[Superblock, list[int]]]:
    """The superblocks that a sidecar may have, best first, each with the numbers of superblock pages that are then lost.

    One as a rule. Two where both copies are right and differ: a disk that loses a write leaves an old page, so the one that was made
    later comes first.

    Raises:
        SidecarTooShortError, NotASidecarError and what :func:`decode_superblock` raises.
    """
    if sidecar_bytes < 2 * PAGE_BYTES:
        raise SidecarTooShortError(f"{sidecar_bytes} bytes are too few for a sidecar: make it again with 'bitward protect'")
    last = sidecar_bytes // PAGE_BYTES - 1
    copies = [fetch(0, PAGE_BYTES), fetch(last * PAGE_BYTES, PAGE_BYTES)]
    places = ((0, 0), (1, last))
    sound = [place for place in places if is_sound(copies[place[0]], Section.SUPERBLOCK, *place, 0)]
    if len(sound) == 2 and copies[0][:PAYLOAD_BYTES] != copies[1][:PAYLOAD_BYTES]:
        found = []
        for copy, number in places:
            with suppress(SidecarError):
                found.append((decode_superblock(copies[copy][:PAYLOAD_BYTES]), [last - number]))
        if found:
            return sorted(found, key=lambda one: one[0].protected_ns, reverse=True)
    if sound:
        block = decode_superblock(copies[sound[0][0]][:PAYLOAD_BYTES])
        lost = [number for place in places if place not in sound for number in place[1:]]
        # What ends too early, or has more behind it, has its last superblock elsewhere.
        return [(block, lost if block.total_pages == last + 1 else [number for number in lost if number == 0])]
    payload = reconcile(copies[0], copies[1], Section.SUPERBLOCK, (0, last), 0)
    if payload is not None:
        return [(decode_superblock(payload), [0, last])]
    for number in range(last, 0, -1):
        page = fetch(number * PAGE_BYTES, PAGE_BYTES)
        if page[PAYLOAD_BYTES : PAYLOAD_BYTES + 1] == b"\x01" and is_sound(page, Section.SUPERBLOCK, 1, number, 0):
            return [(decode_superblock(page[:PAYLOAD_BYTES]), [0])]
    raise NotASidecarError("no sound superblock: this is not a Bitward sidecar, or too little of it is left")


def with_superblock(fetch: Fetch, sidecar_bytes: int, read: Callable[[Superblock, list[int]], T]) -> T:
    """What ``read`` makes of a sidecar, given its superblock and the superblock pages that are lost.

    Raises:
        SidecarError: what :func:`superblocks` raises, or ``read`` with the best superblock.
    """
    (block, lost), *others = superblocks(fetch, sidecar_bytes)
    try:
        return read(block, lost)
    except SidecarError:
        for other, other_lost in others:
            with suppress(SidecarError):
                return read(other, other_lost)
        raise
