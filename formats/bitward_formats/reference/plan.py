"""Which pages of a sidecar hold which stream (SPEC, section 7). Follows from lengths alone, so that a reader can make the same plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bitward_formats.reference.groups import LaneGroup
from bitward_formats.reference.inner import inner_blob_bytes
from bitward_formats.reference.limits import GAP_PAGES, PAYLOAD_BYTES, Section, divide_up
from bitward_formats.reference.outer import ParityClass, packed_parity_bytes, stripes_of, zones_of


class PlannedStream(NamedTuple):
    """Pages ``first_page .. first_page + page_count``. Class and zone count from 0; -1 where a stream belongs to none."""

    section: Section
    copy: int
    stream_bytes: int
    first_page: int
    page_count: int
    class_index: int = -1
    zone_index: int = -1

    @property
    def page_end(self) -> int:
        return self.first_page + self.page_count


def plan_file_sidecar(
    layout_bytes: int, leaf_stream_bytes: int, classes: Sequence[ParityClass], groups: Sequence[LaneGroup]
) -> list[PlannedStream]:
    """The streams of a file's sidecar in order, those of no page too."""
    plan: list[PlannedStream] = []
    _append(plan, Section.SUPERBLOCK, 0, PAYLOAD_BYTES)
    _append(plan, Section.LAYOUT, 0, layout_bytes)
    _append(plan, Section.LEAVES, 0, leaf_stream_bytes)
    parity_start = plan[-1].page_end
    for class_index, parity_class in enumerate(classes):
        for zone_index, zone in enumerate(zones_of(parity_class)):
            parity = 0
            if parity_class.has_parity:
                stripes = stripes_of(zone, parity_class.stripe_slots)
                parity = sum(packed_parity_bytes(parity_class, stripe) for stripe in stripes)
            blocks = [placement.block for slot in zone for placement in slot]
            inner = sum(inner_blob_bytes(block.length, block.kind, groups) for block in blocks)
            _append(plan, Section.P, 0, parity, class_index, zone_index)
            _append(plan, Section.INNER, 0, inner, class_index, zone_index)
            _append(plan, Section.Q, 0, parity, class_index, zone_index)
    _append(plan, Section.PADDING, 0, PAYLOAD_BYTES * max(0, GAP_PAGES - (plan[-1].page_end - parity_start)))
    _append(plan, Section.LEAVES, 1, leaf_stream_bytes)
    _append(plan, Section.LAYOUT, 1, layout_bytes)
    _append(plan, Section.SUPERBLOCK, 1, PAYLOAD_BYTES)
    return plan


def plan_unit_index(stream_bytes: int) -> list[PlannedStream]:
    """The streams of a unit's sidecar in order (section 8)."""
    plan: list[PlannedStream] = []
    _append(plan, Section.SUPERBLOCK, 0, PAYLOAD_BYTES)
    _append(plan, Section.UNIT_INDEX, 0, stream_bytes)
    _append(plan, Section.PADDING, 0, PAYLOAD_BYTES * GAP_PAGES)
    _append(plan, Section.UNIT_INDEX, 1, stream_bytes)
    _append(plan, Section.SUPERBLOCK, 1, PAYLOAD_BYTES)
    return plan


def _append(plan: list[PlannedStream], section: Section, copy: int, stream_bytes: int, class_index: int = -1, zone_index: int = -1) -> None:
    first_page = plan[-1].page_end if plan else 0
    plan.append(PlannedStream(section, copy, stream_bytes, first_page, divide_up(stream_bytes, PAYLOAD_BYTES), class_index, zone_index))
