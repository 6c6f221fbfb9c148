"""Where every block lies in the outer code, and every stream in the sidecar (SPEC, sections 6 and 7).

All of it follows from the layout and the lane groups; nothing here is stored. Full blocks are never listed one by one, so
that a sidecar can be checked without NumPy and without time.

    class -> slots (full blocks in file order, then packed short ones) -> zones -> stripes
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from bitward_formats.blocks import Block, BlockTable
from bitward_formats.frozen import dataclass
from bitward_formats.groups import LaneGroups, covers_all_lanes_alike
from bitward_formats.packing_sizes import packed_bytes, parity_record_count
from bitward_formats.spans import BLOCK_LIMIT_BYTES, RecordKind

ROW_LIMIT_BYTES = 512
ROWS_PER_SYMBOL = 8
STRIPES_PER_ZONE = 64
_GRANULE_BYTES = 64
_UNSTRIPED_SLOTS = 64


def inner_blob_bytes(kind: RecordKind, length: int, groups: LaneGroups) -> int:
    """Size of the inner blob of a block of ``length`` bytes."""
    records = length // kind.record_bytes
    return sum(packed_bytes(parity_record_count(records, group.cell_log2), group.mask(kind)) for group in groups)


@dataclass(frozen=True, slots=True)
class Piece:
    """A block's place: byte ``at`` of a slot."""

    block: Block
    at: int


@dataclass(frozen=True, slots=True)
class Run:
    """Full blocks of one span that fill neighbouring slots: block indices ``first .. first + count`` of span ``span_index``."""

    span_index: int
    first: int
    count: int


class CodeClass:
    """Blocks that share stripes. ``mask`` selects the lanes that have outer parity; an empty mask means none."""

    def __init__(self, table: BlockTable, span_indices: list[int], *, kind: RecordKind | None, mask: bytes, stripe_slots: int) -> None:
        self.table = table
        self.kind = kind
        self.mask = mask
        self.stripe_slots = stripe_slots
        record = kind.record_bytes if kind else 1
        self.row_bytes = ROW_LIMIT_BYTES // record * record
        self.symbol_bytes = ROWS_PER_SYMBOL * self.row_bytes
        full_bytes = kind.block_bytes if kind else BLOCK_LIMIT_BYTES
        self.slot_bytes = -(-full_bytes // self.symbol_bytes) * self.symbol_bytes
        self.granule = -(-_GRANULE_BYTES // record) * record
        self._place(span_indices)

    @property
    def record_bytes(self) -> int:
        """Record size of the outer parity; 1 where kinds are mixed, as then whole bytes are kept."""
        return self.kind.record_bytes if self.kind else 1

    @property
    def has_parity(self) -> bool:
        return any(self.mask)

    def _place(self, span_indices: list[int]) -> None:
        self._span_indices: list[int] = []
        self._first_slots: list[int] = []
        self._slot_by_span: dict[int, int] = {}
        self.full_count = 0
        self.packed: list[list[Piece]] = []
        self._packed_place: dict[int, tuple[int, int]] = {}
        spans, numbers, granule, end = self.table.layout.spans, self.table.first_numbers, self.granule, 0
        for span_index in span_indices:
            span = spans[span_index]
            block_bytes = span.kind.block_bytes
            full, rest = divmod(span.length, block_bytes)
            if full:
                self._span_indices.append(span_index)
                self._first_slots.append(self.full_count)
                self._slot_by_span[span_index] = self.full_count
                self.full_count += full
            if rest:
                at = -(-end // granule) * granule
                if not self.packed or at + rest > self.slot_bytes:
                    self.packed.append([])
                    at = 0
                block = Block(numbers[span_index] + full, full, span.offset + full * block_bytes, rest, span)
                self._packed_place[block.number] = (len(self.packed) - 1, at)
                self.packed[-1].append(Piece(block, at))
                end = at + rest
        self.slot_count = self.full_count + len(self.packed)

    def pieces(self, slot: int) -> list[Piece]:
        """The blocks in a slot."""
        if slot >= self.full_count:
            return self.packed[slot - self.full_count]
        at = bisect_right(self._first_slots, slot) - 1
        return [Piece(self.table.of_span(self._span_indices[at], slot - self._first_slots[at]), 0)]

    def place(self, block: Block, span_index: int) -> tuple[int, int]:
        """(slot, byte in the slot) of a block."""
        if block.is_full:
            return self._slot_by_span[span_index] + block.index, 0
        packed, at = self._packed_place[block.number]
        return self.full_count + packed, at

    def runs(self, low: int, high: int) -> Iterator[tuple[int, Run]]:
        """Full slots ``low .. high`` as (first slot, run) pairs, cut at span borders."""
        high = min(high, self.full_count)
        while low < high:
            at = bisect_right(self._first_slots, low) - 1
            span_end = self._first_slots[at + 1] if at + 1 < len(self._first_slots) else self.full_count
            count = min(high, span_end) - low
            yield low, Run(self._span_indices[at], low - self._first_slots[at], count)
            low += count

    def used_bytes(self, slot: int) -> int:
        """End of the slot's last block."""
        last = self.pieces(slot)[-1]
        return last.at + last.block.length


@dataclass(frozen=True, slots=True)
class Zone:
    """Stripes that are coded together: slots ``first_slot .. first_slot + slot_count`` of a class.

    ``p_page``, ``inner_page``, ``q_page`` are the first pages of the three streams; the ``*_bytes`` their lengths.
    """

    code_class: CodeClass
    first_slot: int
    slot_count: int
    stripe_count: int
    p_page: int
    inner_page: int
    q_page: int
    end_page: int
    parity_stream_bytes: int
    inner_stream_bytes: int

    def stripe_length(self, stripe: int) -> int:
        """How many slots a stripe has (k)."""
        return -(-(self.slot_count - stripe) // self.stripe_count)

    def slot(self, stripe: int, position: int) -> int:
        return self.first_slot + position * self.stripe_count + stripe

    def stripe_of(self, slot: int) -> tuple[int, int]:
        """(stripe, position) of a slot of this zone."""
        position, stripe = divmod(slot - self.first_slot, self.stripe_count)
        return stripe, position

    def parity_bytes(self, stripe: int) -> int:
        """Bytes of P (and of Q) of a stripe before lanes are picked."""
        code = self.code_class
        if not code.has_parity:
            return 0
        first = self.slot(stripe, 0)
        if first < code.full_count:
            return code.slot_bytes
        used = max(code.used_bytes(self.slot(stripe, position)) for position in range(self.stripe_length(stripe)))
        return -(-used // code.symbol_bytes) * code.symbol_bytes

    def stored_parity_bytes(self, stripe: int) -> int:
        """Bytes of P (and of Q) of a stripe as they are stored."""
        code = self.code_class
        return packed_bytes(self.parity_bytes(stripe) // code.record_bytes, code.mask) if code.has_parity else 0


class InnerOffsets:
    """Where the inner blobs of a zone's blocks start in the zone's inner stream."""

    def __init__(self, zone: Zone, groups: LaneGroups) -> None:
        code = zone.code_class
        self._starts: list[int] = []
        self._places: list[tuple[int, int]] = []
        self._packed: dict[int, int] = {}
        sizes: dict[tuple[bytes, int], int] = {}  # tensors come in few shapes

        def size_of(kind: RecordKind, length: int) -> int:
            key = kind.critical_mask, length
            if key not in sizes:
                sizes[key] = inner_blob_bytes(kind, length, groups)
            return sizes[key]

        at = 0
        high = zone.first_slot + zone.slot_count
        for slot, run in code.runs(zone.first_slot, high):
            kind = code.table.layout.spans[run.span_index].kind
            size = size_of(kind, kind.block_bytes)
            self._starts.append(slot)
            self._places.append((at, size))
            at += run.count * size
        for slot in range(max(zone.first_slot, code.full_count), high):
            for piece in code.pieces(slot):
                self._packed[piece.block.number] = at
                at += size_of(piece.block.span.kind, piece.block.length)
        self.stream_bytes = at

    def of_full_slot(self, slot: int) -> int:
        """Start of the blob of the full block in ``slot``; blobs of a run follow each other."""
        index = bisect_right(self._starts, slot) - 1
        at, size = self._places[index]
        return at + (slot - self._starts[index]) * size

    def of_packed(self, block: Block) -> int:
        """Start of the blob of a short block."""
        return self._packed[block.number]


def classes_of(table: BlockTable, groups: LaneGroups) -> list[CodeClass]:
    """The classes of stripes, in the order in which the sidecar holds them."""
    spans = table.layout.spans
    if covers_all_lanes_alike(groups):
        return [CodeClass(table, list(range(len(spans))), kind=None, mask=b"\xff", stripe_slots=groups[0].stripe_slots)]
    striped = next((group for group in groups if group.stripe_slots), None)
    width = striped.stripe_slots if striped else _UNSTRIPED_SLOTS
    by_kind: dict[RecordKind, list[int]] = {}
    for index, span in enumerate(spans):
        by_kind.setdefault(span.kind, []).append(index)
    return [
        CodeClass(table, indices, kind=kind, mask=striped.mask(kind) if striped else bytes(kind.record_bytes), stripe_slots=width)
        for kind, indices in by_kind.items()
    ]


class Geometry:
    """Classes and zones of a layout under lane groups, with the pages of their parity, the first being ``first_page``."""

    def __init__(self, table: BlockTable, groups: LaneGroups, first_page: int, payload_bytes: int) -> None:
        self.table = table
        self.groups = groups
        self.classes = classes_of(table, groups)
        self.zones: list[Zone] = []
        self._zone_starts: list[tuple[int, int]] = []
        self._class_of_kind = {code.kind: index for index, code in enumerate(self.classes)}
        page = first_page
        for class_index, code in enumerate(self.classes):
            zone_count = -(-code.slot_count // (STRIPES_PER_ZONE * code.stripe_slots))
            for number in range(zone_count):
                low, high = number * code.slot_count // zone_count, (number + 1) * code.slot_count // zone_count
                zone = self._zone(code, low, high - low, page, payload_bytes)
                self._zone_starts.append((class_index, low))
                self.zones.append(zone)
                page = zone.end_page
        self.end_page = page

    def _zone(self, code: CodeClass, first_slot: int, slot_count: int, page: int, payload_bytes: int) -> Zone:
        stripe_count = -(-slot_count // code.stripe_slots)
        draft = Zone(code, first_slot, slot_count, stripe_count, 0, 0, 0, 0, 0, 0)
        parity = sum(draft.stored_parity_bytes(stripe) for stripe in range(stripe_count))
        inner = InnerOffsets(draft, self.groups).stream_bytes
        parity_pages, inner_pages = -(-parity // payload_bytes), -(-inner // payload_bytes)
        pages = (page, page + parity_pages, page + parity_pages + inner_pages, page + 2 * parity_pages + inner_pages)
        return Zone(code, first_slot, slot_count, stripe_count, *pages, parity, inner)

    def zone_index_of(self, block: Block, span_index: int) -> int:
        """The zone of a block, as an index into ``zones``."""
        class_index = 0 if self.classes[0].kind is None else self._class_of_kind[block.span.kind]
        slot, _ = self.classes[class_index].place(block, span_index)
        return bisect_right(self._zone_starts, (class_index, slot)) - 1
