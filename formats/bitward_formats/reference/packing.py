"""Packed lanes (SPEC, section 4): how records are stored when only some of their lanes are kept."""

from __future__ import annotations

from bitward_formats.reference.limits import divide_up


def lanes_of(mask: bytes) -> list[int]:
    """The numbers of the lanes that a mask selects, ascending."""
    return [lane for lane in range(8 * len(mask)) if mask[lane // 8] >> lane % 8 & 1]


def packed_bytes(record_count: int, mask: bytes) -> int:
    """Stored length of ``record_count`` records of ``len(mask)`` bytes."""
    return divide_up(record_count * len(lanes_of(mask)), 8)


def pack_lanes(records: bytes, mask: bytes) -> bytes:
    """Store records of ``len(mask)`` bytes each: lane by lane, within a lane record by record."""
    lanes, record_bytes = lanes_of(mask), len(mask)
    if len(lanes) == 8 * record_bytes:
        return records
    record_count = len(records) // record_bytes
    stored = bytearray(packed_bytes(record_count, mask))
    for q, lane in enumerate(lanes):
        for r in range(record_count):
            if records[r * record_bytes + lane // 8] >> lane % 8 & 1:
                bit = q * record_count + r
                stored[bit // 8] |= 1 << bit % 8
    return bytes(stored)


def unpack_lanes(stored: bytes, record_count: int, mask: bytes) -> bytes:
    """The records again; lanes outside the mask are zero."""
    lanes, record_bytes = lanes_of(mask), len(mask)
    if len(lanes) == 8 * record_bytes:
        return stored
    records = bytearray(record_count * record_bytes)
    for q, lane in enumerate(lanes):
        for r in range(record_count):
            bit = q * record_count + r
            if stored[bit // 8] >> bit % 8 & 1:
                records[r * record_bytes + lane // 8] |= 1 << lane % 8
    return bytes(records)
