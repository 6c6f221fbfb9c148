"""The outer code (SPEC, section 6): classes, slots, zones, stripes, and the parities P and Q of a stripe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitward_formats.reference.groups import LaneGroup, lane_mask, mixes_kinds
from bitward_formats.reference.layout_stream import Block, StoredLayout, block_bytes
from bitward_formats.reference.limits import BLOCK_LIMIT_BYTES, ROW_LIMIT_BYTES, ROWS_PER_SYMBOL, STRIPES_PER_ZONE, divide_up
from bitward_formats.reference.packing import packed_bytes
from bitward_formats.spans import RecordKind

# Stripe width that a class without outer code is cut into zones with.
DEFAULT_STRIPE_SLOTS = 64
# Short blocks start at multiples of this many bytes, rounded up to whole records.
PACKING_GRANULE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Placement:
    """A block's place: its first byte lies at byte ``at`` of the slot."""

    block: Block
    at: int


Slot = tuple[Placement, ...]
Stripe = list[Slot]


@dataclass(frozen=True, slots=True)
class ParityClass:
    """Blocks that share stripes. ``mask`` has one byte per byte of a record; in a class of all kinds a record is one byte."""

    mask: bytes
    row_bytes: int
    rows: int
    granule: int
    stripe_slots: int
    slots: tuple[Slot, ...]

    @property
    def slot_bytes(self) -> int:
        return self.row_bytes * self.rows

    @property
    def symbol_bytes(self) -> int:
        """Bytes of the eight rows that hold a line of symbols."""
        return self.row_bytes * ROWS_PER_SYMBOL

    @property
    def has_parity(self) -> bool:
        return any(self.mask)


def classes_of(stored: StoredLayout, blocks: Sequence[Block], groups: Sequence[LaneGroup]) -> list[ParityClass]:
    """The classes in the order of the sidecar."""
    if mixes_kinds(groups):
        row_bytes, rows = ROW_LIMIT_BYTES, BLOCK_LIMIT_BYTES // ROW_LIMIT_BYTES
        slots = place_blocks(blocks, row_bytes * rows, PACKING_GRANULE_BYTES)
        return [ParityClass(b"\xff", row_bytes, rows, PACKING_GRANULE_BYTES, groups[0].stripe_slots, slots)]
    return [
        class_of_kind(kind, [block for block in blocks if block.kind_index == kind_index], groups)
        for kind_index, kind in enumerate(stored.kinds)
    ]


def class_of_kind(kind: RecordKind, blocks: Sequence[Block], groups: Sequence[LaneGroup]) -> ParityClass:
    """The class that holds the blocks of one kind."""
    row_bytes = kind.record_bytes * (ROW_LIMIT_BYTES // kind.record_bytes)
    rows = ROWS_PER_SYMBOL * divide_up(block_bytes(kind.record_bytes), ROWS_PER_SYMBOL * row_bytes)
    granule = kind.record_bytes * divide_up(PACKING_GRANULE_BYTES, kind.record_bytes)
    mask, stripe_slots = bytes(kind.record_bytes), DEFAULT_STRIPE_SLOTS
    for group in groups:
        if group.stripe_slots:
            mask, stripe_slots = lane_mask(group.selector, kind), group.stripe_slots
    return ParityClass(mask, row_bytes, rows, granule, stripe_slots, place_blocks(blocks, row_bytes * rows, granule))


def place_blocks(blocks: Sequence[Block], slot_bytes: int, granule: int) -> tuple[Slot, ...]:
    """One slot for each full block, then the short blocks one after the other."""
    full_slots = [(Placement(block, 0),) for block in blocks if block.is_full]
    short_slots: list[list[Placement]] = []
    end = slot_bytes
    for block in blocks:
        if block.is_full:
            continue
        at = granule * divide_up(end, granule)
        if at + block.length > slot_bytes:
            short_slots.append([])
            at = 0
        short_slots[-1].append(Placement(block, at))
        end = at + block.length
    return (*full_slots, *(tuple(slot) for slot in short_slots))


def zones_of(parity_class: ParityClass) -> list[tuple[Slot, ...]]:
    """The class's slots, cut into zones of nearly equal size."""
    slots = parity_class.slots
    zone_count = divide_up(len(slots), STRIPES_PER_ZONE * parity_class.stripe_slots)
    return [slots[z * len(slots) // zone_count : (z + 1) * len(slots) // zone_count] for z in range(zone_count)]


def stripes_of(zone: Sequence[Slot], stripe_slots: int) -> list[Stripe]:
    """The slots of each stripe by position: neighbours in the zone belong to different stripes."""
    stripe_count = divide_up(len(zone), stripe_slots)
    stripes: list[Stripe] = [[] for _ in range(stripe_count)]
    for j, slot in enumerate(zone):
        stripes[j % stripe_count].append(slot)
    return stripes


def used_bytes(slot: Slot) -> int:
    """Where the last block of a slot ends."""
    return slot[-1].at + slot[-1].block.length


def parity_bytes(parity_class: ParityClass, stripe: Stripe) -> int:
    """Length of P, and of Q, before lanes are packed: whole lines of symbols that cover the fullest slot."""
    return parity_class.symbol_bytes * divide_up(max(used_bytes(slot) for slot in stripe), parity_class.symbol_bytes)


def packed_parity_bytes(parity_class: ParityClass, stripe: Stripe) -> int:
    """Length of P, and of Q, in the sidecar."""
    return packed_bytes(parity_bytes(parity_class, stripe) // len(parity_class.mask), parity_class.mask)


def slot_content(file: bytes, slot: Slot, length: int) -> bytes:
    """The first ``length`` bytes of a slot; what no block covers is zero."""
    content = bytearray(length)
    for placement in slot:
        block = placement.block
        content[placement.at : placement.at + block.length] = file[block.offset : block.end]
    return bytes(content)


def rows_of(content: bytes, row_bytes: int) -> list[int]:
    """A slot's rows as little-endian numbers; eight in a row of the list make a line of symbols."""
    return [int.from_bytes(content[at : at + row_bytes], "little") for at in range(0, len(content), row_bytes)]


def times_alpha(rows: Sequence[int]) -> list[int]:
    """A line of symbols (eight rows) times α: row i moves to row i + 1, row 7 to row 0 and, as x^8 = x^4 + x^3 + x^2 + 1, to 2, 3, 4."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows
    return [r7, r0, r1 ^ r7, r2 ^ r7, r3 ^ r7, r4, r5, r6]


def parities(contents: Sequence[bytes], row_bytes: int) -> tuple[bytes, bytes]:
    """P and Q of a stripe's slots, by position. All have the same length, a multiple of ``8 * row_bytes``."""
    row_count = len(contents[0]) // row_bytes
    p_rows, q_rows = [0] * row_count, [0] * row_count
    for content in contents:
        rows = rows_of(content, row_bytes)
        for first in range(0, row_count, ROWS_PER_SYMBOL):
            line = slice(first, first + ROWS_PER_SYMBOL)
            p_rows[line] = [p ^ d for p, d in zip(p_rows[line], rows[line], strict=True)]
            q_rows[line] = [q ^ d for q, d in zip(times_alpha(q_rows[line]), rows[line], strict=True)]
    return bytes_of(p_rows, row_bytes), bytes_of(q_rows, row_bytes)


def bytes_of(rows: Sequence[int], row_bytes: int) -> bytes:
    """The inverse of rows_of."""
    return b"".join(row.to_bytes(row_bytes, "little") for row in rows)
