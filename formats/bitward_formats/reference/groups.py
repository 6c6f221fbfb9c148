"""Lane groups (SPEC, section 4): which lanes are kept, in cells of which size, and with which outer code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bitward_formats.errors import LaneGroupError
from bitward_formats.reference.limits import CELL_LOG2_LIMIT, GROUP_LIMIT, STRIPE_SLOTS_LIMIT
from bitward_formats.spans import RecordKind

ALL_LANES = 0
CRITICAL_LANES = 1
OTHER_LANES = 2


class LaneGroup(NamedTuple):
    """One row of the group table: cells of ``2**cell_log2`` records, at most ``stripe_slots`` slots in a stripe (0: no outer code)."""

    selector: int
    cell_log2: int
    stripe_slots: int


PRESETS: dict[str, tuple[LaneGroup, ...]] = {
    "standard": (LaneGroup(ALL_LANES, 11, 68),),
    "lean": (LaneGroup(CRITICAL_LANES, 11, 160), LaneGroup(OTHER_LANES, 12, 0)),
    "strong": (LaneGroup(CRITICAL_LANES, 8, 32), LaneGroup(OTHER_LANES, 11, 32)),
}


def check_groups(groups: Sequence[LaneGroup]) -> None:
    """Raise LaneGroupError unless the groups are what section 4 allows."""
    if not 1 <= len(groups) <= GROUP_LIMIT:
        raise LaneGroupError(f"{len(groups)} lane groups; there must be 1 to {GROUP_LIMIT}")
    selectors = sorted(group.selector for group in groups)
    if selectors not in ([ALL_LANES], [CRITICAL_LANES], [OTHER_LANES], [CRITICAL_LANES, OTHER_LANES]):
        raise LaneGroupError(f"lane groups with the selectors {selectors} overlap or are unknown")
    for group in groups:
        if not 0 <= group.cell_log2 <= CELL_LOG2_LIMIT:
            raise LaneGroupError(f"cell_log2 {group.cell_log2} is above {CELL_LOG2_LIMIT}")
        if not 0 <= group.stripe_slots <= STRIPE_SLOTS_LIMIT:
            raise LaneGroupError(f"stripe_slots {group.stripe_slots} is above {STRIPE_SLOTS_LIMIT}")
    widths = [group.stripe_slots for group in groups]
    if len(set(widths)) > 1 and sum(width > 0 for width in widths) != 1:
        raise LaneGroupError(f"stripe_slots {widths}: either all the same, or exactly one that is not zero")


def mixes_kinds(groups: Sequence[LaneGroup]) -> bool:
    """Whether one class of the outer code holds the blocks of all kinds (section 6, *Classes*)."""
    selects_every_lane = groups[0].selector == ALL_LANES or len(groups) == 2
    same_width = len({group.stripe_slots for group in groups}) == 1
    return selects_every_lane and same_width and groups[0].stripe_slots > 0


def lane_mask(selector: int, kind: RecordKind) -> bytes:
    """The lanes of a kind that a group selects, ``record_bytes`` bytes."""
    if selector == ALL_LANES:
        return b"\xff" * kind.record_bytes
    if selector == CRITICAL_LANES:
        return kind.critical_mask
    return bytes(0xFF ^ byte for byte in kind.critical_mask)
