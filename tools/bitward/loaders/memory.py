"""Memory for tensors, taken from those that are gone: fresh memory costs a page fault for each 4 KiB, which takes longer than to verify it.

A program that loads a model tensor by tensor lets go of each when it has the next. What is freed so the C library gives back to the kernel,
and gets it anew. Here the memory of a few tensors is kept, and filled again when nobody holds it any more: no
tensor, array or view, of which each holds the array that it lies in. It is never shortened or lengthened, so a tensor that is kept has
memory of exactly its own size.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

KEPT_BYTES = 32 << 20
"""Most memory that is kept for each open file."""
_KEPT_EACH = range(64 << 10, (16 << 20) + 1)
"""What is worth keeping: the C library keeps less by itself, and of more the kernel gives large pages."""
_KEPT_OF_A_SIZE = 2
"""A loop has two tensors for a moment: the one that it lets go of, and the next."""


def _holders(arrays: list[Any], index: int) -> int:
    """How many hold one of ``arrays``, as Python counts them: the list is one, and what this call itself adds depends on the version."""
    return sys.getrefcount(arrays[index])


_NOBODY_ELSE = _holders([object()], 0)


class TensorMemory:
    """Gives memory, and gives it again once it is free. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, list[Bytes]] = OrderedDict()
        self._kept_bytes = 0

    def take(self, size: int) -> Bytes:
        """An array of ``size`` bytes, u8, with anything in it."""
        if size not in _KEPT_EACH:
            return np.empty(size, np.uint8)
        with self._lock:
            arrays = self._kept.setdefault(size, [])
            self._kept.move_to_end(size)
            for index in range(len(arrays)):
                if _holders(arrays, index) == _NOBODY_ELSE:
                    return arrays[index]
            array = np.empty(size, np.uint8)
            if len(arrays) == _KEPT_OF_A_SIZE:
                arrays.pop(0)  # it is a tensor that somebody keeps
                self._kept_bytes -= size
            arrays.append(array)
            self._kept_bytes += size
            while self._kept_bytes > KEPT_BYTES:
                oldest, gone = self._kept.popitem(last=False)
                self._kept_bytes -= oldest * len(gone)
            return array
