"""The inner code (SPEC, section 5): finds one flip per lane of a cell.

Records are handled as little-endian numbers, so that lane ℓ is the bit of value 2**ℓ.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitward_formats.reference.groups import LaneGroup, lane_mask
from bitward_formats.reference.packing import lanes_of, pack_lanes, packed_bytes, unpack_lanes
from bitward_formats.spans import RecordKind


def cell_parity(records: Sequence[int]) -> list[int]:
    """The XOR of all records, then for each bit of the index the XOR of the records whose index has it set."""
    index_bits = (len(records) - 1).bit_length()
    parity = [0] * (1 + index_bits)
    for index, record in enumerate(records):
        parity[0] ^= record
        for j in range(index_bits):
            if index >> j & 1:
                parity[1 + j] ^= record
    return parity


def cells_of(data: bytes, record_bytes: int, cell_log2: int) -> list[list[int]]:
    """The records of a block, cell by cell."""
    records = [int.from_bytes(data[at : at + record_bytes], "little") for at in range(0, len(data), record_bytes)]
    return [records[start : start + (1 << cell_log2)] for start in range(0, len(records), 1 << cell_log2)]


def parity_record_count(block_length: int, record_bytes: int, cell_log2: int) -> int:
    """Parity records of a block under one group, counted without looking at the data."""
    record_count = block_length // record_bytes
    whole_cells, rest = divmod(record_count, 1 << cell_log2)
    return whole_cells * (1 + cell_log2) + (1 + (rest - 1).bit_length() if rest else 0)


def inner_blob_bytes(block_length: int, kind: RecordKind, groups: Sequence[LaneGroup]) -> int:
    """Length of a block's inner blob."""
    return sum(
        packed_bytes(parity_record_count(block_length, kind.record_bytes, group.cell_log2), lane_mask(group.selector, kind))
        for group in groups
    )


def inner_blob(data: bytes, kind: RecordKind, groups: Sequence[LaneGroup]) -> bytes:
    """What the sidecar keeps of a block for the inner code."""
    blob = b""
    for group in groups:
        parity = [record for cell in cells_of(data, kind.record_bytes, group.cell_log2) for record in cell_parity(cell)]
        records = b"".join(record.to_bytes(kind.record_bytes, "little") for record in parity)
        blob += pack_lanes(records, lane_mask(group.selector, kind))
    return blob


def correct_flips(data: bytes, kind: RecordKind, groups: Sequence[LaneGroup], blob: bytes, known: bytes) -> bytes:
    """The block with every flip undone that its syndromes spell. Only the leaf can tell whether that was right.

    ``known`` is as long as ``blob``, with a one for each bit of it that was read.
    """
    record_bytes = kind.record_bytes
    corrected = bytearray(data)
    at = 0
    for group in groups:
        mask = lane_mask(group.selector, kind)
        cells = cells_of(data, record_bytes, group.cell_log2)
        parity_count = parity_record_count(len(data), record_bytes, group.cell_log2)
        stored_bytes = packed_bytes(parity_count, mask)
        stored = unpack_lanes(blob[at : at + stored_bytes], parity_count, mask)
        stored_known = unpack_lanes(known[at : at + stored_bytes], parity_count, mask)
        at += stored_bytes
        parity_index = 0
        for cell_index, cell in enumerate(cells):
            parity = cell_parity(cell)
            syndrome, is_known = [], []
            for record in parity:
                span = slice(parity_index * record_bytes, (parity_index + 1) * record_bytes)
                syndrome.append(record ^ int.from_bytes(stored[span], "little"))
                is_known.append(int.from_bytes(stored_known[span], "little"))
                parity_index += 1
            for lane, index in single_flips(syndrome, is_known, len(cell), lanes_of(mask)):
                record_index = (cell_index << group.cell_log2) + index
                corrected[record_index * record_bytes + lane // 8] ^= 1 << lane % 8
    return bytes(corrected)


def single_flips(syndrome: Sequence[int], known: Sequence[int], record_count: int, lanes: Sequence[int]) -> list[tuple[int, int]]:
    """The (lane, index in the cell) of each lane whose syndrome is that of one flip."""
    flips = []
    for lane in lanes:
        if not all(record >> lane & 1 for record in known):
            continue
        total = syndrome[0] >> lane & 1
        index = sum((record >> lane & 1) << j for j, record in enumerate(syndrome[1:]))
        if total == 1 and index < record_count:
            flips.append((lane, index))
    return flips
