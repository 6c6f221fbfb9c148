"""Decoding the inner code (SPEC, section 5): from syndromes to flips, doubts and bursts, lane by lane.

Works on several equally long blocks of one kind at once. Nothing here is sure: only a leaf digest turns a guess into a fact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitward_formats.frozen import dataclass
from bitward_formats.groups import LaneGroups
from bitward_formats.lanes import group_parities, mask_array
from bitward_formats.spans import RecordKind

Bytes = npt.NDArray[np.uint8]
Index = npt.NDArray[np.intp]

_BURST_SHARE = 0.9
"""A cell with at least this share of its lanes in disorder is taken for a burst.

Noise leaves a lane's syndrome zero with a chance of only 2^-(m+1).
"""
_BURST_LANES_LEAST = 4
_NARROWED_LANES_LEAST = 12
"""Noise looks by chance as if it were in half a cell once in 2^12."""


@dataclass(frozen=True, slots=True)
class Flips:
    """Bits to turn: block (index in the batch), byte in the block, bit of the byte; all of one length."""

    block: Index
    byte: Index
    bit: Index

    def of_block(self, index: int) -> Flips:
        chosen = self.block == index
        return Flips(self.block[chosen], self.byte[chosen], self.bit[chosen])


@dataclass(frozen=True, slots=True)
class EvenLane:
    """A lane of a cell with an even number of flips, at least two: the indices of two differ by ``difference``."""

    first_record: int
    record_count: int
    lane: int
    difference: int

    def pairs(self) -> tuple[Index, Index]:
        """All pairs of records (in the block) that are this far apart, lower ones first."""
        low = np.arange(self.record_count)
        high = low ^ self.difference
        chosen = (low < high) & (high < self.record_count)
        return low[chosen] + self.first_record, high[chosen] + self.first_record


@dataclass(frozen=True, slots=True)
class GroupSyndrome:
    """Syndromes of one lane group: ``total`` (blocks, cells, lanes) bool and ``index`` likewise int64, both as the code sees them.

    ``known`` (blocks,) bool: whether the stored parity of a block was there at all.
    """

    cell_log2: int
    total: npt.NDArray[np.bool_]
    index: npt.NDArray[np.int64]
    lanes: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]
    record_count: int

    @property
    def cell_stride(self) -> int:
        """Records of a cell, or of the block where that is less."""
        return min(1 << self.cell_log2, self.record_count)

    @property
    def nonzero(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.total | (self.index != 0))

    def cell_sizes(self) -> npt.NDArray[np.int64]:
        cells = self.total.shape[1]
        sizes = np.full(cells, 1 << self.cell_log2, np.int64)
        sizes[-1] = self.record_count - ((cells - 1) << self.cell_log2)
        return sizes

    def bursts(self) -> npt.NDArray[np.bool_]:
        """(blocks, cells): cells whose lanes are mostly in disorder."""
        lane_count = int(self.lanes.sum())
        least = max(_BURST_SHARE * lane_count, _BURST_LANES_LEAST)
        return np.asarray(self.nonzero.sum(axis=2) >= least)

    def singles(self) -> npt.NDArray[np.bool_]:
        """(blocks, cells, lanes): where exactly one flip explains the syndrome."""
        return np.asarray(self.total & (self.index < self.cell_sizes()[None, :, None]))


def syndromes(
    blocks: Bytes, kind: RecordKind, groups: LaneGroups, stored: list[Bytes], known: list[npt.NDArray[np.bool_]]
) -> list[GroupSyndrome]:
    """Syndromes of blocks (n, length) u8 against their stored padded parities, one entry for each lane group."""
    record_count = blocks.shape[1] // kind.record_bytes
    result = []
    for group, computed, kept, here in zip(groups, group_parities(blocks, kind.record_bytes, groups), stored, known, strict=True):
        mask = mask_array(kind, group)
        difference = (computed ^ kept) & mask
        difference[~here] = 0
        bits = np.unpackbits(difference, axis=-1, bitorder="little")
        weights = (1 << np.arange(group.cell_log2, dtype=np.int64))[:, None]
        index = (bits[:, :, 1:] * weights).sum(axis=2)
        lanes = np.unpackbits(mask, bitorder="little").astype(np.bool_)
        result.append(GroupSyndrome(group.cell_log2, bits[:, :, 0].astype(np.bool_), index, lanes, here, record_count))
    return result


def single_flips(found: list[GroupSyndrome], record_bytes: int, *, in_bursts: bool) -> Flips:
    """The flips that single-flip syndromes spell, in cells that look like bursts only if ``in_bursts``."""
    parts = []
    for group in found:
        singles = group.singles() if in_bursts else group.singles() & ~group.bursts()[:, :, None]
        block, cell, lane = singles.nonzero()
        record = (cell << group.cell_log2) + group.index[block, cell, lane]
        parts.append((block, record * record_bytes + lane // 8, lane % 8))
    block, byte, bit = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Flips(block, byte, bit)


def doubt_masks(found: list[GroupSyndrome], length: int, *, bursts_only: bool = False, narrowed: bool = False) -> Bytes:
    """Bits that the inner code holds for lost: (blocks, length) u8 masks.

    A lane of a cell with a syndrome that one flip does not explain, and every lane of a burst cell; with ``bursts_only`` just the latter.
    With ``narrowed`` only those halves, quarters, … of a burst cell that its lanes agree on.
    """
    blocks = found[0].total.shape[0]
    masks = np.zeros((blocks, length), np.uint8)
    for group in found:
        doubtful = group.bursts()[:, :, None] & group.lanes
        if not bursts_only:
            doubtful |= (group.nonzero & ~group.singles()) | ((~group.known)[:, None, None] & group.lanes)
        if not doubtful.any():
            continue
        cell_masks = np.packbits(doubtful, axis=-1, bitorder="little")
        cells = np.repeat(cell_masks, group.cell_stride, axis=1)[:, : group.record_count]
        if narrowed:
            _narrow(group, cells)
        masks |= cells.reshape(blocks, length)
    return masks


def _narrow(group: GroupSyndrome, cells: Bytes) -> None:
    """Take out of burst cells the records in which nothing can be wrong; ``cells`` is (blocks, records, bytes), changed in place.

    Parity record j + 1 is about the records whose index has bit j set. If it differs nowhere, all that is wrong has bit j clear; if it
    differs just where the parity of all does, all has bit j set. By chance this is so in many lanes at once as seldom as noise is zero.
    """
    for block, cell in zip(*group.bursts().nonzero(), strict=True):
        if int(group.nonzero[block, cell].sum()) < _NARROWED_LANES_LEAST:
            continue
        start = cell << group.cell_log2
        records = cells[block, start : start + group.cell_stride]
        index_bits = np.arange(records.shape[0])[:, None] >> np.arange(group.cell_log2) & 1
        for bit in range(group.cell_log2):
            with_bit = (group.index[block, cell] >> bit & 1).astype(np.bool_)
            if not with_bit.any():
                records[index_bits[:, bit] == 1] = 0
            elif (with_bit == group.total[block, cell]).all():
                records[index_bits[:, bit] == 0] = 0


def even_lanes(found: list[GroupSyndrome], block: int) -> list[EvenLane]:
    """The lanes of one block with an even number of flips, bursts left out."""
    lanes: list[EvenLane] = []
    for group in found:
        if not group.known[block]:
            continue
        sizes = group.cell_sizes()
        even = (group.index[block] != 0) & ~group.total[block] & ~group.bursts()[block][:, None]
        for cell, lane in zip(*even.nonzero(), strict=True):
            lanes.append(EvenLane(int(cell) << group.cell_log2, int(sizes[cell]), int(lane), int(group.index[block, cell, lane])))
    return lanes


def only_even_lanes(found: list[GroupSyndrome], block: int) -> bool:
    """Whether even lanes are all that is wrong with a block, as far as the inner code can see."""
    return not any(not group.known[block] or group.bursts()[block].any() or group.total[block].any() for group in found)
