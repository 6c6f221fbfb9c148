"""The codes of a file by NumPy, on the buffers of ``coding``: any lane groups, any cells, and machines without the native kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitward_formats.coding import Accumulator
from bitward_formats.geometry import CodeClass
from bitward_formats.groups import LaneGroups
from bitward_formats.lanes import inner_blobs
from bitward_formats.packing import pack_lanes
from bitward_formats.packing_sizes import is_all_lanes
from bitward_formats.page_arrays import paginate_array
from bitward_formats.pages import Section
from bitward_formats.spans import RecordKind
from bitward_formats.stripes import StripeAccumulator

Bytes = npt.NDArray[np.uint8]


def _array(buffer: memoryview) -> Bytes:
    return np.frombuffer(buffer, np.uint8)


def _view(array: Bytes) -> memoryview:
    return memoryview(array.reshape(-1))  # type: ignore[arg-type]  # arrays are buffers


class _NumpyAccumulator:
    def __init__(self, code: CodeClass, stripe_count: int, scratch: memoryview) -> None:
        self._slot_bytes = code.slot_bytes
        self._sums = StripeAccumulator(code, stripe_count, _array(scratch))

    def add(self, position: int, first_stripe: int, slots: memoryview) -> None:
        self._sums.add(position, first_stripe, _array(slots).reshape(-1, self._slot_bytes))

    def result(self) -> tuple[memoryview, memoryview]:
        p, q = self._sums.result()
        return _view(p), _view(q)


class NumpyCoding:
    """Any lane groups."""

    def __init__(self, groups: LaneGroups) -> None:
        self._groups = groups

    def accumulator(self, code: CodeClass, stripe_count: int, scratch: memoryview) -> Accumulator:
        """See ``Coding.accumulator``."""
        return _NumpyAccumulator(code, stripe_count, scratch)

    def put_inner_blobs(self, blocks: memoryview, block_bytes: int, kind: RecordKind, blobs: memoryview) -> None:
        """See ``Coding.put_inner_blobs``."""
        blobs[:] = _view(inner_blobs(_array(blocks).reshape(-1, block_bytes), kind, self._groups))

    def stored_parity(self, code: CodeClass, parity: memoryview, sizes: Sequence[int]) -> memoryview:
        """See ``Coding.stored_parity``."""
        if is_all_lanes(code.mask) and all(size == code.slot_bytes for size in sizes):
            return parity
        slots = _array(parity).reshape(len(sizes), code.slot_bytes)
        used = [one[:size].reshape(1, -1, code.record_bytes) for one, size in zip(slots, sizes, strict=True)]
        return _view(np.concatenate([pack_lanes(one, code.mask).reshape(-1) for one in used]))

    def pages(self, stream: memoryview, section: Section, first_page: int, salt: int, scratch: memoryview) -> memoryview:
        """See ``Coding.pages``."""
        return _view(paginate_array(_array(stream), section, first_page, salt, _array(scratch)))
