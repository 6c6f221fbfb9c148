"""Verify and repair a file with its sidecar. Every byte that is changed is vouched for by the leaf of its block."""

from __future__ import annotations

from bitward_formats.errors import FormatError
from bitward_formats.reference.erasures import any_row, solve_line
from bitward_formats.reference.inner import correct_flips, inner_blob_bytes
from bitward_formats.reference.layout_stream import Block
from bitward_formats.reference.limits import ROWS_PER_SYMBOL, Section
from bitward_formats.reference.outer import (
    ParityClass,
    Slot,
    Stripe,
    bytes_of,
    packed_parity_bytes,
    parity_bytes,
    rows_of,
    slot_content,
    stripes_of,
    zones_of,
)
from bitward_formats.reference.packing import unpack_lanes
from bitward_formats.reference.reading import PartlyRead, ReadSidecar, read_sidecar
from bitward_formats.reference.tree import leaf


class BeyondRepairError(FormatError):
    """Blocks are left that the sidecar could not restore."""


def verify(file: bytes, sidecar: bytes) -> list[int]:
    """The numbers of the blocks that are not what they were, ascending.

    A block that the file is too short for is bad. A file that is longer than recorded has no bad block for that; compare the lengths.
    Raises SidecarError if the sidecar cannot be used.
    """
    return bad_blocks(file, read_sidecar(sidecar))


def bad_blocks(file: bytes, ward: ReadSidecar) -> list[int]:
    """As verify, with a sidecar that is read already."""
    return [block.number for block in ward.blocks if block.end > len(file) or not fits(ward, block, file[block.offset : block.end])]


def fits(ward: ReadSidecar, block: Block, data: bytes) -> bool:
    """Whether ``data`` is what the block was."""
    return leaf(data, block.index, ward.superblock.leaf_hash) == ward.leaves[block.number]


def repair(file: bytes, sidecar: bytes) -> bytes:
    """The file as it was: missing bytes restored, bytes beyond its recorded length cut off.

    Raises SidecarError if the sidecar cannot be used, BeyondRepairError if a block stays bad.
    """
    ward = read_sidecar(sidecar)
    bad = set(bad_blocks(file, ward))
    whole = bytearray(file[: ward.superblock.file_bytes].ljust(ward.superblock.file_bytes, b"\0"))
    inner = {place[2].number: corrected_block(ward, place, whole) for place in places(ward) if place[2].number in bad}
    for number in sorted(bad):
        accept(ward, whole, bad, ward.blocks[number], inner[number])
    progress = True
    while bad and progress:
        before = len(bad)
        for class_index, parity_class in enumerate(ward.classes):
            for zone_index, zone in enumerate(zones_of(parity_class)):
                repair_zone(ward, class_index, zone_index, zone, whole, bad, inner)
        progress = len(bad) < before
    if bad:
        raise BeyondRepairError(f"blocks {sorted(bad)} could not be restored")
    return bytes(whole)


def accept(ward: ReadSidecar, whole: bytearray, bad: set[int], block: Block, candidate: bytes) -> None:
    """Write a candidate if the leaf vouches for it."""
    if block.number in bad and fits(ward, block, candidate):
        whole[block.offset : block.end] = candidate
        bad.remove(block.number)


def places(ward: ReadSidecar) -> list[tuple[int, int, Block]]:
    """All blocks with their class and zone, in the order of the inner streams."""
    return [
        (class_index, zone_index, placement.block)
        for class_index, parity_class in enumerate(ward.classes)
        for zone_index, zone in enumerate(zones_of(parity_class))
        for slot in zone
        for placement in slot
    ]


def corrected_block(ward: ReadSidecar, place: tuple[int, int, Block], whole: bytearray) -> bytes:
    """A block after inner decoding."""
    class_index, zone_index, block = place
    data = bytes(whole[block.offset : block.end])
    groups = ward.superblock.groups
    at = 0
    for other_class, other_zone, other in places(ward):
        if (other_class, other_zone) == (class_index, zone_index):
            if other == block:
                break
            at += inner_blob_bytes(other.length, other.kind, groups)
    end = at + inner_blob_bytes(block.length, block.kind, groups)
    stream = ward.streams[Section.INNER, class_index, zone_index]
    return correct_flips(data, block.kind, groups, stream.data[at:end], stream.known[at:end])


def repair_zone(
    ward: ReadSidecar, class_index: int, zone_index: int, zone: tuple[Slot, ...], whole: bytearray, bad: set[int], inner: dict[int, bytes]
) -> None:
    """Restore what a zone's P and Q allow, stripe by stripe."""
    parity_class = ward.classes[class_index]
    if not parity_class.has_parity:
        return
    at = 0
    for stripe in stripes_of(zone, parity_class.stripe_slots):
        end = at + packed_parity_bytes(parity_class, stripe)
        p, q = (_cut(ward.streams[section, class_index, zone_index], at, end) for section in (Section.P, Section.Q))
        at = end
        blocks = [placement.block for slot in stripe for placement in slot]
        if bad.intersection(block.number for block in blocks):
            for block, recovered, solved in recover_stripe(parity_class, stripe, p, q, bytes(whole), bad):
                for base in (inner[block.number], bytes(whole[block.offset : block.end])):
                    accept(ward, whole, bad, block, _overlay(base, recovered, solved))


def _cut(stream: PartlyRead, at: int, end: int) -> PartlyRead:
    return PartlyRead(stream.data[at:end], stream.known[at:end])


def _overlay(base: bytes, recovered: bytes, solved: bytes) -> bytes:
    """``recovered`` where ``solved`` has ones, else ``base``: lanes that the outer code does not keep stay as they are."""
    return bytes(b & ~s & 0xFF | r & s for b, r, s in zip(base, recovered, solved, strict=True))


def recover_stripe(
    parity_class: ParityClass, stripe: Stripe, p: PartlyRead, q: PartlyRead, whole: bytes, bad: set[int]
) -> list[tuple[Block, bytes, bytes]]:
    """For each bad block of a stripe what its P and Q say: (block, recovered bytes, mask of the bits that are recovered)."""
    length, row_bytes = parity_bytes(parity_class, stripe), parity_class.row_bytes
    record_bytes = len(parity_class.mask)
    kept = rows_of(parity_class.mask * (length // record_bytes), row_bytes)
    contents, losses = [], []
    for slot in stripe:
        erased = bytearray(length)
        for placement in slot:
            if placement.block.number in bad:
                erased[placement.at : placement.at + placement.block.length] = b"\xff" * placement.block.length
        content = slot_content(whole, slot, length)
        contents.append([row & mask for row, mask in zip(rows_of(content, row_bytes), kept, strict=True)])
        losses.append([row & mask for row, mask in zip(rows_of(bytes(erased), row_bytes), kept, strict=True)])
    read = [
        rows_of(unpack_lanes(stored, length // record_bytes, parity_class.mask), row_bytes) for stored in (p.data, p.known, q.data, q.known)
    ]
    recovered = [[0] * len(kept) for _ in stripe]
    solved = [[0] * len(kept) for _ in stripe]
    for first in range(0, len(kept), ROWS_PER_SYMBOL):
        line = slice(first, first + ROWS_PER_SYMBOL)
        erased_symbols = [any_row(loss[line]) for loss in losses]
        if not any(erased_symbols):
            continue
        # A symbol whose slot is erased in part counts as erased in full: its good bits must not enter the syndromes.
        data = [[row & ~symbols for row in rows[line]] for rows, symbols in zip(contents, erased_symbols, strict=True)]
        p_line, p_known, q_line, q_known = (rows[line] for rows in read)
        for position, symbols, rows in solve_line(data, erased_symbols, p_line, q_line, _all_rows(p_known), _all_rows(q_known)):
            recovered[position][line] = [old | row & symbols for old, row in zip(recovered[position][line], rows, strict=True)]
            solved[position][line] = [old | symbols for old in solved[position][line]]
    results = []
    for position, slot in enumerate(stripe):
        recovered_bytes, solved_bytes = bytes_of(recovered[position], row_bytes), bytes_of(solved[position], row_bytes)
        for placement in slot:
            if placement.block.number in bad:
                span = slice(placement.at, placement.at + placement.block.length)
                results.append((placement.block, recovered_bytes[span], solved_bytes[span]))
    return results


def _all_rows(line: list[int]) -> int:
    """The symbols of which every row has a one."""
    symbols = line[0]
    for row in line:
        symbols &= row
    return symbols
