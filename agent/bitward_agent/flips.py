"""From differing bytes to flips: tensor, index, bit, field, value before and after."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitward_agent.findings import Flip
from bitward_formats import records
from bitward_formats.blocks import Block
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
    """Names flips of one block; values are worked out once for each number, as a lost block has many flips in each."""

    def __init__(self, block: Block, found: Bytes, correct: Bytes) -> None:
        span = block.span
        self.block = block
        self.start = block.offset - span.offset
        self.tensor = span.name if span.role is Role.TENSOR else None
        self.form = records.form_of_span(span)
        self.record_bytes = self.form.kind.record_bytes
        self.locate = records.locator(span, self.form) if self.tensor is not None else None
        self.data = [found.tobytes(), correct.tobytes()]

    def at(self, byte: npt.NDArray[np.intp], bit: npt.NDArray[np.intp]) -> tuple[Flip, ...]:
        """Flips at bits of bytes of the block, in ascending order."""
        record, lane = np.divmod(8 * (self.start + byte) + bit, 8 * self.record_bytes)
        flips: list[Flip] = []
        known: tuple[int, int] | None = None
        index: tuple[int, ...] = ()
        found: records.Value = 0
        correct: records.Value = 0
        for one, its_lane, offset in zip(record.tolist(), lane.tolist(), (byte + self.block.offset).tolist(), strict=True):
            which, its_bit = self.form.places[its_lane]
            number = self.form.numbers[which]
            if (one, which) != known:
                known, found, correct = (one, which), self._value(0, one, number), self._value(1, one, number)
                place = one * self.form.elements + number.element
                index = (place,) if self.locate is None else self.locate(place)
            flips.append(Flip(self.tensor, index, its_bit, number.field_of(its_bit), offset, found, correct))
        return tuple(flips)

    def _value(self, which: int, record: int, number: records.Number) -> records.Value:
        low = record * self.record_bytes - self.start
        return self.form.value(number, self.form.straight(self.data[which][low : low + self.record_bytes]))
