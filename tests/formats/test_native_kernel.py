"""The native kernel against NumPy, byte for byte, with every vector width that this processor has."""

from __future__ import annotations

import os
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitward_formats import native
from bitward_formats.geometry import CodeClass
from bitward_formats.lanes import padded_parity
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


class NumpyKernel:
    """What a kernel does, by NumPy, one obvious step after the other."""

    def add_slots(self, p: Bytes, q: Bytes, slots: Bytes, row_bytes: int) -> None:
        planes = as_planes(q, row_bytes)
        old = planes.copy()
        for row in range(8):
            planes[:, :, row] = old[:, :, row - 1]
            if row in (2, 3, 4):
                planes[:, :, row] ^= old[:, :, 7]
        p ^= slots
        q ^= slots

    def inner_parity(self, blocks: Bytes, record_bytes: int, cell_log2: int) -> Bytes:
        return padded_parity(blocks, record_bytes, cell_log2)

    def pages(self, stream: Bytes, section: int, first_page: int, salt: int, pages: Bytes) -> None:
        pages[:] = paginate_array(stream, Section(section), first_page, salt)


@pytest.mark.usefixtures("numpy_alone")
def test_the_known_answer_is_numpys() -> None:
    assert native.self_test(cast(Kernel, NumpyKernel()))


@pytest.mark.usefixtures("numpy_alone")
@pytest.mark.parametrize("function", ["add_slots", "inner_parity", "pages"])
def test_a_library_that_computes_wrongly_is_refused(function: str) -> None:
    faulty = NumpyKernel()
    right = getattr(faulty, function)

    def wrong(*arguments: object) -> object:
        result = right(*arguments)
        target = {"add_slots": 1, "pages": 4}.get(function)
        array = result if target is None else arguments[target]
        cast(Bytes, array).reshape(-1)[-1] ^= 0x10
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
    found = kernel.inner_parity(blocks, record_bytes, cell_log2)
    assert found.shape == expected.shape
    assert (found == expected).all()


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
def test_gathered_cells(kernel: Kernel) -> None:
    cells = np.zeros((40, 2048), np.uint8)
    seeded = np.random.default_rng(3)
    for row in range(1, 40):  # few bits in each, so that a byte left out shows
        cells[row, seeded.integers(0, 2048, row)] |= 1 << seeded.integers(0, 8, row, dtype=np.uint8)
    for item_bytes in (1, 2, 4, 8):
        assert (kernel.gather_cells(cells, item_bytes) == np.bitwise_or.reduce(cells.view(f"<u{item_bytes}"), axis=1)).all()
    with pytest.raises(ValueError, match="multiples of 128"):
        kernel.gather_cells(cells[:, :2040].copy(), 8)


@needs_kernel
def test_sizes_are_checked_before_c_sees_them(kernel: Kernel) -> None:
    block = np.zeros((2, 4096), np.uint8)
    with pytest.raises(ValueError, match="do not fit rows"):
        kernel.add_slots(block, block[:1], block, 512)
    with pytest.raises(ValueError, match="do not fit rows"):
        kernel.add_slots(block, block.copy(), block, 500)
    with pytest.raises(ValueError, match="contiguous"):
        kernel.add_slots(block[:, ::2], block[:, ::2], block[:, ::2], 256)
    for record_bytes, cell_log2 in ((3, 11), (0, 11), (513, 11), (2, 5), (2, 17)):
        with pytest.raises(ValueError, match="no cells"):
            kernel.inner_parity(block, record_bytes, cell_log2)
    with pytest.raises(ValueError, match="do not make pages"):
        kernel.pages(block.reshape(-1), 4, 0, 0, np.empty((2, 4096), np.uint8))
