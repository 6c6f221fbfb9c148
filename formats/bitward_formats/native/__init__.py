"""The codec's inner loops in C, where they were built: an option that changes speed and nothing else.

``KERNEL`` is ``None`` where there is no library (no compiler when the package was built, another kind of machine, a library of
another version); then NumPy does the same work. What it computes is held to NumPy's bytes and to the slow twin's by tests, and to a
known answer each time it is loaded: a library that computes wrongly is not used. Nothing here needs NumPy, so that what the kernel can do
alone starts without loading it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

import xxhash

from bitward_formats.packing_sizes import parity_record_count
from bitward_formats.pages import PAGE_BYTES, PAYLOAD_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION = 1
"""Of the functions' signatures and meanings, as ``bitward_kernel_version`` returns it."""
LIBRARY_NAME = "libbitward_kernel.so.1"
SMALLEST_CELL_LOG2 = 6
"""Cells of fewer records than a row of the kernel (64) are left to NumPy."""
WIDEST_VECTOR_BYTES = 64

_SELF_TEST_ANSWER = bytes.fromhex("338b7f719ff50d74097661ccbef57b52")


def _size(buffer: Buffer) -> int:
    return memoryview(buffer).nbytes


def _address(buffer: Buffer) -> int:
    """Where a contiguous buffer lies: a writable one, or an array, which may be read-only."""
    interface: dict[str, Any] | None = getattr(buffer, "__array_interface__", None)
    if interface is None:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if _size(buffer) else 0
    if interface["strides"] is not None:
        raise ValueError("the kernel takes contiguous arrays")
    address: int = interface["data"][0]
    return address


class Kernel:
    """The library's functions on buffers, with every size checked here: C checks none."""

    def __init__(self, library: ctypes.CDLL, vector_limit_bytes: int = WIDEST_VECTOR_BYTES) -> None:
        """``vector_limit_bytes``: the widest vectors to use, 16, 32 or 64, if the processor has them.

        Raises:
            AttributeError: the library lacks a function.
        """
        pointer, size, word, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint
        self.vector_bytes = int(library.bitward_vector_bytes(number(vector_limit_bytes)))
        self._limit = vector_limit_bytes

        def function(name: str, *arguments: Any, result: Any = None) -> Any:
            found = getattr(library, f"bitward_{name}")
            found.argtypes, found.restype = (number, *arguments), result
            return found

        self._add_slots = function("add_slots", pointer, pointer, pointer, size, size)
        self._inner_parity = function("inner_parity", pointer, size, size, size, number, ctypes.c_int, pointer)
        self._pages = function("pages", pointer, size, number, ctypes.c_uint32, word, pointer)
        self._census = function("census", pointer, size, size, number, number, ctypes.c_int, pointer, result=word)

    def add_slots(self, p: Buffer, q: Buffer, slots: Buffer, row_bytes: int) -> None:
        """Horner's step: ``P ^= slots`` and ``Q = α · Q ^ slots``; all three equally long, the first two changed in place."""
        size = _size(slots)
        if not _size(p) == _size(q) == size or size % (8 * row_bytes):
            raise ValueError(f"P {_size(p)}, Q {_size(q)} and slots {size} do not fit rows of {row_bytes} bytes")
        self._add_slots(self._limit, _address(p), _address(q), _address(slots), size // (8 * row_bytes), row_bytes)

    def inner_parity(
        self, blocks: Buffer, block_count: int, record_bytes: int, cell_log2: int, parity: Buffer, *, trimmed: bool = False
    ) -> None:
        """Parity of equally long blocks into ``parity``: padded (blocks, cells, m + 1, R), or trimmed to what is stored. m is 6 to 16."""
        length, rest = divmod(_size(blocks), block_count)
        records, partial = divmod(length, max(record_bytes, 1))
        if not SMALLEST_CELL_LOG2 <= cell_log2 <= 16 or not 1 <= record_bytes <= 512 or rest or partial:
            raise ValueError(f"no cells of 2^{cell_log2} records of {record_bytes} bytes in {block_count} blocks of {_size(blocks)} bytes")
        kept = parity_record_count(records, cell_log2) if trimmed else (cell_log2 + 1) * -(-records >> cell_log2)
        if _size(parity) != block_count * kept * record_bytes:
            raise ValueError(f"parity of {block_count} blocks takes {block_count * kept * record_bytes} bytes, not {_size(parity)}")
        self._inner_parity(self._limit, _address(blocks), block_count, records, record_bytes, cell_log2, trimmed, _address(parity))

    def pages(self, stream: Buffer, section: int, first_page: int, salt: int, pages: Buffer) -> None:
        """A stream as sidecar pages of copy 0 into ``pages``: all of it is written."""
        size = _size(stream)
        if _size(pages) != -(-size // PAYLOAD_BYTES) * PAGE_BYTES:
            raise ValueError(f"{size} bytes do not make pages of {_size(pages)} bytes")
        self._pages(self._limit, _address(stream), size, section, first_page, salt, _address(pages))

    def census(
        self, data: Buffer, cell_bytes: int, item_bytes: int, mantissa_bits: int, tops: Buffer, *, big_endian: bool
    ) -> tuple[int, int]:
        """For each cell of floating-point items 0 if it is zero, else 1 and its largest exponent field, into ``tops``, u16.

        Where the OR of a cell's magnitudes is below 2, it is the exponent field of that, a bound. Returns (number of zero cells, the
        largest of the numbers).
        """
        size = _size(data)
        if item_bytes not in (2, 4, 8) or cell_bytes % item_bytes or size % item_bytes or not 0 < mantissa_bits < 8 * item_bytes - 2:
            raise ValueError(f"no items of {item_bytes} bytes in cells of {cell_bytes} and {size} bytes")
        if _size(tops) != -(-size // cell_bytes) * 2:
            raise ValueError(f"the census of {size} bytes takes {-(-size // cell_bytes)} numbers, not {_size(tops) // 2}")
        counts = self._census(self._limit, _address(data), size, cell_bytes, item_bytes, mantissa_bits, big_endian, _address(tops))
        return counts >> 16, counts & 0xFFFF


def self_test(kernel: Kernel) -> bool:
    """Whether the known answers come out: a compiler's fault or a damaged library must not reach a sidecar."""
    data = bytearray(b"".join([xxhash.xxh3_128_digest(bytes([number & 0xFF, number >> 8])) for number in range(512)]))
    p, q = bytearray(8192), bytearray(8192)
    for _ in range(3):
        kernel.add_slots(p, q, data, 512)
        data[:4096], data[4096:] = data[4096:], data[:4096]
    made = [p, q]
    for record_bytes in (1, 2, 4, 8, 16):
        made.append(bytearray(2 * 9 * record_bytes * -(-4096 // record_bytes // 256)))
        kernel.inner_parity(data, 2, record_bytes, 8, made[-1])
    made.append(bytearray(8))
    kernel.census(data, 2048, 4, 23, made[-1], big_endian=False)
    stream = bytearray(b"".join(made))
    pages = bytearray(-(-len(stream) // PAYLOAD_BYTES) * PAGE_BYTES)
    kernel.pages(stream, 4, 9, 1 << 63, pages)
    return xxhash.xxh3_128_digest(pages) == _SELF_TEST_ANSWER


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
