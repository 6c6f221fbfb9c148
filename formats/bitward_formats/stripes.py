"""The outer code (SPEC, section 6): P and Q of stripes, by XOR alone.

Symbols of GF(2^8) are bit-sliced over eight neighbouring rows, so times 2 is a rotation of row planes and three XORs.
The rotation is never carried out by NumPy while coding: the planes of Q keep a moving base instead. The native kernel rotates as it goes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitward_formats import native
from bitward_formats.geometry import ROWS_PER_SYMBOL, CodeClass

Bytes = npt.NDArray[np.uint8]
_FEEDBACK_PLANES = slice(2, 5)  # 0x11d without x^8 and 1: where the bit that leaves at the top comes back in besides plane 0


def word_dtype(row_bytes: int) -> np.dtype[Any]:
    """The widest word that divides a row."""
    return np.dtype(f"u{next(size for size in (8, 4, 2, 1) if row_bytes % size == 0)}")


def as_planes(slots: Bytes, row_bytes: int) -> npt.NDArray[Any]:
    """Slots (…, slot_bytes) u8 -> (…, symbol groups, 8 planes, words of a row)."""
    words = slots.view(word_dtype(row_bytes))
    return words.reshape(*slots.shape[:-1], -1, ROWS_PER_SYMBOL, row_bytes // words.itemsize)


class StripeAccumulator:
    """P and Q of neighbouring stripes of one zone, fed with slots position by position.

    Every stripe gets its slots in order of position, none left out. Memory: 2 · stripe_count · slot_bytes, of which ``scratch``, an array
    of that many bytes or more, can be given again and again: fresh pages cost more than the XOR.
    """

    def __init__(self, code: CodeClass, stripe_count: int, scratch: Bytes | None = None) -> None:
        self._row_bytes = code.row_bytes
        size = stripe_count * code.slot_bytes
        both = np.empty(2 * size, np.uint8) if scratch is None else scratch[: 2 * size]
        self._p, self._q = both[:size].reshape(stripe_count, code.slot_bytes), both[size:].reshape(stripe_count, code.slot_bytes)
        self._q_planes = as_planes(self._q, code.row_bytes)
        self._positions = np.zeros(stripe_count, np.int64)
        self._kernel = native.KERNEL

    def add(self, position: int, first_stripe: int, slots: Bytes) -> None:
        """Add the slots at ``position`` of stripes ``first_stripe …``: (stripes, slot_bytes) u8, which this uses up.

        What the multiplication of Q feeds back goes into the slots on their way to Q: they are in the cache, Q is not.
        """
        stripes = slice(first_stripe, first_stripe + slots.shape[0])
        if (self._positions[stripes] != position).any():
            raise ValueError(f"slots of position {position} out of turn")
        self._positions[stripes] += 1
        if position == 0:  # the first slot is P and Q: nothing had to be there before
            self._p[stripes] = slots
            self._q[stripes] = slots
            return
        p = self._p[stripes]
        if self._kernel is not None:
            self._kernel.add_slots(p, self._q[stripes], np.ascontiguousarray(slots), self._row_bytes)  # type: ignore[arg-type]  # buffers
            return
        words = word_dtype(slots.shape[1])
        np.bitwise_xor(p.view(words), slots.view(words), out=p.view(words))
        planes, q = as_planes(slots, self._row_bytes), self._q_planes[stripes]
        base = -position % ROWS_PER_SYMBOL  # plane b of the symbols lies at (b + base) mod 8
        fed = planes[:, :, _FEEDBACK_PLANES]
        np.bitwise_xor(fed, q[:, :, base, None], out=fed)
        upper, lower = q[:, :, base:], q[:, :, :base]
        np.bitwise_xor(upper, planes[:, :, : ROWS_PER_SYMBOL - base], out=upper)
        if base:
            np.bitwise_xor(lower, planes[:, :, ROWS_PER_SYMBOL - base :], out=lower)

    def result(self) -> tuple[Bytes, Bytes]:
        """(P, Q), each (stripes, slot_bytes) u8."""
        if self._kernel is not None:
            return self._p, self._q
        turned = np.empty_like(self._q)
        planes = as_planes(turned, self._row_bytes)
        for slot_count in sorted(set(self._positions.tolist())):  # two values at the most: stripes of a zone differ in length by one
            chosen = (self._positions == slot_count).nonzero()[0]
            stripes = slice(chosen[0], chosen[-1] + 1)
            base = -(slot_count - 1) % ROWS_PER_SYMBOL
            planes[stripes, :, : ROWS_PER_SYMBOL - base] = self._q_planes[stripes, :, base:]
            planes[stripes, :, ROWS_PER_SYMBOL - base :] = self._q_planes[stripes, :, :base]
        return self._p, turned


_SQUARE = np.dtype("<u8")
_EXCHANGES = tuple(
    (np.uint64(shift), np.uint64(mask)) for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))
)


def to_symbols(slots: Bytes, row_bytes: int) -> Bytes:
    """Bit-sliced slots (n, bytes) u8 -> one byte per symbol (n, bytes) u8, in the order of symbol group, then bit column."""
    count, size = slots.shape
    columns = np.ascontiguousarray(slots.reshape(count, -1, ROWS_PER_SYMBOL, row_bytes).swapaxes(2, 3))
    return _transposed(columns).reshape(count, size)


def from_symbols(symbols: Bytes, row_bytes: int) -> Bytes:
    """Undo :func:`to_symbols`."""
    count, size = symbols.shape
    columns = _transposed(symbols.copy()).reshape(count, -1, row_bytes, ROWS_PER_SYMBOL)
    return np.ascontiguousarray(columns.swapaxes(2, 3)).reshape(count, size)


def _transposed(squares: Bytes) -> Bytes:
    """Squares of 8 × 8 bits, 8 bytes each, transposed in place: bit b of byte r becomes bit r of byte b.

    Off-diagonal blocks of 1, 2 and 4 bits are exchanged in turn (Warren, Hacker's Delight, 7-3). Packing bits along an axis does the same
    some 18 times as slowly, and took most of the time of decoding.
    """
    words = squares.reshape(-1).view(_SQUARE)
    for shift, mask in _EXCHANGES:
        change = words >> shift
        change ^= words
        change &= mask
        words ^= change
        change <<= shift
        words ^= change
    return words.view(np.uint8)


def symbol_mask(masks: Bytes, row_bytes: int) -> npt.NDArray[np.bool_]:
    """Bit masks over slots (n, bytes) u8 -> (n, bytes) bool per symbol: whether any of its eight bits is marked."""
    count, size = masks.shape
    columns = np.bitwise_or.reduce(masks.reshape(count, -1, ROWS_PER_SYMBOL, row_bytes), axis=2)
    return np.unpackbits(columns, axis=-1, bitorder="little").reshape(count, size).astype(np.bool_)
