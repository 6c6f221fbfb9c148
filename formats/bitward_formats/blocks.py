"""Blocks: up to 64 KiB of one span, numbered through the file. The unit of hashing and of loss."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Span


@dataclass(frozen=True, slots=True)
class Block:
    """``number`` counts through the file, ``index`` within the span; ``offset`` and ``length`` are bytes of the file."""

    number: int
    index: int
    offset: int
    length: int
    span: Span

    @property
    def is_full(self) -> bool:
        return self.length == self.span.kind.block_bytes

    @property
    def end(self) -> int:
        return self.offset + self.length


class BlockTable:
    """Finds blocks of a layout by number and by offset without listing them all."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.first_numbers: list[int] = []
        number = 0
        for span in layout.spans:
            self.first_numbers.append(number)
            number += span.block_count
        self.count = number
        self._offsets = [span.offset for span in layout.spans]

    def __len__(self) -> int:
        return self.count

    def of_span(self, span_index: int, index: int) -> Block:
        """Block ``index`` of a span."""
        span = self.layout.spans[span_index]
        block_bytes = span.kind.block_bytes
        start = index * block_bytes
        return Block(self.first_numbers[span_index] + index, index, span.offset + start, min(block_bytes, span.length - start), span)

    def __getitem__(self, number: int) -> Block:
        if not 0 <= number < self.count:
            raise IndexError(number)
        span_index = bisect_right(self.first_numbers, number) - 1
        return self.of_span(span_index, number - self.first_numbers[span_index])

    def __iter__(self) -> Iterator[Block]:
        for span_index, span in enumerate(self.layout.spans):
            for index in range(span.block_count):
                yield self.of_span(span_index, index)

    def at_offset(self, offset: int) -> Block:
        """The block that holds a byte of the file."""
        span_index = self.span_index_at(offset)
        span = self.layout.spans[span_index]
        return self.of_span(span_index, (offset - span.offset) // span.kind.block_bytes)

    def span_index_at(self, offset: int) -> int:
        """Which span of the layout holds a byte of the file."""
        if not 0 <= offset < self.layout.file_bytes:
            raise IndexError(offset)
        # Empty spans share their offset with the next span: bisect_right lands on the last one, which holds the byte.
        return bisect_right(self._offsets, offset) - 1
