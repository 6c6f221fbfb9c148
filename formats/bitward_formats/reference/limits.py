"""The numbers of SPEC, section 9, and the codes that its tables give to sections and leaf hashes. A test compares them with the page."""

from __future__ import annotations

from enum import IntEnum

PAGE_BYTES = 4096
PAYLOAD_BYTES = 4080
BLOCK_LIMIT_BYTES = 65536
ROW_LIMIT_BYTES = 512
ROWS_PER_SYMBOL = 8
STRIPES_PER_ZONE = 64
STRIPE_SLOTS_LIMIT = 255
GROUP_LIMIT = 8
TREE_FANOUT = 256
GAP_PAGES = 17
NAME_LIMIT_BYTES = 65535
SPAN_LIMIT = 1 << 24
KIND_LIMIT = 1024
RECORD_LIMIT_BYTES = 512
CELL_LOG2_LIMIT = 16

# Section 8, not in the table of section 9.
PATH_LIMIT_BYTES = 4096

XXH3_LEAF = 1
BLAKE3_LEAF = 2
LEAF_BYTES = {XXH3_LEAF: 16, BLAKE3_LEAF: 32}


class Section(IntEnum):
    """What a page belongs to (SPEC, section 7)."""

    SUPERBLOCK = 1
    LAYOUT = 2
    LEAVES = 3
    P = 4
    INNER = 5
    Q = 6
    PADDING = 7
    UNIT_INDEX = 8


def divide_up(number: int, by: int) -> int:
    """The SPEC's ⌈number / by⌉ for whole numbers."""
    return -(-number // by)
