"""What a sidecar promises, in numbers that follow from its lane groups and geometry."""

from __future__ import annotations

from bitward_agent.findings import FileGuarantee, LaneGuarantee
from bitward_agent.io import DISK, Disk
from bitward_agent.verify import open_sidecar
from bitward_formats.digest import LeafHash
from bitward_formats.geometry import Zone
from bitward_formats.groups import Selector
from bitward_formats.packing_sizes import lane_count
from bitward_formats.pages import PAGE_BYTES, pages_for
from bitward_formats.sidecar import Sidecar
from bitward_formats.spans import RecordKind, Role

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

    A burst may take two slots of every stripe. Slots lie in file order, stripe by stripe, but short blocks are packed into slots that may
    belong to any stripe, so one slot of each stripe is kept back for them; a burst that begins within a block takes one block more than
    its length says.
    """
    if not sidecar.superblock.file_bytes:
        return 0
    worst = sidecar.superblock.file_bytes
    for zone in sidecar.plan.geometry.zones:
        code = zone.code_class
        if not code.has_parity or any(byte != 0xFF for byte in code.mask):
            return 0  # lanes without outer parity do not come back from a lost block
        worst = min(worst, _zone_burst(zone))
    return worst


def _zone_burst(zone: Zone) -> int:
    code = zone.code_class
    packed = zone.first_slot + zone.slot_count > code.full_count or bool(code.packed)
    slots_to_lose = zone.stripe_count * (1 if packed else 2)
    lossless_blocks = max(0, slots_to_lose - 1)
    if code.full_count == 0:
        return min(code.table.layout.file_bytes, code.slot_bytes) if zone.stripe_count * 2 >= zone.slot_count else 0
    return lossless_blocks * code.slot_bytes if lossless_blocks else 1
