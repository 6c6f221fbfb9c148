"""Packed lanes (SPEC, section 4): the bits of chosen lanes of a sequence of records, lane after lane."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitward_formats.packing_sizes import is_all_lanes

Bytes = npt.NDArray[np.uint8]


def lane_numbers(mask: bytes) -> npt.NDArray[np.intp]:
    """The selected lanes in ascending order."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))


def pack_lanes(records: Bytes, mask: bytes) -> Bytes:
    """Pack sequences of records: (sequences, n, R) u8 -> (sequences, packed_bytes(n, mask)) u8."""
    sequences, count, record_bytes = records.shape
    if is_all_lanes(mask):
        return records.reshape(sequences, count * record_bytes)
    lanes = lane_numbers(mask)
    bits = np.unpackbits(records, axis=-1, bitorder="little")[:, :, lanes]
    flat = np.ascontiguousarray(bits.transpose(0, 2, 1)).reshape(sequences, len(lanes) * count)
    return np.packbits(flat, axis=-1, bitorder="little")


def unpack_lanes(packed: Bytes, record_count: int, mask: bytes) -> Bytes:
    """Undo :func:`pack_lanes`; lanes outside the mask come back zero: (sequences, bytes) u8 -> (sequences, n, R) u8."""
    sequences = packed.shape[0]
    if is_all_lanes(mask):
        return packed.reshape(sequences, record_count, len(mask))
    lanes = lane_numbers(mask)
    flat = np.unpackbits(packed, axis=-1, bitorder="little", count=len(lanes) * record_count)
    bits = np.zeros((sequences, record_count, 8 * len(mask)), np.uint8)
    bits[:, :, lanes] = flat.reshape(sequences, len(lanes), record_count).transpose(0, 2, 1)
    return np.packbits(bits, axis=-1, bitorder="little")
