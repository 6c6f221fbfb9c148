"""The codec's inner loops in C, where they were built: an option that changes speed and nothing else.

``KERNEL`` is ``None`` where there is no library (no compiler when the package was built, another kind of machine, a library of
another version); then NumPy does the same work. What it computes is held to NumPy's bytes and to the slow twin's by tests, and to a
known answer each time it is loaded: a library that computes wrongly is not used.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bitward_formats.pages import PAGE_BYTES, PAYLOAD_BYTES

Bytes = npt.NDArray[np.uint8]

VERSION = 1
"""Of the functions' signatures and meanings, as ``bitward_kernel_version`` returns it."""
LIBRARY_NAME = "libbitward_kernel.so"
GATHER_BYTES = 128
SMALLEST_CELL_LOG2 = 6
"""Cells of fewer records than a row of the kernel (64) are left to NumPy."""
WIDEST_VECTOR_BYTES = 64

_SELF_TEST_ANSWER = bytes.fromhex("844aff44bd0e7863c1bd29aba3659483")


def _address(array: Bytes) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("the kernel takes contiguous arrays")
    address: int = array.__array_interface__["data"][0]
    return address


class Kernel:
    """The library's functions, with every size checked here: C checks none."""

    def __init__(self, library: ctypes.CDLL, vector_limit_bytes: int = WIDEST_VECTOR_BYTES) -> None:
        """``vector_limit_bytes``: the widest vectors to use, 16, 32 or 64, if the processor has them.

        Raises:
            AttributeError: the library lacks a function.
        """
        limit = ctypes.c_uint
        self.vector_bytes = int(library.bitward_vector_bytes(limit(vector_limit_bytes)))
        self._limit = vector_limit_bytes
        pointer, size, word = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64

        def function(name: str, *arguments: Any) -> Any:
            found = getattr(library, f"bitward_{name}")
            found.argtypes, found.restype = (limit, *arguments), None
            return found

        self._add_slots = function("add_slots", pointer, pointer, pointer, size, size)
        self._inner_parity = function("inner_parity", pointer, size, size, size, ctypes.c_uint, pointer)
        self._gather_cells = function("gather_cells", pointer, size, size, ctypes.c_uint, pointer)
        self._pages = function("pages", pointer, size, ctypes.c_uint, ctypes.c_uint32, word, pointer)

    def add_slots(self, p: Bytes, q: Bytes, slots: Bytes, row_bytes: int) -> None:
        """Horner's step: ``P ^= slots`` and ``Q = α · Q ^ slots``; all three (stripes, slot_bytes) u8, the first two changed in place."""
        if not p.shape == q.shape == slots.shape or slots.shape[1] % (8 * row_bytes):
            raise ValueError(f"P {p.shape}, Q {q.shape} and slots {slots.shape} do not fit rows of {row_bytes} bytes")
        self._add_slots(self._limit, _address(p), _address(q), _address(slots), slots.size // (8 * row_bytes), row_bytes)

    def inner_parity(self, blocks: Bytes, record_bytes: int, cell_log2: int) -> Bytes:
        """Padded parity: (blocks, length) u8 -> (blocks, cells, m + 1, R) u8. ``length`` is a multiple of R, m is 6 to 16."""
        count, length = blocks.shape
        if not SMALLEST_CELL_LOG2 <= cell_log2 <= 16 or not 1 <= record_bytes <= 512 or length % record_bytes:
            raise ValueError(f"no cells of 2^{cell_log2} records of {record_bytes} bytes in {length} bytes")
        records = length // record_bytes
        parity = np.empty((count, -(-records >> cell_log2), cell_log2 + 1, record_bytes), np.uint8)
        self._inner_parity(self._limit, _address(blocks), count, records, record_bytes, cell_log2, _address(parity))
        return parity

    def pages(self, stream: Bytes, section: int, first_page: int, salt: int, pages: Bytes) -> None:
        """A stream (n,) u8 as sidecar pages of copy 0 into ``pages``, (pages, 4096) u8: all of it is written."""
        if pages.shape != (-(-stream.size // PAYLOAD_BYTES), PAGE_BYTES):
            raise ValueError(f"{stream.size} bytes do not make pages {pages.shape}")
        self._pages(self._limit, _address(stream), stream.size, section, first_page, salt, _address(pages))

    def gather_cells(self, cells: Bytes, item_bytes: int) -> npt.NDArray[np.uint64]:
        """The OR of the items of each cell: (n, cell_bytes) u8 -> (n,) u64; ``cell_bytes`` is a multiple of 128, items have 1, 2, 4, 8."""
        if cells.shape[1] % GATHER_BYTES or item_bytes not in (1, 2, 4, 8):
            raise ValueError(f"cells of {cells.shape[1]} bytes cannot be gathered: it takes multiples of {GATHER_BYTES}")
        gathered = np.empty(cells.shape[0], np.uint64)
        self._gather_cells(self._limit, _address(cells), *cells.shape, 8 * item_bytes, _address(gathered.view(np.uint8)))
        return gathered


def self_test(kernel: Kernel) -> bool:
    """Whether the known answers come out: a compiler's fault or a damaged library must not reach a sidecar."""
    data = np.arange(8192, dtype=np.uint32).astype(np.uint8).reshape(2, 4096) ^ np.uint8(0x5A)
    data[1, 1::2] ^= data[0, ::2] >> 1
    p, q = np.zeros_like(data), np.zeros_like(data)
    for step in (1, 3):
        kernel.add_slots(p, q, data * np.uint8(step), 512)
    parity = [p, q, *(kernel.inner_parity(data, record_bytes, 8) for record_bytes in (1, 2, 4, 8, 16))]
    stream = np.concatenate([part.reshape(-1) for part in parity])
    pages = np.empty((-(-stream.size // PAYLOAD_BYTES), PAGE_BYTES), np.uint8)
    kernel.pages(stream, 4, 9, 1 << 63, pages)
    return xxhash.xxh3_128_digest(pages.tobytes()) == _SELF_TEST_ANSWER


def load(vector_limit_bytes: int = WIDEST_VECTOR_BYTES) -> Kernel | None:
    """The library beside this module, or ``None`` if it is not there, is of another version or computes wrongly."""
    if sys.byteorder != "little":
        return None
    folder = __file__.rpartition("/")[0]
    try:
        library = ctypes.CDLL(f"{folder}/{LIBRARY_NAME}")
        if library.bitward_kernel_version() != VERSION:
            return None
        kernel = Kernel(library, vector_limit_bytes)
    except (OSError, AttributeError):
        return None
    return kernel if self_test(kernel) else None


KERNEL: Kernel | None = load()
