"""Syndromes of the outer code (SPEC, section 6), and what follows from them symbol by symbol."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitward_formats import gf256
from bitward_formats.geometry import ROWS_PER_SYMBOL, CodeClass

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]


@dataclass(slots=True)
class StripeSyndrome:
    """P and Q syndromes, one byte per symbol, of what ``patients`` now hold. ``p_known``/``q_known``: which symbols have parity."""

    code: CodeClass
    slot_count: int
    p: Bytes
    q: Bytes
    p_known: Bools
    q_known: Bools

    def exponent(self, position: int) -> int:
        """The power of 2 that weighs a slot in Q."""
        return self.slot_count - 1 - position

    def symbol_of(self, byte: Index, bit: Index | int) -> Index:
        """The symbols that hold bits of a slot."""
        row, column = np.divmod(byte, self.code.row_bytes)
        return np.asarray(row // ROWS_PER_SYMBOL * self.code.symbol_bytes + 8 * column + bit)

    def turn_bits(self, position: int, byte: Index, bit: Index) -> None:
        """Account for turned bits of a slot."""
        symbol = self.symbol_of(byte, bit)
        value = (1 << byte // self.code.row_bytes % ROWS_PER_SYMBOL).astype(np.uint8)
        np.bitwise_xor.at(self.p, symbol, value)
        np.bitwise_xor.at(self.q, symbol, gf256.multiply_by_power(value, self.exponent(position)))

    def turn_symbols(self, position: int, values: Bytes) -> None:
        """Account for a slot's change, given as one byte per symbol."""
        self.p ^= values
        self.q ^= gf256.multiply_by_power(values, self.exponent(position))

    def solve(self, lost: Bools, count: npt.NDArray[np.int64], positions: list[int]) -> Bytes:
        """Changes (slots, symbols) that explain the syndromes as they are now, where one or two slots of a symbol are lost.

        ``lost`` is (slots, symbols) with a row for each of ``positions``, ``count`` its sum over the slots.
        """
        width = lost.shape[1]
        weights = np.array([self.exponent(position) for position in positions], np.int16)
        changes = np.zeros((len(positions), width), np.uint8)
        one = (count == 1) & (self.p_known | self.q_known)
        symbols = one.nonzero()[0]
        rows = lost[:, symbols].argmax(axis=0)
        from_p, from_q = self.p[symbols], gf256.multiply_by_power(self.q[symbols], -weights[rows])
        both = self.p_known[symbols] & self.q_known[symbols]
        value = np.where(self.p_known[symbols], from_p, from_q)
        value[both & (from_p != from_q)] = 0  # one lost symbol does not explain both syndromes
        changes[rows, symbols] = value
        symbols = ((count == 2) & self.p_known & self.q_known).nonzero()[0]
        first = lost[:, symbols].argmax(axis=0)
        second = len(positions) - 1 - lost[::-1, symbols].argmax(axis=0)
        p, q = self.p[symbols], self.q[symbols]
        numerator = gf256.multiply_by_power(p, weights[second]) ^ q
        divisor = gf256.POWER[weights[first]] ^ gf256.POWER[weights[second]]
        at_first = gf256.divide(numerator, divisor)
        changes[first, symbols] = at_first
        changes[second, symbols] = at_first ^ p
        return changes

    def solve_pair(self, symbols: Index, first: int, second: int) -> tuple[Bytes, Bytes]:
        """The changes of the slots at two positions that explain the syndromes of ``symbols``."""
        p, q = self.p[symbols], self.q[symbols]
        divisor = gf256.POWER[[self.exponent(first)]] ^ gf256.POWER[[self.exponent(second)]]
        at_first = gf256.divide(gf256.multiply_by_power(p, self.exponent(second)) ^ q, np.broadcast_to(divisor, p.shape))
        return at_first, at_first ^ p
