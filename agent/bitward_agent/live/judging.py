"""Flipped, or changed on purpose: the judgement about weights in a process's memory. Pure.

A file that was written to has a new modification time; memory has none. A page that is the process's own may be written to at any
moment, by an optimiser or by somebody who edits a model. So what differs has to look like flips: single bits, far apart. It does not

- if it is dense and wide within its tensor, by the numbers that judge a rewritten file (``rewrite``);
- if elements differ in several bits each: arithmetic and assignment change the whole of a number, a fault one bit of it;
- if a good part of a tensor's few elements differ;
- if it is a lone integer: that counts something, such as the batches that a normalisation layer has seen;
- if none differs by more than a few units in the last place: so small steps round in 16-bit floats.

A burst of wrong bytes looks like an assignment. It is told as changed, not healed: nobody but the process knows what was meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitward_agent.rewrite import DENSE_SHARE
from bitward_formats import records
from bitward_formats.spans import Span

Bytes = npt.NDArray[np.uint8]

_FEW_ELEMENTS = 16
"""Up to so many elements of a tensor may differ in a few bits each: a bad cell of memory can flip neighbours too."""
_BITS_PER_ELEMENT_OF_FEW = 3.0
_BITS_PER_ELEMENT = 1.5
"""Wrong bits for each element that is wrong. Scattered flips have just above 1. A step of the smallest size in a float has 2 on average,
as carries run on; larger ones have more."""

_SHARE_OF_ELEMENTS = 0.25
_SEVERAL_ELEMENTS = 3
_LAST_PLACES = 4
"""Two floats whose bits, read as integers, are no further apart differ by a few units in the last place."""


def element_bytes(span: Span) -> int:
    """Bytes that are counted as one element: those of a plain number; single bytes in opaque spans and blocks of codes."""
    form = records.form_of_span(span)
    return form.kind.record_bytes if form.elements == 1 and span.length % form.kind.record_bytes == 0 else 1


@dataclass(slots=True)
class SpanDifferences:
    """What differs in one tensor, block by block: bits, elements, and over which bytes of the span."""

    span: Span
    bits: int = 0
    elements: int = 0
    low: int = -1
    high: int = 0
    only_last_places: bool = True

    def add(self, at: int, found: Bytes, correct: Bytes) -> None:
        """Take in a block's bytes that begin ``at`` bytes behind the span's start, as far as they differ; ``at`` is at an element."""
        difference = found ^ correct
        places = difference.nonzero()[0]
        if not places.size:
            return
        self.bits += int(np.bitwise_count(difference[places]).sum())
        size = element_bytes(self.span)
        elements = np.unique(places // size)
        self.elements += int(elements.size)
        if self.only_last_places:
            self.only_last_places = size in (2, 4, 8) and self._is_in_last_places(elements, size, found, correct)
        self.low = at + int(places[0]) if self.low < 0 else min(self.low, at + int(places[0]))
        self.high = max(self.high, at + int(places[-1]) + 1)

    def _is_in_last_places(self, elements: npt.NDArray[np.intp], size: int, found: Bytes, correct: Bytes) -> bool:
        integers = f"{'>' if '.BE' in self.span.dtype else '<'}u{size}"
        one, other = (np.ascontiguousarray(data).view(integers)[elements] for data in (found, correct))
        return bool((np.maximum(one, other) - np.minimum(one, other) <= _LAST_PLACES).all())

    @property
    def is_change(self) -> bool:
        """Whether this looks like something that the process did."""
        if self.bits and self.span.length == element_bytes(self.span) and self.span.dtype.startswith(("I", "U")):
            return True
        few = self.elements <= _FEW_ELEMENTS
        if self.bits > (_BITS_PER_ELEMENT_OF_FEW if few else _BITS_PER_ELEMENT) * self.elements:
            return True
        if self.elements >= _SEVERAL_ELEMENTS:
            count = self.span.length // element_bytes(self.span)
            if self.only_last_places or self.elements > _SHARE_OF_ELEMENTS * count:
                return True
        wide = 2 * (self.high - self.low) > self.span.length
        return not few and wide and self.bits > DENSE_SHARE * 8 * self.span.length
