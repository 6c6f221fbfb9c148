"""From differing bytes to flips: tensor, index, bit, field, value before and after."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bitward_agent.findings import Flip
from bitward_formats import records
from bitward_formats.blocks import Block
from bitward_formats.errors import UnknownDtypeError
from bitward_formats.spans import Role

Bytes = npt.NDArray[np.uint8]


def count_flips(found: Bytes, correct: Bytes) -> int:
    """Bits that differ between two blocks of bytes."""
    return int(np.bitwise_count(found ^ correct).sum())


def list_flips(block: Block, found: Bytes, correct: Bytes, limit: int) -> tuple[Flip, ...]:
    """The first ``limit`` flips of a block, in the order of their offsets."""
    difference = found ^ correct
    at = difference.nonzero()[0][:limit]
    byte, bit = np.unpackbits(difference[at, None], axis=1, bitorder="little").nonzero()
    return _BlockFlips(block, found, correct).at(at[byte][:limit], bit[:limit])


class _BlockFlips:
    """Names flips of one block; values are decoded once for each element, as a lost block has many flips in each."""

    def __init__(self, block: Block, found: Bytes, correct: Bytes) -> None:
        span = block.span
        self.block = block
        self.start = block.offset - span.offset
        self.tensor = span.name if span.role is Role.TENSOR else None
        try:
            self.width = records.element_bits(span.dtype)
            self.dtype = span.dtype
        except UnknownDtypeError:  # a layout that another version made: its bytes can be told, its values cannot
            self.width, self.dtype = 8, ""
        whole = math.prod(span.dims) * self.width == 8 * span.length
        self.dims = span.dims if self.tensor is not None and whole else None
        self.data = [found.tobytes(), correct.tobytes()]
        self.fields = [records.field_of(self.dtype, bit) for bit in range(self.width)]

    def at(self, byte: npt.NDArray[np.intp], bit: npt.NDArray[np.intp]) -> tuple[Flip, ...]:
        """Flips at bits of bytes of the block, in ascending order."""
        element, element_bit = np.divmod(8 * (self.start + byte) + bit, self.width)
        flips: list[Flip] = []
        known: int | None = None
        index: tuple[int, ...] = ()
        found: float | int | str = 0
        correct: float | int | str = 0
        for one, its_bit, offset in zip(element.tolist(), element_bit.tolist(), (byte + self.block.offset).tolist(), strict=True):
            if one != known:
                known, found, correct = one, self._value(0, one), self._value(1, one)
                index = (one,) if self.dims is None else records.unravel(one, self.dims)
            flips.append(Flip(self.tensor, index, its_bit, self.fields[its_bit], offset, found, correct))
        return tuple(flips)

    def _value(self, which: int, element: int) -> float | int | str:
        low = element * self.width // 8 - self.start
        high = -(-(element + 1) * self.width // 8) - self.start
        bits = int.from_bytes(self.data[which][max(low, 0) : max(high, 0)], "little") >> element * self.width % 8
        return records.decode_element(self.dtype, bits & ((1 << self.width) - 1))
