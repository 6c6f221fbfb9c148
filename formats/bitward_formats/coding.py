"""What a coder of files asks of the codes, on plain buffers: by the native kernel alone where it can do all of it, else by NumPy.

Buffers are writable memoryviews of bytes. NumPy is loaded only for the second way: a command that protects with the kernel starts in
half the time and needs a third less memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bitward_formats import native
from bitward_formats.geometry import CodeClass
from bitward_formats.groups import LaneGroups, Selector
from bitward_formats.native import Kernel
from bitward_formats.pages import PAGE_BYTES, Section, pages_for
from bitward_formats.spans import RecordKind


class Accumulator(Protocol):
    """P and Q of neighbouring stripes of one zone, fed with slots position by position, none left out."""

    def add(self, position: int, first_stripe: int, slots: memoryview) -> None:
        """Add the slots at ``position`` of stripes ``first_stripe …``, which this uses up."""

    def result(self) -> tuple[memoryview, memoryview]:
        """(P, Q), a slot for each stripe."""


class Coding(Protocol):
    """The codes of a file under its lane groups."""

    def accumulator(self, code: CodeClass, stripe_count: int, scratch: memoryview) -> Accumulator:
        """For ``stripe_count`` stripes, in the first 2 · stripe_count · slot_bytes of ``scratch``."""

    def put_inner_blobs(self, blocks: memoryview, block_bytes: int, kind: RecordKind, blobs: memoryview) -> None:
        """The inner blobs of equally long blocks, one after the other, into ``blobs``."""

    def stored_parity(self, code: CodeClass, parity: memoryview, sizes: Sequence[int]) -> memoryview:
        """P or Q of neighbouring stripes as they are stored: cut to ``sizes`` (bytes used of each), with the lanes that the class keeps."""

    def pages(self, stream: memoryview, section: Section, first_page: int, salt: int, scratch: memoryview) -> memoryview:
        """A stream as sidecar pages of copy 0, in ``scratch``."""


def coding_for(groups: LaneGroups) -> Coding:
    """The kernel alone keeps all lanes in one group of cells that are large enough for it; everything else takes NumPy."""
    kernel = native.KERNEL
    if (
        kernel is not None
        and len(groups) == 1
        and groups[0].selector is Selector.ALL
        and groups[0].stripe_slots
        and groups[0].cell_log2 >= native.SMALLEST_CELL_LOG2
    ):
        return NativeCoding(kernel, groups[0].cell_log2)
    from bitward_formats.numpy_coding import NumpyCoding

    return NumpyCoding(groups)


class _NativeAccumulator:
    def __init__(self, kernel: Kernel, code: CodeClass, stripe_count: int, scratch: memoryview) -> None:
        self._kernel, self._row_bytes, self._slot_bytes = kernel, code.row_bytes, code.slot_bytes
        size = stripe_count * code.slot_bytes
        self._p, self._q = scratch[:size], scratch[size : 2 * size]
        self._positions = [0] * stripe_count

    def add(self, position: int, first_stripe: int, slots: memoryview) -> None:
        low, count = first_stripe * self._slot_bytes, len(slots) // self._slot_bytes
        stripes = slice(first_stripe, first_stripe + count)
        if any(one != position for one in self._positions[stripes]):
            raise ValueError(f"slots of position {position} out of turn")
        self._positions[stripes] = [position + 1] * count
        p, q = self._p[low : low + len(slots)], self._q[low : low + len(slots)]
        if position:
            self._kernel.add_slots(p, q, slots, self._row_bytes)
        else:  # the first slot is P and Q: nothing had to be there before
            p[:] = slots
            q[:] = slots

    def result(self) -> tuple[memoryview, memoryview]:
        return self._p, self._q


class NativeCoding:
    """One group of all lanes, with outer code, by the kernel."""

    def __init__(self, kernel: Kernel, cell_log2: int) -> None:
        self._kernel, self._cell_log2 = kernel, cell_log2

    def accumulator(self, code: CodeClass, stripe_count: int, scratch: memoryview) -> Accumulator:
        """See ``Coding.accumulator``."""
        return _NativeAccumulator(self._kernel, code, stripe_count, scratch)

    def put_inner_blobs(self, blocks: memoryview, block_bytes: int, kind: RecordKind, blobs: memoryview) -> None:
        """See ``Coding.put_inner_blobs``."""
        count = len(blocks) // block_bytes
        self._kernel.inner_parity(blocks, count, kind.record_bytes, self._cell_log2, blobs, trimmed=True)

    def stored_parity(self, code: CodeClass, parity: memoryview, sizes: Sequence[int]) -> memoryview:
        """See ``Coding.stored_parity``."""
        if all(size == code.slot_bytes for size in sizes):
            return parity  # the usual case needs no copy
        starts = range(0, len(parity), code.slot_bytes)
        return memoryview(bytearray(b"".join([parity[at : at + size] for at, size in zip(starts, sizes, strict=True)])))

    def pages(self, stream: memoryview, section: Section, first_page: int, salt: int, scratch: memoryview) -> memoryview:
        """See ``Coding.pages``."""
        pages = scratch[: pages_for(len(stream)) * PAGE_BYTES]
        self._kernel.pages(stream, section, first_page, salt, pages)
        return pages
