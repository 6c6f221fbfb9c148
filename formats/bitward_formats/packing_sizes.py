"""Sizes of packed lanes and of inner parity (SPEC, sections 4 and 5), without NumPy: checking a sidecar needs no more."""

from __future__ import annotations


def is_all_lanes(mask: bytes) -> bool:
    """Whether a mask selects every lane."""
    return mask.count(0xFF) == len(mask)


def lane_count(mask: bytes) -> int:
    """How many lanes a mask selects."""
    return int.from_bytes(mask, "little").bit_count()


def packed_bytes(record_count: int, mask: bytes) -> int:
    """Bytes that ``record_count`` records take when packed."""
    if is_all_lanes(mask):
        return record_count * len(mask)
    return -(-record_count * lane_count(mask) // 8)


def parity_record_count(record_count: int, cell_log2: int) -> int:
    """Parity records that a block of ``record_count`` records keeps in one group."""
    whole, rest = divmod(record_count, 1 << cell_log2)
    return whole * (cell_log2 + 1) + (1 + (rest - 1).bit_length() if rest else 0)
