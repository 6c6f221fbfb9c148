"""Decoding a stripe: inner and outer code in turn until nothing changes (SPEC, sections 5 and 6).

A stripe is decoded by itself, since each block lies in one slot of one stripe. The outer code works on symbols; a symbol that is
wrong in one slot at an unknown position is located by Q/P, one or two known-lost symbols are solved for. What the inner code doubts says
which symbols are lost. A block is done when its leaf matches, and from then on it is known and helps the others.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

from bitward_formats import gf256
from bitward_formats.block_decode import LeafCheck, Patient, batch_syndromes, batches, decode_inner_alone, turn_bits
from bitward_formats.geometry import ROWS_PER_SYMBOL
from bitward_formats.groups import LaneGroups
from bitward_formats.inner_decode import Flips, doubt_masks, single_flips
from bitward_formats.stripe_syndrome import StripeSyndrome
from bitward_formats.stripes import from_symbols, symbol_mask, to_symbols

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

ROUNDS_LIMIT = 16
"""Most turns of both codes; damage that can be decoded takes a handful."""
_BURST_VOTES_LEAST = 8
"""A majority of fewer wrong symbols is no burst."""
_DOUBTFUL_BITS_LIMIT = 2
"""Scattered flips put this many bits into one symbol of one slot at the most; more come from bursts."""
_PAIR_SLOTS_LIMIT = 24
"""Beyond so many open slots too many pairs of them explain a symbol by chance."""


class StripeDecoder:
    """Runs both codes in turn over the bad blocks of one stripe."""

    def __init__(self, patients: list[Patient], syndrome: StripeSyndrome, groups: LaneGroups, is_leaf: LeafCheck) -> None:
        self.patients = patients
        self.syndrome = syndrome
        self.groups = groups
        self.is_leaf = is_leaf
        self.symbol_count = syndrome.p.size
        self.guessed = np.zeros(self.symbol_count, np.bool_)
        """Symbols that were solved for two erasures: nothing is left over there to check the solution with."""

    def open_patients(self) -> list[Patient]:
        return [patient for patient in self.patients if not patient.solved]

    def run(self) -> None:
        """Decode until all is solved or nothing changes any more."""
        for _ in range(ROUNDS_LIMIT):
            if not self.open_patients():
                return
            before = self._disorder()
            if self._fits_erasures() and self._erase(self._range_masks()):
                continue
            self._locate_single_errors()
            self._inner()
            if self.open_patients():
                self._erase(self._lost_masks(), self._doubt_masks(bursts_only=True))
            if self._disorder() >= before and not self._guess():
                break
        self._try_even_lanes()

    def _guess(self) -> bool:
        """Where nothing sure is left to do: believe symbols that have one plain explanation; returns whether anything was turned."""
        located = self._locate_single_errors(any_weight=True)
        return self._pair_errors() or located

    def _disorder(self) -> int:
        """Work left: open blocks, wrong symbols and lanes. Falls in every useful round."""
        wrong = np.count_nonzero((self.syndrome.p != 0) & self.syndrome.p_known)
        wrong += np.count_nonzero((self.syndrome.q != 0) & self.syndrome.q_known)
        lanes = 0
        for batch in batches(self.open_patients()):
            lanes += sum(int(np.count_nonzero(group.nonzero)) for group in batch_syndromes(batch, self.groups))
        return int(wrong) + lanes + len(self.open_patients())

    def _positions(self) -> list[int]:
        return sorted({patient.position for patient in self.open_patients()})

    def _to_slot_masks(self, masks: dict[int, Bytes]) -> Bools:
        slots = np.zeros((len(masks), self.symbol_count), np.uint8)
        for row, position in enumerate(sorted(masks)):
            slots[row] = masks[position]
        return symbol_mask(slots, self.syndrome.code.row_bytes)

    def _range_masks(self) -> Bools:
        """(slots, symbols): every symbol of an open block is lost."""
        masks = {position: np.zeros(self.symbol_count, np.uint8) for position in self._positions()}
        for patient in self.open_patients():
            masks[patient.position][patient.place] = 0xFF
        return self._to_slot_masks(masks)

    def _fits_erasures(self) -> bool:
        return int(self._range_masks().sum(axis=0).max(initial=0)) <= 2

    def _lost_masks(self) -> Bools:
        """(slots, symbols) held for lost: what is doubted, narrowed to the parts of burst cells where more than two slots meet."""
        lost = self._doubt_masks()
        crowded = lost.sum(axis=0) > 2
        if crowded.any():
            lost[:, crowded] &= self._doubt_masks(narrowed=True)[:, crowded]
        return lost

    def _doubt_masks(self, *, bursts_only: bool = False, narrowed: bool = False) -> Bools:
        """(slots, symbols): what the inner code doubts or, with ``bursts_only``, holds for bursts; the unreadable; runs of zeros."""
        masks = {position: np.zeros(self.symbol_count, np.uint8) for position in self._positions()}
        for batch in batches(self.open_patients()):
            length = batch[0].block.length
            doubts = doubt_masks(batch_syndromes(batch, self.groups), length, bursts_only=bursts_only, narrowed=narrowed)
            for patient, doubt in zip(batch, doubts, strict=True):
                masks[patient.position][patient.place] |= doubt | _constant_rows(patient.raw)
                if patient.unreadable is not None:
                    masks[patient.position][patient.place] |= patient.unreadable
        return self._to_slot_masks(masks)

    def _inner(self) -> None:
        for batch in batches(self.open_patients()):
            record_bytes = batch[0].block.span.kind.record_bytes
            flips = single_flips(batch_syndromes(batch, self.groups), record_bytes, in_bursts=False)
            for index, patient in enumerate(batch):
                self._turn(patient, flips.of_block(index))
        self._check()

    def _turn(self, patient: Patient, flips: Flips) -> None:
        if flips.byte.size:
            turn_bits(patient.data, flips)
            self.syndrome.turn_bits(patient.position, flips.byte + patient.at, flips.bit)

    def _check(self) -> bool:
        solved = False
        for patient in self.open_patients():
            patient.solved = self.is_leaf(patient.block, patient.data)
            solved |= patient.solved
        return solved

    def _locate_single_errors(self, *, any_weight: bool = False) -> bool:
        """Symbols that are wrong in one slot: Q/P names the slot.

        Two wrong slots can look like one, at a random position. So only two kinds are believed: one wrong bit (two wrong bits give a P of
        weight 0 or 2), and a symbol group most of whose wrong symbols name the same slot, as a burst's do. With ``any_weight`` all are, and
        marked as guessed. Returns whether anything was turned.
        """
        syndrome, code = self.syndrome, self.syndrome.code
        symbols = (syndrome.p_known & syndrome.q_known & (syndrome.p != 0) & (syndrome.q != 0)).nonzero()[0]
        if not symbols.size:
            return False
        values = syndrome.p[symbols]
        ratio = (gf256.LOGARITHM[syndrome.q[symbols]].astype(np.intp) - gf256.LOGARITHM[values]) % gf256.ORDER
        position = syndrome.slot_count - 1 - ratio
        group = symbols // code.symbol_bytes
        votes = np.zeros((self.symbol_count // code.symbol_bytes, gf256.ORDER), np.int64)
        inside = position >= 0
        np.add.at(votes, (group[inside], position[inside]), 1)
        wrong = np.bincount(group, minlength=votes.shape[0])
        majority = (votes >= _BURST_VOTES_LEAST) & (2 * votes > wrong[:, None])
        believed = inside & (any_weight | (np.bitwise_count(values) == 1) | majority[group, position])
        turned = False
        for slot in self._positions():
            mine = symbols[believed & (position == slot)]
            if not mine.size:
                continue
            change = np.zeros(self.symbol_count, np.uint8)
            change[mine] = syndrome.p[mine]
            change &= self._open_planes(slot)
            if any_weight:
                self.guessed |= change != 0
            turned |= bool(change.any())
            self._turn_symbols(slot, change)
        self._check()
        return turned

    def _open_planes(self, position: int) -> Bytes:
        """For each symbol the bits that lie in an open block of the slot at ``position``."""
        mask = np.zeros((1, self.symbol_count), np.uint8)
        for patient in self.open_patients():
            if patient.position == position:
                mask[0, patient.place] = 0xFF
        planes: Bytes = to_symbols(mask, self.syndrome.code.row_bytes)[0]
        return planes

    def _turn_symbols(self, position: int, values: Bytes) -> None:
        """Change a slot's open blocks by ``values``, one byte per symbol."""
        if not values.any():
            return
        change = from_symbols(values[None], self.syndrome.code.row_bytes)[0]
        self.syndrome.turn_symbols(position, values)
        for patient in self.open_patients():
            if patient.position == position:
                patient.data ^= change[patient.place]

    def _pair_errors(self) -> bool:
        """Symbols with two wrong bits in two open slots, where just one pair of slots explains them with one bit each."""
        positions = self._positions()
        if not 2 <= len(positions) <= _PAIR_SLOTS_LIMIT:
            return False
        syndrome = self.syndrome
        symbols = (syndrome.p_known & syndrome.q_known & ((syndrome.p != 0) | (syndrome.q != 0))).nonzero()[0]
        planes = np.stack([self._open_planes(position)[symbols] for position in positions])
        explanations = np.zeros(symbols.size, np.int64)
        changes = np.zeros((len(positions), symbols.size), np.uint8)
        for first, second in combinations(range(len(positions)), 2):
            at_first, at_second = syndrome.solve_pair(symbols, positions[first], positions[second])
            plain = (np.bitwise_count(at_first & planes[first]) == 1) & (np.bitwise_count(at_second & planes[second]) == 1)
            plain &= (np.bitwise_count(at_first) == 1) & (np.bitwise_count(at_second) == 1)
            explanations += plain
            changes[first, plain], changes[second, plain] = at_first[plain], at_second[plain]
        only = explanations == 1
        for row, position in enumerate(positions):
            values = np.zeros(self.symbol_count, np.uint8)
            values[symbols[only]] = changes[row, only]
            self.guessed |= values != 0
            self._turn_symbols(position, values)
        self._check()
        return bool(only.any())

    def _erase(self, lost: Bools, surely: Bools | None = None) -> bool:
        """Solve for lost symbols, one or two of a stripe; returns whether that solved a block.

        Two lost symbols can always be solved for, right or wrong. Where one of them is not ``surely`` lost, only a solution of few bits is
        believed.
        """
        positions = self._positions()
        count = lost.sum(axis=0)
        changes = self.syndrome.solve(lost, count, positions)
        if surely is not None:
            heavy = (np.bitwise_count(changes) > _DOUBTFUL_BITS_LIMIT).any(axis=0)
            changes[:, (count == 2) & heavy & (surely.sum(axis=0) < 2)] = 0
        for row, values in enumerate(changes):
            self.guessed |= (values != 0) & (count == 2)
            self._turn_symbols(positions[row], values & self._open_planes(positions[row]))
        return self._check()

    def _try_even_lanes(self) -> None:
        """Two flips in one lane of one cell leave few candidates; the leaf says which it was."""
        decode_inner_alone(self.patients, self.groups, self.is_leaf)


def _constant_rows(data: Bytes, run_bytes: int = 512) -> Bytes:
    """Masks over runs of 512 equal bytes: weights hardly ever hold them, zeroed regions consist of them."""
    masks = np.zeros(data.size, np.uint8)
    whole = data.size // run_bytes * run_bytes
    rows = data[:whole].reshape(-1, run_bytes)
    masks[:whole].reshape(-1, run_bytes)[(rows == rows[:, :1]).all(axis=1)] = 0xFF
    return masks


def agreed_data(decoder: StripeDecoder, patient: Patient) -> Bytes:
    """What both codes agree on for a block whose leaf does not match, for best-effort repair only.

    The file's own bytes, but with corrections in lanes and symbols that are left without any syndrome, and in no symbol that was solved
    for two erasures; a cell that was a burst counts as one, so that none of its lanes is believed before all are.
    """
    groups, kind = decoder.groups, patient.block.span.kind
    after = batch_syndromes([patient], groups)
    now, patient.data = patient.data, patient.raw
    before = batch_syndromes([patient], groups)
    patient.data = now
    unsettled = np.zeros(patient.block.length, np.uint8)
    for raw, final in zip(before, after, strict=True):
        wrong = final.nonzero[0] & final.lanes
        wrong |= ((raw.bursts()[0] & wrong.any(axis=1))[:, None]) & final.lanes
        if not final.known[0]:
            wrong |= final.lanes
        cells = np.packbits(wrong, axis=-1, bitorder="little")
        unsettled |= np.repeat(cells, final.cell_stride, axis=0)[: final.record_count].reshape(-1)[: patient.block.length]
    assert unsettled.size == patient.block.length // kind.record_bytes * kind.record_bytes
    syndrome = decoder.syndrome
    wrong_symbols = ((syndrome.p != 0) & syndrome.p_known) | ((syndrome.q != 0) & syndrome.q_known) | decoder.guessed
    columns = np.packbits(wrong_symbols.reshape(-1, syndrome.code.symbol_bytes), axis=-1, bitorder="little")
    outer = np.repeat(columns, ROWS_PER_SYMBOL, axis=0).reshape(-1)[patient.place]
    return np.asarray(patient.raw ^ ((patient.raw ^ patient.data) & ~unsettled & ~outer))
