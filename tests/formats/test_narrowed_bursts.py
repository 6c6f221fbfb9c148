"""A burst marks its cell as lost; what the lanes agree on says which part of the cell."""

from __future__ import annotations

import numpy as np
import pytest

from bitward_formats.groups import PRESETS
from bitward_formats.inner_decode import doubt_masks, syndromes
from bitward_formats.lanes import group_parities
from bitward_formats.records import kind_of

GROUPS = PRESETS["standard"]
CELL_BYTES = 2048 * 4


@pytest.mark.parametrize(
    ("start", "end", "lost_start", "lost_end"),
    [
        (0, 4096, 0, 4096),
        (4096, 8192, 4096, 8192),
        (5000, 8100, 4096, 8192),
        (8192, 10_000, 8192, 10_240),
        (3000, 5000, 0, 8192),
        (65_536 - 4096, 65_536, 65_536 - 4096, 65_536),
    ],
)
def test_noise_in_a_part_of_a_cell(start: int, end: int, lost_start: int, lost_end: int) -> None:
    seeded = np.random.default_rng(1)
    kind = kind_of("F32")
    right = seeded.integers(0, 256, (1, 65_536), np.uint8)
    wrong = right.copy()
    wrong[0, start:end] = seeded.integers(0, 256, end - start)
    found = syndromes(wrong, kind, GROUPS, group_parities(right, 4, GROUPS), [np.ones(1, np.bool_)] * len(GROUPS))
    wide, narrow = (doubt_masks(found, 65_536, narrowed=narrowed)[0] != 0 for narrowed in (False, True))
    assert wide.nonzero()[0][[0, -1]].tolist() == [start // CELL_BYTES * CELL_BYTES, -(-end // CELL_BYTES) * CELL_BYTES - 1]
    assert narrow.nonzero()[0][[0, -1]].tolist() == [lost_start, lost_end - 1]
    assert not (narrow & ~wide).any()
