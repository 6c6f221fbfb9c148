"""Lane groups and presets (SPEC, section 4): which lanes get which inner cells and which outer code."""

from __future__ import annotations

from enum import IntEnum

from bitward_formats.errors import LaneGroupError
from bitward_formats.frozen import dataclass
from bitward_formats.spans import RecordKind

GROUP_LIMIT = 8
CELL_LOG2_LIMIT = 16
STRIPE_SLOTS_LIMIT = 255


class Selector(IntEnum):
    ALL = 0
    CRITICAL = 1
    OTHER = 2


@dataclass(frozen=True, slots=True)
class LaneGroup:
    """Lanes that share a code. ``cell_log2``: a cell has 2^cell_log2 records; ``stripe_slots``: 0 for no outer code."""

    selector: Selector
    cell_log2: int
    stripe_slots: int

    def mask(self, kind: RecordKind) -> bytes:
        """The lanes of ``kind`` that belong to the group, as ``record_bytes`` bytes."""
        if self.selector is Selector.ALL:
            return b"\xff" * kind.record_bytes
        if self.selector is Selector.CRITICAL:
            return kind.critical_mask
        return bytes(byte ^ 0xFF for byte in kind.critical_mask)


LaneGroups = tuple[LaneGroup, ...]

PRESETS: dict[str, LaneGroups] = {
    "lean": (LaneGroup(Selector.CRITICAL, 11, 160), LaneGroup(Selector.OTHER, 12, 0)),
    "standard": (LaneGroup(Selector.ALL, 11, 68),),
    "strong": (LaneGroup(Selector.CRITICAL, 8, 32), LaneGroup(Selector.OTHER, 11, 32)),
}


def check_groups(groups: LaneGroups) -> None:
    """Hold lane groups against the rules of SPEC section 4.

    Raises:
        LaneGroupError: what is wrong with them.
    """
    if not 1 <= len(groups) <= GROUP_LIMIT:
        raise LaneGroupError(f"{len(groups)} lane groups, 1 to {GROUP_LIMIT} are allowed")
    for group in groups:
        if group.cell_log2 > CELL_LOG2_LIMIT or group.stripe_slots > STRIPE_SLOTS_LIMIT:
            raise LaneGroupError(f"lane group out of bounds: {group}")
    selectors = [group.selector for group in groups]
    if len(set(selectors)) != len(selectors) or (Selector.ALL in selectors and len(selectors) > 1):
        raise LaneGroupError("lane groups overlap")
    widths = [group.stripe_slots for group in groups]
    if len(set(widths)) > 1 and sum(width > 0 for width in widths) != 1:
        raise LaneGroupError("either all lane groups have the same stripe width, or exactly one has any")


def covers_all_lanes_alike(groups: LaneGroups) -> bool:
    """Whether one class of stripes can hold all blocks, whatever their kind (SPEC, section 6)."""
    selectors = {group.selector for group in groups}
    widths = {group.stripe_slots for group in groups}
    return len(widths) == 1 and 0 not in widths and (Selector.ALL in selectors or len(selectors) == 2)
