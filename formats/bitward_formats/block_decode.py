"""Decoding blocks with the inner code alone, before and after the outer code has had its turn (SPEC, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitward_formats.blocks import Block
from bitward_formats.groups import LaneGroups
from bitward_formats.inner_decode import Flips, GroupSyndrome, even_lanes, only_even_lanes, single_flips, syndromes

Bytes = npt.NDArray[np.uint8]
LeafCheck = Callable[[Block, Bytes], bool]

_NOISE_SHARE = 0.9
"""A block with more than this share of its cells in disorder holds noise."""
_TRIES_LIMIT = 1 << 14
"""Most candidates of even lanes that are tried against a leaf: about 0.1 s."""


@dataclass(slots=True)
class Patient:
    """A bad block on its way through the decoder. ``data`` is the current estimate, ``raw`` what the file holds.

    ``unreadable`` marks bits that could not be read at all; ``inner`` is the stored padded parity of each lane group,
    ``inner_known`` whether it could be read; ``at`` is the block's byte in its slot.
    """

    block: Block
    position: int
    at: int
    raw: Bytes
    unreadable: Bytes | None
    inner: list[Bytes]
    inner_known: list[bool]
    data: Bytes = field(init=False)
    solved: bool = False

    def __post_init__(self) -> None:
        self.data = self.raw.copy()

    @property
    def place(self) -> slice:
        return slice(self.at, self.at + self.block.length)


def batches(patients: Sequence[Patient]) -> list[list[Patient]]:
    """Patients by kind and length, so that each batch is one array."""
    by_shape: dict[tuple[object, int], list[Patient]] = {}
    for patient in patients:
        by_shape.setdefault((patient.block.span.kind, patient.block.length), []).append(patient)
    return list(by_shape.values())


def batch_syndromes(batch: list[Patient], groups: LaneGroups) -> list[GroupSyndrome]:
    """Syndromes of what the blocks of a batch now hold, for each lane group."""
    stored = [np.concatenate([patient.inner[index] for patient in batch]) for index in range(len(groups))]
    known = [np.array([patient.inner_known[index] for patient in batch]) for index in range(len(groups))]
    return syndromes(np.stack([patient.data for patient in batch]), batch[0].block.span.kind, groups, stored, known)


def inner_step(patients: Sequence[Patient], groups: LaneGroups, is_leaf: LeafCheck) -> None:
    """Undo what the inner code spells out.

    First everywhere, since one flip in every lane of a cell is within the guarantee and looks like a burst; where that does not solve a
    block, outside of bursts only, as noise spells flips that never were.
    """
    for batch in batches([patient for patient in patients if not patient.solved]):
        found = batch_syndromes(batch, groups)
        record_bytes = batch[0].block.span.kind.record_bytes
        everywhere = single_flips(found, record_bytes, in_bursts=True)
        outside = single_flips(found, record_bytes, in_bursts=False)
        for index, patient in enumerate(batch):
            turn_bits(patient.data, everywhere.of_block(index))
            patient.solved = is_leaf(patient.block, patient.data)
            if not patient.solved:
                patient.data[:] = patient.raw
                turn_bits(patient.data, outside.of_block(index))


def turn_bits(data: Bytes, flips: Flips) -> None:
    """Turn bits of a block."""
    np.bitwise_xor.at(data, flips.byte, (1 << flips.bit).astype(np.uint8))


def is_hopeless(patients: Sequence[Patient], groups: LaneGroups) -> bool:
    """Whether three or more full blocks of the stripe are lost or hold nothing but noise: then no symbol can be solved for."""
    open_patients = [patient for patient in patients if not patient.solved and patient.block.is_full]
    lost = {patient.position for patient in open_patients if patient.unreadable is not None and patient.unreadable.all()}
    for batch in batches([patient for patient in open_patients if patient.position not in lost]):
        shares = [group.bursts().mean(axis=1) for group in batch_syndromes(batch, groups) if group.lanes.any()]
        share = np.mean(shares, axis=0) if shares else np.zeros(len(batch))
        lost |= {patient.position for patient, part in zip(batch, share, strict=True) if part > _NOISE_SHARE}
    return len(lost) > 2


def decode_inner_alone(patients: Sequence[Patient], groups: LaneGroups, is_leaf: LeafCheck) -> None:
    """What can still be tried where there is no outer code: candidates of even lanes."""
    for batch in batches([patient for patient in patients if not patient.solved]):
        found = batch_syndromes(batch, groups)
        for index, patient in enumerate(batch):
            try_even_lanes(patient, found, index, is_leaf)


def try_even_lanes(patient: Patient, found: list[GroupSyndrome], index: int, is_leaf: LeafCheck) -> None:
    """Try the pairs of flips that a block's even lanes allow, all lanes together, against its leaf."""
    if not only_even_lanes(found, index):
        return
    record_bytes = patient.block.span.kind.record_bytes
    choices = []
    total = 1
    for lane in even_lanes(found, index):
        low, high = lane.pairs()
        total *= low.size
        if not 0 < total <= _TRIES_LIMIT:
            return
        choices.append([(lane.lane, pair) for pair in zip(low.tolist(), high.tolist(), strict=True)])
    _search(patient, choices, 0, record_bytes, is_leaf)


def _search(patient: Patient, choices: list[list[tuple[int, tuple[int, int]]]], depth: int, record_bytes: int, is_leaf: LeafCheck) -> bool:
    if depth == len(choices):
        patient.solved = is_leaf(patient.block, patient.data)
        return patient.solved
    for lane, pair in choices[depth]:
        for record in pair:
            patient.data[record * record_bytes + lane // 8] ^= 1 << lane % 8
        if _search(patient, choices, depth + 1, record_bytes, is_leaf):
            return True
        for record in pair:
            patient.data[record * record_bytes + lane // 8] ^= 1 << lane % 8
    return False
