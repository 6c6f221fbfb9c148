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
    places = difference.nonzero()[0][:limit]
    flips: list[Flip] = []
    describe = _element_describer(block)
    for at in places.tolist():
        wrong = int(difference[at])
        for bit in range(8):
            if wrong >> bit & 1:
                flips.append(describe(at, bit, found, correct))  # noqa: PERF401  # two loops deep
    return tuple(flips[:limit])


class _element_describer:  # noqa: N801  # used like a function: built once for a block, called for each flip
    def __init__(self, block: Block) -> None:
        span = block.span
        self.start = block.offset - span.offset
        self.file_offset = block.offset
        self.tensor = span.name if span.role is Role.TENSOR else None
        try:
            self.width = records.element_bits(span.dtype)
            self.dtype = span.dtype
        except UnknownDtypeError:  # a layout that another version made: its bytes can be told, its values cannot
            self.width, self.dtype = 8, ""
        whole = math.prod(span.dims) * self.width == 8 * span.length
        self.dims = span.dims if self.tensor is not None and whole else None

    def __call__(self, at: int, bit: int, found: Bytes, correct: Bytes) -> Flip:
        element, element_bit = divmod(8 * (self.start + at) + bit, self.width)
        low = element * self.width // 8 - self.start
        high = -(-(element + 1) * self.width // 8) - self.start
        shift = element * self.width % 8
        mask = (1 << self.width) - 1
        values = [int.from_bytes(data[low:high].tobytes(), "little") >> shift & mask for data in (found, correct)]
        return Flip(
            tensor=self.tensor,
            index=(element,) if self.dims is None else records.unravel(element, self.dims),
            bit=element_bit,
            field=records.field_of(self.dtype, element_bit),
            offset=self.file_offset + at,
            found=records.decode_element(self.dtype, values[0]),
            correct=records.decode_element(self.dtype, values[1]),
        )
