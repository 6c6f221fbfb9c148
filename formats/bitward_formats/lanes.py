"""The inner code (SPEC, section 5): per cell of 2^m records, parity that finds one flip in every lane.

Parity is XOR of whole records, so it is taken on machine words for all lanes at once; the lanes that a group keeps are
picked out of the parity afterwards. Large cells are derived from small ones, so two groups cost one pass over the data.

Arrays called ``padded`` have m + 1 parity records for every cell: shape (blocks, cells, m + 1, R), dtype u8. A short
last cell keeps fewer (SPEC); :func:`trim` drops the rest, which is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitward_formats import native
from bitward_formats.groups import LaneGroup, LaneGroups
from bitward_formats.packing import pack_lanes, unpack_lanes
from bitward_formats.packing_sizes import packed_bytes, parity_record_count
from bitward_formats.spans import RecordKind

Bytes = npt.NDArray[np.uint8]

_COLUMN_WORDS = 64  # 512 bytes: measured best split of a cell into rows and columns


def cell_count(record_count: int, cell_log2: int) -> int:
    """Cells of a block of ``record_count`` records."""
    return -(-record_count >> cell_log2)


def _fold(array: npt.NDArray[Any], axis_bits: int) -> list[npt.NDArray[Any]]:
    """XOR subsets along axis 0 (length 2^axis_bits): [total, subset of bit 0, bit 1, …], each without that axis.

    Halving: the upper half's XOR is the parity of the top bit; folding it onto the lower half leaves the other bits' work.
    The axis comes first so that each XOR runs over long contiguous rows (measured: twice as fast as last).
    """
    subsets = []
    for bit in reversed(range(axis_bits)):
        half = 1 << bit
        upper = array[half:]
        subsets.append(np.bitwise_xor.reduce(upper, axis=0))
        array = array[:half] ^ upper
    return [array[0], *reversed(subsets)]


def _column_sums(matrix: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """XOR of the rows of each cell: (cells, rows, columns) -> (cells, columns). Row by row, as that is faster than ``reduce``."""
    if matrix.shape[1] == 1:
        return matrix[:, 0]
    sums = matrix[:, 0] ^ matrix[:, 1]
    for row in range(2, matrix.shape[1]):
        np.bitwise_xor(sums, matrix[:, row], out=sums)
    return sums


def _word_cells(data: Bytes, record_bytes: int, cell_log2: int) -> Bytes:
    """Fast path: records of 1, 2, 4 or 8 bytes in cells of at least one word; ``data`` is (cells, cell_bytes) u8."""
    cells, cell_bytes = data.shape
    word_bits = (cell_bytes // 8).bit_length() - 1
    column_bits = min(word_bits, _COLUMN_WORDS.bit_length() - 1)
    matrix = data.view(np.uint64).reshape(cells, 1 << (word_bits - column_bits), 1 << column_bits)
    subsets = _fold(np.ascontiguousarray(_column_sums(matrix).T), column_bits)
    if word_bits > column_bits:
        rows = np.ascontiguousarray(np.bitwise_xor.reduce(matrix, axis=2).T)
        subsets += _fold(rows, word_bits - column_bits)[1:]
    lane_word = np.dtype(f"u{record_bytes}")
    per_word = 8 // record_bytes
    parity = np.empty((cell_log2 + 1, cells), lane_word)
    inside = _fold(np.ascontiguousarray(subsets[0].view(lane_word).reshape(cells, per_word).T), per_word.bit_length() - 1)
    for index, subset in enumerate(inside):
        parity[index] = subset
    if len(subsets) > 1:
        rest = np.stack(subsets[1:])
        for shift in (32, 16, 8)[: per_word.bit_length() - 1]:  # fold the records of a word onto its lowest one
            rest ^= rest >> np.uint64(shift)
        parity[len(inside) :] = rest
    return np.ascontiguousarray(parity.T).view(np.uint8).reshape(cells, cell_log2 + 1, record_bytes)


def _any_cells(data: Bytes, record_bytes: int, cell_log2: int) -> Bytes:
    """Any record size; ``data`` is (cells, cell_bytes) u8."""
    cells = data.shape[0]
    word = np.dtype(f"u{next(size for size in (8, 4, 2, 1) if record_bytes % size == 0)}")
    records = data.view(word).reshape(cells, 1 << cell_log2, record_bytes // word.itemsize)
    subsets = _fold(np.ascontiguousarray(records.transpose(1, 0, 2)), cell_log2)
    return np.stack(subsets, axis=1).view(np.uint8).reshape(cells, cell_log2 + 1, record_bytes)


def padded_parity(blocks: Bytes, record_bytes: int, cell_log2: int) -> Bytes:
    """Parity of equally long blocks: (blocks, length) u8 -> (blocks, cells, m + 1, R) u8. ``length`` is a multiple of R."""
    kernel = native.KERNEL
    count, length = blocks.shape
    records = length // record_bytes
    if kernel is not None and cell_log2 >= native.SMALLEST_CELL_LOG2 and blocks.size:
        made = np.empty((count, cell_count(records, cell_log2), cell_log2 + 1, record_bytes), np.uint8)
        kernel.inner_parity(np.ascontiguousarray(blocks), count, record_bytes, cell_log2, made)  # type: ignore[arg-type]  # arrays are buffers
        return made
    needed_log2 = min(cell_log2, max(records - 1, 0).bit_length())
    if needed_log2 < cell_log2:  # one short cell: its higher parity records are zero, and padding it to its full size would cost memory
        parity = np.zeros((count, 1, cell_log2 + 1, record_bytes), np.uint8)
        parity[:, :, : needed_log2 + 1] = padded_parity(blocks, record_bytes, needed_log2)
        return parity
    cells = cell_count(records, cell_log2)
    cell_bytes = record_bytes << cell_log2
    if cells * cell_bytes != length:
        padded = np.zeros((count, cells * cell_bytes), np.uint8)
        padded[:, :length] = blocks
        blocks = padded
    data = blocks.reshape(count * cells, cell_bytes)
    fast = record_bytes in (1, 2, 4, 8) and cell_bytes >= 8
    parity = (_word_cells if fast else _any_cells)(data, record_bytes, cell_log2)
    return parity.reshape(count, cells, cell_log2 + 1, record_bytes)


def widen(parity: Bytes, cell_log2: int) -> Bytes:
    """Padded parity of cells of 2^cell_log2 records from that of smaller cells."""
    blocks, small_cells, small_records, record_bytes = parity.shape
    # Cells beyond what the small ones can fill keep no parity: their records stay zero, and are not worked out.
    extra = min(cell_log2 - (small_records - 1), (small_cells - 1).bit_length())
    cells = -(-small_cells >> extra)
    if cells << extra != small_cells:
        filled = np.zeros((blocks, cells << extra, small_records, record_bytes), np.uint8)
        filled[:, :small_cells] = parity
        parity = filled
    grouped = parity.reshape(blocks * cells, 1 << extra, small_records, record_bytes)
    wide = np.zeros((blocks * cells, cell_log2 + 1, record_bytes), np.uint8)
    wide[:, :small_records] = np.bitwise_xor.reduce(grouped, axis=1)
    for index, subset in enumerate(_fold(np.ascontiguousarray(grouped[:, :, 0].transpose(1, 0, 2)), extra)[1:]):
        wide[:, small_records + index] = subset
    return wide.reshape(blocks, cells, cell_log2 + 1, record_bytes)


def group_parities(blocks: Bytes, record_bytes: int, groups: LaneGroups) -> list[Bytes]:
    """Padded parity for each group, from one pass over the data."""
    by_log2: dict[int, Bytes] = {}
    previous: Bytes | None = None
    for cell_log2 in sorted({group.cell_log2 for group in groups}):
        previous = padded_parity(blocks, record_bytes, cell_log2) if previous is None else widen(previous, cell_log2)
        by_log2[cell_log2] = previous
    return [by_log2[group.cell_log2] for group in groups]


def trim(parity: Bytes, record_count: int) -> Bytes:
    """Padded parity -> the parity records that are stored: (blocks, cells, m + 1, R) -> (blocks, n, R)."""
    blocks, _, per_cell, record_bytes = parity.shape
    kept = parity_record_count(record_count, per_cell - 1)
    return parity.reshape(blocks, -1, record_bytes)[:, :kept]


def inner_blobs(blocks: Bytes, kind: RecordKind, groups: LaneGroups) -> Bytes:
    """The inner blobs of equally long blocks: (blocks, length) u8 -> (blocks, inner_blob_bytes) u8."""
    records = blocks.shape[1] // kind.record_bytes
    parities = group_parities(blocks, kind.record_bytes, groups)
    packed = [pack_lanes(trim(parity, records), group.mask(kind)) for parity, group in zip(parities, groups, strict=True)]
    return packed[0] if len(packed) == 1 else np.concatenate(packed, axis=1)


def unpack_blobs(blobs: Bytes, kind: RecordKind, length: int, groups: LaneGroups) -> list[Bytes]:
    """Inner blobs of equally long blocks -> padded parity for each group; lanes outside a group's mask are zero."""
    records = length // kind.record_bytes
    parities, at = [], 0
    for group in groups:
        mask = group.mask(kind)
        kept = parity_record_count(records, group.cell_log2)
        size = packed_bytes(kept, mask)
        cells = cell_count(records, group.cell_log2)
        padded = np.zeros((blobs.shape[0], cells * (group.cell_log2 + 1), kind.record_bytes), np.uint8)
        padded[:, :kept] = unpack_lanes(np.ascontiguousarray(blobs[:, at : at + size]), kept, mask)
        parities.append(padded.reshape(blobs.shape[0], cells, group.cell_log2 + 1, kind.record_bytes))
        at += size
    return parities


def mask_array(kind: RecordKind, group: LaneGroup) -> Bytes:
    """The group's lanes of ``kind`` as (R,) u8."""
    return np.frombuffer(group.mask(kind), np.uint8)
