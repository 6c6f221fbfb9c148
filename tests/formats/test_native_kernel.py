"""The native kernel against NumPy, byte for byte, with every vector width that this processor has."""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitward_formats import native
from bitward_formats.geometry import CodeClass
from bitward_formats.lanes import padded_parity, trim
from bitward_formats.native import Kernel
from bitward_formats.page_arrays import paginate_array
from bitward_formats.pages import Section
from bitward_formats.stripes import StripeAccumulator, as_planes

Bytes = npt.NDArray[np.uint8]
WIDTHS_BYTES = (16, 32, 64)

needs_kernel = pytest.mark.skipif(
    native.KERNEL is None and os.environ.get("BITWARD_NATIVE") != "require",
    reason="the native kernel was not built: there was no C compiler when Bitward was installed",
)


@pytest.fixture(params=WIDTHS_BYTES)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    loaded = native.load(request.param)
    assert loaded is not None
    assert loaded.vector_bytes <= request.param
    return loaded


@pytest.fixture
def numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "KERNEL", None)


def array(buffer: bytearray) -> Bytes:
    return np.frombuffer(buffer, np.uint8)


class NumpyKernel:
    """What a kernel does, by NumPy, one obvious step after the other."""

    def add_slots(self, p: bytearray, q: bytearray, slots: bytearray, row_bytes: int) -> None:
        sums, weighted, data = (array(one) for one in (p, q, slots))
        planes = as_planes(weighted[None], row_bytes)
        old = planes.copy()
        for row in range(8):
            planes[:, :, row] = old[:, :, row - 1]
            if row in (2, 3, 4):
                planes[:, :, row] ^= old[:, :, 7]
        sums ^= data
        weighted ^= data

    def inner_parity(self, blocks: bytearray, count: int, record_bytes: int, cell_log2: int, parity: bytearray) -> None:
        parity[:] = padded_parity(array(blocks).reshape(count, -1), record_bytes, cell_log2).tobytes()

    def pages(self, stream: bytearray, section: int, first_page: int, salt: int, pages: bytearray) -> None:
        pages[:] = paginate_array(array(stream), Section(section), first_page, salt).tobytes()

    def census(
        self, data: bytearray, cell_bytes: int, item_bytes: int, mantissa_bits: int, tops: bytearray, *, big_endian: bool
    ) -> tuple[int, int]:
        items = array(data).view(f"{'>' if big_endian else '<'}u{item_bytes}").astype(np.uint64) & ((1 << (8 * item_bytes - 1)) - 1)
        made = []
        for at in range(0, items.size, cell_bytes // item_bytes):
            cell = items[at : at + cell_bytes // item_bytes]
            gathered = int(np.bitwise_or.reduce(cell))
            large = gathered >> (8 * item_bytes - 2)
            made.append(1 + ((int(cell.max()) if large else gathered) >> mantissa_bits) if gathered else 0)
        tops[:] = np.array(made, np.uint16).tobytes()
        return made.count(0), max(made)


@pytest.mark.usefixtures("numpy_alone")
def test_the_known_answer_is_numpys() -> None:
    assert native.self_test(cast(Kernel, NumpyKernel()))


@pytest.mark.usefixtures("numpy_alone")
@pytest.mark.parametrize(("function", "target"), [("add_slots", 1), ("inner_parity", 4), ("pages", 4), ("census", 4)])
def test_a_library_that_computes_wrongly_is_refused(function: str, target: int) -> None:
    faulty = NumpyKernel()
    right = getattr(faulty, function)

    def wrong(*arguments: Any, **named: Any) -> Any:
        result = right(*arguments, **named)
        arguments[target][-1] ^= 0x10
        return result

    setattr(faulty, function, wrong)
    assert not native.self_test(cast(Kernel, faulty))


@needs_kernel
@pytest.mark.usefixtures("numpy_alone")
@given(
    record_bytes=st.one_of(st.sampled_from([1, 2, 4, 8]), st.integers(1, 512)),
    records=st.one_of(st.sampled_from([1, 63, 64, 65, 2047, 2048, 2049, 4096, 8192]), st.integers(1, 9000)),
    cell_log2=st.integers(native.SMALLEST_CELL_LOG2, 16),
    width=st.sampled_from(WIDTHS_BYTES),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=200)
def test_inner_parity(record_bytes: int, records: int, cell_log2: int, width: int, seed: int) -> None:
    kernel = native.load(width)
    assert kernel is not None
    records = min(records, 65536 // record_bytes)
    blocks = np.random.default_rng(seed).integers(0, 256, (2, records * record_bytes), dtype=np.uint8)
    expected = padded_parity(blocks, record_bytes, cell_log2)
    found = np.full_like(expected, 0xEE)
    kernel.inner_parity(blocks, 2, record_bytes, cell_log2, found)
    assert (found == expected).all()
    stored = trim(expected, records).tobytes()
    kept = bytearray(len(stored))
    kernel.inner_parity(bytearray(blocks.tobytes()), 2, record_bytes, cell_log2, kept, trimmed=True)
    assert kept == stored


@needs_kernel
@pytest.mark.parametrize("row_bytes", [1, 2, 3, 24, 64, 72, 500, 504, 510, 511, 512])
def test_outer_parity(kernel: Kernel, row_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    code = cast(CodeClass, type("Code", (), {"row_bytes": row_bytes, "slot_bytes": 8 * row_bytes * 3}))
    slots = np.random.default_rng(row_bytes).integers(0, 256, (11, 3, code.slot_bytes), dtype=np.uint8)
    results = []
    for used in (kernel, None):
        monkeypatch.setattr(native, "KERNEL", used)
        accumulator = StripeAccumulator(code, 3)
        for position, given_slots in enumerate(slots):
            accumulator.add(position, 0, given_slots[: 3 if position < 10 else 2].copy())
        results.append(accumulator.result())
    assert all((found == expected).all() for found, expected in zip(*results, strict=True))


@needs_kernel
@pytest.mark.usefixtures("numpy_alone")
@pytest.mark.parametrize("size", [0, 1, 4079, 4080, 4081, 100_000])
def test_pages(kernel: Kernel, size: int) -> None:
    stream = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    expected = paginate_array(stream, Section.INNER, 77, 0xFEDCBA9876543210)
    found = np.full_like(expected, 0xEE)
    kernel.pages(stream, Section.INNER, 77, 0xFEDCBA9876543210, found)
    assert (found == expected).all()


@needs_kernel
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(("item_bytes", "mantissa_bits"), [(2, 7), (2, 10), (4, 23), (8, 52)])
@pytest.mark.parametrize("size", [8, 40, 2040, 2048, 2056, 81_920 + 16])
def test_census(kernel: Kernel, size: int, item_bytes: int, mantissa_bits: int, big_endian: bool) -> None:
    seeded = np.random.default_rng(size)
    data = bytearray(size)
    # Few bits in each cell, so that one left out shows; then cells without high exponents; then a few with.
    for kind in range(3):
        items = array(data).view(f"{'>' if big_endian else '<'}u{item_bytes}")
        items[:] = 0
        chosen = seeded.integers(0, items.size, max(1, items.size // (300, 2, 2)[kind]))
        items[chosen] = seeded.integers(0, 1 << (8 * item_bytes - (1, 2, 2)[kind]), chosen.size, dtype=np.uint64).astype(items.dtype)
        if kind == 2:
            items[seeded.integers(0, items.size)] |= 3 << (8 * item_bytes - 2)
        found, expected = (bytearray(2 * -(-size // 2048)) for _ in range(2))
        counts = [
            one.census(data, 2048, item_bytes, mantissa_bits, tops, big_endian=big_endian)
            for one, tops in ((kernel, found), (NumpyKernel(), expected))
        ]
        assert found == expected
        assert counts[0] == counts[1]


@needs_kernel
def test_sizes_are_checked_before_c_sees_them(kernel: Kernel) -> None:
    block = np.zeros((2, 4096), np.uint8)
    with pytest.raises(ValueError, match="do not fit rows"):
        kernel.add_slots(block, block[:1], block, 512)
    with pytest.raises(ValueError, match="do not fit rows"):
        kernel.add_slots(block, block.copy(), block, 500)
    with pytest.raises((ValueError, BufferError)):
        kernel.add_slots(block[:, ::2], block[:, ::2], block[:, ::2], 256)
    with pytest.raises(ValueError, match="contiguous"):
        kernel.pages(np.zeros((4080, 2), np.uint8)[:, 0], 4, 0, 0, bytearray(4096))
    for record_bytes, cell_log2 in ((3, 11), (0, 11), (513, 11), (2, 5), (2, 17)):
        with pytest.raises(ValueError, match="no cells"):
            kernel.inner_parity(block, 2, record_bytes, cell_log2, bytearray(1 << 16))
    with pytest.raises(ValueError, match="takes 48 bytes, not 47"):
        kernel.inner_parity(block[:, :2048].copy(), 2, 2, 11, bytearray(47))
    with pytest.raises(ValueError, match="do not make pages"):
        kernel.pages(block.reshape(-1), 4, 0, 0, bytearray(2 * 4096))
    for item_bytes, mantissa_bits in ((1, 3), (3, 7), (2, 0), (2, 14)):
        with pytest.raises(ValueError, match="no items"):
            kernel.census(block, 2048, item_bytes, mantissa_bits, bytearray(8), big_endian=False)
    with pytest.raises(ValueError, match="takes 4 numbers, not 3"):
        kernel.census(block, 2048, 2, 7, bytearray(6), big_endian=False)
