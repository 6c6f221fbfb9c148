"""Which bits of a file may be flipped: chosen by a layout, counted, drawn and named. Reads and writes nothing.

The places that a fault may hit are a list of *runs*: equal records in a row and, for each number of a record (an element, a code or a
scale), the lanes that may be hit. All runs together make one long number line of places, on which a fault is drawn as one number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import log, log1p
from random import Random

from bitward_formats import records
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span

ElementLanes = tuple[tuple[int, ...], ...]
"""For each number of a record the lanes of the record that may be hit; numbers without any are left out."""

LaneChoice = Callable[[Span], ElementLanes]


class InjectRefusedError(ValueError):
    """What was asked for cannot be done to this file; nothing was written."""


@dataclass(frozen=True, slots=True)
class Element:
    """The element of a file that holds a bit. An opaque byte has no name and no index."""

    tensor: str | None
    index: tuple[int, ...]
    bit: int


@dataclass(frozen=True, slots=True)
class Run:
    """``records`` records from ``offset`` on."""

    offset: int
    records: int
    record_bytes: int
    lanes: ElementLanes


def _split(span: Span, wanted: Callable[[int, int], bool]) -> ElementLanes:
    """The lanes of a record that ``wanted(lane, bit of its number)`` picks, by number. Nothing of a span that is no tensor."""
    if span.role is not Role.TENSOR:
        return ()
    form = records.form_of_span(span)
    lanes = (tuple(lane for bit, lane in enumerate(form.stored_lanes(number)) if wanted(lane, bit)) for number in form.numbers)
    return tuple(one for one in lanes if one)


def every_bit(span: Span) -> ElementLanes:
    """All bits of any span, a tensor or not."""
    return (tuple(range(8 * records.form_of_span(span).kind.record_bytes)),)


def every_lane(span: Span) -> ElementLanes:
    """All bits of the tensors."""
    return _split(span, lambda _lane, _bit: True)


def critical_lanes(span: Span) -> ElementLanes:
    """The bits of the tensors whose flip changes a value by orders of magnitude."""
    mask = records.form_of_span(span).kind.critical_mask
    return _split(span, lambda lane, _bit: bool(mask[lane // 8] >> lane % 8 & 1))


def one_bit(bit: int) -> LaneChoice:
    """One bit of each number (element, code, scale) that has so many bits; it counts from the least significant."""

    return lambda span: _split(span, lambda _lane, its_bit: its_bit == bit)


def runs_of(layout: Layout, choice: LaneChoice, taken: Sequence[range]) -> list[Run]:
    """The runs of the chosen lanes in the order of the file, without records that touch one of the ``taken`` byte ranges."""
    runs = []
    for span in layout.spans:
        lanes = choice(span) if span.length else ()
        if lanes:
            size = records.form_of_span(span).kind.record_bytes
            runs += [Run(start, (stop - start) // size, size, lanes) for start, stop in _free(span, taken)]
    return runs


def _free(span: Span, taken: Sequence[range]) -> Iterator[tuple[int, int]]:
    """Byte ranges of whole records of a span which touch none of the taken ranges."""
    size = records.form_of_span(span).kind.record_bytes
    start = span.offset
    for one in sorted(taken, key=lambda each: each.start):
        low, high = max(one.start, span.offset), min(one.stop, span.end)
        if low >= high:
            continue
        stop = span.offset + (low - span.offset) // size * size
        if stop > start:
            yield start, stop
        start = max(start, span.offset - (span.offset - high) // size * size)
    if start < span.end:
        yield start, span.end


def _located(lengths: Sequence[int], numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """For each of some ascending numbers on the line of stretches laid end to end: which stretch, and how far into it."""
    ends = list(accumulate(lengths))
    stretch = 0
    for number in numbers:
        while number >= ends[stretch]:
            stretch += 1
        yield stretch, number - ends[stretch] + lengths[stretch]


def draw_flips(runs: Sequence[Run], count: int, rng: Random) -> Iterator[tuple[int, int]]:
    """``count`` distinct bits, evenly drawn, as (byte offset, bit of the byte) in ascending order of offsets.

    Raises InjectRefusedError if there are fewer.
    """
    flat = [sorted(lane for lanes in run.lanes for lane in lanes) for run in runs]
    lengths = [run.records * len(lanes) for run, lanes in zip(runs, flat, strict=True)]
    if count > sum(lengths):
        raise InjectRefusedError(f"{count:,} flips asked for, but only {sum(lengths):,} such bits are there")
    for which, place in _located(lengths, sorted(rng.sample(range(sum(lengths)), count))):
        run, lanes = runs[which], flat[which]
        record, position = divmod(place, len(lanes))
        yield run.offset + record * run.record_bytes + lanes[position] // 8, lanes[position] % 8


def draw_rate(runs: Sequence[Run], rate: float, rng: Random) -> Iterator[tuple[int, int]]:
    """Each element is hit with probability ``rate`` in one bit drawn evenly from its lanes; ascending elements.

    The gaps between hits are drawn (they are geometric), so that the work grows with the hits and not with the file.
    """
    if not 0 < rate <= 1:
        raise InjectRefusedError("the rate must be above 0 and at most 1")
    lengths = [run.records * len(run.lanes) for run in runs]

    total = sum(lengths)

    def hits() -> Iterator[int]:
        at = -1
        while True:
            at += 1 if rate == 1 else 1 + int(log(1 - rng.random()) / log1p(-rate))
            if at >= total:
                return
            yield at

    for which, place in _located(lengths, hits()):
        run = runs[which]
        record, element = divmod(place, len(run.lanes))
        lane = rng.choice(run.lanes[element])
        yield run.offset + record * run.record_bytes + lane // 8, lane % 8


class Names:
    """Names the element that holds a bit of the file."""

    def __init__(self, layout: Layout) -> None:
        self._spans = [span for span in layout.spans if span.length]
        self._starts = [span.offset for span in self._spans]

    def __call__(self, offset: int, bit: int) -> Element:
        span = self._spans[bisect_right(self._starts, offset) - 1]
        if span.role is not Role.TENSOR:
            return Element(None, (), bit)
        form = records.form_of_span(span)
        record, byte = divmod(offset - span.offset, form.kind.record_bytes)
        which, its_bit = form.places[8 * byte + bit]
        place = record * form.elements + form.numbers[which].element
        return Element(span.name, records.locator(span, form)(place), its_bit)
