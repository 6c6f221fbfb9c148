"""From bad blocks to right bytes: reads what the decoder needs, stripe by stripe, and hands back what it found.

Effects here are reads only. What to do with the outcome is decided elsewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bitward_agent.io import OpenFile, Range
from bitward_formats.block_decode import Patient, decode_inner_alone, inner_step, is_hopeless
from bitward_formats.blocks import Block
from bitward_formats.digest import leaf_function
from bitward_formats.frozen import dataclass
from bitward_formats.geometry import InnerOffsets, Zone, inner_blob_bytes
from bitward_formats.lanes import unpack_blobs
from bitward_formats.packing import unpack_lanes
from bitward_formats.packing_sizes import packed_bytes, parity_record_count
from bitward_formats.pages import Section
from bitward_formats.sidecar import MendedPages, ParityStream, Sidecar, read_parity
from bitward_formats.stripe_decode import StripeDecoder, agreed_data
from bitward_formats.stripe_syndrome import StripeSyndrome
from bitward_formats.stripes import StripeAccumulator, symbol_mask, to_symbols

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A bad block after decoding. ``correct`` is vouched for by its leaf, or ``None``.

    ``agreed`` is the best guess of both codes where there is no ``correct``: only for best-effort repair.
    """

    block: Block
    found: Bytes
    correct: Bytes | None
    agreed: Bytes | None
    unreadable: bool


class Locator:
    """Decodes bad blocks of one open file against one open sidecar."""

    def __init__(self, file: OpenFile, ward: OpenFile, sidecar: Sidecar) -> None:
        self.file, self.ward, self.sidecar = file, ward, sidecar
        self.groups = sidecar.superblock.groups
        self.table = sidecar.plan.table
        self._leaf = leaf_function(sidecar.superblock.leaf_hash)
        self._offsets: tuple[Zone, InnerOffsets] | None = None
        self._mended: MendedPages = {}

    def is_leaf(self, block: Block, data: Bytes) -> bool:
        """Whether these bytes are what was protected."""
        return self._leaf(memoryview(data), block.index, block.length) == self.sidecar.leaf(block.number)  # type: ignore[arg-type]

    def by_stripe(self, bad_blocks: Sequence[int]) -> Iterator[tuple[Zone, int, list[tuple[Block, int, int]]]]:
        """Bad blocks as (zone, stripe, [(block, position, byte in the slot)])."""
        stripes: dict[tuple[int, int], list[tuple[Block, int, int]]] = {}
        geometry = self.sidecar.plan.geometry
        for number in bad_blocks:
            block = self.table[number]
            span_index = bisect_right(self.table.first_numbers, number) - 1
            zone_index = geometry.zone_index_of(block, span_index)
            zone = geometry.zones[zone_index]
            slot, at = zone.code_class.place(block, span_index)
            stripe, position = zone.stripe_of(slot)
            stripes.setdefault((zone_index, stripe), []).append((block, position, at))
        for (zone_index, stripe), members in sorted(stripes.items()):
            yield geometry.zones[zone_index], stripe, members

    def outcomes(self, bad_blocks: Sequence[int], unreadable: Sequence[Range]) -> Iterator[list[Outcome]]:
        """What became of the bad blocks, stripe by stripe; memory is that of one stripe."""
        for zone, stripe, members in self.by_stripe(bad_blocks):
            patients = [self._admit(zone, block, position, at, unreadable) for block, position, at in members]
            inner_step(patients, self.groups, self.is_leaf)
            decode_inner_alone(patients, self.groups, self.is_leaf)
            decoder = None
            unsolved = not all(patient.solved for patient in patients)
            if unsolved and zone.code_class.has_parity and not is_hopeless(patients, self.groups):
                decoder = StripeDecoder(patients, self._syndrome(zone, stripe, patients), self.groups, self.is_leaf)
                decoder.run()
            yield [self._outcome(patient, decoder) for patient in patients]

    def as_found(self, number: int, unreadable: Sequence[Range]) -> Outcome:
        """A bad block that was not decoded, or in vain: what is there, and nothing else."""
        block = self.table[number]
        raw = np.zeros(block.length, np.uint8)
        lost = [*self.file.read_into(memoryview(raw), block.offset), *unreadable]  # type: ignore[arg-type]
        return Outcome(block, raw, None, None, any(low < block.end and block.offset < high for low, high in lost))

    def _outcome(self, patient: Patient, decoder: StripeDecoder | None) -> Outcome:
        correct = patient.data if patient.solved else None
        agreed = agreed_data(decoder, patient) if decoder and correct is None else None
        return Outcome(patient.block, patient.raw, correct, agreed, patient.unreadable is not None)

    def _admit(self, zone: Zone, block: Block, position: int, at: int, unreadable: Sequence[Range]) -> Patient:
        raw = np.zeros(block.length, np.uint8)
        lost = self.file.read_into(memoryview(raw), block.offset)  # type: ignore[arg-type]  # arrays are buffers
        mask = None
        for low, high in [*lost, *unreadable]:
            if low < block.end and block.offset < high:
                mask = np.zeros(block.length, np.uint8) if mask is None else mask
                mask[max(0, low - block.offset) : high - block.offset] = 0xFF
        inner, known = self._inner(zone, block)
        return Patient(block, position, at, raw, mask, inner, known)

    def _inner(self, zone: Zone, block: Block) -> tuple[list[Bytes], list[bool]]:
        """Stored padded parity of a block for each group, and whether it is there."""
        if self._offsets is None or self._offsets[0] is not zone:
            self._offsets = (zone, InnerOffsets(zone, self.groups))
        offsets = self._offsets[1]
        span_index = bisect_right(self.table.first_numbers, block.number) - 1
        if block.is_full:
            start = offsets.of_full_slot(zone.code_class.place(block, span_index)[0])
        else:
            start = offsets.of_packed(block)
        kind = block.span.kind
        size = inner_blob_bytes(kind, block.length, self.groups)
        stream = read_parity(self.ward.read, self.sidecar, zone, Section.INNER, start, start + size, self._mended)
        parities = unpack_blobs(np.frombuffer(stream.data, np.uint8)[None], kind, block.length, self.groups)
        known, at = [], 0
        for group in self.groups:
            end = at + packed_bytes(parity_record_count(block.length // kind.record_bytes, group.cell_log2), group.mask(kind))
            known.append(not stream.is_lost(at, end))
            at = end
        return parities, known

    def _syndrome(self, zone: Zone, stripe: int, patients: list[Patient]) -> StripeSyndrome:
        """Read the rest of the stripe and its parity; the syndromes of the patients' present estimates."""
        code, slot_count = zone.code_class, zone.stripe_length(stripe)
        accumulator = StripeAccumulator(code, 1)
        estimates = {patient.block.number: patient.data for patient in patients}
        slot_data = np.zeros((1, code.slot_bytes), np.uint8)
        for position in range(slot_count):
            slot_data[:] = 0
            for piece in code.pieces(zone.slot(stripe, position)):
                target = slot_data[0, piece.at : piece.at + piece.block.length]
                if piece.block.number in estimates:
                    target[:] = estimates[piece.block.number]
                else:
                    self.file.read_into(memoryview(target), piece.block.offset)  # type: ignore[arg-type]
            accumulator.add(position, 0, slot_data)
        size = zone.parity_bytes(stripe)
        symbols, knowns = [], []
        for section, computed in zip((Section.P, Section.Q), accumulator.result(), strict=True):
            stored, coverage, lost = self._stored_parity(zone, stripe, section, size)
            symbols.append(to_symbols((computed[:, :size] & coverage) ^ stored, code.row_bytes)[0])
            knowns.append((symbol_mask(coverage, code.row_bytes) & ~symbol_mask(lost, code.row_bytes))[0])
        for symbol, known in zip(symbols, knowns, strict=True):
            symbol[~known] = 0
        return StripeSyndrome(code, slot_count, symbols[0], symbols[1], knowns[0], knowns[1])

    def _stored_parity(self, zone: Zone, stripe: int, section: Section, size: int) -> tuple[Bytes, Bytes, Bytes]:
        """(parity, bits that the class keeps, bits that are lost) of one stripe, each (1, size) u8."""
        code = zone.code_class
        start = sum(zone.stored_parity_bytes(other) for other in range(stripe))
        end = start + zone.stored_parity_bytes(stripe)
        stream: ParityStream = read_parity(self.ward.read, self.sidecar, zone, section, start, end, self._mended)
        count = size // code.record_bytes
        lost = np.zeros(end - start, np.uint8)
        for low, high in stream.lost:
            lost[low:high] = 0xFF
        packed = (np.frombuffer(stream.data, np.uint8), np.full(end - start, 0xFF, np.uint8), lost)
        stored, coverage, gone = (unpack_lanes(part[None], count, code.mask).reshape(1, size) for part in packed)
        return stored, coverage, gone
