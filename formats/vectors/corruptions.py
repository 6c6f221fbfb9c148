"""Where to hurt a protected file and its sidecar: at least once in every structural element."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from bitward_formats.reference.layout_stream import Block
from bitward_formats.reference.limits import PAGE_BYTES, PAYLOAD_BYTES, Section
from bitward_formats.reference.outer import Slot, stripes_of, zones_of
from bitward_formats.reference.plan import PlannedStream, plan_file_sidecar, plan_unit_index
from bitward_formats.reference.reading import ReadSidecar
from bitward_formats.reference.writing import PAGE_FIELDS, SUPERBLOCK_FIELDS

Edit = dict[str, Any]
LOST_REGION_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Corruption:
    """Edits, applied in order, and the structural element that they hit."""

    what: str
    edits: tuple[Edit, ...]


def apply_edits(file: bytes, sidecar: bytes, edits: Sequence[Edit]) -> tuple[bytes, bytes]:
    """Both files after the edits."""
    targets = {"file": bytearray(file), "sidecar": bytearray(sidecar)}
    for edit in edits:
        target, at = targets[edit["target"]], edit["offset"]
        if "xor" in edit:
            target[at] ^= edit["xor"]
        elif "zero_bytes" in edit:
            target[at : at + edit["zero_bytes"]] = bytes(edit["zero_bytes"])
        elif "write" in edit:
            new = bytes.fromhex(edit["write"])
            target[at : at + len(new)] = new
        else:
            del target[at:]
    return bytes(targets["file"]), bytes(targets["sidecar"])


def xor(target: str, offset: int, mask: int = 0x10) -> Edit:
    """Flip the bits of ``mask`` in one byte."""
    return {"target": target, "offset": offset, "xor": mask}


def zero(target: str, offset: int, zero_bytes: int) -> Edit:
    """Zero a range, as lost sectors read."""
    return {"target": target, "offset": offset, "zero_bytes": zero_bytes}


def write(target: str, offset: int, new: bytes) -> Edit:
    """Overwrite; past the end it makes the target longer."""
    return {"target": target, "offset": offset, "write": new.hex()}


def cut(target: str, offset: int) -> Edit:
    """End the target at ``offset``."""
    return {"target": target, "offset": offset, "cut": True}


def lose(block: Block) -> Edit:
    """Zero a whole block of the file."""
    return zero("file", block.offset, block.length)


def file_corruptions(ward: ReadSidecar) -> Iterator[Corruption]:
    """Damage to the protected file alone."""
    file_bytes = ward.superblock.file_bytes
    yield Corruption("file: one byte more than recorded", (write("file", file_bytes, b"\x5a"),))
    if not ward.blocks:
        return
    yield Corruption("file: last byte missing", (cut("file", file_bytes - 1),))
    yield Corruption("file: last 1,000 bytes missing", (cut("file", max(0, file_bytes - 1000)),))
    yield Corruption("file: first byte", (xor("file", 0, 0x80),))
    if len(ward.blocks) == 1:
        yield Corruption("file: everything missing", (cut("file", 0),))
    full = [block for block in ward.blocks if block.is_full]
    for block in full[:1]:
        yield Corruption("file: first byte of a full block", (xor("file", block.offset),))
        yield Corruption("file: last byte of a full block", (xor("file", block.end - 1),))
        edits = (xor("file", block.offset), xor("file", block.end - 1, 0x01))
        yield Corruption("file: a flip in the first byte and one in the last byte of a full block", edits)
        yield Corruption("file: a lost full block", (lose(block),))
        if block.kind.record_bytes > 1:
            yield from _lane_corruptions(block)
    short = [block for block in ward.blocks if not block.is_full]
    if short:
        yield Corruption("file: last byte of the last short block", (xor("file", short[-1].end - 1),))
    packed = [placement for one in ward.classes for slot in one.slots for placement in slot if placement.at]
    if packed:
        yield Corruption("file: a short block that is not the first of its slot", (xor("file", packed[-1].block.offset),))
        yield Corruption("file: a lost short block that is not the first of its slot", (lose(packed[0].block),))
    yield from stripe_corruptions(ward)


def _lane_corruptions(block: Block) -> Iterator[Corruption]:
    """Two flips in one lane of one cell: the inner code sees them, the outer code has to restore them."""
    lanes = range(8 * block.kind.record_bytes)
    critical = [lane for lane in lanes if block.kind.critical_mask[lane // 8] >> lane % 8 & 1]
    for lane in critical[-1:]:
        at, mask = block.offset + lane // 8, 1 << lane % 8
        edits = (xor("file", at, mask), xor("file", at + block.kind.record_bytes, mask))
        yield Corruption("file: two flips in one critical lane of one cell", edits)


def fullest_stripe(ward: ReadSidecar) -> list[Slot]:
    """The stripe with most slots."""
    stripes = [stripe for one in ward.classes if one.has_parity for zone in zones_of(one) for stripe in stripes_of(zone, one.stripe_slots)]
    return max(stripes, key=len, default=[])


def stripe_corruptions(ward: ReadSidecar) -> Iterator[Corruption]:
    """One to three lost blocks in one stripe."""
    stripe = fullest_stripe(ward)
    firsts = [slot[0].block for slot in stripe]
    if len(firsts) >= 2:
        yield Corruption("file: two lost blocks of one stripe", (lose(firsts[0]), lose(firsts[1])))
        edits = (lose(firsts[0]), xor("file", firsts[-1].offset))
        yield Corruption("file: a lost full block, and a flip in the last slot of its stripe", edits)
    if len(firsts) >= 3:
        yield Corruption("file: three lost blocks of one stripe", tuple(lose(block) for block in firsts[:3]))


def plan_of(ward: ReadSidecar) -> list[PlannedStream]:
    """The streams of the sidecar that hold at least one page."""
    leaf_stream_bytes = sum(len(leaf) for leaf in ward.leaves)
    plan = plan_file_sidecar(ward.superblock.layout_bytes, leaf_stream_bytes, ward.classes, ward.superblock.groups)
    return [part for part in plan if part.page_count]


def stream_corruptions(plan: Sequence[PlannedStream]) -> Iterator[Corruption]:
    """One flip in the payload of each kind of stream and copy, and each of these pages lost as a whole."""
    seen = set()
    for part in plan:
        if (part.section, part.copy) in seen:
            continue
        seen.add((part.section, part.copy))
        name = f"{part.section.name.lower()}, copy {part.copy}"
        at = part.first_page * PAGE_BYTES
        last = at + min(part.stream_bytes, PAYLOAD_BYTES) - 1
        yield Corruption(f"sidecar: last byte of the stream's first page, {name}", (xor("sidecar", last),))
        yield Corruption(f"sidecar: first page lost, {name}", (zero("sidecar", at, PAGE_BYTES),))
    pages = plan[-1].page_end
    if pages > 2 * LOST_REGION_BYTES // PAGE_BYTES:
        end = pages * PAGE_BYTES - LOST_REGION_BYTES
        for where, at in (("first", 0), ("last", end), ("middle", end // 2)):
            yield Corruption(f"sidecar: {where} 64 KiB lost", (zero("sidecar", at, LOST_REGION_BYTES),))


def trailer_corruptions(part: PlannedStream) -> Iterator[Corruption]:
    """One flip in each field of a page's trailer."""
    at = part.first_page * PAGE_BYTES
    for name, code in PAGE_FIELDS:
        if name != "payload":
            yield Corruption(f"sidecar: {name} of a page of {part.section.name.lower()}", (xor("sidecar", at, 1),))
        at += struct.calcsize("<" + code)


def combined_corruptions(ward: ReadSidecar, plan: Sequence[PlannedStream]) -> Iterator[Corruption]:
    """Damage to a block of the file, and a lost part of its parity."""
    full = [block for block in ward.blocks if block.is_full]
    if not full:
        return
    lost = lose(full[0])
    class_index = 0 if len(ward.classes) == 1 else full[0].kind_index
    whole_stream = {
        part.section: zero("sidecar", part.first_page * PAGE_BYTES, part.page_count * PAGE_BYTES)
        for part in plan
        if part.class_index == class_index
    }
    for corruption in _lane_corruptions(full[0]):
        yield Corruption("both: two flips in one critical lane of one cell, all of P lost", (*corruption.edits, whole_stream[Section.P]))
    if len(ward.classes) > 1:
        return
    yield Corruption("both: a lost full block, all of P lost", (lost, whole_stream[Section.P]))
    yield Corruption("both: a lost full block, all of Q lost", (lost, whole_stream[Section.Q]))
    yield Corruption("both: a lost full block, P and Q lost", (lost, whole_stream[Section.P], whole_stream[Section.Q]))
    yield Corruption("both: a flip, all inner parity lost", (xor("file", full[0].offset), whole_stream[Section.INNER]))
    yield Corruption("both: a flip, P and Q lost", (xor("file", full[0].offset), whole_stream[Section.P], whole_stream[Section.Q]))


def file_case_corruptions(ward: ReadSidecar) -> Iterator[Corruption]:
    """All corruptions of a case."""
    plan = plan_of(ward)
    yield from file_corruptions(ward)
    yield from stream_corruptions(plan)
    for part in [part for part in plan if part.section in (Section.P, Section.LAYOUT)][:1]:
        yield from trailer_corruptions(part)
    yield from combined_corruptions(ward, plan)


def unit_corruptions(stream_bytes: int) -> Iterator[Corruption]:
    """All corruptions of a unit index that it survives."""
    plan = plan_unit_index(stream_bytes)
    yield from stream_corruptions(plan)
    yield from trailer_corruptions(plan[1])


def superblock_refusals(sidecar: bytes) -> Iterator[tuple[Corruption, str]]:
    """Sidecars that a reader must refuse, with the class of the error. Pages that are changed are sealed again where the text says so."""
    last = len(sidecar) - PAGE_BYTES
    yield Corruption("no sidecar: empty", (cut("sidecar", 0),)), "SidecarTooShortError"
    yield Corruption("no sidecar: a byte less than two pages", (cut("sidecar", 2 * PAGE_BYTES - 1),)), "SidecarTooShortError"
    yield Corruption("both superblocks lost", (zero("sidecar", 0, PAGE_BYTES), zero("sidecar", last, PAGE_BYTES))), "NotASidecarError"
    for what, field, new, error in (
        ("magic", "magic", b"\x89WARD\n\x1a\n", "NotASidecarError"),
        ("version 2", "version", b"\x02\x00", "UnsupportedVersionError"),
        ("an incompatible feature bit", "incompatible", b"\x00\x00\x00\x80", "UnsupportedVersionError"),
        ("no lane group", "group_count", b"\x00", "LaneGroupError"),
        ("nine lane groups", "group_count", b"\x09", "LaneGroupError"),
        ("an unknown selector", "groups", b"\x03", "LaneGroupError"),
        ("layout_bytes 2^63", "layout_bytes", bytes(7) + b"\x80", "SidecarLimitError"),
        ("block_count 2^64 - 1", "block_count", b"\xff" * 8, "SidecarLimitError"),
        ("another root", "root", bytes(32), "SidecarDamagedError"),
    ):
        yield Corruption(f"superblock, both copies sealed again: {what}", tuple(_resealed(sidecar, (0, last), field, new))), error


def _resealed(sidecar: bytes, page_offsets: Sequence[int], field: str, new: bytes) -> Iterator[Edit]:
    """Overwrite the start of a superblock's field and write the check that then fits."""
    names = [name for name, _ in SUPERBLOCK_FIELDS]
    at = struct.calcsize("<" + "".join(code for _, code in SUPERBLOCK_FIELDS[: names.index(field)]))
    for page_offset in page_offsets:
        page = bytearray(sidecar[page_offset : page_offset + PAGE_BYTES])
        page[at : at + len(new)] = new
        yield write("sidecar", page_offset + at, new)
        yield write("sidecar", page_offset + PAGE_BYTES - 8, struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(page[:-8]))))
