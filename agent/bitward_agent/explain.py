"""What a sidecar promises, in numbers that follow from its lane groups and geometry."""

from __future__ import annotations

from collections import Counter, deque

from bitward_agent.guarantees import FileGuarantee, LaneGuarantee
from bitward_agent.io import DISK, Disk
from bitward_agent.verify import open_sidecar
from bitward_formats.digest import LeafHash
from bitward_formats.groups import Selector
from bitward_formats.packing_sizes import is_all_lanes, lane_count
from bitward_formats.pages import PAGE_BYTES, pages_for
from bitward_formats.sidecar import Sidecar
from bitward_formats.spans import RecordKind, Role

_LOSSES_PER_STRIPE = 2
_LABELS = {Selector.ALL: "all", Selector.CRITICAL: "critical", Selector.OTHER: "other"}


def explain_file(path: str, sidecar_path: str, disk: Disk = DISK) -> FileGuarantee:
    """The guarantee of one sidecar. The protected file is not read.

    Raises:
        UnreadableError, SidecarError.
    """
    ward, sidecar, lost = open_sidecar(sidecar_path, disk)
    ward.close()
    block, plan = sidecar.superblock, sidecar.plan
    size = plan.total_pages * PAGE_BYTES
    parity_pages = sum(zone.end_page - zone.p_page for zone in plan.geometry.zones)
    return FileGuarantee(
        path=path,
        bytes=block.file_bytes,
        sidecar=sidecar_path,
        sidecar_bytes=size,
        overhead=size / block.file_bytes if block.file_bytes else 0.0,
        root=block.root.hex(),
        origin=block.origin_label,
        preset=block.preset,
        leaf_hash=LeafHash(block.leaf_hash).label,
        protected_ns=block.protected_ns,
        format=sidecar.layout.format_name,
        tensors=sum(span.role is Role.TENSOR for span in sidecar.layout.spans),
        blocks=plan.table.count,
        zones=len(plan.geometry.zones),
        guarantees=_guarantees(sidecar),
        longest_burst_bytes=longest_burst_bytes(sidecar),
        parity_bytes=parity_pages * PAGE_BYTES,
        digest_bytes=2 * pages_for(plan.leaf_stream_bytes) * PAGE_BYTES,
        message=f"{len(lost)} pages of the sidecar are damaged: 'bitward repair' heals it" if lost else "",
    )


def _guarantees(sidecar: Sidecar) -> tuple[LaneGuarantee, ...]:
    kinds: dict[RecordKind, set[str]] = {}
    for span in sidecar.layout.spans:
        kinds.setdefault(span.kind, set()).add(span.dtype or "opaque")
    rows = []
    for kind, dtypes in kinds.items():
        for group in sidecar.superblock.groups:
            mask = group.mask(kind)
            if not any(mask):
                continue
            records = min(1 << group.cell_log2, kind.block_bytes // kind.record_bytes)
            rows.append(
                LaneGuarantee(
                    lanes=_LABELS[group.selector],
                    dtypes=tuple(sorted(dtypes)),
                    lane_count=lane_count(mask),
                    cell_records=records,
                    cell_bytes=records * kind.record_bytes,
                    flips_per_cell_and_lane=1,
                    stripe_slots=group.stripe_slots,
                    blocks_per_stripe=min(2, group.stripe_slots),
                )
            )
    return tuple(rows)


def longest_burst_bytes(sidecar: Sidecar) -> int:
    """The longest run of lost bytes that is sure to come back whole, wherever it begins.

    A burst may take two slots of every stripe. It is found by sliding over the blocks in file order: the shortest run from the last byte of
    one block to the first of another that touches a third slot of some stripe is one byte too long.
    """
    geometry, table = sidecar.plan.geometry, sidecar.plan.table
    longest = sidecar.superblock.file_bytes
    if any(not zone.code_class.has_parity or not is_all_lanes(zone.code_class.mask) for zone in geometry.zones):
        return 0  # lanes without outer parity do not come back from a lost block
    window: deque[tuple[int, tuple[int, int, int]]] = deque()
    blocks_in_slot: Counter[tuple[int, int, int]] = Counter()
    slots_in_stripe: Counter[tuple[int, int]] = Counter()
    for span_index, span in enumerate(table.layout.spans):
        for index in range(span.block_count):
            block = table.of_span(span_index, index)
            zone_index = geometry.zone_index_of(block, span_index)
            zone = geometry.zones[zone_index]
            slot = zone.code_class.place(block, span_index)[0]
            place = (zone_index, zone.stripe_of(slot)[0], slot)
            window.append((block.end, place))
            blocks_in_slot[place] += 1
            slots_in_stripe[place[:2]] += blocks_in_slot[place] == 1
            while slots_in_stripe[place[:2]] > _LOSSES_PER_STRIPE:
                end, old = window.popleft()
                longest = min(longest, block.offset - end + 1)
                blocks_in_slot[old] -= 1
                slots_in_stripe[old[:2]] -= blocks_in_slot[old] == 0
    return longest
